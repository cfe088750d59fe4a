"""Token pairs on disk: memory-mapped shards with an index. Reading needs numpy only.

A folder holds, all little-endian:

    tokens-00000.bin …   the tokens of source 0, target 0, source 1, target 1, …: uint16, or uint32 for a vocabulary
                         above 65,536; a pair never straddles two shards
    source_lengths.bin   int32 a pair, tokens with </s>
    target_lengths.bin   int32 a pair, tokens with </s>
    offsets.bin          int64 a pair: the first token of the pair, counted over all shards
    index.json           written last: the data type, sizes and SHA-256 of every file
"""

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from bmscale.errors import BadInput

FORMAT = 1
SHARD_TOKENS = 1 << 28  # 512 MiB as uint16: few open files for large corpora, still easy to copy
INDEX = "index.json"
LENGTH_FILES = {"source_lengths.bin": "<i4", "target_lengths.bin": "<i4", "offsets.bin": "<i8"}


class _HashedFile:
    """A file that is hashed while it is written and is on the disk, not only in its cache, once closed."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.bytes = 0
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def close(self) -> dict[str, Any]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"file": self.name, "bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def abandon(self) -> None:
        self._file.close()


class ShardWriter:
    """Writes pairs to a new folder in the order given; the folder is readable only after `close`.

    As a context manager it closes at the end of the block, and leaves no index behind when the block raises.
    """

    def __init__(self, directory: str | Path, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        if not 0 < vocabulary_size <= 1 << 32:
            raise ValueError(f"vocabulary_size must be within 1 … 2**32, got {vocabulary_size}")
        if shard_tokens <= 0:
            raise ValueError(f"shard_tokens must be positive, got {shard_tokens}")
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.dtype = np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")
        self._vocabulary_size = vocabulary_size
        self._shard_tokens = shard_tokens
        self._lengths = [_HashedFile(self.directory / name) for name in LENGTH_FILES]
        self._shard: _HashedFile | None = None
        self._shards: list[dict[str, Any]] = []
        self.pairs = self.source_tokens = self.target_tokens = 0

    def add(self, source_ids: NDArray[Any] | list[int], target_ids: NDArray[Any] | list[int]) -> None:
        """Append one pair; both sides already end with </s>."""
        sides = [np.asarray(ids, dtype=np.int64) for ids in (source_ids, target_ids)]
        lengths = [np.array([len(side)], dtype=np.int32) for side in sides]
        self.add_batch(np.concatenate(sides), lengths[0], lengths[1])

    def add_batch(
        self, tokens: NDArray[Any], source_lengths: NDArray[np.int32], target_lengths: NDArray[np.int32]
    ) -> None:
        """Append pairs: `tokens` is source 0, target 0, source 1, … in one flat array, the lengths are per pair.

        Raises ValueError where the lengths do not add up to the tokens, or an id lies outside the vocabulary.
        """
        ends = np.cumsum(source_lengths.astype(np.int64) + target_lengths)
        if len(source_lengths) == 0:
            return
        if ends[-1] != len(tokens):
            raise ValueError(f"lengths add up to {ends[-1]} tokens, got {len(tokens)}")
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._vocabulary_size):
            raise ValueError(f"ids must be below {self._vocabulary_size}, got {tokens.min()} … {tokens.max()}")
        starts = ends - source_lengths - target_lengths
        total = self.source_tokens + self.target_tokens
        for file, values in zip(self._lengths, (source_lengths, target_lengths, starts + total), strict=True):
            file.write(values.astype(LENGTH_FILES[file.name]))
        self._write_tokens(tokens.astype(self.dtype), ends)
        self.pairs += len(source_lengths)
        self.source_tokens += int(source_lengths.sum(dtype=np.int64))
        self.target_tokens += int(target_lengths.sum(dtype=np.int64))

    def _write_tokens(self, tokens: NDArray[Any], ends: NDArray[np.int64]) -> None:
        """Fill shards: one is closed by the first pair that does not fit, whatever the batches were."""
        pair, written = 0, 0
        while pair < len(ends):
            if self._shard is None:
                self._shard = _HashedFile(self.directory / f"tokens-{len(self._shards):05d}.bin")
            room = self._shard_tokens - self._shard.bytes // self.dtype.itemsize
            fit = int(np.searchsorted(ends, written + room, side="right"))
            if fit <= pair:
                if self._shard.bytes:
                    self._close_shard()
                    continue
                fit = pair + 1  # a pair longer than a whole shard has one for itself
            self._shard.write(tokens[written : ends[fit - 1]])
            pair, written = fit, int(ends[fit - 1])

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.close())
            self._shard = None

    def close(self) -> dict[str, Any]:
        """Finish the folder and return its index."""
        self._close_shard()
        index = {
            "format": FORMAT,
            "dtype": self.dtype.str,
            "pairs": self.pairs,
            "source_tokens": self.source_tokens,
            "target_tokens": self.target_tokens,
            "lengths": [file.close() for file in self._lengths],
            "shards": self._shards,
        }
        with (self.directory / INDEX).open("w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        return index

    def abandon(self) -> None:
        """Close the files without an index, so that nothing can read the folder."""
        for file in [*self._lengths, *([self._shard] if self._shard else [])]:
            file.abandon()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class PairShards:
    """Random access to the pairs of a folder; nothing is read before it is asked for, all workers share the pages."""

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        self.directory = directory
        self.index = index
        self.source_lengths: NDArray[np.int32] = _map(directory / "source_lengths.bin", "<i4")
        """Tokens of each source with </s>, int32 of shape (pairs,)."""
        self.target_lengths: NDArray[np.int32] = _map(directory / "target_lengths.bin", "<i4")
        """Tokens of each target with </s>, int32 of shape (pairs,)."""
        self._offsets: NDArray[np.int64] = _map(directory / "offsets.bin", "<i8")
        self._tokens = [_map(directory / shard["file"], index["dtype"]) for shard in index["shards"]]
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])

    @classmethod
    def open(cls, directory: str | Path) -> "PairShards":
        """Open a folder that ShardWriter has closed.

        Raises BadInput where the index is absent or damaged, or a file is missing or not of the size the index says.
        """
        directory = Path(directory)
        index = _read_index(directory)
        for entry in [*index["lengths"], *index["shards"]]:
            path = directory / entry["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != entry["bytes"]:
                given = "it is missing" if size is None else f"it has {size:,}"
                raise BadInput(
                    f"{path}: must have {entry['bytes']:,} bytes by {INDEX}, {given}; "
                    "prepare the data again with `bmscale prepare CONFIG --force`"
                )
        return cls(directory, index)

    def __len__(self) -> int:
        return int(self.index["pairs"])

    def pair(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The token ids of pair `i`, (source, target), each ending with </s>: read-only views, uint16 or uint32."""
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        offset = int(self._offsets[i])
        shard = int(np.searchsorted(self._starts, offset, side="right")) - 1
        start = offset - int(self._starts[shard])
        middle = start + int(self.source_lengths[i])
        end = middle + int(self.target_lengths[i])
        tokens = self._tokens[shard]
        return tokens[start:middle], tokens[middle:end]

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map is a copy of the data: another process opens the files instead.
        return PairShards.open, (self.directory,)


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    again = "prepare the data again with `bmscale prepare CONFIG --force`"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{directory}: not a folder of prepared pairs, {INDEX} is missing; {again}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: damaged index ({error}); {again}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        raise BadInput(f"{path}: shard format must be {FORMAT}, got {found}; {again}")
    missing = {"dtype", "pairs", "source_tokens", "target_tokens", "lengths", "shards"} - index.keys()
    if missing or [entry.get("file") for entry in index["lengths"]] != list(LENGTH_FILES):
        raise BadInput(f"{path}: damaged index, {', '.join(sorted(missing)) or 'lengths'} must be there; {again}")
    if any(e["bytes"] != index["pairs"] * np.dtype(LENGTH_FILES[e["file"]]).itemsize for e in index["lengths"]):
        raise BadInput(f"{path}: damaged index, the length files do not match {index['pairs']} pairs; {again}")
    return cast(dict[str, Any], index)


def _map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    # A plain view: np.memmap's own slicing costs microseconds a call, which a data loader pays for every sentence.
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
