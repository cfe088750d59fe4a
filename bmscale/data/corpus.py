"""Readers of parallel text: every format becomes one stream of (source, target) strings. `documents` reads with them.

Lines end at \\n or \\r\\n and nowhere else. Python's text mode and `str.splitlines` also break at U+0085, U+2028 and
others, which shifts every later line of one side against the other, so files are read as bytes and split there.
"""

import difflib
import gzip
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import zstandard
from pydantic import AfterValidator, Field, model_validator

from bmscale.config import Config
from bmscale.data.synthetic import synthetic_pairs
from bmscale.errors import BadInput

Pair = tuple[str, str]

COMPRESSIONS = (".gz", ".xz", ".zst")
FORMATS = {".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "dataset"}
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json"}
BUFFER_BYTES = 1 << 20
MOST_TOY_PAIRS = 10_000_000
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, gzip.BadGzipFile)


def _expanded(path: str) -> str:
    """A path as it will be opened, `~` replaced by the home folder, once and for everybody who reads the section."""
    if not path or "\0" in path or any("\ud800" <= character <= "\udfff" for character in path):
        raise ValueError("must be a path that a file can have: not empty, without NUL and without half characters")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise ValueError(f"there is no home folder '{Path(path).parts[0]}'; write the path in full") from None


LocalPath = Annotated[str, AfterValidator(_expanded)]
"""A path of a configuration, with `~` expanded."""

LanguageCode = Annotated[str, Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$")]
"""Code of a language: en, zh-Hans, deu_Latn."""

Languages = tuple[str, str]
"""(source, target)."""


class OriginConfig(Config):
    """Where the text of a corpus is, of pairs or of documents. In YAML a plain string stands for `{path: STRING}`."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What reports and training.sampling call this corpus; by default its file name without the endings."""
    path: LocalPath | None = None
    """The file or folder."""
    dataset: str | None = None
    """What `datasets.load_dataset` takes first: the name of a dataset on the Hugging Face hub, or a local folder. It
    is streamed, never kept whole."""
    subset: str | None = None
    """Configuration of the dataset, such as de-en; goes with `dataset`."""
    revision: str | None = None
    """Branch, tag or commit of a dataset on the hub; goes with `dataset`."""
    split: str = "train"
    """Split to read of a dataset."""
    toy: Literal["train", "valid", "test"] | None = None
    """Read this split of the embedded toy corpus instead of a file."""
    seed: int = Field(default=0, ge=0)
    """Seed of the toy corpus, or of the synthetic one."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [name for name in self._origins() if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(self._origins().values())
            got = " and ".join(given) or "none"
            raise ValueError(f"a corpus needs exactly one of {names}; got {got}")
        for key in ("subset", "revision"):
            if getattr(self, key) is not None and self.dataset is None:
                raise ValueError(f"{key} goes with dataset, which is not given; got {given[0]}")
        return self

    @classmethod
    def _origins(cls) -> dict[str, str]:
        """The keys that say where a corpus is, and how messages write them."""
        return {"path": "path", "dataset": "dataset", "toy": "toy"}

    @classmethod
    def endings(cls) -> dict[str, str]:
        """The format that the ending of a file's name says, before that of a compression."""
        return FORMATS

    @property
    def place(self) -> str:
        """Where the corpus is, in messages: its path, the dataset, or `toy:SPLIT`."""
        return self.path or self.dataset or f"toy:{self.toy}"

    @property
    def short_name(self) -> str:
        """`name`, or else the file without directories and the endings that say its format, or `toy-SPLIT`."""
        if self.name:
            return self.name
        if self.toy:
            return f"toy-{self.toy}"
        name = Path(self.place).name
        if self.subset:
            name = f"{name}-{self.subset}"
        for ending in (*COMPRESSIONS, *self.endings()):
            name = name.removesuffix(ending)
        return name or "corpus"


class CorpusConfig(OriginConfig):
    """One source of sentence pairs. In YAML a plain string stands for `{path: STRING}`."""

    path: LocalPath | None = None
    """TSV, JSONL (each plain, .gz, .xz or .zst), Parquet file, dataset folder, or the prefix of two parallel files."""
    source_path: LocalPath | None = None
    """The source side of two parallel text files, one sentence a line; goes with target_path."""
    target_path: LocalPath | None = None
    """The target side of two parallel text files."""
    format: Literal["auto", "tsv", "jsonl", "parallel", "dataset"] = "auto"
    """How to read `path`; auto goes by the extension, a folder is a dataset, anything else a parallel prefix."""
    source_column: int = Field(default=0, ge=0)
    """Column of the source in a TSV, counted from 0."""
    target_column: int = Field(default=1, ge=0)
    """Column of the target in a TSV, counted from 0."""
    source_key: str | None = None
    """Key of the source in JSONL or a dataset; the source language's code when not given."""
    target_key: str | None = None
    """Key of the target in JSONL or a dataset; the target language's code when not given."""
    source_language: LanguageCode | None = None
    """Language of the source where it is not data.source_language: many pairs in one model."""
    target_language: LanguageCode | None = None
    """Language of the target where it is not data.target_language."""
    synthetic: Literal["train", "valid", "test"] | None = None
    """Read this split of the corpus for scaling studies (`data/synthetic.py`) instead of a file; it goes with
    `tokenizer: {type: word}`."""
    pairs: int = Field(default=10_000, gt=0, le=1_000_000_000)
    """Number of toy pairs, at most ten million, or of synthetic ones, at most a thousand million."""

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        if (self.source_path is None) != (self.target_path is None):
            raise ValueError("source_path and target_path go together: give both or neither")
        if self.toy is not None and self.pairs > MOST_TOY_PAIRS:
            raise ValueError(f"pairs of the toy corpus must be at most {MOST_TOY_PAIRS:,}; got {self.pairs:,}")
        return self

    @classmethod
    def _origins(cls) -> dict[str, str]:
        sides = {"source_path": "source_path + target_path"}
        return {"path": "path", **sides, "dataset": "dataset", "toy": "toy", "synthetic": "synthetic"}

    @property
    def place(self) -> str:
        """Where the corpus is, in messages: its path, the dataset, `toy:SPLIT` or `synthetic:SPLIT`."""
        if self.synthetic is not None:
            return f"synthetic:{self.synthetic}"
        return self.path or self.source_path or self.dataset or f"toy:{self.toy}"

    @property
    def short_name(self) -> str:
        """As that of any corpus, or `synthetic-SPLIT`."""
        return self.name or f"synthetic-{self.synthetic}" if self.synthetic else super().short_name

    def languages(self, default: Languages) -> Languages:
        """The (source, target) languages of this corpus, where `default` are those of the data section."""
        return self.source_language or default[0], self.target_language or default[1]


def read_pairs(corpus: CorpusConfig, source_language: str, target_language: str) -> Iterator[Pair]:
    """Stream the (source, target) pairs of one corpus, in its order, the text as it stands in the file.

    The languages are those of the data section; the corpus's own go before.

    Raises BadInput for a missing or damaged file, text that is not UTF-8, sides of different length, a row without the
    column or key, and a corpus without a single pair.
    """
    pairs = _reader(corpus, *corpus.languages((source_language, target_language)))
    first = next(pairs, None)
    if first is None:
        raise BadInput(f"{describe(corpus)}: a corpus must hold at least one pair, this one is empty")
    return itertools.chain([first], pairs)


def describe(corpus: OriginConfig) -> str:
    """The name of a corpus in messages: its path, the dataset, or `toy:SPLIT`."""
    return corpus.place


def input_files(corpus: CorpusConfig, source_language: str, target_language: str) -> list[Path]:
    """Every file that the corpus is read from, sorted inside a dataset folder; none for the toy corpus or a dataset of
    the hub."""
    if corpus.path is None and corpus.source_path is None:
        return dataset_files(corpus)
    source_language, target_language = corpus.languages((source_language, target_language))
    if _format(corpus, source_language, target_language) == "parallel":
        return list(_parallel_files(corpus, source_language, target_language))
    return files_at(Path(str(corpus.path)))


def dataset_files(corpus: OriginConfig) -> list[Path]:
    """The files of a dataset that is a folder here; none for the toy corpus or a dataset of the hub."""
    folder = Path(corpus.dataset) if corpus.dataset is not None else None
    return files_at(folder) if folder is not None and folder.is_dir() else []


def files_at(path: Path) -> list[Path]:
    """The file, or every file of the folder, sorted. Raises BadInput where there is neither."""
    path = existing(path)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _reader(corpus: CorpusConfig, source_language: str, target_language: str) -> Iterator[Pair]:
    if corpus.toy is not None:
        # Imported here so that reading files does not load the toy corpus.
        from bmscale.data.toy import toy_pairs

        return iter(toy_pairs(corpus.toy, corpus.pairs, corpus.seed))
    if corpus.synthetic is not None:
        return synthetic_pairs(corpus.synthetic, corpus.pairs, corpus.seed)
    keys = (corpus.source_key or source_language, corpus.target_key or target_language)
    if corpus.dataset is not None:
        return (_pair_of_row(row, keys, where) for where, row in dataset_rows(corpus))
    kind = _format(corpus, source_language, target_language)
    if kind == "parallel":
        return _read_parallel(*_parallel_files(corpus, source_language, target_language))
    path = existing(Path(str(corpus.path)))
    if kind == "tsv":
        return tsv_columns(path, corpus.source_column, corpus.target_column)
    rows = jsonl_rows(path) if kind == "jsonl" else dataset_rows(corpus)
    return (_pair_of_row(row, keys, where) for where, row in rows)


def _format(corpus: CorpusConfig, source_language: str, target_language: str) -> str:
    if corpus.path is None:
        return "parallel"
    path = Path(corpus.path)
    if (found := file_format(corpus, corpus.format)) is not None:
        return found
    if any(_side(path, language) for language in (source_language, target_language)):
        return "parallel"
    raise BadInput(
        f"{path}: no such file, and no parallel files {path}.{source_language} and {path}.{target_language}"
        f"{nearest(path)}"
    )


def file_format(corpus: OriginConfig, given: str) -> str | None:
    """The format of the corpus's path: the one given, or where that is auto what its ending says, a folder a dataset.

    None where nothing is there under that name. Raises BadInput for a file whose ending says nothing.
    """
    if given != "auto":
        return given
    path, endings = Path(str(corpus.path)), corpus.endings()
    if path.is_dir():
        return "dataset"
    bare = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if bare.suffix in endings:
        return endings[bare.suffix]
    if path.is_file():
        raise BadInput(
            f"{path}: the extension must be one of {', '.join(endings)} (plain or with {', '.join(COMPRESSIONS)}), "
            f"got '{path.suffix or 'none'}'; name the format with `format: tsv` or `format: jsonl`"
        )
    return None


def _parallel_files(corpus: CorpusConfig, source_language: str, target_language: str) -> tuple[Path, Path]:
    if corpus.source_path is not None:
        source, target = (existing(Path(str(p))) for p in (corpus.source_path, corpus.target_path))
        return source, target
    prefix = Path(str(corpus.path))
    found: list[Path] = []
    for language in (source_language, target_language):
        file = _side(prefix, language)
        if file is None:
            wanted = prefix.with_name(f"{prefix.name}.{language}")
            raise BadInput(f"{wanted}: no such file (nor with {', '.join(COMPRESSIONS)}){nearest(wanted)}")
        found.append(file)
    return found[0], found[1]


def _side(prefix: Path, language: str) -> Path | None:
    candidates = (prefix.with_name(f"{prefix.name}.{language}{suffix}") for suffix in ("", *COMPRESSIONS))
    return next((file for file in candidates if file.is_file()), None)


def existing(path: Path) -> Path:
    """The path itself. Raises BadInput, with the nearest name there is, where it is no file and no folder."""
    if not path.exists():
        raise BadInput(f"{path}: no such file{nearest(path)}")
    if not path.is_file() and not path.is_dir():
        # A pipe would block for ever: it is read once to hash it, and once more to train.
        raise BadInput(f"{path}: must be a regular file or a folder; a pipe or device cannot be read twice")
    return path


def nearest(path: Path) -> str:
    """A hint for a missing path: the nearest name in its folder, or the first folder above it that is missing."""
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, [file.name for file in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike `zstandard.stream_reader` it notices a file that ends too early."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._decompressor.unused_data if self._decompressor.eof else b""
            data = data or self._file.read(BUFFER_BYTES)
            if not data:
                if not self._decompressor.eof:
                    raise EOFError("compressed file ended before the end-of-stream marker was reached")
                return 0
            if self._decompressor.eof:  # files joined by `cat` hold several frames
                self._decompressor = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._decompressor.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, ".zst": _ZstdReader}


def read_lines(path: Path, *, keep_ends: bool = False) -> Iterator[str]:
    """Stream the lines of a plain or compressed UTF-8 file, without their line ends unless `keep_ends`; a leading BOM
    is dropped.

    Raises BadInput, naming the line, where the file is not UTF-8, and for a file that cannot be read or decompressed.
    """
    number = 0
    try:
        # The pure Python readline of gzip and lzma is slow; a C buffer in front of it is several times faster.
        with io.BufferedReader(_OPENERS.get(path.suffix, io.FileIO)(path), BUFFER_BYTES) as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8")
                if not keep_ends:
                    text = text.removesuffix("\n").removesuffix("\r")
                yield text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}:{number}: text must be UTF-8, byte {error.start + 1} of the line is "
            f"0x{error.object[error.start]:02x} ({error.reason}); convert the file with iconv"
        ) from None
    except _DAMAGED as error:
        raise BadInput(f"{path}: truncated or damaged compressed file after line {number}: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None


def tsv_columns(path: Path, first: int, second: int) -> Iterator[tuple[str, str]]:
    """Two columns of every row, counted from 0. Raises BadInput, naming the line, for a row that lacks one."""
    needed = max(first, second) + 1
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split("\t")
        if len(columns) < needed:
            raise BadInput(
                f"{path}:{number}: a row must have at least {needed} tab-separated columns, got {len(columns)}: "
                f"{line[:80]!r}"
            )
        yield columns[first], columns[second]


def _read_parallel(source_path: Path, target_path: Path) -> Iterator[Pair]:
    sources, targets = read_lines(source_path), read_lines(target_path)
    for count, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            more = count + 1 + sum(1 for _ in (targets if source is None else sources))
            lines = (count, more) if source is None else (more, count)
            raise BadInput(
                f"parallel files must have as many lines as each other: {source_path} has {lines[0]:,}, "
                f"{target_path} has {lines[1]:,}"
            )
        yield source, target


def jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row of a JSONL file and its place, `file:line`. Raises BadInput for a line that is not JSON."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise BadInput(f"{path}:{number}: a line must be one JSON object, it does not parse: {error}") from None
        yield f"{path}:{number}", row


def _pair_of_row(row: Any, keys: tuple[str, str], where: str) -> Pair:
    """`{"en": …, "de": …}`, or the same under "translation" as Hugging Face datasets have it."""
    if not isinstance(row, dict):
        raise BadInput(f"{where}: a row must be an object with the keys '{keys[0]}' and '{keys[1]}', got {row!r:.80}")
    inner = row.get("translation")
    fields = inner if isinstance(inner, dict) and keys[0] not in row else row
    for key in keys:
        if not isinstance(fields.get(key), str):
            found = f"a {type(fields[key]).__name__}" if key in fields else f"only {', '.join(map(repr, fields))}"
            raise BadInput(
                f"{where}: the key '{key}' must hold a string, got {found}; "
                "set source_key and target_key if the keys have other names"
            )
    return fields[keys[0]], fields[keys[1]]


def dataset_rows(corpus: OriginConfig) -> Iterator[tuple[str, Any]]:
    """Every row of a dataset and its place, through the `datasets` library, streamed; a class label by its name."""
    name = describe(corpus)
    try:
        rows = _rows(corpus, Path(name))
        classes = {key: feature.names for key, feature in (rows.features or {}).items() if hasattr(feature, "names")}
        for number, row in enumerate(rows, start=1):
            for key, names in classes.items():
                if isinstance(row.get(key), int) and 0 <= row[key] < len(names):
                    row[key] = names[row[key]]
            yield f"{name}: row {number} of split '{corpus.split}'", row
    except BadInput:
        raise
    except Exception as error:  # the library raises its own, pyarrow's and fsspec's errors: all are about this input
        raise BadInput(f"{name}: cannot be read as a dataset (split '{corpus.split}'): {error}") from error


def _rows(corpus: OriginConfig, path: Path) -> Any:
    import datasets

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():  # written by save_to_disk
        saved = datasets.load_from_disk(str(path))
        return saved[corpus.split] if isinstance(saved, datasets.DatasetDict) else saved
    if corpus.dataset is not None:
        return datasets.load_dataset(
            corpus.dataset, corpus.subset, split=corpus.split, revision=corpus.revision, streaming=True
        )
    if path.is_dir():
        return datasets.load_dataset(str(path.resolve()), split=corpus.split, streaming=True)
    builder = FILE_BUILDERS.get(path.suffix)
    if builder is None:
        raise BadInput(
            f"{path}: a dataset file must be one of {', '.join(FILE_BUILDERS)}, got '{path.suffix}'; "
            "a dataset may also be a folder"
        )
    return datasets.load_dataset(builder, data_files={corpus.split: str(path)}, split=corpus.split, streaming=True)


def hub_identity(corpus: OriginConfig) -> str:
    """What stands for the content of a dataset of the hub, which has no files here: the hash that `datasets` makes of
    its name, configuration and commit. Raises BadInput where it cannot be found."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(corpus.dataset), corpus.subset, revision=corpus.revision)
    except Exception as error:  # as in dataset_rows
        raise BadInput(
            f"{corpus.dataset}: no such dataset, neither a folder here nor reachable on the hub: {error}"
        ) from error
    return str(builder.hash)
