"""The folder that `bmscale prepare` makes, of any kind: what it was made from, and how it appears all at once."""

import contextlib
import hashlib
import itertools
import logging
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sentencepiece

import bmscale
from bmscale.config import Config
from bmscale.data.corpus import OriginConfig, describe, hub_identity
from bmscale.data.manifest import FORMAT, MANIFEST, differences, load_manifest
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

Corpus = TypeVar("Corpus", bound=OriginConfig)

GENERATED_ROWS = 10_000


def manifest_head(kind: str, config: Config, inputs: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that is known before the work, by which a finished folder is told from another one."""
    return {
        "format": FORMAT,
        "kind": kind,
        "config": config.model_dump(mode="json"),
        "inputs": inputs,
        "versions": {
            "bmscale": bmscale.__version__,
            "python": platform.python_version(),
            "sentencepiece": sentencepiece.__version__,
            "numpy": np.__version__,
        },
    }


def hash_inputs(
    corpora: Mapping[str, Sequence[Corpus]],
    files: Callable[[Corpus], list[Path]],
    rows: Callable[[Corpus], Iterable[tuple[str, ...]]],
    tokenizer: str | None,
) -> dict[str, list[dict[str, Any]]]:
    """Size and SHA-256 of every file that is read, by part: train, valid, tokenizer.

    `files` are those of a corpus; a toy corpus has none, its `rows` are hashed, and of a generated one the first: what
    follows is of the same code, and how many there are is in the configuration.
    """
    inputs: dict[str, list[dict[str, Any]]] = {split: [] for split in corpora}
    for split, members in corpora.items():
        for corpus in members:
            if corpus.toy is not None:
                inputs[split].append(_hash_rows(describe(corpus), rows(corpus)))
            if getattr(corpus, "synthetic", None) is not None:
                inputs[split].append(_hash_rows(describe(corpus), itertools.islice(rows(corpus), GENERATED_ROWS)))
            if corpus.dataset is not None and not Path(corpus.dataset).is_dir():
                entry = {"path": f"hub:{corpus.dataset}", "bytes": 0, "sha256": hub_identity(corpus)}
                inputs[split].append(entry)
            inputs[split] += [_hash_file(file) for file in files(corpus)]
    if tokenizer is not None:
        inputs["tokenizer"] = [_hash_file(Path(tokenizer))]
    return inputs


def _hash_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return {
                "path": str(path),
                "bytes": os.fstat(file.fileno()).st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _hash_rows(name: str, rows: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """The toy corpus has no file, but its text may differ between versions of this package."""
    digest, size = hashlib.sha256(), 0
    for row in rows:
        line = "\t".join(row).encode() + b"\n"
        digest.update(line)
        size += len(line)
    return {"path": name, "bytes": size, "sha256": digest.hexdigest()}


def followed(directory: Path) -> Path:
    """The folder itself where a link leads to it: it is what is replaced, and the link stays."""
    try:
        return directory.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself, before Python 3.13
        raise BadInput(f"{directory}: data.directory cannot be followed: its links lead nowhere") from None


def finished(directory: Path, head: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The manifest of the folder if it is what this run would make; None if the folder may be written.

    Raises BadInput if it holds other things, or was made from something else and `force` is not given.
    """
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise BadInput(f"{directory}: data.directory must be a folder, a file is there") from None
    except OSError as error:
        raise BadInput(f"{directory}: data.directory cannot be read: {error.strerror}") from None
    if not names:
        return None
    if MANIFEST not in names:
        raise BadInput(
            f"{directory}: holds files but no {MANIFEST}, so it is not prepared data and is left alone; "
            "choose another data.directory or empty this one"
        )
    try:
        manifest = load_manifest(directory)
    except BadInput:
        if force:
            return None
        raise
    changes = differences(manifest, head)
    if not changes:
        return manifest
    if force:
        return None
    raise BadInput(
        f"{directory}: already holds data prepared otherwise:\n  "
        + "\n  ".join(changes)
        + "\nchoose another data.directory, or replace it with `bmscale prepare CONFIG --force`"
    )


@contextlib.contextmanager
def temporary_sibling(directory: Path) -> Iterator[Path]:
    """A folder beside `directory`, on the same disk so that it can be renamed; gone at the end whatever happens."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.preparing-{socket.gethostname()}-"
    for stale in directory.parent.glob(f"{prefix}*"):
        if not _alive(stale.name.removeprefix(prefix)):
            log.info("removing %s, left by a run that died", stale)
            shutil.rmtree(stale, ignore_errors=True)
    folder = directory.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return not pid.isdigit()
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def publish(folder: Path, directory: Path, head: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """Rename the finished folder into place. Returns the manifest of another run that was first with the same data."""
    first = finished(directory, head, force)
    if first:
        return first
    for inner in (folder / "train", folder / "valid", folder):
        _sync_folder(inner)
    replaced = folder.with_name(folder.name + "-replaced")
    if directory.exists():
        directory.rename(replaced)
    try:
        folder.rename(directory)
    except OSError:
        if replaced.exists():
            replaced.rename(directory)
        raise
    _sync_folder(directory.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return None


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
