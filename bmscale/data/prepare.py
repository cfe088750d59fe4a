"""`bmscale prepare`: parallel text -> normalised, cleaned, tokenised, memory-mapped shards with a manifest.

Two passes. The first reads, cleans and drops duplicates, and spools what is kept; a tokenizer is trained on a sample of
the spool; the second turns the spool into shards. Worker processes do the work on chunks of a fixed size, and their
results are taken in the order of the input, so the output depends neither on the number of workers nor on the format.
"""

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from bmscale.config import Config
from bmscale.data.clean import Cleaner, CleaningConfig, Dropped, SeenHashes, normalise
from bmscale.data.corpus import CorpusConfig, LanguageCode, Languages, LocalPath, input_files, read_pairs
from bmscale.data.manifest import (
    ITEMS,
    MANIFEST,
    VALID_TEXTS,
    data_hash,
    described,
    format_report,
    write_bytes,
    write_json,
)
from bmscale.data.prepared_folder import finished, followed, hash_inputs, manifest_head, publish, temporary_sibling
from bmscale.data.shards import PairShards, ShardWriter
from bmscale.data.spool import chunks, loaded_tokenizer, sample
from bmscale.data.synthetic import irreducible_loss_of
from bmscale.data.text_data import DocumentDataConfig, LabelledDataConfig, build_texts, count_texts, texts_head
from bmscale.data.tokenizer import UNK, Tokenizer, TokenizerConfig, language_tag, train_tokenizer
from bmscale.data.workers import Progress, Workers, in_own_process
from bmscale.errors import BadInput

log = logging.getLogger("bmscale")

CHUNK_PAIRS = 4096
INLINE_TRAINING_PAIRS = 20_000


class DataConfig(Config):
    """What to train on, and where its prepared form lives."""

    directory: LocalPath
    """Folder of the prepared data; `bmscale prepare` makes it, everything else reads it."""
    source_language: LanguageCode
    """Code of the language to translate from: en, zh-Hans, deu_Latn. A corpus may have another one."""
    target_language: LanguageCode
    """Code of the language to translate into. A corpus may have another one, with language_tags."""
    train: list[CorpusConfig] = Field(min_length=1)
    """Training corpora, read one after the other; a single one needs no list."""
    valid: list[CorpusConfig] = Field(min_length=1)
    """Validation corpora; never cleaned, their references stay as they are. Each language pair is scored apart."""
    language_tags: bool = False
    """Begin each source with the language to translate into, `<2de>` (Johnson 2017): several in one model."""
    keep_text: bool = False
    """Keep the text beside the tokens; training.subword_sampling tokenises it anew."""
    cleaning: CleaningConfig = CleaningConfig()
    """Which training pairs are dropped."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The joint tokenizer."""
    max_source_tokens: int = Field(default=256, gt=1)
    """Longest training source in tokens with </s>; longer pairs are dropped (rule too_many_tokens)."""
    max_target_tokens: int = Field(default=256, gt=1)
    """Longest training target in tokens with </s>."""

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict | CorpusConfig) else value

    @model_validator(mode="after")
    def _targets_are_told_apart(self) -> Self:
        trained = self.targets(self.train)
        if len(trained) > 1 and not self.language_tags:
            raise ValueError(
                f"a model of several target languages ({', '.join(trained)}) must be told which one is wanted: set "
                "language_tags: true"
            )
        unknown = [language for language in self.targets(self.valid) if language not in trained]
        if unknown:
            raise ValueError(
                f"valid translates into {unknown[0]}, which no training corpus does (they have {', '.join(trained)})"
            )
        return self

    def languages(self, corpus: CorpusConfig) -> Languages:
        """(source, target) of a corpus."""
        return corpus.languages((self.source_language, self.target_language))

    def targets(self, corpora: list[CorpusConfig]) -> list[str]:
        """The target languages of corpora, each once."""
        return list(dict.fromkeys(self.languages(corpus)[1] for corpus in corpora))

    def tags(self) -> list[str]:
        """The pieces that stand for target languages; none without language_tags."""
        return [language_tag(language) for language in self.targets(self.train)] if self.language_tags else []

    def tag(self, corpus: CorpusConfig) -> str:
        """What every source of a corpus begins with."""
        return f"{language_tag(self.languages(corpus)[1])} " if self.language_tags else ""


def prepare(
    config: DataConfig | DocumentDataConfig | LabelledDataConfig,
    *,
    dry_run: bool = False,
    workers: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Make `config.directory` and return its manifest; do nothing where it is already there.

    `dry_run` reads and cleans only, writes nothing and returns the part of the manifest that is known then. `workers`
    is the number of processes, by default one a core. `force` replaces a finished folder made from another
    configuration or other files.

    Raises BadInput for what the readers, the cleaning or the tokenizer find wrong, for a folder that holds something
    else, and for a finished one that differs, unless `force`.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise BadInput(f"workers: must be at least 1, got {workers}")
    directory = followed(Path(config.directory))
    head = _head(config) if isinstance(config, DataConfig) else texts_head(config)
    if not dry_run and (done := finished(directory, head, force)):
        log.info("%s is up to date: same inputs, same configuration; nothing to do", directory)
        return done
    with Workers(workers) as pool:
        if dry_run:
            counted = _clean_only(config, pool) if isinstance(config, DataConfig) else count_texts(config)
            return head | counted | {"seconds": round(time.monotonic() - started, 1)}
        with temporary_sibling(directory) as folder:
            build = partial(_build, config) if isinstance(config, DataConfig) else partial(build_texts, config)
            manifest = head | build(folder, pool) | {"seconds": round(time.monotonic() - started, 1)}
            write_json(folder / MANIFEST, manifest)
            manifest = publish(folder, directory, head, force) or manifest
    train, items = manifest["splits"]["train"], ITEMS[manifest["kind"]]
    kept, read = train[f"{items}_kept"], train[f"{items}_read"]
    noun = "texts" if "labels" in manifest else items
    log.info("prepared %s: %d of %d training %s", directory, kept, read, noun)
    return manifest


def _head(config: DataConfig) -> dict[str, Any]:
    languages = config.source_language, config.target_language
    if config.tokenizer.path is not None:
        _ready_tokenizer(config)  # a wrong one is reported now, not after the cleaning
    inputs = hash_inputs(
        {"train": config.train, "valid": config.valid},
        lambda corpus: input_files(corpus, *languages),
        lambda corpus: read_pairs(corpus, *languages),
        config.tokenizer.path,
    )
    sides = {"source_language": config.source_language, "target_language": config.target_language}
    return sides | manifest_head("pairs", config, inputs)


# --- the passes -------------------------------------------------------------------------------------------------------


def _clean_only(config: DataConfig, pool: Workers) -> dict[str, Any]:
    valid = [sum(1 for _ in _pairs(config, corpus)) for corpus in config.valid]  # first: a mistake is told at once
    cleaned, dropped = _clean_train(config, pool, None)
    splits = {
        "train": {"pairs_read": sum(part.read for part in cleaned), "pairs_kept": sum(part.kept for part in cleaned)},
        "valid": {"pairs_read": sum(valid), "pairs_kept": sum(valid)},
    }
    return {"splits": splits, "dropped": dropped.report()}


def _build(config: DataConfig, folder: Path, pool: Workers) -> dict[str, Any]:
    """Everything of the output folder but the manifest, whose contents are returned."""
    spool = folder / "spool.tsv"
    valid = [list(_pairs(config, corpus)) for corpus in config.valid]  # first: a mistake there is told at once
    cleaned, dropped = _clean_train(config, pool, spool)
    read, kept = sum(part.read for part in cleaned), sum(part.kept for part in cleaned)
    if not kept:
        raise BadInput(f"data.train: cleaning dropped all of {read:,} pairs\n{_only_rules(dropped, read)}")
    pool.stop()  # the trainer is the peak of memory and uses all cores: the workers come back for the shards
    tokenizer = _tokenizer(config, spool, kept)
    write_bytes(folder / "spiece.model", tokenizer.model)
    splits = {}
    limits = config.max_source_tokens, config.max_target_tokens
    with spool.open("rb") as lines:
        parts = [
            _Part(corpus, done.read, itertools.islice(lines, done.kept), done.kept)
            for corpus, done in zip(config.train, cleaned, strict=True)
        ]
        splits["train"], counts = _encode_split(config, parts, folder / "train", tokenizer, pool, limits)
    dropped.merge(counts.dropped)
    spool.unlink()
    if not counts.pairs:
        raise BadInput(f"data.train: no pair of {kept:,} fits max_source_tokens and max_target_tokens, {limits}")
    rows = "".join(
        json.dumps({"source": source, "target": target}, ensure_ascii=False) + "\n"
        for pairs in valid
        for source, target in pairs
    )
    texts = rows.encode("utf-8", "replace")  # a lone surrogate, which JSON can hold, has no UTF-8
    write_bytes(folder / VALID_TEXTS, texts)
    parts = [
        _Part(corpus, len(pairs), _tagged(config.tag(corpus), pairs), len(pairs))
        for corpus, pairs in zip(config.valid, valid, strict=True)
    ]
    splits["valid"], _ = _encode_split(config, parts, folder / "valid", tokenizer, pool, None)
    about = {"sha256": tokenizer.sha256, "vocabulary_size": tokenizer.vocabulary_size}
    return {
        "data_hash": data_hash(tokenizer, {split: PairShards.open(folder / split) for split in splits}, splits),
        "tokenizer": about,
        "splits": splits,
        "valid_texts": {"file": VALID_TEXTS} | described(texts),
        "dropped": dropped.report(),
    }


def _tagged(tag: str, pairs: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """Lines as the spool has them: `source TAB target`, normalised."""
    return (f"{tag}{normalise(source)}\t{normalise(target)}\n".encode() for source, target in pairs)


def _only_rules(dropped: Dropped, read: int) -> str:
    splits = {"train": {"pairs_read": read, "pairs_kept": 0}}
    return format_report({"splits": splits, "dropped": dropped.report()})


@dataclass
class _Cleaned:
    """Counts of one training corpus."""

    read: int = 0
    kept: int = 0


def _clean_train(config: DataConfig, pool: Workers, spool: Path | None) -> tuple[list[_Cleaned], Dropped]:
    """Read, clean and deduplicate, corpus by corpus; what is kept goes to `spool`, in order."""
    seen, dropped = SeenHashes(), Dropped()
    parts: list[_Cleaned] = []
    with spool.open("wb") if spool else contextlib.nullcontext() as file, Progress("clean") as progress:
        for corpus in config.train:
            cleaner, tag = Cleaner(config.cleaning, *config.languages(corpus)), config.tag(corpus).encode()
            part = _Cleaned()
            for cleaned in pool.map(cleaner.clean, chunks(_pairs(config, corpus), CHUNK_PAIRS)):
                lines = cleaned.lines
                count = len(lines) + cleaned.dropped.counts.total()
                dropped.merge(cleaned.dropped)
                if config.cleaning.duplicate:
                    new = seen.add(cleaned.hashes)
                    for i in np.flatnonzero(~new):
                        source, _, target = lines[i].decode().partition("\t")
                        dropped.add("duplicate", source, target)
                    lines = [lines[i] for i in np.flatnonzero(new)]
                if file is not None:
                    file.writelines(b"%b%b\n" % (tag, line) for line in lines)
                part.read, part.kept = part.read + count, part.kept + len(lines)
                progress.advance(count)
            parts.append(part)
    return parts, dropped


def _pairs(config: DataConfig, corpus: CorpusConfig) -> Iterator[tuple[str, str]]:
    return read_pairs(corpus, config.source_language, config.target_language)


def _tokenizer(config: DataConfig, spool: Path, pairs: int) -> Tokenizer:
    if config.tokenizer.path is not None:
        return _ready_tokenizer(config)
    log.info("training a %s tokenizer of %d pieces", config.tokenizer.type, config.tokenizer.vocabulary_size)
    work = _train_on_spool, config, spool, pairs
    return Tokenizer(work[0](*work[1:]) if pairs <= INLINE_TRAINING_PAIRS else in_own_process(*work))


def _ready_tokenizer(config: DataConfig) -> Tokenizer:
    """The tokenizer that the configuration names. Raises BadInput where it lacks a language tag."""
    tokenizer = Tokenizer.load(str(config.tokenizer.path))
    missing = [tag for tag in config.tags() if not tokenizer.has_piece(tag)]
    if missing:
        raise BadInput(
            f"{config.tokenizer.path}: with data.language_tags it must have the piece {missing[0]}; train it with "
            f"--user_defined_symbols={','.join(config.tags())}, or let `bmscale prepare` train one"
        )
    return tokenizer


def _train_on_spool(config: DataConfig, spool: Path, pairs: int) -> bytes:
    return train_tokenizer(_sample(spool, pairs, config.tokenizer), config.tokenizer, config.tags())


def _sample(spool: Path, pairs: int, config: TokenizerConfig) -> Iterator[str]:
    """Both sides of a random draw of the pairs, in their order, within `sample_sentences` and SAMPLE_BYTES."""
    for line in sample(spool, pairs, config.sample_sentences // 2, config.seed):
        yield from line.decode().removesuffix("\n").split("\t")


@dataclass
class SplitCounts:
    """Sums over the pairs of a split; characters and unknown pieces by side, (source, target)."""

    pairs: int = 0
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    characters: list[int] = field(default_factory=lambda: [0, 0])
    unknown: list[int] = field(default_factory=lambda: [0, 0])
    dropped: Dropped = field(default_factory=Dropped)

    def add(self, other: "SplitCounts") -> None:
        self.pairs += other.pairs
        for mine, its in (
            (self.tokens, other.tokens),
            (self.characters, other.characters),
            (self.unknown, other.unknown),
        ):
            mine[:] = [a + b for a, b in zip(mine, its, strict=True)]
        self.dropped.merge(other.dropped)

    def report(self) -> dict[str, Any]:
        """Tokens count </s>; the rates are over the pieces of the text without it."""
        pieces = [max(1, tokens - self.pairs) for tokens in self.tokens]
        per_token = [round(c / p, 4) for c, p in zip(self.characters, pieces, strict=True)]
        return {
            "pairs_kept": self.pairs,
            "source_tokens": self.tokens[0],
            "target_tokens": self.tokens[1],
            "source_characters_per_token": per_token[0],
            "target_characters_per_token": per_token[1],
            "unk_rate": round(sum(self.unknown) / sum(pieces), 8),
        }


@dataclass
class EncodedChunk:
    """The tokens source 0, target 0, source 1, … in one array, and the lengths of each side."""

    tokens: NDArray[np.uint32]
    source_lengths: NDArray[np.int32]
    target_lengths: NDArray[np.int32]
    counts: SplitCounts
    texts: list[bytes]
    """The lines of the pairs that were kept."""


def encode_chunk(model: Path, sha256: str, limits: tuple[int, int] | None, lines: list[bytes]) -> EncodedChunk:
    """Tokenise lines `source TAB target`; pairs longer than the (source, target) limits in tokens are dropped."""
    tokenizer = loaded_tokenizer(model, sha256)
    texts = [line.rstrip(b"\n").decode().split("\t") for line in lines]
    encoded = [tokenizer.encode_batch([pair[side] for pair in texts]) for side in (0, 1)]
    counts = SplitCounts()
    kept: list[tuple[list[int], list[int]]] = []
    kept_lines: list[bytes] = []
    for line, text, pair in zip(lines, texts, zip(*encoded, strict=True), strict=True):
        if limits is not None and (len(pair[0]) > limits[0] or len(pair[1]) > limits[1]):
            counts.dropped.add("too_many_tokens", *text)
            continue
        kept.append(pair)
        kept_lines.append(line)
        for side in (0, 1):
            counts.characters[side] += len(text[side])
            counts.unknown[side] += pair[side].count(UNK)
    lengths = [np.fromiter((len(pair[side]) for pair in kept), np.int32, len(kept)) for side in (0, 1)]
    counts.pairs = len(kept)
    counts.tokens = [int(side.sum()) for side in lengths]
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(kept))
    tokens = np.fromiter(flat, np.uint32, sum(counts.tokens))
    return EncodedChunk(tokens, lengths[0], lengths[1], counts, kept_lines)


@dataclass
class _Part:
    """What one corpus brings to a split."""

    corpus: CorpusConfig
    read: int
    lines: Iterable[bytes]
    pairs: int
    """How many lines there are."""


def _encode_split(
    config: DataConfig,
    parts: list[_Part],
    directory: Path,
    tokenizer: Tokenizer,
    pool: Workers,
    limits: tuple[int, int] | None,
) -> tuple[dict[str, Any], SplitCounts]:
    """Shards of one split, its corpora one after the other. Returns the manifest's entry and the sums."""
    counts = SplitCounts()
    sources = []
    work = partial(encode_chunk, directory.parent / "spiece.model", tokenizer.sha256, limits)
    keep_text = config.keep_text and limits is not None  # of training pairs: what is validated never changes
    with (
        ShardWriter(directory, tokenizer.vocabulary_size, keep_text=keep_text) as writer,
        Progress("tokenise", sum(part.pairs for part in parts)) as progress,
    ):
        for part in parts:
            before, tokens = counts.pairs, counts.tokens[1]
            for chunk in pool.map(work, chunks(part.lines, CHUNK_PAIRS)):
                texts = chunk.texts if keep_text else None
                writer.add_batch(chunk.tokens, chunk.source_lengths, chunk.target_lengths, texts)
                counts.add(chunk.counts)
                progress.advance(chunk.counts.pairs + chunk.counts.dropped.counts.total())
            source, target = config.languages(part.corpus)
            about = {
                "name": part.corpus.short_name,
                "source_language": source,
                "target_language": target,
                "pairs_read": part.read,
                "pairs_kept": counts.pairs - before,
            }
            if part.corpus.synthetic is not None and about["pairs_kept"] == part.read:
                known = irreducible_loss_of(part.corpus.synthetic, part.read, part.corpus.seed)
                if known["target_tokens"] == counts.tokens[1] - tokens:  # where a token is a syllable
                    about["irreducible_loss"] = known
            sources.append(about)
    entry = {"pairs_read": sum(part.read for part in parts), **counts.report(), "sources": sources}
    return entry, counts
