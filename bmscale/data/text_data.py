"""Documents and labelled texts -> deduplicated, tokenised, memory-mapped shards: `prepare` without sentence pairs.

Texts are not normalised: a document is what a model must reproduce, and its tokenizer gives every text back. A stored
document is `<s> text </s>`. A labelled text is stored as a pair, whose source is `<s> text </s>` and whose target is
one token, the index of its label.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from bmscale.config import Config
from bmscale.data.clean import Dropped, SeenHashes, hash_lines
from bmscale.data.corpus import LocalPath, OriginConfig, describe
from bmscale.data.documents import (
    DocumentCorpusConfig,
    LabelledCorpusConfig,
    document_files,
    listed,
    read_documents,
    read_labelled,
)
from bmscale.data.framing import batch_ids, cut
from bmscale.data.manifest import ITEMS, SHARDS, VALID_TEXTS, data_hash, described, write_bytes
from bmscale.data.prepared_folder import hash_inputs, manifest_head
from bmscale.data.shards import DocumentWriter, ShardWriter
from bmscale.data.spool import SAMPLE_BYTES, bounded_chunks, loaded_tokenizer, sample
from bmscale.data.tokenizer import LosslessTokenizerConfig, Tokenizer, train_tokenizer
from bmscale.data.workers import Progress, Workers, in_own_process
from bmscale.errors import BadInput

CHUNK_TEXTS = 4096
INLINE_TRAINING_BYTES = 4_000_000  # of spooled text: more is trained on in a process of its own
RULES = ("empty", "duplicate")

Row = tuple[str, ...]
"""(text,) of a document, (text, label) of a labelled text: what a line of the spool holds, as a JSON list."""


class DocumentDataConfig(Config):
    """Documents to train a language model or a masked language model on, and where their prepared form lives."""

    directory: LocalPath
    """Folder of the prepared data; `bmscale prepare` makes it, everything else reads it."""
    train: list[DocumentCorpusConfig] = Field(min_length=1)
    """Training corpora, read one after the other; a single one needs no list."""
    valid: list[DocumentCorpusConfig] = Field(min_length=1)
    """Validation corpora."""
    tokenizer: LosslessTokenizerConfig = LosslessTokenizerConfig()
    """The tokenizer; it gives every text back, byte for byte."""
    deduplicate: bool = True
    """Drop a training document that came before, character by character."""

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict | OriginConfig) else value


class LabelledDataConfig(Config):
    """Labelled texts to train a classifier on, and where their prepared form lives."""

    directory: LocalPath
    """Folder of the prepared data; `bmscale prepare` makes it, everything else reads it."""
    train: list[LabelledCorpusConfig] = Field(min_length=1)
    """Training corpora, read one after the other; a single one needs no list."""
    valid: list[LabelledCorpusConfig] = Field(min_length=1)
    """Validation corpora; their labels must be among those of training."""
    tokenizer: LosslessTokenizerConfig = LosslessTokenizerConfig()
    """The tokenizer."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """The labels in the order of their class indices; null: those of the training texts, sorted."""
    max_tokens: int = Field(default=512, gt=2)
    """A longer text is cut to this many tokens, <s> and </s> counted."""
    deduplicate: bool = True
    """Drop a training text that came before with the same label, character by character."""

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict | OriginConfig) else value

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        twice = [label for label, count in Counter(self.labels or ()).items() if count > 1]
        if twice:
            raise ValueError(f"labels must differ; {twice[0]!r} is given twice")
        return self


TextDataConfig = DocumentDataConfig | LabelledDataConfig
TextCorpusConfig = DocumentCorpusConfig | LabelledCorpusConfig


def texts_head(config: TextDataConfig) -> dict[str, Any]:
    """The part of the manifest that is known before the work. Raises BadInput for what cannot be read."""
    if config.tokenizer.path is not None:
        Tokenizer.load(config.tokenizer.path).require()  # a wrong one is reported now, not after the reading
    corpora: dict[str, Sequence[TextCorpusConfig]] = {"train": config.train, "valid": config.valid}
    return manifest_head(_kind(config), config, hash_inputs(corpora, document_files, _rows, config.tokenizer.path))


def count_texts(config: TextDataConfig) -> dict[str, Any]:
    """What a dry run knows: how many texts are read and kept, and which are dropped."""
    valid = _keep(config, config.valid, deduplicate=False)  # first: a mistake is told at once
    train = _keep(config, config.train, deduplicate=config.deduplicate)
    labels = _labels(config, train, valid)
    items = ITEMS[_kind(config)]
    splits = {
        split: {f"{items}_read": sum(kept.read), f"{items}_kept": sum(kept.kept)}
        for split, kept in (("train", train), ("valid", valid))
    }
    return {"splits": splits, "dropped": train.dropped.report(RULES, items), **_labels_entry(labels)}


def build_texts(config: TextDataConfig, folder: Path, pool: Workers) -> dict[str, Any]:
    """Everything of the output folder but the manifest, whose contents are returned."""
    kind, spools = _kind(config), {split: folder / f"{split}.spool" for split in ("train", "valid")}
    valid = _keep(config, config.valid, deduplicate=False, spool=spools["valid"])  # first: a mistake is told at once
    train = _keep(config, config.train, deduplicate=config.deduplicate, spool=spools["train"])
    for split, kept in (("train", train), ("valid", valid)):
        if not sum(kept.kept):
            raise BadInput(f"data.{split}: all of {sum(kept.read):,} texts are empty or white space")
    labels = _labels(config, train, valid)
    tokenizer = _tokenizer(config, spools["train"], sum(train.kept))
    if labels and len(labels) > tokenizer.vocabulary_size:  # an index is stored as a token
        raise BadInput(f"data.train: {len(labels):,} labels need data.tokenizer.vocabulary_size of as many pieces")
    write_bytes(folder / "spiece.model", tokenizer.model)
    most = config.max_tokens if isinstance(config, LabelledDataConfig) else None
    work = partial(encode_texts, folder / "spiece.model", tokenizer.sha256, most, labels)
    splits = {}
    for split, kept, corpora in (("train", train, config.train), ("valid", valid, config.valid)):
        names = [corpus.short_name for corpus in corpora]
        with spools[split].open("rb") as lines:
            splits[split] = _encode_split(folder / split, names, kept, lines, tokenizer, labels, work, pool)
    texts = _valid_texts(spools["valid"])
    write_bytes(folder / VALID_TEXTS, texts)
    for spool in spools.values():
        spool.unlink()
    shards = {split: SHARDS[kind].open(folder / split) for split in splits}
    return {
        "data_hash": data_hash(tokenizer, shards, splits, labels),
        "tokenizer": {"sha256": tokenizer.sha256, "vocabulary_size": tokenizer.vocabulary_size},
        **_labels_entry(labels),
        "splits": splits,
        "valid_texts": {"file": VALID_TEXTS} | described(texts),
        "dropped": train.dropped.report(RULES, ITEMS[kind]),
    }


def _kind(config: TextDataConfig) -> str:
    return "labelled" if isinstance(config, LabelledDataConfig) else "documents"


def _labels_entry(labels: list[str] | None) -> dict[str, Any]:
    return {} if labels is None else {"labels": labels}


# --- reading ----------------------------------------------------------------------------------------------------------


def _rows(corpus: TextCorpusConfig) -> Iterator[Row]:
    if isinstance(corpus, LabelledCorpusConfig):
        return read_labelled(corpus, blank=True)
    return ((text,) for text in read_documents(corpus, blank=True))


@dataclass
class _Kept:
    """Counts of a split, corpus by corpus."""

    read: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    labels: list[Counter[str]] = field(default_factory=list)
    dropped: Dropped = field(default_factory=Dropped)


def _keep(
    config: TextDataConfig,
    corpora: Iterable[TextCorpusConfig],
    *,
    deduplicate: bool,
    spool: Path | None = None,
) -> _Kept:
    """Read the corpora; what is neither empty nor a duplicate goes to `spool`, in order, a line of JSON each."""
    seen, done, items = SeenHashes(), _Kept(), ITEMS[_kind(config)]
    with spool.open("wb") if spool else _Nowhere() as file, Progress("read", items=items) as progress:
        for corpus in corpora:
            read = kept = 0
            labels: Counter[str] = Counter()
            for rows in bounded_chunks(_rows(corpus), CHUNK_TEXTS, lambda row: len(row[0])):
                full = [row for row in rows if row[0].strip()]
                for row in rows:
                    if not row[0].strip():
                        done.dropped.add("empty", *_sides(row))
                lines = [_line(row) for row in full]
                if deduplicate:
                    new = seen.add(hash_lines(lines))
                    for i in np.flatnonzero(~new):
                        done.dropped.add("duplicate", *_sides(full[i]))
                    full, lines = list(itertools.compress(full, new)), list(itertools.compress(lines, new))
                file.writelines(lines)
                labels.update(row[1] for row in full if len(row) > 1)
                read, kept = read + len(rows), kept + len(lines)
                progress.advance(len(rows))
            done.read.append(read)
            done.kept.append(kept)
            done.labels.append(labels)
    return done


class _Nowhere:
    """Where a dry run spools to."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def writelines(self, lines: Iterable[bytes]) -> None:
        pass


def _line(row: Row) -> bytes:
    # JSON, whose input can hold half a character (\ud83d): such a text stays as it is.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _row(line: bytes) -> list[str]:
    row: list[str] = json.loads(line.decode("utf-8", "surrogatepass"))
    return row


def _sides(row: Row) -> tuple[str, str]:
    """The text and its label, which a document has not."""
    return row[0], row[1] if len(row) > 1 else ""


def _labels(config: TextDataConfig, train: _Kept, valid: _Kept) -> list[str] | None:
    """The labels in the order of their indices. Raises BadInput for a text whose label is not among them."""
    if not isinstance(config, LabelledDataConfig):
        return None
    labels = config.labels or sorted(set().union(*train.labels))
    if len(labels) < 2:
        raise BadInput(f"data.train: a classifier needs at least two labels, all texts have {', '.join(labels)!r}")
    origin = "data.labels" if config.labels else "the labels of the training texts"
    for corpora, kept in ((config.train, train), (config.valid, valid)):
        for corpus, counts in zip(corpora, kept.labels, strict=True):
            unknown = sorted(counts.keys() - set(labels))
            if unknown:
                raise BadInput(
                    f"{describe(corpus)}: every label must be one of {origin} ({listed(labels)}); "
                    f"{counts[unknown[0]]:,} of its texts have {unknown[0]!r:.80}"
                )
    return labels


def _valid_texts(spool: Path) -> bytes:
    """The rows of valid.jsonl, `{"text": …}`, with "label" where there is one."""
    rows = []
    with spool.open("rb") as lines:
        for line in lines:
            row = dict(zip(("text", "label"), _row(line), strict=False))
            # The replacement of half a character is its escape in JSON.
            rows.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    return b"".join(rows)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def _tokenizer(config: TextDataConfig, spool: Path, texts: int) -> Tokenizer:
    if config.tokenizer.path is not None:
        tokenizer = Tokenizer.load(config.tokenizer.path)
        tokenizer.require()
        return tokenizer
    small = spool.stat().st_size <= INLINE_TRAINING_BYTES
    work = config.tokenizer, spool, texts
    return Tokenizer(_train_on_spool(*work) if small else in_own_process(_train_on_spool, *work))


def _train_on_spool(config: LosslessTokenizerConfig, spool: Path, texts: int) -> bytes:
    lines = sample(spool, texts, config.sample_sentences, config.seed)
    return train_tokenizer(_bounded((_row(line)[0] for line in lines), SAMPLE_BYTES), config, lossless=True)


def _bounded(texts: Iterable[str], most: int) -> Iterator[str]:
    """Texts up to `most` characters together: a single document may be larger than what can be trained on."""
    for text in texts:
        yield text[:most]
        most -= len(text)
        if most <= 0:
            return


# --- encoding ---------------------------------------------------------------------------------------------------------


@dataclass
class EncodedTexts:
    """The tokens of texts in one array, and for each text its tokens, its bytes of UTF-8 and the index of its label."""

    tokens: NDArray[np.uint32]
    lengths: NDArray[np.int32]
    text_bytes: NDArray[np.int64]
    labels: NDArray[np.int32]
    cut: int
    """How many texts were longer than the limit."""


def encode_texts(
    model: Path, sha256: str, most: int | None, labels: list[str] | None, lines: list[bytes]
) -> EncodedTexts:
    """Tokenise lines of the spool as `<s> text </s>`, cut to `most` tokens."""
    tokenizer = loaded_tokenizer(model, sha256)
    rows = [_row(line) for line in lines]
    whole = batch_ids(tokenizer, [row[0] for row in rows])
    encoded = whole if most is None else [cut(ids, most) for ids in whole]
    index = {label: i for i, label in enumerate(labels or ())}
    lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
    return EncodedTexts(
        np.fromiter(itertools.chain.from_iterable(encoded), np.uint32, int(lengths.sum(dtype=np.int64))),
        lengths,
        np.fromiter((len(row[0].encode("utf-8", "surrogatepass")) for row in rows), np.int64, len(rows)),
        np.array([index[row[1]] for row in rows] if labels else [], np.int32),
        0 if most is None else sum(len(ids) > most for ids in whole),
    )


def _encode_split(
    directory: Path,
    names: list[str],
    kept: _Kept,
    lines: Iterable[bytes],
    tokenizer: Tokenizer,
    labels: list[str] | None,
    work: Callable[[list[bytes]], EncodedTexts],
    pool: Workers,
) -> dict[str, Any]:
    """Shards of one split, its corpora one after the other. Returns the manifest's entry."""
    items = "documents" if labels is None else "pairs"
    totals: Counter[str] = Counter()
    sources = []
    writer = (DocumentWriter if labels is None else ShardWriter)(directory, tokenizer.vocabulary_size)
    with writer, Progress("tokenise", sum(kept.kept), items) as progress:
        for name, read, count in zip(names, kept.read, kept.kept, strict=True):
            before = totals["tokens"]
            for chunk in pool.map(work, bounded_chunks(itertools.islice(lines, count), CHUNK_TEXTS)):
                if isinstance(writer, DocumentWriter):
                    writer.add_batch(chunk.tokens, chunk.lengths, chunk.text_bytes)
                else:
                    tokens = np.insert(chunk.tokens, np.cumsum(chunk.lengths), chunk.labels)
                    writer.add_batch(tokens, chunk.lengths, np.ones(len(chunk.lengths), np.int32))
                totals.update(tokens=len(chunk.tokens), text_bytes=int(chunk.text_bytes.sum()), cut=chunk.cut)
                progress.advance(len(chunk.lengths))
            tokens_of = totals["tokens"] - before
            sources.append({"name": name, f"{items}_read": read, f"{items}_kept": count, "tokens": tokens_of})
    entry: dict[str, Any] = {f"{items}_read": sum(kept.read), f"{items}_kept": sum(kept.kept)}
    if labels is None:
        pieces = totals["tokens"] - 2 * sum(kept.kept)  # without <s> and </s>
        entry |= {key: totals[key] for key in ("tokens", "text_bytes")}
        entry["bytes_per_token"] = round(totals["text_bytes"] / pieces, 4)
    else:
        of_labels = sum(kept.labels, Counter())
        entry |= {
            "source_tokens": totals["tokens"],
            "target_tokens": sum(kept.kept),
            "text_bytes": totals["text_bytes"],
        }
        entry |= {"texts_cut": totals["cut"], "labels": {label: of_labels[label] for label in labels}}
    return entry | {"sources": sources}
