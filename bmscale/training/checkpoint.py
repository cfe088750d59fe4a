"""The training state on disk: fp32 masters and Adam moments by parameter name, and where the run stands.

It knows no ranks and no ZeRO stage: each rank writes the pieces of parameters that it holds, and any number of ranks
under any stage reads the ranges that it needs. A state becomes one in this order, and a death at any point leaves the
states before it as they were:

1. every rank writes its files under a temporary name, flushes them to the disk, reads them back from there and compares
   their hashes with those of what it wrote;
2. the ranks meet; one that failed makes the save fail on all of them;
3. rank 0 sees every file, writes state.json with all hashes, renames the folder, and moves the pointer `latest`;
4. only then are older states removed, and never one of the two newest that are known to be whole.

Reading verifies every hash. Nothing is a pickle.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bmscale.config import Config
from bmscale.engine import process_group
from bmscale.engine.engine import Engine, Piece
from bmscale.errors import BadInput, message
from bmscale.training.standing import Standing

log = logging.getLogger("bmscale")

FORMAT = 2
MANIFEST, POINTER = "state.json", "latest"
FILE_BYTES = 2**28
"""A file is closed when it holds so much. Saving needs about twice that in memory, or twice a rank's largest piece."""
MOST_OPEN_FILES = 8
UNREADABLE = "cannot be read"
TEMPORARY, REPLACED, DOOMED = ".tmp-", ".replaced-", ".old-"
"""Before the name of a state: being written; made way for one of its name; being removed."""
DAMAGED, ASIDE = "damaged-", "aside-"
"""Before the name of a state that was set aside: because it is damaged; because another one needed its name."""
_NAME = re.compile(r"step-\d{8,}")


class FileRecord(Config):
    """One file of a state."""

    bytes: int
    sha256: str


class PieceRecord(Config):
    """Where a run of elements of one parameter lies, all kinds of it in the same file."""

    file: str
    start: int
    count: int


class Manifest(Config):
    """The content of state.json."""

    format: int
    standing: Standing
    probe: float | None
    """The loss of the saved weights on a fixed batch (nats a target token), which a resumed run must find again."""
    saved_by: dict[str, Any]
    """Ranks, engine and versions: for people, loading does not look at it."""
    kinds: list[str]
    shapes: dict[str, list[int]]
    """The full shape of each parameter."""
    pieces: dict[str, list[PieceRecord]]
    files: dict[str, FileRecord]
    run: str | None = None
    """The fingerprint of the run's identity (`record.fingerprint`); None in states of earlier versions."""


class WrongFormat(BadInput):
    """A state of another version of bmscale: not damaged, and not to be passed over."""


class Unreadable(BadInput):
    """A state that the file system does not give now, and may give later: nobody knows whether it is damaged."""


class Misplaced(BadInput):
    """A state under the name of another step: a copy that somebody made. It is never loaded, replaced or removed."""


class Foreign(BadInput):
    """A state that another run saved; as Misplaced."""


class SaveFailed(Exception):
    """A state could not be written; those before it are untouched, and training can go on."""


# ---- writing


@dataclass(frozen=True)
class _Written:
    """What one rank wrote."""

    files: dict[str, FileRecord]
    pieces: dict[str, list[PieceRecord]]
    error: str | None = None


@dataclass(frozen=True)
class Saved:
    """A state that was committed."""

    path: Path
    bytes: int
    stall_seconds: float
    """How long training stood still for it."""


class Save:
    """One state on its way to the disk: `write`, in the background if wanted, then `commit`.

    Every rank makes one, and commits it at the same step. Raises SaveFailed, on every rank, where the folder cannot be
    made.
    """

    def __init__(
        self, folder: Path, engine: Engine, standing: Standing, probe: float | None, run: str | None = None
    ) -> None:
        self._begun = time.monotonic()
        self._run = run
        self._engine, self._standing, self._probe = engine, standing, probe
        self._folder = folder
        self._final = folder / state_name(standing.data_step)
        self._temporary = folder / f"{TEMPORARY}{self._final.name}"
        self._writer: ThreadPoolExecutor | None = None
        self._result: Future[_Written] | None = None
        self._written: _Written | None = None
        self._stall = 0.0
        self._on_main(self._prepare)

    def write(self, *, background: bool) -> None:
        """Write this rank's pieces. In the background a copy of them is made first, since training goes on."""
        if background:
            snapshot = list(self._engine.pieces())
            self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
            self._result = self._writer.submit(self._write_pieces, snapshot)
            self._stall = time.monotonic() - self._begun
        else:
            self._written = self._write_pieces(self._engine.pieces())

    @property
    def is_written(self) -> bool:
        """Whether this rank has nothing more to write."""
        return self._result is None or self._result.done()

    def commit(self, keep: int, staying: Collection[int] = ()) -> Saved:
        """Make the written files a state, once every rank has written. Collective; waits for this rank's writer.
        `keep` and `staying` are those of `retain`.

        Raises SaveFailed on every rank when one of them could not write, or rank 0 does not see what another wrote.
        """
        begun = time.monotonic() if self._writer else self._begun
        if self._result is not None:
            self._written = self._result.result()
        if self._writer is not None:
            self._writer.shutdown()
        reached("barrier")
        shares: list[_Written] = process_group.gather_objects(self._written)
        failed = next((f"rank {rank}: {share.error}" for rank, share in enumerate(shares) if share.error), None)
        self._on_main(lambda: self._commit(shares, failed, keep, staying))
        total = sum(record.bytes for share in shares for record in share.files.values())
        return Saved(self._final, total, self._stall + time.monotonic() - begun)

    def _on_main(self, action: Any) -> None:
        """Do something on rank 0; its failure is every rank's."""
        error = None
        if self._engine.is_main:
            try:
                action()
            except (OSError, SaveFailed) as problem:
                error = str(problem)
                shutil.rmtree(self._temporary, ignore_errors=True)
        (error, *_) = process_group.gather_objects(error)
        if error is not None:
            raise SaveFailed(error)

    def _prepare(self) -> None:
        reached("prepare")
        self._folder.mkdir(parents=True, exist_ok=True)
        _restore_replaced(self._folder)
        for leftover in _named(self._folder, TEMPORARY, REPLACED, DOOMED):  # of starts that died at it
            with contextlib.suppress(OSError):
                _delete(leftover)
        self._temporary.mkdir()

    def _write_pieces(self, pieces: Iterable[Piece]) -> _Written:
        """This rank's files, flushed and read back. Never raises for what the disk does: the ranks must meet first."""
        files: dict[str, FileRecord] = {}
        index: dict[str, list[PieceRecord]] = {}
        held: dict[str, torch.Tensor] = {}
        try:
            name = ""
            for piece in pieces:
                if piece.name != name and sum(values.nbytes for values in held.values()) >= FILE_BYTES:
                    self._write_file(files, held)
                if piece.name != name:
                    name = piece.name
                    record = PieceRecord(file=self._file_name(len(files)), start=piece.start, count=len(piece.values))
                    index.setdefault(name, []).append(record)
                held[_key(name, piece.kind, piece.start)] = piece.values
            self._write_file(files, held)
            return _Written(files, index)
        except OSError as error:
            return _Written({}, {}, f"{error.filename or self._temporary}: {error.strerror or error}")

    def _file_name(self, number: int) -> str:
        return f"rank-{self._engine.rank:05d}-{number:05d}.safetensors"

    def _write_file(self, files: dict[str, FileRecord], held: dict[str, torch.Tensor]) -> None:
        if not held:
            return
        path = self._temporary / self._file_name(len(files))
        content = _serialized(held)
        held.clear()
        record = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        reached("write")
        write_durably(path, content)
        del content
        reached("read back")
        if file_record(path) != record:
            raise OSError(0, "the disk gives back other bytes than were written to it", str(path))
        files[path.name] = record
        self._engine.moved()  # it may take long, and is no hang

    def _commit(self, shares: list[_Written], failed: str | None, keep: int, staying: Collection[int]) -> None:
        if failed:
            raise SaveFailed(failed)
        files = {name: record for share in shares for name, record in share.files.items()}
        for name, record in files.items():
            path = self._temporary / name
            if not path.is_file() or path.stat().st_size != record.bytes:
                raise SaveFailed(f"{path}: rank 0 does not see what another rank wrote: all need the same file system")
        pieces: dict[str, list[PieceRecord]] = {}
        for share in shares:
            for name, found in share.pieces.items():
                pieces.setdefault(name, []).extend(found)
        shapes = self._engine.shapes()
        _check_cover(pieces, shapes)
        manifest = Manifest(
            format=FORMAT,
            standing=self._standing,
            probe=self._probe,
            saved_by={"engine": self._engine.describe(), "device": self._engine.device_name},
            kinds=list(self._engine.state_kinds),
            shapes={name: list(shape) for name, shape in shapes.items()},
            pieces=pieces,
            files=files,
            run=self._run,
        )
        reached("manifest")
        write_durably(self._temporary / MANIFEST, json.dumps(_sealed(manifest)).encode())
        _flush(self._temporary)
        replaced = self._final.with_name(f"{REPLACED}{self._final.name}")
        if self._final.exists():  # the end of a run may fall on a step that was saved already
            self._make_way(replaced)
        reached("rename")
        try:
            self._temporary.rename(self._final)
        except OSError:
            _restore_replaced(self._folder)
            raise
        _flush(self._folder)
        reached("pointer")
        _point_to(self._final)
        _known_whole[self._final] = _signature(self._final)
        reached("retain")
        try:
            _delete(replaced)
            retain(self._folder, keep, self._run, staying)
        except OSError as error:  # the state is there all the same
            log.warning("an older training state could not be removed: %s", error)

    def _make_way(self, replaced: Path) -> None:
        if _stays(self._final, self._run):
            aside = self._final.with_name(f"{ASIDE}{time.time_ns()}-{self._final.name}")
            log.warning("%s: was not saved there by this run; it is %s now", self._final, aside)
            self._final.rename(aside)
        else:
            self._final.rename(replaced)


def _serialized(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file of fp32 tensors; the library's own `save` takes their memory once more on the way.

    The format (safetensors README): the header's length in eight bytes, a header of JSON, the data.
    """
    entries, end = {}, 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # so that the data is aligned
    return b"".join([len(header).to_bytes(8, "little"), header, *(tensor.numpy().data for tensor in tensors.values())])


def _check_cover(pieces: Mapping[str, list[PieceRecord]], shapes: Mapping[str, torch.Size]) -> None:
    """Every element of every parameter once: a state with a hole must never replace one without."""
    for name, shape in shapes.items():
        end = 0
        for piece in sorted(pieces.get(name, []), key=lambda piece: piece.start):
            if piece.start != end:
                break
            end += piece.count
        if end != shape.numel():
            raise SaveFailed(f"{name}: the ranks wrote {end} of its {shape.numel()} elements in one run from 0")


def reached(phase: str) -> None:
    """Each phase of a save as it begins, for those who look at the debug log of one that is slow."""
    log.debug("saving a state: %s", phase)


def _key(name: str, kind: str, start: int) -> str:
    return f"{name}.{kind}@{start}"


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_to(state: Path) -> None:
    temporary = state.with_name(f".{POINTER}")
    write_durably(temporary, f"{state.name}\n".encode())
    temporary.replace(state.with_name(POINTER))
    _flush(state.parent)


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file as the disk has it, not as the system remembers it where that can be avoided."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(2**22):
            digest.update(block)
            size += len(block)
    return FileRecord(bytes=size, sha256=digest.hexdigest())


# ---- keeping


def state_name(step: int) -> str:
    """The folder of the state after so many global steps."""
    return f"step-{step:08d}"


def list_states(folder: Path) -> list[Path]:
    """The committed states of a run, oldest first; whether they are still whole, `verify` tells.

    Other folders, such as a copy `step-00000100.bak`, are no states. Raises OSError where the folder cannot be read.
    """
    found = [path for path in _named(folder, "") if path.is_dir()]
    return sorted(found, key=lambda path: (int(path.name.partition("-")[2]), path.name))


def _named(folder: Path, *prefixes: str) -> list[Path]:
    """What is called as a state is, behind one of these prefixes."""
    try:
        paths = list(folder.iterdir())  # not glob, to which a folder that it may not read is empty
    except FileNotFoundError:
        return []
    return [
        path
        for path in paths
        if any(path.name.startswith(each) and _NAME.fullmatch(path.name[len(each) :]) for each in prefixes)
    ]


def verify(state: Path, share: slice = slice(None)) -> list[str]:
    """What is wrong with a state, each with its file; nothing where all hashes are right.

    `share` takes some of the files, so that ranks can divide them. Raises WrongFormat.
    """
    try:
        manifest = read_manifest(state)
    except WrongFormat:
        raise
    except BadInput as error:
        return [str(error)]
    problems = []
    for name in sorted(manifest.files)[share]:
        try:
            found = file_record(state / name)
        except FileNotFoundError:
            problems.append(f"{state / name}: is missing")
            continue
        except OSError as error:  # of the file system, which may be well again later
            problems.append(f"{state / name}: {UNREADABLE}: {error.strerror}")
            continue
        wanted = manifest.files[name]
        if found.bytes != wanted.bytes:
            problems.append(f"{state / name}: must have {wanted.bytes} bytes, has {found.bytes}")
        elif found != wanted:
            problems.append(f"{state / name}: has other bytes than were written (its SHA-256 differs)")
    return problems


def verify_together(state: Path) -> list[str]:
    """`verify`, the files divided over the ranks. Collective."""
    rank, world_size = process_group.rank_and_world_size()
    shares = process_group.gather_objects(verify(state, slice(rank, None, world_size)))
    return list(dict.fromkeys(problem for share in shares for problem in share))


def choose(folder: Path, step: int | None = None) -> Path:
    """The state of a data step, or the newest. Raises BadInput naming those that there are."""
    states = list_states(folder)
    wanted = [state for state in states if step is None or state == folder / state_name(step)]
    if not wanted:
        have = ", ".join(state.name for state in states) or "none"
        raise BadInput(f"{folder}: must hold a state{'' if step is None else f' of step {step}'}; it has {have}")
    return wanted[-1]


def summary(state: Path) -> dict[str, Any]:
    """What a person wants to know of a state. Its hashes are not verified."""
    try:
        manifest = read_manifest(state)
    except BadInput as error:
        return {"state": state.name, "damaged": str(error)}
    standing = manifest.standing
    return {
        "state": state.name,
        "optimizer_step": standing.optimizer_step,
        "target_tokens": standing.target_tokens,
        "best": standing.best_value,
        "finished": standing.finished,
        "gib": round(sum(record.bytes for record in manifest.files.values()) / 2**30, 4),
        "files": len(manifest.files),
        "saved_by": manifest.saved_by["engine"],
    }


Signature = dict[str, tuple[int, int]]
_known_whole: dict[Path, Signature] = {}
"""States whose hashes this process found right, and what the file system said of their files then."""


def _signature(state: Path) -> Signature:
    found = {}
    for path in state.iterdir():
        status = path.stat()
        found[path.name] = (status.st_size, status.st_mtime_ns)
    return found


def is_whole(state: Path) -> bool:
    """Whether it is there and the hashes are right; not computed again for files that did not change since."""
    try:
        if _known_whole.get(state) == _signature(state):
            return True
        if verify(state):
            return False
        _known_whole[state] = _signature(state)
        return True
    except OSError:
        return False


def retain(folder: Path, keep: int, run: str | None = None, staying: Collection[int] = ()) -> list[Path]:
    """Remove states that are older than the newest `keep` whole ones. Returns those that were removed.

    One that is not whole does not count, and goes only when enough whole ones are newer. One that is misplaced,
    of another run than `run` or not to be read now neither counts nor goes. Those of the steps `staying` never go.
    """
    whole, removed, stay = 0, [], {state_name(step) for step in staying}
    for state in reversed(list_states(folder)):
        if _stays(state, run):
            continue
        if whole >= keep:
            if state.name in stay:
                continue
            _remove(state)
            removed.append(state)
        elif whole >= 2 or is_whole(state):  # of more than two it is enough that they are there
            whole += 1
    return removed


def prune(folder: Path, keep: int, run: str | None = None, staying: Collection[int] = ()) -> list[Path]:
    """`retain`, and what damaged or removed states left behind as well. Raises BadInput for less than two."""
    if keep < 2:
        raise BadInput(f"--keep: must be at least 2, so that one state may be damaged; got {keep}")
    removed = retain(folder, keep, run, staying)
    for leftover in _named(folder, DAMAGED, DOOMED):
        try:
            _delete(leftover)
            removed.append(leftover)
        except OSError as error:
            log.warning("%s: could not be removed: %s", leftover, error.strerror)
    return removed


def _remove(state: Path) -> None:
    """Remove a state under another name, so that a death half-way leaves nothing that looks like one."""
    doomed = state.with_name(f"{DOOMED}{state.name}")
    _delete(doomed)
    _delete(state.rename(doomed))


def _delete(path: Path) -> None:
    """Remove a folder, if it is there; of a link the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


# ---- reading


def _restore_replaced(folder: Path) -> None:
    """Put back a state that made way for a new one which never came."""
    for replaced in _named(folder, REPLACED):
        state = folder / replaced.name.removeprefix(REPLACED)
        if not state.exists():
            replaced.rename(state)


def find_usable(folder: Path, before: int | None = None, run: str | None = None) -> Path | None:
    """The newest state whose every hash is right, None where none was ever committed. Collective: ranks share the work.

    `before` takes only states of fewer optimizer steps, `run` only those of that run (`record.fingerprint`). A damaged
    one is reported and set aside as `damaged-step-…`; a misplaced one is reported and left alone. Raises BadInput when
    states were committed and none is usable, so that a run never starts anew in silence; where one is of another run;
    and where the newest cannot be read now.
    """
    rank, _ = process_group.rank_and_world_size()
    # Rank 0 lists: other nodes of a shared file system may still see the folder as it was.
    states: list[Path] = []
    problem, had_one = None, False
    if rank == 0:
        try:
            _restore_replaced(folder)
            had_one = bool(list_states(folder)) or (folder / POINTER).exists()
            states = _candidates(folder, before, run)
        except (BadInput, OSError) as error:
            problem = message(error)
    states, problem, had_one = process_group.gather_objects((states, problem, had_one))[0]
    if problem is not None:
        raise BadInput(problem)
    for state in reversed(states):
        problems = verify_together(state)
        if not problems:
            _known_whole[state] = _signature(state)
            return state
        log.warning("%s: damaged, so the state before it is used: %s", state, "; ".join(problems[:3]))
        if rank == 0 and not any(UNREADABLE in problem for problem in problems):
            set_aside(state)
        process_group.barrier()
    if before is None and had_one:
        raise BadInput(
            f"{folder}: holds no training state that is whole, and the run had saved one. Put one back, or choose "
            "another run=FOLDER to start anew"
        )
    return None


def _candidates(folder: Path, before: int | None, run: str | None) -> list[Path]:
    """The states that may be loaded, oldest first. Of a damaged manifest the hashes decide.

    Raises WrongFormat; Foreign at a start (no `before`); and Unreadable where no newer state can be read, for the run
    would go on from an older one and write over this one.
    """
    found: list[Path] = []
    readable = 0
    for state in reversed(list_states(folder)):
        try:
            standing = read_own(state, run).standing
        except WrongFormat:
            raise
        except (Misplaced, Foreign, Unreadable) as error:
            if before is None and (isinstance(error, Foreign) or (isinstance(error, Unreadable) and not readable)):
                raise
            log.warning("%s: it is not used, and stays", error)
            continue
        except BadInput:
            found.append(state)
            continue
        readable += 1
        if before is None or standing.optimizer_step < before:
            found.append(state)
    return found[::-1]


def _stays(state: Path, run: str | None) -> bool:
    """Whether it is somebody's, or nobody knows: never to be removed or replaced."""
    try:
        read_own(state, run)
    except BadInput as error:
        return isinstance(error, Misplaced | Foreign | Unreadable | WrongFormat)
    return False


def set_aside(state: Path) -> None:
    """Rename a state, so that none is loaded that is not to be; `prune` removes it."""
    aside = state.with_name(f"{DAMAGED}{state.name}")
    with contextlib.suppress(OSError):  # on a file system that cannot be written it is passed over each time
        _delete(aside)
        state.rename(aside)


def _sealed(manifest: Manifest) -> dict[str, Any]:
    """The manifest with a hash of itself, since no other file could hold one."""
    values = manifest.model_dump()
    return {**values, "sha256": _seal(values)}


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(state: Path) -> Manifest:
    """Raises BadInput for a manifest that is missing or damaged, and as WrongFormat, Unreadable and Misplaced say."""
    path = state / MANIFEST
    try:
        values = json.loads(path.read_bytes())
        seal = values.pop("sha256", None)
        if seal != _seal(values):
            raise ValueError("its SHA-256 differs")
        if values.get("format") != FORMAT:
            raise WrongFormat(f"{path}: has format {values.get('format')}, this version reads {FORMAT}")
        manifest = Manifest.model_validate(values)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise BadInput(f"{path}: damaged ({error.strerror})") from None
    except OSError as error:
        raise Unreadable(
            f"{path}: {UNREADABLE}: {error.strerror}. Mend the file system or the permissions; or move {state} away, "
            "and the state before it is used"
        ) from None
    except (ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise BadInput(f"{path}: damaged ({reason})") from None
    name = state_name(manifest.standing.data_step)
    if state.name != name:
        raise Misplaced(f"{state}: must be called {name}, for it holds the state of that step; move it elsewhere")
    return manifest


def read_own(state: Path, run: str | None) -> Manifest:
    """`read_manifest` of a state of this run. Raises Foreign besides."""
    manifest = read_manifest(state)
    if run is not None and manifest.run not in (None, run):
        raise Foreign(f"{state}: was saved by another run, with other data or another experiment; move it elsewhere")
    return manifest


class StateReader:
    """Ranges of the parameters of a state, read when asked for, from whatever pieces hold them."""

    def __init__(self, state: Path) -> None:
        self.path, self.manifest = state, read_manifest(state)
        self._open: dict[str, Any] = {}

    def __call__(self, name: str, kind: str, start: int, count: int) -> torch.Tensor:
        """Elements `start` to `start + count` of a flat fp32 tensor. Raises BadInput when the state has none such."""
        if name not in self.manifest.pieces or kind not in self.manifest.kinds:
            raise BadInput(f"{self.path}: holds no '{name}.{kind}': it was saved by another model")
        parts = []
        for piece in sorted(self.manifest.pieces[name], key=lambda piece: piece.start):
            first, end = max(start, piece.start), min(start + count, piece.start + piece.count)
            if first < end:
                key = _key(name, kind, piece.start)
                parts.append(self._slice(piece.file, key, first - piece.start, end - piece.start))
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(found) != count:
            raise BadInput(f"{self.path}: holds {len(found)} of {count} elements of '{name}.{kind}'")
        return found

    def _slice(self, file: str, key: str, first: int, end: int) -> torch.Tensor:
        try:
            if file not in self._open:
                if len(self._open) >= MOST_OPEN_FILES:
                    self._open.pop(next(iter(self._open)))
                self._open[file] = safe_open(self.path / file, framework="pt")
            piece: torch.Tensor = self._open[file].get_slice(key)[first:end]
            return piece
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{self.path / file}: damaged ({error})") from None

    def weights(self, kind: str = "master") -> Iterator[tuple[str, torch.Tensor]]:
        """Each full weight, one at a time."""
        for name, shape in self.manifest.shapes.items():
            size = torch.Size(shape)
            yield name, self(name, kind, 0, size.numel()).view(size)

    def check_fits(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raises BadInput when the state is of another model."""
        wanted = {name: list(shape) for name, shape in shapes.items()}
        if wanted != self.manifest.shapes:
            names = wanted.keys() | self.manifest.shapes.keys()
            name = next(name for name in sorted(names) if wanted.get(name) != self.manifest.shapes.get(name))
            raise BadInput(
                f"{self.path}: was saved by another model: '{name}' has shape {self.manifest.shapes.get(name)} there, "
                f"{wanted.get(name)} here"
            )
