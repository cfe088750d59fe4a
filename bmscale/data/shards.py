"""Token pairs on disk: memory-mapped shards with an index. Reading needs numpy only.

A folder holds, all little-endian:

    tokens-00000.bin …   the tokens of source 0, target 0, source 1, target 1, …: uint16, or uint32 for a vocabulary
                         above 65,536; a pair never straddles two shards
    source_lengths.bin   int32 a pair, tokens with </s>
    target_lengths.bin   int32 a pair, tokens with </s>
    offsets.bin          int64 a pair: the first token of the pair, counted over all shards
    text.bin             only where text is kept: `source TAB target` and a line feed a pair, normalised, in UTF-8
    text_offsets.bin     int64 a pair: the first byte of its text
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

FORMAT = 2
SHARD_TOKENS = 1 << 28  # 512 MiB as uint16: few open files for large corpora, still easy to copy
INDEX = "index.json"
AGAIN = "prepare the data again with `bmscale prepare CONFIG --force`"
CHECKED_PAIRS = 1 << 20  # at a time: a few dozen MiB however large the corpus is
TEXT_FILES = ("text.bin", "text_offsets.bin")
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

    def __init__(
        self,
        directory: str | Path,
        vocabulary_size: int,
        shard_tokens: int = SHARD_TOKENS,
        *,
        keep_text: bool = False,
    ) -> None:
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
        self._texts = [_HashedFile(self.directory / name) for name in TEXT_FILES] if keep_text else []
        self._shard: _HashedFile | None = None
        self._shards: list[dict[str, Any]] = []
        self.pairs = self.source_tokens = self.target_tokens = 0

    def add(self, source_ids: NDArray[Any] | list[int], target_ids: NDArray[Any] | list[int]) -> None:
        """Append one pair; both sides already end with </s>."""
        sides = [np.asarray(ids, dtype=np.int64) for ids in (source_ids, target_ids)]
        lengths = [np.array([len(side)], dtype=np.int32) for side in sides]
        self.add_batch(np.concatenate(sides), lengths[0], lengths[1])

    def add_batch(
        self,
        tokens: NDArray[Any],
        source_lengths: NDArray[np.int32],
        target_lengths: NDArray[np.int32],
        texts: list[bytes] | None = None,
    ) -> None:
        """Append pairs: `tokens` is source 0, target 0, source 1, … in one flat array, the lengths are per pair.

        `texts` are their lines, `source TAB target` and a line feed; they are given where the writer keeps text.

        Raises ValueError where the lengths do not add up to the tokens, or an id lies outside the vocabulary.
        """
        ends = np.cumsum(source_lengths.astype(np.int64) + target_lengths)
        if len(source_lengths) == 0:
            return
        if ends[-1] != len(tokens):
            raise ValueError(f"lengths add up to {ends[-1]} tokens, got {len(tokens)}")
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._vocabulary_size):
            raise ValueError(f"ids must be below {self._vocabulary_size}, got {tokens.min()} … {tokens.max()}")
        if self._texts:
            self._write_texts(texts or [], len(source_lengths))
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

    def _write_texts(self, texts: list[bytes], pairs: int) -> None:
        if len(texts) != pairs:
            raise ValueError(f"there must be a text for each of {pairs} pairs, got {len(texts)}")
        data, offsets = self._texts
        sizes = np.fromiter(map(len, texts), np.int64, pairs)
        offsets.write((np.cumsum(sizes) - sizes + data.bytes).astype("<i8"))
        data.write(np.frombuffer(b"".join(texts), np.uint8))

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
            "texts": [file.close() for file in self._texts],
        }
        with (self.directory / INDEX).open("w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        return index

    def abandon(self) -> None:
        """Close the files without an index, so that nothing can read the folder."""
        for file in [*self._lengths, *self._texts, *([self._shard] if self._shard else [])]:
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
    """Random access to the pairs of a folder; tokens are read as they are asked for, all workers share the pages."""

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
        self._texts: NDArray[np.uint8] | None = None
        if index["texts"]:
            self._texts = _map(directory / TEXT_FILES[0], "u1")
            self._text_offsets: NDArray[np.int64] = _map(directory / TEXT_FILES[1], "<i8")

    @classmethod
    def open(cls, directory: str | Path) -> "PairShards":
        """Open a folder that ShardWriter has closed.

        Raises BadInput, naming the file, where the index is absent or damaged, a file cannot be read or is not of the
        size that the index says, or the lengths do not add up to its tokens. The tokens themselves are not read.
        """
        directory = Path(directory)
        try:
            index = _read_index(directory)
            for entry in [*index["lengths"], *index["shards"], *index["texts"]]:
                path = directory / entry["file"]
                size = path.stat().st_size if path.is_file() else None
                if size != entry["bytes"]:
                    given = "it is missing" if size is None else f"it has {size:,}"
                    raise BadInput(f"{path}: must have {entry['bytes']:,} bytes by {INDEX}, {given}; {AGAIN}")
            shards = cls(directory, index)
        except OSError as error:
            raise BadInput(f"{error.filename or directory}: cannot be read: {error.strerror}") from None
        shards._check_lengths()
        return shards

    @classmethod
    def _reopen(cls, directory: Path) -> "PairShards":
        """For a worker process: the parent has checked the folder."""
        return cls(directory, _read_index(directory))

    def _check_lengths(self) -> None:
        totals, end = [0, 0], 0
        for start in range(0, len(self), CHECKED_PAIRS):
            part = slice(start, start + CHECKED_PAIRS)
            sides = self.source_lengths[part].astype(np.int64), self.target_lengths[part].astype(np.int64)
            ends = end + np.cumsum(sides[0] + sides[1])
            offsets = self._offsets[part]
            if min(sides[0].min(), sides[1].min()) < 1:
                raise BadInput(f"{self.directory}: damaged: every length must be at least 1 token; {AGAIN}")
            if offsets[0] != end or not np.array_equal(offsets[1:], ends[:-1]):
                raise BadInput(f"{self.directory / 'offsets.bin'}: damaged: does not follow the lengths; {AGAIN}")
            totals, end = [total + int(side.sum()) for total, side in zip(totals, sides, strict=True)], int(ends[-1])
        for file, total, key in zip(LENGTH_FILES, totals, ("source_tokens", "target_tokens"), strict=False):
            if total != self.index[key]:
                raise BadInput(
                    f"{self.directory / file}: the lengths must add up to {self.index[key]:,} tokens by {INDEX}, "
                    f"they are {total:,}; {AGAIN}"
                )
        inner = self._starts[1:-1]
        nearest = np.minimum(np.searchsorted(self._offsets, inner), len(self) - 1)
        if not np.array_equal(self._offsets[nearest], inner):
            raise BadInput(f"{self.directory / INDEX}: damaged: a pair lies across two shards; {AGAIN}")

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

    @property
    def has_texts(self) -> bool:
        """Whether the text of the pairs was kept (data.keep_text)."""
        return self._texts is not None

    def text(self, i: int) -> tuple[str, str]:
        """The normalised text of pair `i`, (source, target), the source with its language tag. Needs `has_texts`."""
        if self._texts is None:
            raise ValueError(f"{self.directory}: was prepared without data.keep_text")
        end = int(self._text_offsets[i + 1]) if i + 1 < len(self) else len(self._texts)
        line = self._texts[int(self._text_offsets[i]) : end].tobytes()
        source, _, target = line.decode().rstrip("\n").partition("\t")
        return source, target

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map is a copy of the data: another process opens the files instead.
        return PairShards._reopen, (self.directory,)


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{directory}: not a folder of prepared pairs, {INDEX} is missing; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged index ({error}); {AGAIN}") from None
    if not isinstance(index, dict) or not _is_count(index.get("format")) or index["format"] != FORMAT:
        found = index.get("format") if isinstance(index, dict) else f"no object but {index!r:.40}"
        raise BadInput(f"{path}: shard format must be {FORMAT}, got {found!r:.40}; {AGAIN}")
    problem = _problem(index)
    if problem is not None:
        raise BadInput(f"{path}: damaged index, {problem}; {AGAIN}")
    return cast(dict[str, Any], index)


def _problem(index: dict[str, Any]) -> str | None:
    """What is wrong with an index; None for one that ShardWriter could have written."""
    if index.get("dtype") not in ("<u2", "<u4"):
        return f"dtype must be <u2 or <u4, got {index.get('dtype')!r:.40}"
    for key in ("pairs", "source_tokens", "target_tokens"):
        if not _is_count(index.get(key)):
            return f"{key} must be a whole number, got {index.get(key)!r:.40}"
    for key in ("lengths", "shards", "texts"):
        entries = index.get(key)
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            return f"{key} must be a list of files with bytes and sha256"
    names = [entry["file"] for entry in index["lengths"]]
    if names != list(LENGTH_FILES):
        return f"lengths must be {', '.join(LENGTH_FILES)}"
    if [entry["file"] for entry in index["shards"]] != [f"tokens-{i:05d}.bin" for i in range(len(index["shards"]))]:
        return "shards must be tokens-00000.bin and those that follow"
    if [entry["file"] for entry in index["texts"]] not in ([], list(TEXT_FILES)):
        return f"texts must be none or {', '.join(TEXT_FILES)}"
    pairs = index["pairs"]
    if index["texts"] and index["texts"][1]["bytes"] != 8 * pairs:
        return f"the offsets of the texts do not match {pairs:,} pairs"
    if any(entry["bytes"] != pairs * np.dtype(LENGTH_FILES[entry["file"]]).itemsize for entry in index["lengths"]):
        return f"the length files do not match {pairs:,} pairs"
    width = np.dtype(index["dtype"]).itemsize
    tokens = index["source_tokens"] + index["target_tokens"]
    sizes = [entry["bytes"] for entry in index["shards"]]
    if any(size == 0 or size % width for size in sizes) or sum(sizes) != tokens * width:
        return f"the shards do not match {tokens:,} tokens of {width} bytes"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("file"), str)
        and isinstance(value.get("sha256"), str)
        and _is_count(value.get("bytes"))
    )


def _map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    # A plain view: np.memmap's own slicing costs microseconds a call, which a data loader pays for every sentence.
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
