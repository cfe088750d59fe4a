"""manifest.json of a prepared folder: what it was made from, what cleaning dropped, and whether it is whole."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bmscale.data.shards import DocumentShards, PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput

FORMAT = 3
MANIFEST = "manifest.json"
VALID_TEXTS = "valid.jsonl"
_AGAIN = "make it with `bmscale prepare CONFIG`"


Kind = Literal["pairs", "documents", "labelled"]
SHARDS: dict[str, type[PairShards] | type[DocumentShards]] = {
    "pairs": PairShards,
    "documents": DocumentShards,
    "labelled": PairShards,
}
"""How each kind is stored. A labelled text is a pair: its target is one token, the index of its label."""
ITEMS = {kind: shards.form.items for kind, shards in SHARDS.items()}
"""The word of each kind in the keys of a manifest: pairs_read, documents_kept."""
_NAMES = {"pairs": "sentence pairs", "documents": "documents", "labelled": "labelled texts"}


def load_manifest(directory: str | Path, kind: Kind | None = None) -> dict[str, Any]:
    """The manifest of a finished folder, which was checked: every file is there and of its size, the tokenizer, the
    validation texts and the indexes of the shards have their hashes, and the lengths add up. It always has its `kind`.

    Raises BadInput where the folder is absent, unfinished, unreadable or damaged, or not of the `kind` that is asked
    for; the message names the file and the command that makes it again.
    """
    folder = Path(directory)
    manifest = _read_manifest(folder / MANIFEST)
    if kind not in (None, manifest["kind"]):
        raise BadInput(
            f"{folder}: must hold prepared {_NAMES[str(kind)]} for this task, it holds {_NAMES[manifest['kind']]}; "
            "choose another data.directory"
        )
    tokenizer = Tokenizer.load(folder / "spiece.model")
    if tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
        raise BadInput(f"{folder / 'spiece.model'}: is not the tokenizer of the manifest; {_AGAIN} --force")
    _check_valid_texts(folder / VALID_TEXTS, manifest["valid_texts"])
    form = SHARDS[manifest["kind"]].form
    splits = {split: SHARDS[manifest["kind"]].open(folder / split) for split in manifest["splits"]}
    for split, shards in splits.items():
        for key, held in ((f"{form.items}_kept", form.items), *((key, key) for key in form.totals.values())):
            if shards.index[held] != manifest["splits"][split][key]:
                expected = f"{manifest['splits'][split][key]:,} {held.replace('_', ' ')}"
                raise BadInput(f"{folder / split}: must hold {expected} by {MANIFEST}; {_AGAIN} --force")
    if data_hash(tokenizer, splits, manifest["splits"], manifest.get("labels")) != manifest["data_hash"]:
        raise BadInput(f"{folder}: the shards are not those of {MANIFEST}, their hashes differ; {_AGAIN} --force")
    return manifest


class _File(BaseModel):
    """What a manifest says of a file; of an input the path, of an output the name."""

    model_config = ConfigDict(strict=True, extra="allow")
    bytes: int = Field(ge=0)
    sha256: str


class _Input(_File):
    path: str


class _Source(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    name: str
    pairs_kept: int = Field(ge=0)


class _PairSource(_Source):
    source_language: str
    target_language: str


class _DocumentSource(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    name: str
    documents_kept: int = Field(ge=0)
    tokens: int = Field(ge=0)


class _LabelledSplit(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sources: list[_Source]
    """The corpora of the split in their order: each has the next `pairs_kept` pairs of the shards."""
    pairs_read: int = Field(ge=0)
    pairs_kept: int = Field(ge=1)
    source_tokens: int = Field(ge=1)
    target_tokens: int = Field(ge=1)


class _PairSplit(_LabelledSplit):
    sources: list[_PairSource]  # type: ignore[assignment]


class _DocumentSplit(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sources: list[_DocumentSource]
    """The corpora of the split in their order: each has the next `documents_kept` documents of the shards."""
    documents_read: int = Field(ge=0)
    documents_kept: int = Field(ge=1)
    tokens: int = Field(ge=1)
    text_bytes: int = Field(ge=1)


class _PairSplits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    train: _PairSplit
    valid: _PairSplit


class _LabelledSplits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    train: _LabelledSplit
    valid: _LabelledSplit


class _DocumentSplits(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    train: _DocumentSplit
    valid: _DocumentSplit


class _Rule(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    samples: list[list[str]]


class _PairRule(_Rule):
    pairs: int = Field(ge=0)


class _DocumentRule(_Rule):
    documents: int = Field(ge=0)


class _TokenizerEntry(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sha256: str
    vocabulary_size: int = Field(ge=1)


class _Manifest(BaseModel):
    """The keys of a manifest that are read again, to tell a damaged one."""

    model_config = ConfigDict(strict=True, extra="allow")
    config: dict[str, Any]
    inputs: dict[str, list[_Input]]
    data_hash: str
    tokenizer: _TokenizerEntry
    valid_texts: _File


class _Pairs(_Manifest):
    source_language: str
    target_language: str
    splits: _PairSplits
    dropped: dict[str, _PairRule]


class _Documents(_Manifest):
    splits: _DocumentSplits
    dropped: dict[str, _DocumentRule]


class _Labelled(_Manifest):
    labels: list[str] = Field(min_length=2)
    splits: _LabelledSplits
    dropped: dict[str, _PairRule]


_MANIFESTS: dict[str, type[_Manifest]] = {"pairs": _Pairs, "documents": _Documents, "labelled": _Labelled}


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
    kind = manifest.setdefault("kind", "pairs")  # a folder from before there were others
    if not isinstance(kind, str) or kind not in _MANIFESTS:
        raise BadInput(f"{path}: damaged (kind must be one of {', '.join(_MANIFESTS)}); {_AGAIN} --force")
    try:
        _MANIFESTS[kind].model_validate(manifest)
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
    if described(data) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
        raise BadInput(
            f"{path}: must have {entry['bytes']:,} bytes and the SHA-256 of {MANIFEST}, it has {len(data):,} bytes; "
            f"{_AGAIN} --force"
        )


def described(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def format_report(manifest: dict[str, Any]) -> str:
    """A table of the rules of cleaning: how much each dropped, its percentage, and one sample of each."""
    train, items = manifest["splits"]["train"], ITEMS[manifest.get("kind", "pairs")]
    heading = "texts" if "labels" in manifest else items
    read = max(1, train[f"{items}_read"])
    rows = [f"{'rule':<16} {heading:>12} {'%':>7}   sample"]
    for rule, entry in manifest["dropped"].items():
        sample = " | ".join(_shorten(side) for side in entry["samples"][0]) if entry["samples"] else ""
        rows.append(f"{rule:<16} {entry[items]:>12,} {100 * entry[items] / read:>7.2f}   {sample}".rstrip())
    kept = train[f"{items}_kept"]
    rows.append(f"{'kept':<16} {kept:>12,} {100 * kept / read:>7.2f}")
    rows.append(f"{'read':<16} {train[f'{items}_read']:>12,} {100:>7.2f}")
    if isinstance(train.get("labels"), dict):
        counts = ", ".join(f"{label} {count:,}" for label, count in train["labels"].items())
        rows.append(f"{len(train['labels']):,} labels: {counts}")
    return "\n".join(rows)


def _shorten(text: str, width: int = 40) -> str:
    text = " ".join(text.split()) if not text.isprintable() else text  # a document has lines, the table has rows
    return text if len(text) <= width else text[: width - 1] + "…"


def data_hash(
    tokenizer: Tokenizer,
    splits: Mapping[str, PairShards | DocumentShards],
    entries: dict[str, Any],
    labels: list[str] | None = None,
) -> str:
    """The identity of what training sees: the tokenizer, every token of every split, in order, where one corpus ends
    and the next begins, and what the labels are."""
    parts: dict[str, Any] = {split: shards.index for split, shards in splits.items()}
    for split, entry in entries.items():
        parts[f"{split}/sources"] = [source[f"{splits[split].form.items}_kept"] for source in entry["sources"]]
    if labels is not None:
        parts["labels"] = labels
    return hashlib.sha256(json.dumps([tokenizer.sha256, parts], sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `data.key: old -> new` for configuration and input files that are not the same."""
    kinds = [manifest.get("kind", "pairs") for manifest in (old, new)]
    if kinds[0] != kinds[1]:
        return [f"what it holds: {_NAMES[kinds[0]]} -> {_NAMES[kinds[1]]}"]
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


def write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any]) -> None:
    # The replacement of half a character (a sample of a text may hold one) is its escape in JSON.
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace"))
