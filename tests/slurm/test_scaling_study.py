"""slurm/scaling_study.sh against stand-ins: which trunk an element trains, and what becomes of one that is ended."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "slurm" / "scaling_study.sh"
# Ends with CODE, or 75 as soon as it is asked to.
PYTHON = """\
#!/usr/bin/env bash
echo "python $*" >>"$RECORD"
trap 'echo asked >>"$RECORD"; exit 75' USR1
[ -z "${LONG:-}" ] || { touch "$RECORD.begun"; for _ in {1..200}; do sleep 0.05; done; }
exit "${CODE:-0}"
"""
SCONTROL = """\
#!/usr/bin/env bash
echo "scontrol $*" >>"$RECORD"
"""


def element(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    for name, text in (("python", PYTHON), ("scontrol", SCONTROL)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_SUBMIT_DIR": str(folder)}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    given = {**plain, **slurm, "BMSCALE_ENV": "active", "RECORD": str(folder / "record"), **environment}
    given["PATH"] = f"{folder}{os.pathsep}{given['PATH']}"
    return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=given, stderr=-1, text=True)


def record(folder: Path) -> list[str]:
    return (folder / "record").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1])
def test_an_element_trains_its_trunk(tmp_path, code):
    process = element(tmp_path, "mine.yaml", "--holdouts", CODE=str(code))
    process.communicate(timeout=30)
    assert process.returncode == code
    assert record(tmp_path) == ["python -m bmscale scaling run mine.yaml --holdouts --trunk 3"]


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("20", False)])
def test_an_element_at_its_time_limit_saves_and_is_requeued(tmp_path, restarts, requeued):
    process = element(tmp_path, "mine.yaml", LONG="1", SLURM_RESTART_COUNT=restarts)
    deadline = time.monotonic() + 30
    while not (tmp_path / "record.begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert record(tmp_path)[1:] == ["asked", *(["scontrol requeue 7_3"] if requeued else [])]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["mine.yaml"], {"SLURM_ARRAY_TASK_ID": ""}, "must run as an array of SLURM jobs: sbatch --array=0-5"),
        ([], {}, "STUDY must be given"),
        (["mine.yaml"], {"BMSCALE_ENV": "nowhere"}, "there must be a Python environment in"),
    ],
)
def test_mistakes(tmp_path, arguments, environment, said):
    process = element(tmp_path, *arguments, **environment)
    assert said in process.communicate(timeout=30)[1]
    assert process.returncode == 2
