"""A study run as a user runs it: ended in the middle, gone on with, one training that cannot begin."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bmscale.data.synthetic import irreducible_loss_of
from bmscale.errors import BadInput
from bmscale.experiment import RunFolder
from bmscale.scaling import runs
from bmscale.scaling.runs import Ended, run_study
from bmscale.scaling.study import read_study
from bmscale.training import checkpoint, record

CELLS = ["w16-l1-5e4-s0", "w16-l1-1e5-s0", "w16-l1-5e4-s1", "w32-l1-5e4-s0", "w32-l1-1e5-s0"]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bmscale", "scaling", "run", "ci", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True)


def table(folder: Path, name: str = "table") -> list[dict]:
    return [json.loads(line) for line in (folder / f"studies/ci/{name}.jsonl").read_text().splitlines()]


def states(folder: Path, trunk: str) -> list[str]:
    return sorted(path.name[-2:] for path in (folder / "studies/ci/runs" / trunk / "state").glob("step-*"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, int, str]:
    """A study that a scheduler ended (SIGTERM) once its first branch was done; one trunk cannot begin."""
    folder = tmp_path_factory.mktemp("study")
    junk = folder / "studies/ci/runs/w32-l1-s0-trunk/junk"
    junk.parent.mkdir(parents=True)
    junk.touch()
    process, branch = start(folder), folder / "studies/ci/runs/w16-l1-5e4-s0/exit.json"
    deadline = time.monotonic() + 240
    while not branch.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    return folder, process.returncode, said


@pytest.fixture(scope="module")
def finished(ended) -> tuple[Path, str]:
    """The same after the same command, which meets the trunk that cannot begin, and once more without it."""
    folder, _, _ = ended
    process = start(folder)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "w32-l1-s0-trunk: ended with code 2" in said
    assert "is not empty and holds no run.yaml" in said
    assert [row["cell"] for row in table(folder)] == CELLS[:3]
    (folder / "studies/ci/runs/w32-l1-s0-trunk/junk").unlink()
    process = start(folder)
    out, said_then = process.communicate(timeout=400)
    assert process.returncode == 0, said_then
    assert out == "studies/ci/table.jsonl\n"
    return folder, said + said_then


class Sleeper:
    """A training that a signal reaches while it starts, before there is a process to pass it to."""

    pid = None

    def __init__(self, child: runs._Child) -> None:
        self._child = child

    def start(self) -> None:
        self._child.handle(signal.SIGUSR1, None)
        self.popen = subprocess.Popen(["sleep", "60"])
        self.pid = self.popen.pid

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def join(self) -> None:
        self.popen.wait(timeout=30)


def test_a_signal_while_nothing_trains_ends_the_study_too(tmp_path, monkeypatch):
    child = runs._Child()
    sleeper = Sleeper(child)
    monkeypatch.setattr(runs, "_context", lambda: argparse.Namespace(Process=lambda **_: sleeper))
    for _ in range(2):  # while it starts, and before the next one: that does not start at all
        with pytest.raises(Ended, match="asked to end") as ended:
            child.train(tmp_path / "x.yaml", tmp_path / "output/x.txt")
        assert ended.value.exit_code == 75
    assert sleeper.popen.returncode == -signal.SIGTERM


def test_a_signal_while_the_data_is_prepared_ends_the_study(tmp_path, monkeypatch):
    def asked(data: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        pytest.fail("must leave at once")

    monkeypatch.setattr(runs, "prepare", asked)
    with pytest.raises(Ended) as ended:
        run_study(read_study("ci", [], str(tmp_path / "out")))
    assert ended.value.exit_code == 75
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_study_that_is_asked_to_end_is_preempted(ended):
    folder, code, said = ended
    assert code == 75, said
    assert "the same command goes on with it" in said
    assert "w16-l1-5e4-s0" in [row["cell"] for row in table(folder)]
    assert len(table(folder)) < len(CELLS)


def test_what_is_done_is_not_done_again(finished):
    folder, said = finished
    assert "w16-l1-5e4-s0:" not in said
    rows = table(folder)
    assert [row["cell"] for row in rows] == CELLS
    for row in rows:
        trained = record.read(RunFolder(folder / row["run"]))
        assert len(trained.starts) == 1 or row["cell"] not in ("w16-l1-5e4-s0", "w32-l1-1e5-s0")


def test_a_branch_is_its_run_from_scratch(finished):
    folder, _ = finished
    rows = [table(folder)[0], table(folder, "from_scratch")[0]]
    assert [row["cell"] for row in rows] == ["w16-l1-5e4-s0", "w16-l1-5e4-s0-scratch"]
    assert rows[0]["loss"] == rows[1]["loss"]
    branch, scratch = (load_file(folder / row["run"] / "model/best/model.safetensors") for row in rows)
    assert all((branch[name] == scratch[name]).all() for name in scratch)


def test_the_table_says_what_a_fit_needs(finished):
    folder, _ = finished
    rows = {row["cell"]: row for row in table(folder)}
    known, counted = irreducible_loss_of("valid", 500)["drawn"], read_study("ci", []).tokens_per_step
    for row in rows.values():
        assert row["D"] == pytest.approx(row["steps"] * counted, rel=6e-3)
        assert known < row["loss"] < 5.7
        assert row["irreducible_loss"] == known
        assert row["D"] == row["U"] == pytest.approx(row["budget"], rel=0.03)
        assert row["N"] == row["N_with_head"] == row["N_e"] + row["N_d"] + 260 * row["width"]
        assert row["C_6ND"] == 6 * row["N"] * row["D"]
        assert row["C"] == pytest.approx(row["C_6ND"], rel=0.2)
        assert row["seconds"] > 0
    assert rows["w32-l1-1e5-s0"]["loss"] < rows["w32-l1-5e4-s0"]["loss"]
    assert rows["w16-l1-5e4-s1"]["loss"] != rows["w16-l1-5e4-s0"]["loss"]
    assert (rows["w32-l1-5e4-s0"]["learning_rate"], rows["w16-l1-5e4-s0"]["learning_rate"]) == (6e-3, 1e-2)


def test_states_of_branches_go_when_they_are_done_and_those_of_holdouts_can_come(finished):
    """The newest two stay, so that a trunk can be trained on."""
    folder, _ = finished
    assert states(folder, "w16-l1-s0-trunk") == ["20", "40"]
    assert states(folder, "w16-l1-s1-trunk") == ["20"]


def test_a_study_that_was_moved_goes_on_with_other_resources(finished, tmp_path, monkeypatch):
    folder, _ = finished
    shutil.copytree(folder / "studies/ci", tmp_path / "there")
    record_of = tmp_path / "there/runs/w16-l1-5e4-s0/run.yaml"
    record_of.write_text(record_of.read_text().replace("    max_rollbacks: 2\n", ""))  # of a version without the key
    monkeypatch.setattr(runs._Child, "train", lambda *_: pytest.fail("all is done"))
    study = ["experiment.training.save_every_steps=30", "experiment.data.directory=" + str(tmp_path / "there/data")]
    assert run_study(read_study("ci", study, str(tmp_path / "there")))


def test_finished_cells_keep_one_model(finished):
    folder, _ = finished
    for row in table(folder):
        run = RunFolder(folder / row["run"])
        assert [run.best.is_dir(), run.last.exists(), run.states.exists()] == [True, False, False]


def test_a_trunk_comes_again_by_a_beginning_that_is_not_there(finished, tmp_path):
    run = RunFolder(shutil.copytree(finished[0] / "studies/ci/runs/w16-l1-s0-trunk", tmp_path / "trunk"))
    assert runs._go_back(run, 45) == 0  # in whose way nothing is
    assert runs._go_back(run, 30) == 40  # the state of step 20 is to go on from
    assert [state.name[-2:] for state in checkpoint.list_states(run.states)] == ["20"]
    file = next((run.states / "step-00000020").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert runs._go_back(run, 20) == 20
    assert not run.path.exists()
    assert RunFolder(tmp_path / "trunk.1").record.is_file()
    assert runs._go_back(run, 20) == 0


def test_a_cell_whose_beginning_is_damaged_is_trained_all_the_same(finished):
    folder, _ = finished
    lost = next(row for row in table(folder) if row["cell"] == "w16-l1-5e4-s1")
    shutil.rmtree(folder / lost["run"])
    file = next((folder / "studies/ci/runs/w16-l1-s1-trunk/state/step-00000020").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    process = start(folder, "--only", "*-s1")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "has no whole state before step 20: it begins anew" in said
    assert [row["loss"] for row in table(folder) if row["cell"] == lost["cell"]] == [lost["loss"]]


def test_another_study_in_the_same_folder_is_refused(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    said = r"made when the study was another: training\.optimizer\.learning_rate: was 0\.01, now 0\.02"
    rates = "sizes=[{width: 16, layers: 1, learning_rate: 0.02}, {width: 32, layers: 1}]"
    with pytest.raises(BadInput, match=said):
        run_study(read_study("ci", [rates]))
    assert len(table(folder)) == len(CELLS)
    said = r"table\.jsonl: w16-l1-5e4-s0: was trained for 25 steps, which the study counts as 50 now.*another --folder"
    with pytest.raises(BadInput, match=said):
        run_study(read_study("ci", ["experiment.training.tokens_per_step=1024"]))
    assert len(table(folder)) == len(CELLS)
