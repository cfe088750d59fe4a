"""Readers of documents and of labelled texts: every format becomes one stream of strings, or of (text, label).

A text stays as it stands in the file: line ends, runs of spaces and every character are what a model must reproduce.
Only a byte order mark before it is dropped.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from bmscale.data.corpus import (
    COMPRESSIONS,
    FORMATS,
    LocalPath,
    OriginConfig,
    dataset_files,
    dataset_rows,
    describe,
    existing,
    file_format,
    files_at,
    jsonl_rows,
    nearest,
    read_lines,
    tsv_columns,
)
from bmscale.errors import BadInput

LabelledText = tuple[str, str]
"""(text, label)."""

TOY_SENTENCES = 3, 9  # of a toy document: the least and the most
Item = TypeVar("Item")


class DocumentCorpusConfig(OriginConfig):
    """One source of documents. In YAML a plain string stands for `{path: STRING}`."""

    path: LocalPath | None = None
    """Text, JSONL or TSV (each plain, .gz, .xz or .zst), a Parquet file or a dataset folder; with `format: text` also
    a folder, whose .txt files are read in the order of their names."""
    format: Literal["auto", "text", "jsonl", "tsv", "dataset"] = "auto"
    """How to read `path`; auto goes by the extension, a folder is a dataset."""
    separated_by: Literal["blank_line", "line", "file"] = "blank_line"
    """Where a document of a text file ends: at one or more empty lines, at every line end, or with the file."""
    text_key: str = "text"
    """Key of the text in JSONL or a dataset."""
    text_column: int | None = Field(default=None, ge=0)
    """Column of the text in a TSV, counted from 0; must be given where it has more than one."""
    documents: int = Field(default=10_000, gt=0, le=1_000_000)
    """Number of toy documents, at most a million."""

    @classmethod
    def endings(cls) -> dict[str, str]:
        """The format that the ending of a file's name says, before that of a compression."""
        return FORMATS | {".txt": "text"}


class LabelledCorpusConfig(OriginConfig):
    """One source of texts that have a label each. In YAML a plain string stands for `{path: STRING}`."""

    path: LocalPath | None = None
    """TSV or JSONL (each plain, .gz, .xz or .zst), a Parquet file or a dataset folder."""
    format: Literal["auto", "tsv", "jsonl", "dataset"] = "auto"
    """How to read `path`; auto goes by the extension, a folder is a dataset."""
    label_column: int = Field(default=0, ge=0)
    """Column of the label in a TSV, counted from 0."""
    text_column: int = Field(default=1, ge=0)
    """Column of the text in a TSV, counted from 0."""
    label_key: str = "label"
    """Key of the label in JSONL or a dataset: a string, or a whole number, which stands for its class in a dataset
    that names its classes and for its digits elsewhere."""
    text_key: str = "text"
    """Key of the text in JSONL or a dataset."""
    documents: int = Field(default=10_000, gt=0, le=1_000_000)
    """Number of toy texts, at most a million; their label is their language, en or de."""


def read_documents(corpus: DocumentCorpusConfig, *, blank: bool = False) -> Iterator[str]:
    """Stream the documents of one corpus, in its order. Those of white space alone are left out, unless `blank`.

    Raises BadInput for a missing or damaged file, text that is not UTF-8, a row without the column or key, and a
    corpus without a single document.
    """
    texts = (text.removeprefix("\ufeff") for text in _documents(corpus))
    return _not_empty(corpus, (text for text in texts if blank or text.strip()), "document")


def read_labelled(corpus: LabelledCorpusConfig, *, blank: bool = False) -> Iterator[LabelledText]:
    """Stream (text, label) of one corpus, in its order. Texts of white space alone are left out, unless `blank`.

    Raises BadInput as `read_documents` does, and for a label that is empty or neither a string nor a whole number.
    """
    rows = ((text.removeprefix("\ufeff"), label) for text, label in _labelled(corpus))
    return _not_empty(corpus, ((text, label) for text, label in rows if blank or text.strip()), "labelled text")


def document_files(corpus: DocumentCorpusConfig | LabelledCorpusConfig) -> list[Path]:
    """Every file that the corpus is read from; none for the toy corpus or a dataset of the hub."""
    if corpus.path is None:
        return dataset_files(corpus)
    return _text_files(corpus) if _format(corpus) == "text" else files_at(Path(corpus.path))


def _not_empty(corpus: OriginConfig, items: Iterator[Item], kind: str) -> Iterator[Item]:
    first = next(items, None)
    if first is None:
        raise BadInput(f"{describe(corpus)}: a corpus must hold at least one {kind}, this one is empty")
    return itertools.chain([first], items)


def _format(corpus: DocumentCorpusConfig | LabelledCorpusConfig) -> str:
    if corpus.path is None:
        return "dataset"
    found = file_format(corpus, corpus.format)
    if found is None:
        raise BadInput(f"{corpus.path}: no such file{nearest(Path(corpus.path))}")
    return found


def _text_files(corpus: OriginConfig) -> list[Path]:
    """A text file itself, or the text files below a folder."""
    path = existing(Path(str(corpus.path)))
    if not path.is_dir():
        return [path]
    endings = tuple(f".txt{compression}" for compression in ("", *COMPRESSIONS))
    files = [file for file in files_at(path) if file.name.endswith(endings)]
    if not files:
        raise BadInput(f"{path}: with format: text, a folder must hold files that end with {', '.join(endings)}")
    return files


def _documents(corpus: DocumentCorpusConfig) -> Iterator[str]:
    if corpus.toy is not None:
        yield from toy_documents(corpus.toy, corpus.documents, corpus.seed)
        return
    kind = _format(corpus)
    if kind == "text":
        for file in _text_files(corpus):
            yield from _split_text(file, corpus.separated_by)
    elif kind == "tsv":
        path = existing(Path(str(corpus.path)))
        column = _only_column(path) if corpus.text_column is None else corpus.text_column
        yield from (text for text, _ in tsv_columns(path, column, column))
    else:
        for where, row in _rows(corpus, kind):
            yield _text_of_row(row, corpus.text_key, where)


def _only_column(path: Path) -> int:
    """Raises BadInput where a TSV has several columns, of which one must be chosen."""
    columns = next(read_lines(path), "").count("\t") + 1
    if columns > 1:
        raise BadInput(f"{path}: has {columns} columns; set text_column to the one of the text, counted from 0")
    return 0


def _split_text(path: Path, separated_by: str) -> Iterator[str]:
    if separated_by == "line":
        yield from read_lines(path)
        return
    lines = read_lines(path, keep_ends=True)
    if separated_by == "file":
        yield "".join(lines)
        return
    for is_text, block in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            # The end of the last line belongs to the gap between the documents.
            yield "".join(block).removesuffix("\n").removesuffix("\r")


def _labelled(corpus: LabelledCorpusConfig) -> Iterator[LabelledText]:
    if corpus.toy is not None:
        yield from toy_labelled(corpus.toy, corpus.documents, corpus.seed)
        return
    kind, place = _format(corpus), describe(corpus)
    if kind == "tsv":
        columns = tsv_columns(existing(Path(place)), corpus.text_column, corpus.label_column)
        for number, (text, label) in enumerate(columns, start=1):
            if not label.strip():
                raise BadInput(f"{place}:{number}: column {corpus.label_column} must hold a label, it is empty")
            yield text, label
        return
    for where, row in _rows(corpus, kind):
        text = _text_of_row(row, corpus.text_key, where)
        yield text, _label_of_row(row, corpus.label_key, where)


def _rows(corpus: DocumentCorpusConfig | LabelledCorpusConfig, kind: str) -> Iterator[tuple[str, Any]]:
    return jsonl_rows(existing(Path(str(corpus.path)))) if kind == "jsonl" else dataset_rows(corpus)


def _text_of_row(row: Any, key: str, where: str) -> str:
    if not isinstance(row, dict):
        raise BadInput(f"{where}: a row must be an object with the key '{key}', got {row!r:.80}")
    if not isinstance(row.get(key), str):
        raise BadInput(f"{where}: the key '{key}' must hold a string, got {_found(row, key)}; set text_key")
    return str(row[key])


def _label_of_row(row: dict[str, Any], key: str, where: str) -> str:
    label = row.get(key)
    if isinstance(label, int) and not isinstance(label, bool) and label >= 0:
        return str(label)
    if isinstance(label, str) and label.strip():
        return label
    given = repr(label)[:40] if isinstance(label, str | int) else _found(row, key)
    raise BadInput(f"{where}: the key '{key}' must hold a name or a number from 0, got {given}; set label_key")


def _found(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return f"only {', '.join(map(repr, row))}"
    return "null" if row[key] is None else f"a {type(row[key]).__name__}"


def listed(labels: Iterable[str]) -> str:
    """Labels for a message, which must fit a line or two."""
    first, rest = (found := list(labels))[:20], found[20:]
    return ", ".join(first) + (f" and {len(rest):,} more" if rest else "")


def toy_documents(split: str, count: int, seed: int = 0) -> Iterator[str]:
    """`count` English documents of 3 to 9 sentences of the toy corpus; the splits have no sentence in common.

    A pure function of its arguments whose first n documents do not depend on `count`.
    """
    # Imported here so that reading files does not load the toy corpus.
    from bmscale.data.toy import toy_pairs

    sentences = toy_pairs(split, TOY_SENTENCES[1] * count, seed)
    draw = random.Random(f"toy documents {split} {seed}")
    for _ in range(count):
        yield " ".join(english for english, _ in itertools.islice(sentences, draw.randint(*TOY_SENTENCES)))


def toy_labelled(split: str, count: int, seed: int = 0) -> Iterator[LabelledText]:
    """`count` texts of one or two sentences of the toy corpus, each with its language, en or de, as its label.

    A pure function of its arguments whose first n texts do not depend on `count`.
    """
    from bmscale.data.toy import toy_pairs

    pairs = toy_pairs(split, 2 * count, seed)
    draw = random.Random(f"toy labelled texts {split} {seed}")
    for _ in range(count):
        language = draw.randrange(2)
        yield " ".join(pair[language] for pair in itertools.islice(pairs, draw.randint(1, 2))), ("en", "de")[language]
