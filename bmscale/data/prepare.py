"""`bmscale prepare`: parallel text -> normalised, cleaned, tokenised, memory-mapped shards with a manifest.

Two passes. The first reads, cleans and drops duplicates, and spools what is kept; a tokenizer is trained on a sample of
the spool; the second turns the spool into shards. Worker processes do the work on chunks of a fixed size, and their
results are taken in the order of the input, so the output depends neither on the number of workers nor on the format.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import bmscale
from bmscale.config import Config
from bmscale.data.clean import Cleaner, CleaningConfig, Dropped, SeenHashes, normalise
from bmscale.data.corpus import CorpusConfig, LocalPath, describe, input_files, read_pairs
from bmscale.data.shards import PairShards, ShardWriter
from bmscale.data.tokenizer import UNK, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.data.workers import Progress, Workers, in_own_process
from bmscale.errors import BadInput, BmscaleError

log = logging.getLogger("bmscale")

FORMAT = 2
MANIFEST = "manifest.json"
VALID_TEXTS = "valid.jsonl"
_AGAIN = "make it with `bmscale prepare CONFIG`"
CHUNK_PAIRS = 4096
INLINE_TRAINING_PAIRS = 20_000
SAMPLE_BYTES = 80_000_000  # of text to train the tokenizer on: 1.6 GiB in the trainer, whatever the sentences' length

In = TypeVar("In")


class DataConfig(Config):
    """What to train on, and where its prepared form lives."""

    directory: LocalPath
    """Folder of the prepared data; `bmscale prepare` makes it, everything else reads it."""
    source_language: str = Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$")
    """Code of the language to translate from: en, zh-Hans, deu_Latn."""
    target_language: str = Field(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$")
    """Code of the language to translate into."""
    train: list[CorpusConfig] = Field(min_length=1)
    """Training corpora, read one after the other; a single one needs no list."""
    valid: list[CorpusConfig] = Field(min_length=1)
    """Validation corpora; never cleaned, their references stay as they are."""
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


def prepare(
    config: DataConfig, *, dry_run: bool = False, workers: int | None = None, force: bool = False
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
    directory = _followed(Path(config.directory))
    inputs = _hash_inputs(config)
    if not dry_run and (finished := _finished(directory, config, inputs, force)):
        log.info("%s is up to date: same inputs, same configuration; nothing to do", directory)
        return finished
    with Workers(workers) as pool:
        manifest = _head(config, inputs)
        if dry_run:
            manifest |= _clean_only(config, pool)
            return manifest | {"seconds": round(time.monotonic() - started, 1)}
        with _temporary_sibling(directory) as folder:
            manifest |= _build(config, folder, pool)
            manifest["seconds"] = round(time.monotonic() - started, 1)
            _write_json(folder / MANIFEST, manifest)
            manifest = _publish(folder, directory, config, inputs, force) or manifest
    train = manifest["splits"]["train"]
    log.info("prepared %s: %d of %d training pairs", directory, train["pairs_kept"], train["pairs_read"])
    return manifest


def load_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a finished folder, which was checked: every file is there and of its size, the tokenizer, the
    validation texts and the indexes of the shards have their hashes, and the lengths add up.

    Raises BadInput where the folder is absent, unfinished, unreadable or damaged; the message names the file and the
    command that makes it again.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder / MANIFEST)
    tokenizer = Tokenizer.load(folder / "spiece.model")
    if tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
        raise BadInput(f"{folder / 'spiece.model'}: is not the tokenizer of the manifest; {_AGAIN} --force")
    _check_valid_texts(folder / VALID_TEXTS, manifest["valid_texts"])
    splits = {split: PairShards.open(folder / split) for split in manifest["splits"]}
    for split, shards in splits.items():
        for key, held in (("pairs_kept", "pairs"), ("source_tokens",) * 2, ("target_tokens",) * 2):
            if shards.index[held] != manifest["splits"][split][key]:
                expected = f"{manifest['splits'][split][key]:,} {held.replace('_', ' ')}"
                raise BadInput(f"{folder / split}: must hold {expected} by {MANIFEST}; {_AGAIN} --force")
    if _data_hash(tokenizer, splits) != manifest["data_hash"]:
        raise BadInput(f"{folder}: the shards are not those of {MANIFEST}, their hashes differ; {_AGAIN} --force")
    return manifest


class _File(BaseModel):
    """What a manifest says of a file; of an input the path, of an output the name."""

    model_config = ConfigDict(strict=True, extra="allow")
    bytes: int = Field(ge=0)
    sha256: str


class _Input(_File):
    path: str


class _Split(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    pairs_read: int = Field(ge=0)
    pairs_kept: int = Field(ge=1)
    source_tokens: int = Field(ge=1)
    target_tokens: int = Field(ge=1)


class _Splits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    train: _Split
    valid: _Split


class _Rule(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    pairs: int = Field(ge=0)
    samples: list[list[str]]


class _TokenizerEntry(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sha256: str
    vocabulary_size: int = Field(ge=1)


class _Manifest(BaseModel):
    """The keys of a manifest that are read again, to tell a damaged one."""

    model_config = ConfigDict(strict=True, extra="allow")
    source_language: str
    target_language: str
    config: dict[str, Any]
    inputs: dict[str, list[_Input]]
    data_hash: str
    tokenizer: _TokenizerEntry
    splits: _Splits
    valid_texts: _File
    dropped: dict[str, _Rule]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: no prepared data here, {MANIFEST} is missing; {_AGAIN}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged ({error}); {_AGAIN} --force") from None
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise BadInput(f"{path}: format must be {FORMAT}, got {version!r:.40}; {_AGAIN} --force")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise BadInput(f"{path}: damaged ({key}: {wrong['msg']}); {_AGAIN} --force") from None
    return manifest


def _check_valid_texts(path: Path, entry: dict[str, Any]) -> None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: is missing; {_AGAIN} --force") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    if _described(data) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
        raise BadInput(
            f"{path}: must have {entry['bytes']:,} bytes and the SHA-256 of {MANIFEST}, it has {len(data):,} bytes; "
            f"{_AGAIN} --force"
        )


def _described(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def format_report(manifest: dict[str, Any]) -> str:
    """A table of the cleaning rules: pairs dropped, their percentage, and one sample of each."""
    train = manifest["splits"]["train"]
    read = max(1, train["pairs_read"])
    rows = [f"{'rule':<16} {'pairs':>12} {'%':>7}   sample"]
    for rule, entry in manifest["dropped"].items():
        sample = " | ".join(_shorten(side) for side in entry["samples"][0]) if entry["samples"] else ""
        rows.append(f"{rule:<16} {entry['pairs']:>12,} {100 * entry['pairs'] / read:>7.2f}   {sample}".rstrip())
    kept = train["pairs_kept"]
    rows.append(f"{'kept':<16} {kept:>12,} {100 * kept / read:>7.2f}")
    rows.append(f"{'read':<16} {train['pairs_read']:>12,} {100:>7.2f}")
    return "\n".join(rows)


def _shorten(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# --- the passes -------------------------------------------------------------------------------------------------------


def _clean_only(config: DataConfig, pool: Workers) -> dict[str, Any]:
    valid = sum(1 for _ in _pairs(config, config.valid))  # first: a mistake there is told at once
    read, kept, dropped = _clean_train(config, pool, None)
    splits = {
        "train": {"pairs_read": read, "pairs_kept": kept},
        "valid": {"pairs_read": valid, "pairs_kept": valid},
    }
    return {"splits": splits, "dropped": dropped.report()}


def _build(config: DataConfig, folder: Path, pool: Workers) -> dict[str, Any]:
    """Everything of the output folder but the manifest, whose contents are returned."""
    spool = folder / "spool.tsv"
    valid = list(_pairs(config, config.valid))  # first: a mistake there is told at once
    read, kept, dropped = _clean_train(config, pool, spool)
    if not kept:
        raise BadInput(f"data.train: cleaning dropped all of {read:,} pairs\n{_only_rules(dropped, read)}")
    pool.stop()  # the trainer is the peak of memory and uses all cores: the workers come back for the shards
    tokenizer = _tokenizer(config.tokenizer, spool, kept)
    _write_bytes(folder / "spiece.model", tokenizer.model)
    splits = {}
    with spool.open("rb") as lines:
        limits = config.max_source_tokens, config.max_target_tokens
        counts = _encode_split(lines, kept, folder / "train", tokenizer, pool, limits)
        dropped.merge(counts.dropped)
        splits["train"] = {"pairs_read": read} | counts.report()
    spool.unlink()
    if not counts.pairs:
        raise BadInput(f"data.train: no pair of {kept:,} fits max_source_tokens and max_target_tokens, {limits}")
    rows = "".join(json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\n" for s, t in valid)
    texts = rows.encode("utf-8", "replace")  # a lone surrogate, which JSON can hold, has no UTF-8
    _write_bytes(folder / VALID_TEXTS, texts)
    lines_of_valid = (f"{normalise(s)}\t{normalise(t)}\n".encode() for s, t in valid)
    counts = _encode_split(lines_of_valid, len(valid), folder / "valid", tokenizer, pool, None)
    splits["valid"] = {"pairs_read": len(valid)} | counts.report()
    about = {"sha256": tokenizer.sha256, "vocabulary_size": tokenizer.vocabulary_size}
    return {
        "data_hash": _data_hash(tokenizer, {split: PairShards.open(folder / split) for split in splits}),
        "tokenizer": about,
        "splits": splits,
        "valid_texts": {"file": VALID_TEXTS} | _described(texts),
        "dropped": dropped.report(),
    }


def _only_rules(dropped: Dropped, read: int) -> str:
    splits = {"train": {"pairs_read": read, "pairs_kept": 0}}
    return format_report({"splits": splits, "dropped": dropped.report()})


def _clean_train(config: DataConfig, pool: Workers, spool: Path | None) -> tuple[int, int, Dropped]:
    """Read, clean and deduplicate; what is kept goes to `spool`. Returns pairs read, pairs kept, what was dropped."""
    cleaner = Cleaner(config.cleaning, config.source_language, config.target_language)
    seen, dropped = SeenHashes(), Dropped()
    read = kept = 0
    chunks = _chunks(_pairs(config, config.train))
    with spool.open("wb") if spool else contextlib.nullcontext() as file, Progress("clean") as progress:
        for cleaned in pool.map(cleaner.clean, chunks):
            lines = cleaned.lines
            count = len(lines) + cleaned.dropped.counts.total()
            dropped.merge(cleaned.dropped)
            if config.cleaning.duplicate:
                new = seen.add(cleaned.hashes)
                for i in np.flatnonzero(~new):
                    source, _, target = lines[i].decode().partition("\t")
                    dropped.add("duplicate", source, target)
                lines = [lines[i] for i in np.flatnonzero(new)]
            if file is not None and lines:
                file.write(b"\n".join(lines) + b"\n")
            read, kept = read + count, kept + len(lines)
            progress.advance(count)
    return read, kept, dropped


def _pairs(config: DataConfig, corpora: list[CorpusConfig]) -> Iterator[tuple[str, str]]:
    for corpus in corpora:
        yield from read_pairs(corpus, config.source_language, config.target_language)


def _chunks(items: Iterable[In]) -> Iterator[list[In]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, CHUNK_PAIRS)):
        yield chunk


def _tokenizer(config: TokenizerConfig, spool: Path, pairs: int) -> Tokenizer:
    if config.path is not None:
        return Tokenizer.load(config.path)
    log.info("training a %s tokenizer of %d pieces", config.type, config.vocabulary_size)
    if pairs <= INLINE_TRAINING_PAIRS:
        return Tokenizer(_train_on_spool(config, spool, pairs))
    return Tokenizer(in_own_process(_train_on_spool, config, spool, pairs))


def _train_on_spool(config: TokenizerConfig, spool: Path, pairs: int) -> bytes:
    return train_tokenizer(_sample(spool, pairs, config), config)


def _sample(spool: Path, pairs: int, config: TokenizerConfig) -> Iterator[str]:
    """Both sides of a random draw of the pairs, in their order, within `sample_sentences` and SAMPLE_BYTES."""
    wanted = max(1, min(config.sample_sentences // 2, SAMPLE_BYTES * pairs // spool.stat().st_size))
    chosen = np.ones(pairs, dtype=bool)
    if pairs > wanted:
        chosen = np.zeros(pairs, dtype=bool)
        chosen[np.random.default_rng(config.seed).choice(pairs, wanted, replace=False, shuffle=False)] = True
    with spool.open("rb") as lines:
        for line in itertools.compress(lines, chosen):
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


@lru_cache(maxsize=1)
def _loaded(model: Path, sha256: str) -> Tokenizer:
    """Each worker loads the model once; the hash is in the key because a path may come to hold another model."""
    tokenizer = Tokenizer.load(model)
    if tokenizer.sha256 != sha256:
        raise BmscaleError(f"{model}: changed while it was in use")
    return tokenizer


def encode_chunk(model: Path, sha256: str, limits: tuple[int, int] | None, lines: list[bytes]) -> EncodedChunk:
    """Tokenise lines `source TAB target`; pairs longer than the (source, target) limits in tokens are dropped."""
    tokenizer = _loaded(model, sha256)
    texts = [line.rstrip(b"\n").decode().split("\t") for line in lines]
    encoded = [tokenizer.encode_batch([pair[side] for pair in texts]) for side in (0, 1)]
    counts = SplitCounts()
    kept: list[tuple[list[int], list[int]]] = []
    for text, pair in zip(texts, zip(*encoded, strict=True), strict=True):
        if limits is not None and (len(pair[0]) > limits[0] or len(pair[1]) > limits[1]):
            counts.dropped.add("too_many_tokens", *text)
            continue
        kept.append(pair)
        for side in (0, 1):
            counts.characters[side] += len(text[side])
            counts.unknown[side] += pair[side].count(UNK)
    lengths = [np.fromiter((len(pair[side]) for pair in kept), np.int32, len(kept)) for side in (0, 1)]
    counts.pairs = len(kept)
    counts.tokens = [int(side.sum()) for side in lengths]
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(kept))
    return EncodedChunk(np.fromiter(flat, np.uint32, sum(counts.tokens)), lengths[0], lengths[1], counts)


def _encode_split(
    lines: Iterable[bytes],
    pairs: int,
    directory: Path,
    tokenizer: Tokenizer,
    pool: Workers,
    limits: tuple[int, int] | None,
) -> SplitCounts:
    counts = SplitCounts()
    work = partial(encode_chunk, directory.parent / "spiece.model", tokenizer.sha256, limits)
    with ShardWriter(directory, tokenizer.vocabulary_size) as writer, Progress("tokenise", pairs) as progress:
        for chunk in pool.map(work, _chunks(lines)):
            writer.add_batch(chunk.tokens, chunk.source_lengths, chunk.target_lengths)
            counts.add(chunk.counts)
            progress.advance(chunk.counts.pairs + chunk.counts.dropped.counts.total())
    return counts


def _data_hash(tokenizer: Tokenizer, splits: dict[str, PairShards]) -> str:
    """The identity of what training sees: the tokenizer and every token of every split, in order."""
    parts = {split: shards.index for split, shards in splits.items()}
    return hashlib.sha256(json.dumps([tokenizer.sha256, parts], sort_keys=True).encode()).hexdigest()


# --- the output folder ------------------------------------------------------------------------------------------------


def _head(config: DataConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source_language": config.source_language,
        "target_language": config.target_language,
        "config": config.model_dump(mode="json"),
        "inputs": inputs,
        "versions": {
            "bmscale": bmscale.__version__,
            "python": platform.python_version(),
            "sentencepiece": sentencepiece.__version__,
            "numpy": np.__version__,
        },
    }


def _hash_inputs(config: DataConfig) -> dict[str, list[dict[str, Any]]]:
    """Size and SHA-256 of every file that is read, by part: train, valid, tokenizer."""
    languages = config.source_language, config.target_language
    inputs: dict[str, list[dict[str, Any]]] = {"train": [], "valid": []}
    for split, corpora in (("train", config.train), ("valid", config.valid)):
        for corpus in corpora:
            if corpus.toy is not None:
                inputs[split].append(_hash_pairs(describe(corpus), read_pairs(corpus, *languages)))
            inputs[split] += [_hash_file(file) for file in input_files(corpus, *languages)]
    if config.tokenizer.path is not None:
        Tokenizer.load(config.tokenizer.path)  # a wrong one is reported now, not after the cleaning
        inputs["tokenizer"] = [_hash_file(Path(config.tokenizer.path))]
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


def _hash_pairs(name: str, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The toy corpus has no file, but its text may differ between versions of this package."""
    digest, size = hashlib.sha256(), 0
    for pair in pairs:
        line = "\t".join(pair).encode() + b"\n"
        digest.update(line)
        size += len(line)
    return {"path": name, "bytes": size, "sha256": digest.hexdigest()}


def _followed(directory: Path) -> Path:
    """The folder itself where a link leads to it: it is what is replaced, and the link stays."""
    try:
        return directory.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself, before Python 3.13
        raise BadInput(f"{directory}: data.directory cannot be followed: its links lead nowhere") from None


def _finished(directory: Path, config: DataConfig, inputs: dict[str, Any], force: bool) -> dict[str, Any] | None:
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
    differences = _differences(manifest, _head(config, inputs))
    if not differences:
        return manifest
    if force:
        return None
    raise BadInput(
        f"{directory}: already holds data prepared otherwise:\n  "
        + "\n  ".join(differences)
        + "\nchoose another data.directory, or replace it with `bmscale prepare CONFIG --force`"
    )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `data.key: old -> new` for configuration and input files that are not the same."""
    lines = []
    flat = [dict(_flatten(manifest["config"], "data")) for manifest in (old, new)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        # The same folder under another name (a relative path, a moved disk) is the same data.
        if key != "data.directory" and flat[0].get(key) != flat[1].get(key):
            lines.append(f"{key}: {flat[0].get(key)!r} -> {flat[1].get(key)!r}")
    for split in sorted(old["inputs"].keys() | new["inputs"].keys()):
        files = [{f["path"]: f["sha256"] for f in manifest["inputs"].get(split, [])} for manifest in (old, new)]
        changed = [p for p in sorted(files[0].keys() | files[1].keys()) if files[0].get(p) != files[1].get(p)]
        lines += [f"data.{split}: the contents of {path} changed" for path in changed]
    return lines


def _flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield key, value
        return
    for name, inner in items:
        yield from _flatten(inner, f"{key}.{name}")


@contextlib.contextmanager
def _temporary_sibling(directory: Path) -> Iterator[Path]:
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


def _publish(
    folder: Path, directory: Path, config: DataConfig, inputs: dict[str, Any], force: bool
) -> dict[str, Any] | None:
    """Rename the finished folder into place. Returns the manifest of another run that was first with the same data."""
    finished = _finished(directory, config, inputs, force)
    if finished:
        return finished
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


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
