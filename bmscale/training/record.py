"""run.yaml: what a run is (its identity), what it was started with, and whether this start may go on with it."""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from bmscale.config import Config, Document, validate
from bmscale.errors import BadInput, LostRank
from bmscale.experiment import Experiment, RunFolder, experiment_class

PACKAGES = ("bmscale", "torch", "deepspeed", "transformers", "accelerate", "sacrebleu", "sentencepiece", "numpy")


MOST_SHOWN = 5
"""Of keys that differ from those of a run."""


class Record(Config):
    """The content of run.yaml."""

    experiment: dict[str, Any]
    """The resolved experiment."""
    identity: dict[str, Any]
    """What must stay as it is for a run to be the same run."""
    total_steps: int
    of_data: dict[str, Any] = Field(default_factory=dict)
    """What the provenance of its models says of the data."""
    starts: list[dict[str, Any]]
    """One entry a start: when, with which versions and resources."""


_OF_SOME = {
    *("sampling", "subword_sampling", "ema_decay", "sequence_length", "attend_across_documents", "masking"),
}
"""Keys of `training` that belong to the identity where they are and are not null."""


def identity(experiment: Experiment, data_hash: str, model: dict[str, Any]) -> dict[str, Any]:
    """The keys that a resumed run may not change; resources and lengths are not among them."""
    training = experiment.training
    given = training.model_dump(include=_OF_SOME, exclude_none=True)
    return {
        "task": experiment.task,
        "data_hash": data_hash,
        "model": model,
        "training.seed": training.seed,
        "training.tokens_per_step": training.tokens_per_step,
        "training.optimizer": training.optimizer.model_dump(),
        "training.label_smoothing": training.label_smoothing,
        "training.clip_norm": training.clip_norm,
        "training.precision": training.precision,
        **{f"training.{key}": value for key, value in given.items()},
        **({"training.freeze": training.freeze} if training.freeze else {}),
        **({"init_from": experiment.init_from} if experiment.init_from else {}),
        **({"branch_from": experiment.branch_from} if experiment.branch_from else {}),
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """By which a training state knows its run: a SHA-256 of the identity in run.yaml, which the first start wrote."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check(
    folder: RunFolder, given: dict[str, Any], experiment: Experiment, total_steps: int, *, new_schedule: bool
) -> bool:
    """Whether the folder holds a run to go on with. Raises BadInput when it holds another one, naming the keys."""
    if folder.log.is_dir():
        raise BadInput(f"{folder.log}: must be a file or free for one, and is a folder; move it elsewhere")
    if not folder.record.exists():
        # What a start that did not come far leaves, and what slurm/train.sh and `bmscale submit` write before it.
        before = {folder.log, folder.exit, folder.ranks, folder.logs, folder.submitted}
        before |= {folder.path / name for name in ("lock", "STOP", "SAVE")}  # switches may be there before the run
        _check_place(folder)
        if folder.path.is_dir() and not before.issuperset(folder.path.iterdir()):
            raise BadInput(f"{folder.path}: is not empty and holds no run.yaml; choose another run=FOLDER or empty it")
        return False
    record = read(folder)
    changed = list(differences(record.identity, given))
    if changed:
        raise BadInput(
            f"{folder.path}: holds a run of another experiment; "
            + "; ".join(f"{key}: the run has {was!r:.80}, now {now!r:.80}" for key, was, now in changed[:MOST_SHOWN])
            + (f"; and {len(changed) - MOST_SHOWN} more" if len(changed) > MOST_SHOWN else "")
            + ". Choose another run=FOLDER, or give the run's own values"
        )
    was_schedule = _mapping(folder, _mapping(folder, record.experiment, "training"), "schedule")
    schedule = experiment.training.schedule
    changes_rates = was_schedule != schedule.model_dump() or (
        schedule.depends_on_length and record.total_steps != total_steps
    )
    if changes_rates and not new_schedule:
        raise BadInput(
            f"{folder.path}: the run was planned for {record.total_steps} steps with schedule "
            f"{was_schedule.get('type')}, now {total_steps} with {schedule.type}: the learning rate of steps to come "
            "would change. Give --new-schedule if that is meant"
        )
    return True


def _check_place(folder: RunFolder) -> None:
    """Raises BadInput where no new run folder can be made or filled."""
    place = folder.path.absolute()
    there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise BadInput(
            f"{folder.path}: must be the folder of a run, or free for a new one; {there} is no folder. Choose another "
            "run=FOLDER"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{folder.path}: must be writable, and {there} is not; choose another run=FOLDER")


def _mapping(folder: RunFolder, values: dict[str, Any], key: str) -> dict[str, Any]:
    """A section of the experiment in run.yaml."""
    found = values.get(key)
    if not isinstance(found, dict):
        raise BadInput(f"{folder.record}: damaged: its experiment must hold the section {key}; put the file back")
    return found


def differences(was: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key path, old, new) of each value that is not the same in two nested mappings."""
    for key in dict.fromkeys([*was, *now]):
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            # One by one: a mapping of an earlier version lacks keys that are null by default.
            was_items, now_items = (
                {str(number): value for number, value in enumerate(values)} for values in (old, new)
            )
            yield from differences(was_items, now_items, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def read(folder: RunFolder) -> Record:
    """Raises BadInput when run.yaml is missing or damaged."""
    if not folder.record.is_file():
        raise BadInput(f"{folder.path}: not a run folder: it has no run.yaml")
    try:
        values = yaml.safe_load(folder.record.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it must be a mapping, and is " + ("empty" if values is None else "none"))
        return Record.model_validate(values)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()
        raise BadInput(f"{folder.record}: damaged: {' '.join(first[:3])}") from None


def read_experiment(folder: RunFolder) -> Experiment:
    """The experiment of a run, as it was resolved then."""
    document = Document(read(folder).experiment, {(): str(folder.record)})
    return validate(experiment_class(document), document)


def write(
    folder: RunFolder,
    experiment: Experiment,
    given: dict[str, Any],
    total_steps: int,
    resources: dict[str, Any],
    of_data: dict[str, Any],
) -> None:
    """Write run.yaml, or add a start to it. The identity stays as it was first written, which `given` agrees with."""
    before = read(folder) if folder.record.exists() else None
    starts = before.starts if before else []
    starts.append(
        {"time": datetime.now(UTC).isoformat(timespec="seconds"), **resources, "git_commit": commit(), **versions()}
    )
    values = {
        "experiment": experiment.model_dump(),
        "identity": before.identity if before else given,
        "total_steps": total_steps,
        "of_data": of_data,
        "starts": starts,
    }
    temporary = folder.record.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(folder.record)


EXIT_CLASSES = {
    0: "done",
    1: "failed",
    2: "bad_input",
    3: "diverged",
    4: "out_of_memory",
    5: "lost_rank",
    75: "preempted",
    130: "interrupted",
}


def exit_code(kind: str) -> int:
    """The code of a class of exit.json; a run that was told to stop has done what it was told."""
    return next((code for code, name in EXIT_CLASSES.items() if name == kind), 0)


def write_exit(
    folder: RunFolder, code: int, message: str, kind: str | None = None, *, replace: bool = False, **facts: Any
) -> bool:
    """Write exit.json, for schedulers: launchers return 1 whatever their ranks returned.

    The first rank to say why a start ended is believed, so the others get False and nothing is written: what they met
    followed from that. But that a rank is lost, others only conclude: whoever knows more replaces it. `replace` does
    not ask what is there; `facts` are further entries.
    """
    if not folder.record.exists():
        return True
    values = {"class": kind or EXIT_CLASSES[code], "code": code, "message": message, **facts}
    temporary = folder.exit.with_name(f".exit-{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")
        if not replace:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, folder.exit)  # whole at once, and by one rank only
                return True
            said = (read_exit(folder) or {}).get("code")
            if said != LostRank.exit_code or code == said:
                return False
        temporary.replace(folder.exit)
    except OSError:  # a full disk: it is still to be said
        return True
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def read_exit(folder: RunFolder) -> dict[str, Any] | None:
    """The content of exit.json; None while there is none, or another rank is at writing it."""
    try:
        found: dict[str, Any] = json.loads(folder.exit.read_bytes())
        return found
    except (OSError, ValueError):
        return None


def say(folder: RunFolder, text: str) -> None:
    """The last words of a start, to people: on stderr and in log.txt, from whichever rank."""
    with contextlib.suppress(OSError):  # a full disk, a terminal that is gone
        print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError), folder.log.open("a", encoding="utf-8") as file:
        file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # DeepSpeed, where it cannot be installed
            found[package] = "absent"
    return {"versions": found}


def commit() -> str | None:
    """The commit that this code is at, None outside a clone."""
    result = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None if result.returncode == 0 else None
