"""Before it begins, a training that cannot fit is refused, and one that may not is warned of."""

import pytest

from bmscale.errors import BadInput
from bmscale.experiment import read_experiment
from bmscale.planning import hardware
from bmscale.planning.check import check

GIB = 2**30
LARGE = ["model.size=300m", "training.precision=bf16", "training.deepspeed=zero2"]


@pytest.fixture
def memory(monkeypatch):
    def has(whole: float, free: float) -> None:
        monkeypatch.setattr(hardware, "host_memory", lambda: whole * GIB)
        monkeypatch.setattr(hardware, "free_memory", lambda: free * GIB)

    return has


def test_what_fits_is_trained_without_a_word(memory, caplog):
    memory(64, 60)
    check(read_experiment("toy-text", LARGE), {})
    assert not caplog.messages


def test_what_cannot_fit_is_refused_with_what_does(memory):
    memory(64, 60)
    overrides = [*LARGE, "training.tokens_per_step=300000", "training.max_micro_batch_tokens=300000"]
    with pytest.raises(
        BadInput, match=r"zero2, micro-batches of .* cannot fit: it needs .* of RAM .*--unchecked"
    ) as error:
        check(read_experiment("toy-text", overrides), {})
    advice = str(error.value).partition("What fits: ")[2].partition(". ")[0]
    assert advice.startswith("training.max_micro_batch_tokens=")
    check(read_experiment("toy-text", [*overrides, advice]), {})


def test_two_ranks_need_twice_the_memory(memory):
    memory(9, 9)
    check(read_experiment("toy-text", LARGE), {})
    with pytest.raises(BadInput, match="cannot fit"):
        check(read_experiment("toy-text", LARGE), {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2"})


def test_what_is_within_the_error_of_the_planner_is_warned_of(memory, caplog):
    memory(64, 2)
    check(read_experiment("toy-text", LARGE), {})
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("may not fit: it needs")
    assert caplog.messages[0].endswith("at the moment")
    caplog.clear()
    check(read_experiment("toy-text", LARGE), {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert not caplog.messages  # rank 0 says it


def test_an_error_of_the_planner_keeps_nobody_from_training(memory, monkeypatch):
    memory(64, 60)
    monkeypatch.setattr("bmscale.planning.check.need", lambda *_: 1 / 0)
    check(read_experiment("toy-text", LARGE), {})


def test_train_asks_before_it_begins(tmp_path, monkeypatch, capsys):
    """The command itself: code 2 and a line, and the run is not begun; --unchecked gets past it."""
    from bmscale.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "host_memory", lambda: GIB / 8)
    monkeypatch.setattr(hardware, "free_memory", lambda: GIB / 8)
    assert main(["train", "toy"]) == 2
    assert "cannot fit" in capsys.readouterr().err
    assert main(["train", "toy", "--unchecked"]) == 2
    assert "bmscale prepare" in capsys.readouterr().err  # the next thing that is missing
