"""One training at a time is at a run folder."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bmscale.cli import main
from bmscale.errors import BadInput, BmscaleError
from bmscale.experiment import RunFolder
from bmscale.training import ending, lock

HOLDER = """
import sys, time
from pathlib import Path
from bmscale.experiment import RunFolder
from bmscale.training import lock
run = RunFolder(Path(sys.argv[1]))
lock.take(run)
lock.sign(run)
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Iterator[RunFolder]:
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.0)
    run = RunFolder(tmp_path / "run")
    yield run
    lock.release(run)


@contextmanager
def held(run: RunFolder, **environment: str) -> Iterator[int]:
    """While another process has the run: its number. It is killed in the end."""
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "taken\n"
            yield job.pid
        finally:
            job.kill()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_is_refused_and_changes_nothing(trained, tmp_path, monkeypatch, capsys):
    """After kill -9 of the first it goes on."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    run = RunFolder(Path("runs/tiny"))
    with held(run) as process:
        run.ranks.mkdir()
        (run.ranks / "rank-00000.json").write_text("of the first")
        run.exit.write_text("of the first")
        before = contents(run.path)
        assert main(["train", "tiny.yaml", "training.max_steps=13"]) == 2
        assert f"process {process}) is at this run" in capsys.readouterr().err
        assert contents(run.path) == before
    assert main(["train", "tiny.yaml"]) == 0
    assert json.loads(run.exit.read_text())["class"] == "done"
    assert not lock.is_anothers(run)


def test_an_error_of_a_second_start_is_not_written_over_the_end_of_the_first(run, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def fail() -> ending.Ending:
        raise RuntimeError("port in use")

    with held(run):
        run.record.touch()
        with pytest.raises(BmscaleError, match="port in use"):
            ending.of(run, fail)
        assert not run.exit.exists()
    with pytest.raises(BmscaleError, match="port in use"):
        ending.of(run, fail)
    assert run.exit.exists()


def test_an_earlier_start_of_the_same_job_is_over(run, monkeypatch):
    """Its node died, and the server of the file system does not know it yet."""
    with held(run, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0"):
        for number, restart in (("7", "0"), ("8", "1")):
            monkeypatch.setenv("SLURM_JOB_ID", number)
            monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
            with pytest.raises(BadInput, match="is at this run"):
                lock.take(run)
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        lock.take(run)


def test_a_file_system_without_locks_is_no_hindrance(run, monkeypatch, caplog):
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock.log.propagate = True
    lock.take(run)
    assert "the file system has no locks" in caplog.text


def test_a_second_training_of_two_ranks_is_refused_once(bmscale, trained, tmp_path):
    work = shutil.copytree(trained, tmp_path / "work")
    with held(RunFolder(work / "runs/tiny")) as process:
        refused = bmscale("train", "tiny.yaml", "training.max_steps=13", folder=work, ranks=2, check=False)
    assert refused.returncode == 1  # of the launcher
    assert refused.stderr.count(f"process {process}) is at this run") == 1
    assert not (work / "runs/tiny/ranks").exists()
    resumed = bmscale("train", "tiny.yaml", "training.max_steps=13", folder=work, ranks=2)
    assert "resumed from runs/tiny/state/step-00000012" in resumed.stderr
