"""`bmscale submit`: fill in slurm/train.sh and give it to sbatch, with a snapshot of what will be trained.

RUN/submitted/TIME/
  experiment.yaml   the resolved experiment, which the job trains whatever becomes of the file that it was made of
  train.sh          the script, as submitted
  submission.yaml   when, by which command, with which code
  code.diff         what the code differs in from its commit, where it does
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import bmscale
from bmscale.config import shipped_file
from bmscale.errors import BadInput, BmscaleError
from bmscale.experiment import Experiment


def fill_in(arguments: Sequence[str], options: Sequence[str], ranks_per_node: int | None = None) -> str:
    """slurm/train.sh with arguments of `bmscale train` and options of sbatch (`--name=value`) in it.

    Such a script needs no argument. It uses the environment of this process, unless BMSCALE_ENV names another one.
    """
    template = shipped_file("slurm", "train.sh")
    if template is None:
        raise BmscaleError("slurm/train.sh must come with the package, and does not; install bmscale anew")
    lines = template.read_text(encoding="utf-8").splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    head = [line for line in lines[:first_command] if not any(_sets(line, option) for option in options)]
    last_option = max(number for number, line in enumerate(head) if line.startswith("#SBATCH "))
    head[last_option + 1 : last_option + 1] = [f"#SBATCH {shlex.quote(option)}" for option in options]
    given = [
        "# Filled in by bmscale submit:",
        f"set -- {shlex.join(arguments)}",
        f"export BMSCALE_ENV={shlex.quote(_environment())}",
        *([] if ranks_per_node is None else [f"export BMSCALE_RANKS_PER_NODE={ranks_per_node}"]),
    ]
    return "\n".join([*head, *given, *lines[first_command:]]) + "\n"


def _sets(line: str, option: str) -> bool:
    """Whether a line of the script, in force or not, sets the same option of sbatch."""
    found = re.match(r"#+SBATCH (--[a-z-]+)", line)
    return found is not None and found[1] == option.partition("=")[0]


def _environment() -> str:
    """What BMSCALE_ENV is for a job that shall run in the environment of this process."""
    alone = (Path(sys.prefix) / "bin" / "python").exists()
    return os.environ.get("BMSCALE_ENV") or (sys.prefix if alone else "active")


def submit(experiment: Experiment, train_options: Sequence[str], options: Sequence[str]) -> str:
    """Submit the training of an experiment, from the present folder; the number of the job.

    Raises BadInput where there is no sbatch, BmscaleError when it refuses; then no snapshot stays.
    """
    if shutil.which("sbatch") is None:
        raise BadInput(
            "sbatch: must be on PATH: call this where jobs are submitted, such as the login node of a cluster. "
            "--dry-run prints the script anywhere"
        )
    folder = experiment.run_folder.submitted / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    folder.mkdir(parents=True)
    facts: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": shlex.join(sys.argv)}
    values = {**experiment.model_dump(), "run": str(experiment.run_folder.path)}
    _write_yaml(folder / "experiment.yaml", values)
    facts |= _code(folder / "code.diff")
    _write_yaml(folder / "submission.yaml", facts)
    script = folder / "train.sh"
    script.write_text(fill_in([str(folder / "experiment.yaml"), *train_options], options), encoding="utf-8")
    result = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if result.returncode:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # what else is in them stays
            for empty in (folder.parent, experiment.run_folder.path):
                empty.rmdir()
        raise BmscaleError(f"sbatch refused the job: {result.stderr.strip() or f'code {result.returncode}'}")
    job = result.stdout.strip().partition(";")[0]  # `123;cluster` where there are several
    _write_yaml(folder / "submission.yaml", {**facts, "job": job})
    return job


def _write_yaml(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _code(diff: Path) -> dict[str, Any]:
    """Version, commit and what differs from it; the difference itself goes into a file, where there is one."""
    facts: dict[str, Any] = {"version": bmscale.__version__}
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed, perhaps below a clone of something else
        return {**facts, "git_commit": None}
    changed = (_git("status", "--porcelain") or "").splitlines()
    if changed:
        diff.write_text(_git("diff", "HEAD") or "", encoding="utf-8")
    return {**facts, "git_commit": (_git("rev-parse", "HEAD") or "").strip(), "git_changes": changed}


def _git(*arguments: str) -> str | None:
    """What git says of the clone that holds this package; None where it is in none, or there is no git."""
    command = ["git", "-C", str(Path(bmscale.__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None
