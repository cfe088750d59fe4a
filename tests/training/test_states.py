"""When a run goes back to a state, and what it does when one cannot be saved."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from bmscale.engine.engine import Engine
from bmscale.errors import BmscaleError
from bmscale.experiment import RunFolder, TrainingConfig
from bmscale.training import train
from bmscale.training.checkpoint import SaveFailed, list_states, read_manifest
from bmscale.training.states import States


def events(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    return [line for line in map(json.loads, lines) if line.get("event") == kind]


POISONED = """
import sys
from bmscale.cli import main
from bmscale.engine.engine import Engine
from bmscale.model.loss import LossSums
train_step = Engine.train_step
def poisoned(self, batches, loss_function, **options):
    def worse(model, batch):
        sums = loss_function(model, batch)
        return LossSums(loss=sums.loss * float("nan"), nll=sums.nll, tokens=sums.tokens)
    bad = options["data_step"] in {steps}
    return train_step(self, batches, worse if bad else loss_function, **options)
Engine.train_step = poisoned
sys.exit(main(["train", "tiny.yaml", "run=runs/{name}", "training.max_skipped_steps=2", *{settings}]))
"""


def poison(folder: Path, name: str, steps: list[int], *settings: str) -> subprocess.CompletedProcess[str]:
    program = POISONED.format(steps=steps, name=name, settings=list(settings))
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


def test_bad_steps_in_a_row_send_the_run_back(trained):
    """Steps 5 to 7 are bad: after two of them the weights of step 4 come back, and the data goes on behind them."""
    result = poison(trained, "back", [5, 6, 7])
    assert result.returncode == 0, result.stderr[-3000:]
    run = trained / "runs/back"
    assert [event["step"] for event in events(run, "skipped")] == [6, 7, 8]
    (back,) = events(run, "rolled_back")
    assert (back["step"], back["to_optimizer_step"], back["rollbacks"]) == (7, 4, 1)
    assert "2 steps in a row were skipped" in back["why"]
    # Of 12 global steps 3 were skipped, and step 5, which was taken, was undone.
    standing = read_manifest(list_states(run / "state")[-1]).standing
    assert (standing.data_step, standing.optimizer_step, standing.rollbacks) == (12, 8, 1)
    assert 7 in [event["step"] for event in events(run, "saved")]


def test_a_branch_begins_where_a_step_was_skipped_too(trained):
    """The run from scratch would skip it as well; a state one step later is none of the branch step."""
    result = poison(trained, "branched", [2], "training.branch_steps=[3]", "training.max_steps=5")
    assert result.returncode == 0, result.stderr[-3000:]
    standing = read_manifest(trained / "runs/branched/state/step-00000003").standing
    assert (standing.data_step, standing.optimizer_step) == (3, 2)


def test_a_branch_without_a_state_of_its_own_goes_back_to_its_beginning(trained):
    """Steps 10 and 11 are bad: the weights of its trunk's step 8 come back."""
    result = poison(trained, "short", [9, 10], "branch_from=runs/tiny/state/step-00000008")
    assert result.returncode == 0, result.stderr[-3000:]
    (back,) = events(trained / "runs/short", "rolled_back")
    assert (back["step"], back["to_optimizer_step"], back["rollbacks"]) == (11, 8, 1)
    standing = read_manifest(list_states(trained / "runs/short/state")[-1]).standing
    assert (standing.data_step, standing.optimizer_step) == (12, 9)


def test_where_a_run_without_a_state_begins_anew_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train.log, "propagate", True)
    run = RunFolder(tmp_path)
    run.record.write_text(json.dumps({"experiment": {}, "identity": {}, "total_steps": 9, "starts": []}))
    run.metrics.write_text('{"step": 9, "lr": 0.1}\n')
    for beginning, said in ((None, "begins at step 0"), ("x/state/step-00000008", "begins at x/state/step-00000008")):
        caplog.clear()
        assert train._newest_state(run, "own", beginning) is None
        assert said in caplog.text


def test_a_state_of_a_branch_step_that_cannot_be_saved_ends_the_run(tmp_path):
    """Trying again some steps later would leave none of that step."""
    training = TrainingConfig(max_steps=9, branch_steps=[3])
    lines: list[dict] = []
    states = States(tmp_path, cast("Engine", None), training, float, lambda: None, lines.append)
    with pytest.raises(BmscaleError, match=r"step 3: .* with which a branch is to begin, .* disk full"):
        states._failed(3, SaveFailed("disk full"))
    assert not states._failed(4, SaveFailed("disk full"))
    assert [line["event"] for line in lines] == ["save_failed", "save_failed"]


def test_a_run_that_stays_bad_is_given_up(trained):
    result = poison(trained, "given-up", list(range(5, 99)), "training.max_rollbacks=5")
    assert result.returncode == 3
    assert "and no earlier state was saved to go back to" in result.stderr
    assert json.loads((trained / "runs/given-up/exit.json").read_text())["class"] == "diverged"
    result = poison(trained, "never", [5, 6, 7], "training.max_rollbacks=0")
    assert result.returncode == 3
    assert "after 0 rollbacks of at most 0; lower training.optimizer.learning_rate" in result.stderr


def test_other_weights_than_were_saved_stop_the_run(bmscale, trained):
    """The loss on the probe batch is compared at every resume: a state whose record says another loss is refused."""
    program = (
        "import sys\nfrom bmscale.cli import main\nfrom bmscale.engine.engine import Engine\n"
        "read = Engine.load_state\n"
        "def wrong(self, piece, step, empty):\n"
        "    read(self, lambda name, kind, start, count: piece(name, kind, start, count) * 1.001, step, empty)\n"
        "Engine.load_state = wrong\n"
        "sys.exit(main(['train', 'tiny.yaml', 'run=runs/probe', 'training.max_steps=14']))"
    )
    bmscale("train", "tiny.yaml", "run=runs/probe", "training.max_steps=4", folder=trained)
    result = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "must give the loss on the probe batch that they gave when they were saved" in result.stderr
    assert "within 1e-06" in result.stderr


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_full_disk_does_not_end_the_run(trained, tmp_path, background):
    """A file system of 4 MiB that a stranger fills: saves fail, the run goes on, and saves once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "bmscale-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a full disk needs root, to mount a file system of 4 MiB")
    try:
        run = disk / "run"
        settings = ["training.max_steps=500", "training.save_every_steps=50", "training.max_failed_saves=500"]
        settings += [f"training.save_in_background={background}", "evaluation.every_steps=400", "evaluation.pairs=0"]
        said = tmp_path / "said.txt"
        with said.open("w") as errors:
            command = [sys.executable, "-m", "bmscale", "train", "tiny.yaml", f"run={run}", *settings]
            job = subprocess.Popen(command, cwd=trained, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            wait_for(lambda: len(list_states(run / "state")) == 2, job)
            while True:
                try:
                    with (disk / "filler").open("ab") as filler:
                        filler.write(b"x" * 4096)
                except OSError:
                    break
            wait_for(lambda: "the training state was not saved" in said.read_text(), job)
            kept = list_states(run / "state")
            assert len(kept) >= 2
            (disk / "filler").unlink()
            job.wait(timeout=300)
        finally:
            job.kill()
        assert job.returncode == 0, said.read_text()[-3000:]
        assert "No space left on device" in said.read_text()
        assert list_states(run / "state")[-1].name == "step-00000500"
        logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
        assert [line["step"] for line in logged if "loss" in line] == list(range(2, 501, 2))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def wait_for(happened: Callable[[], bool], job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert job.poll() is None, "the run ended before it happened"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_that_stays_full_ends_the_run_with_its_states_whole(trained):
    program = (
        "import sys\nfrom bmscale.cli import main\nfrom bmscale.training import checkpoint\n"
        "write = checkpoint.write_durably\n"
        "def full(path, content):\n"
        "    if 'step-00000004' in str(path): return write(path, content)\n"
        "    raise OSError(28, 'No space left on device', str(path))\n"
        "checkpoint.write_durably = full\n"
        "checkpoint._point_to = lambda state: None\n"
        "sys.exit(main(['train', 'tiny.yaml', 'run=runs/full', 'training.max_failed_saves=1',"
        " 'training.max_steps=40']))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "could not be saved 2 times in a row" in result.stderr
    assert [state.name for state in list_states(trained / "runs/full/state")] == ["step-00000004"]
    assert [event["step"] for event in events(trained / "runs/full", "save_failed")] == [8, 9]
