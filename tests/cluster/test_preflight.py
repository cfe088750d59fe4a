"""What is checked before ranks start: room on the disk, and that nodes reach each other."""

import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bmscale.cli import main
from bmscale.cluster import preflight
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, read_experiment
from bmscale.model.sizes import count_parameters

GIB = 2**30


def sized(tmp_path, *overrides: str) -> tuple[Experiment, int]:
    values = ["model.size=1b", f"run={tmp_path}/a/run", *overrides]
    experiment = read_experiment("toy", values)
    return experiment, count_parameters(experiment.model.build(experiment.data.tokenizer.vocabulary_size)).total


def has_room(experiment: Experiment, free: float, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    try:
        preflight.check_room(experiment)
        return True
    except BadInput:
        return False


@pytest.mark.parametrize(("average", "bytes_each"), [("null", 12), ("0.999", 16)])
def test_room_for_the_states_to_come(tmp_path, monkeypatch, average, bytes_each):
    experiment, parameters = sized(tmp_path, "training.keep_states=3", f"training.ema_decay={average}")
    for there, to_come in ((0, 4), (3, 1), (4, 1)):
        for number in range(there):
            (tmp_path / f"a/run/state/step-{number:08d}").mkdir(parents=True, exist_ok=True)
        needed = parameters * (to_come * bytes_each + 8)
        assert has_room(experiment, needed, monkeypatch)
        assert not has_room(experiment, needed - 1, monkeypatch)


def test_the_message_says_what_is_needed_and_what_there_is(tmp_path, monkeypatch):
    experiment, _ = sized(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * GIB))
    with pytest.raises(BadInput, match=r"a/run: its file system must have room for 3 .* GiB; free: 3 GiB\. Make room"):
        preflight.check_room(experiment)


def test_a_dry_run_of_train_prints_the_run_folder_and_writes_nothing(prepared, capsys, monkeypatch):
    monkeypatch.chdir(prepared)
    assert main(["train", "tiny.yaml", "run=runs/new", "--dry-run"]) == 0
    assert capsys.readouterr().out == "runs/new\n"
    assert not (prepared / "runs/new").exists()
    assert main(["train", "tiny.yaml", "data.directory=nowhere", "--dry-run"]) == 2
    assert "nowhere: no prepared data here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("training.seed=9", "runs/tiny: holds a run of another experiment; training.seed"),
        ("training.schedule.type=cosine", "Give --new-schedule if that is meant"),
        ("training.max_micro_batch_tokens=8", "training.max_micro_batch_tokens: must hold the longest pair"),
        ("training.trackers=[nobody]", "training.trackers: must name trackers that are installed"),
        ("training.deepspeed=zreo2", "training.deepspeed: no such file or name: 'zreo2'; did you mean 'zero2'"),
        ("run=tiny.yaml", "tiny.yaml: must be the folder of a run, or free for a new one"),
        ("run=tiny.yaml/run", "tiny.yaml/run: must be the folder of a run, or free for a new one"),
    ],
)
def test_a_dry_run_refuses_what_training_refuses(trained, capsys, monkeypatch, given, message):
    monkeypatch.chdir(trained)
    for option in ([], ["--dry-run"]):
        assert main(["train", "tiny.yaml", given, *option]) == 2
        assert message in capsys.readouterr().err


def test_a_dry_run_takes_what_training_takes(trained, monkeypatch):
    monkeypatch.chdir(trained)
    assert main(["train", "tiny.yaml", "training.schedule.type=cosine", "--dry-run", "--new-schedule"]) == 0
    assert main(["train", "tiny.yaml", "training.deepspeed=zero3", "training.max_steps=20", "--dry-run"]) == 0


def meet(port: int, nodes: int, node: int, seconds: int) -> subprocess.Popen[str]:
    program = "import sys; from bmscale.cluster.preflight import meet; meet(*sys.argv[1:])"
    words = ["127.0.0.1", str(port), str(nodes), str(node), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_nodes_meet():
    port = free_port()
    processes = [meet(port, 2, node, 60) for node in (0, 1)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended


@pytest.mark.parametrize("node", [0, 1])
def test_a_node_that_is_alone_says_so_in_time(node):
    process = meet(free_port(), 2, node, 1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "bmscale: the first node was not reached, or not all nodes reached it: " in said
    assert "Traceback" not in said
