"""Tokens on disk, of pairs or of documents: memory-mapped shards with an index. Reading needs numpy only.

A folder of pairs holds, all little-endian:

    tokens-00000.bin …   the tokens of source 0, target 0, source 1, target 1, …: uint16, or uint32 for a vocabulary
                         above 65,536; a pair never straddles two shards
    source_lengths.bin   int32 a pair, tokens with </s>
    target_lengths.bin   int32 a pair, tokens with </s>
    offsets.bin          int64 a pair: the first token of the pair, counted over all shards
    text.bin             only where text is kept: `source TAB target` and a line feed a pair, normalised, in UTF-8
    text_offsets.bin     int64 a pair: the first byte of its text
    index.json           written last: the data type, sizes and SHA-256 of every file

A folder of documents holds tokens, offsets and index of the same form, one sequence of tokens a document, and

    lengths.bin          int32 a document, tokens with <s> and </s>
    text_bytes.bin       int64 a document: how many bytes of UTF-8 its text has
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from bmscale.errors import BadInput

FORMAT = 2
SHARD_TOKENS = 1 << 28  # 512 MiB as uint16: few open files for large corpora, still easy to copy
INDEX = "index.json"
AGAIN = "prepare the data again with `bmscale prepare CONFIG --force`"
CHECKED_AT_A_TIME = 1 << 20  # pairs: a few dozen MiB however large the corpus is
TEXT_FILES = ("text.bin", "text_offsets.bin")
OFFSETS = "offsets.bin"


@dataclass(frozen=True)
class Form:
    """What a folder holds one of after the other, and the files with one number for each."""

    items: str
    """pairs or documents: the key of their number in the index."""
    lengths: dict[str, str]
    """The files of the lengths whose sum is the tokens of an item, int32, and the key of the total of each."""
    sizes: dict[str, str]
    """The files of other numbers, int64, and the key of the total of each."""

    @property
    def totals(self) -> dict[str, str]:
        return self.lengths | self.sizes

    @property
    def files(self) -> dict[str, str]:
        """Every file with a number an item, and its data type."""
        return dict.fromkeys(self.lengths, "<i4") | dict.fromkeys(self.sizes, "<i8") | {OFFSETS: "<i8"}


PAIRS = Form("pairs", {"source_lengths.bin": "source_tokens", "target_lengths.bin": "target_tokens"}, {})
DOCUMENTS = Form("documents", {"lengths.bin": "tokens"}, {"text_bytes.bin": "text_bytes"})


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


class _Writer:
    """Writes items of one form to a new folder in the order given; the folder is readable only after `close`.

    As a context manager it closes at the end of the block, and leaves no index behind when the block raises.
    """

    form: Form

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
        self._files = {name: _HashedFile(self.directory / name) for name in self.form.files}
        self._texts = [_HashedFile(self.directory / name) for name in TEXT_FILES] if keep_text else []
        self._shard: _HashedFile | None = None
        self._shards: list[dict[str, Any]] = []
        self._tokens = 0
        self._counts = dict.fromkeys((self.form.items, *self.form.totals.values()), 0)

    def _append(self, tokens: NDArray[Any], numbers: list[NDArray[Any]], texts: list[bytes] | None = None) -> None:
        """Append items: their tokens in one flat array, and an array for each length and size file.

        Raises ValueError where the lengths do not add up to the tokens, or an id lies outside the vocabulary.
        """
        count = len(numbers[0])
        if count == 0:
            return
        lengths = np.sum([values.astype(np.int64) for values in numbers[: len(self.form.lengths)]], axis=0)
        ends = np.cumsum(lengths)
        if ends[-1] != len(tokens):
            raise ValueError(f"lengths add up to {ends[-1]} tokens, got {len(tokens)}")
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= self._vocabulary_size):
            raise ValueError(f"ids must be below {self._vocabulary_size}, got {tokens.min()} … {tokens.max()}")
        if self._texts:
            self._write_texts(texts or [], count)
        starts = ends - lengths + self._tokens
        for (name, dtype), values in zip(self.form.files.items(), (*numbers, starts), strict=True):
            self._files[name].write(values.astype(dtype))
        self._write_tokens(tokens.astype(self.dtype), ends)
        self._tokens += int(ends[-1])
        self._counts[self.form.items] += count
        for key, values in zip(self.form.totals.values(), numbers, strict=True):
            self._counts[key] += int(values.sum(dtype=np.int64))

    def _write_tokens(self, tokens: NDArray[Any], ends: NDArray[np.int64]) -> None:
        """Fill shards: one is closed by the first item that does not fit, whatever the batches were."""
        item, written = 0, 0
        while item < len(ends):
            if self._shard is None:
                self._shard = _HashedFile(self.directory / f"tokens-{len(self._shards):05d}.bin")
            room = self._shard_tokens - self._shard.bytes // self.dtype.itemsize
            fit = int(np.searchsorted(ends, written + room, side="right"))
            if fit <= item:
                if self._shard.bytes:
                    self._close_shard()
                    continue
                fit = item + 1  # one longer than a whole shard has one for itself
            self._shard.write(tokens[written : ends[fit - 1]])
            item, written = fit, int(ends[fit - 1])

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
            **self._counts,
            "lengths": [file.close() for file in self._files.values()],
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
        for file in [*self._files.values(), *self._texts, *([self._shard] if self._shard else [])]:
            file.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class ShardWriter(_Writer):
    """Writes pairs to a new folder in the order given; the folder is readable only after `close`.

    As a context manager it closes at the end of the block, and leaves no index behind when the block raises.
    """

    form = PAIRS

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
        self._append(tokens, [source_lengths, target_lengths], texts)


class DocumentWriter(_Writer):
    """Writes documents to a new folder, as ShardWriter writes pairs."""

    form = DOCUMENTS

    def __init__(self, directory: str | Path, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        super().__init__(directory, vocabulary_size, shard_tokens)

    def add(self, ids: NDArray[Any] | list[int], text_bytes: int) -> None:
        """Append one document, `<s> text </s>`, whose text has that many bytes of UTF-8."""
        tokens = np.asarray(ids, dtype=np.int64)
        self.add_batch(tokens, np.array([len(tokens)], np.int32), np.array([text_bytes], np.int64))

    def add_batch(self, tokens: NDArray[Any], lengths: NDArray[np.int32], text_bytes: NDArray[np.int64]) -> None:
        """Append documents: their tokens in one flat array, and for each its tokens and its bytes of text.

        Raises ValueError where the lengths do not add up to the tokens, or an id lies outside the vocabulary.
        """
        self._append(tokens, [lengths, text_bytes])


class _Shards:
    """Random access to the items of a folder; tokens are read as they are asked for, all workers share the pages."""

    form: Form

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        self.directory = directory
        self.index = index
        self._numbers = {name: _map(directory / name, dtype) for name, dtype in self.form.files.items()}
        self._lengths: list[NDArray[np.int32]] = [self._numbers[name] for name in self.form.lengths]
        self._offsets: NDArray[np.int64] = self._numbers[OFFSETS]
        self._tokens = [_map(directory / shard["file"], index["dtype"]) for shard in index["shards"]]
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])

    @classmethod
    def open(cls, directory: str | Path) -> Self:
        """Open a folder that its writer has closed.

        Raises BadInput, naming the file, where the index is absent or damaged, a file cannot be read or is not of the
        size that the index says, or the lengths do not add up to its tokens. The tokens themselves are not read.
        """
        directory = Path(directory)
        try:
            index = _read_index(directory, cls.form)
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
    def _reopen(cls, directory: Path) -> Self:
        """For a worker process: the parent has checked the folder."""
        return cls(directory, _read_index(directory, cls.form))

    def _check_lengths(self) -> None:
        totals, end = dict.fromkeys(self.form.totals, 0), 0
        for start in range(0, len(self), CHECKED_AT_A_TIME):
            part = slice(start, start + CHECKED_AT_A_TIME)
            lengths = [values[part].astype(np.int64) for values in self._lengths]
            ends = end + np.cumsum(np.sum(lengths, axis=0))
            offsets = self._offsets[part]
            if min(side.min() for side in lengths) < 1:
                raise BadInput(f"{self.directory}: damaged: every length must be at least 1 token; {AGAIN}")
            if offsets[0] != end or not np.array_equal(offsets[1:], ends[:-1]):
                raise BadInput(f"{self.directory / OFFSETS}: damaged: does not follow the lengths; {AGAIN}")
            for name in totals:
                totals[name] += int(self._numbers[name][part].sum(dtype=np.int64))
            end = int(ends[-1])
        for name, key in self.form.totals.items():
            if totals[name] != self.index[key]:
                raise BadInput(
                    f"{self.directory / name}: the lengths must add up to {self.index[key]:,} "
                    f"{key.rpartition('_')[2]} by {INDEX}, they are {totals[name]:,}; {AGAIN}"
                )
        inner = self._starts[1:-1]
        nearest = np.minimum(np.searchsorted(self._offsets, inner), len(self) - 1)
        if not np.array_equal(self._offsets[nearest], inner):
            items = self.form.items.removesuffix("s")
            raise BadInput(f"{self.directory / INDEX}: damaged: a {items} lies across two shards; {AGAIN}")

    def __len__(self) -> int:
        return int(self.index[self.form.items])

    def _place(self, i: int) -> tuple[NDArray[Any], int]:
        """The shard that holds item `i`, and where in it the item begins."""
        if not 0 <= i < len(self):
            raise IndexError(f"{self.form.items.removesuffix('s')} {i} of {len(self)}")
        offset = int(self._offsets[i])
        shard = int(np.searchsorted(self._starts, offset, side="right")) - 1
        return self._tokens[shard], offset - int(self._starts[shard])

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map is a copy of the data: another process opens the files instead.
        return type(self)._reopen, (self.directory,)


class DocumentShards(_Shards):
    """Random access to the documents of a folder."""

    form = DOCUMENTS

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        super().__init__(directory, index)
        self.lengths: NDArray[np.int32] = self._lengths[0]
        """Tokens of each document with <s> and </s>, int32 of shape (documents,)."""
        self.text_bytes: NDArray[np.int64] = self._numbers["text_bytes.bin"]
        """Bytes of UTF-8 of each document's text, int64 of shape (documents,)."""

    def document(self, i: int) -> NDArray[Any]:
        """The token ids of document `i`, <s> to </s>: a read-only view, uint16 or uint32."""
        tokens, start = self._place(i)
        return tokens[start : start + int(self.lengths[i])]


class PairShards(_Shards):
    """Random access to the pairs of a folder; tokens are read as they are asked for, all workers share the pages."""

    form = PAIRS

    def __init__(self, directory: Path, index: dict[str, Any]) -> None:
        super().__init__(directory, index)
        self.source_lengths, self.target_lengths = self._lengths
        """Tokens of each source and of each target with </s>, int32 of shape (pairs,)."""
        self._texts: NDArray[np.uint8] | None = None
        if index["texts"]:
            self._texts = _map(directory / TEXT_FILES[0], "u1")
            self._text_offsets: NDArray[np.int64] = _map(directory / TEXT_FILES[1], "<i8")

    def pair(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The token ids of pair `i`, (source, target), each ending with </s>: read-only views, uint16 or uint32."""
        tokens, start = self._place(i)
        middle = start + int(self.source_lengths[i])
        return tokens[start:middle], tokens[middle : middle + int(self.target_lengths[i])]

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


def _read_index(directory: Path, form: Form) -> dict[str, Any]:
    path = directory / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{directory}: not a folder of prepared {form.items}, {INDEX} is missing; {AGAIN}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged index ({error}); {AGAIN}") from None
    if not isinstance(index, dict) or not _is_count(index.get("format")) or index["format"] != FORMAT:
        found = index.get("format") if isinstance(index, dict) else f"no object but {index!r:.40}"
        raise BadInput(f"{path}: shard format must be {FORMAT}, got {found!r:.40}; {AGAIN}")
    if form.items not in index and (others := {"pairs", "documents"} & index.keys()):
        raise BadInput(f"{directory}: must hold {form.items}, it holds {', '.join(others)}")
    problem = _problem(index, form)
    if problem is not None:
        raise BadInput(f"{path}: damaged index, {problem}; {AGAIN}")
    return cast(dict[str, Any], index)


def _problem(index: dict[str, Any], form: Form) -> str | None:
    """What is wrong with an index; None for one that the writer of the form could have written."""
    if index.get("dtype") not in ("<u2", "<u4"):
        return f"dtype must be <u2 or <u4, got {index.get('dtype')!r:.40}"
    for key in (form.items, *form.totals.values()):
        if not _is_count(index.get(key)):
            return f"{key} must be a whole number, got {index.get(key)!r:.40}"
    for key in ("lengths", "shards", "texts"):
        entries = index.get(key)
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            return f"{key} must be a list of files with bytes and sha256"
    names = [entry["file"] for entry in index["lengths"]]
    if names != list(form.files):
        return f"lengths must be {', '.join(form.files)}"
    if [entry["file"] for entry in index["shards"]] != [f"tokens-{i:05d}.bin" for i in range(len(index["shards"]))]:
        return "shards must be tokens-00000.bin and those that follow"
    if [entry["file"] for entry in index["texts"]] not in ([], list(TEXT_FILES)):
        return f"texts must be none or {', '.join(TEXT_FILES)}"
    count = index[form.items]
    if index["texts"] and index["texts"][1]["bytes"] != 8 * count:
        return f"the offsets of the texts do not match {count:,} {form.items}"
    if any(entry["bytes"] != count * np.dtype(form.files[entry["file"]]).itemsize for entry in index["lengths"]):
        return f"the length files do not match {count:,} {form.items}"
    width = np.dtype(index["dtype"]).itemsize
    tokens = sum(index[key] for key in form.lengths.values())
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
