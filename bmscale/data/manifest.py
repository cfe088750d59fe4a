"""manifest.json of a prepared folder: what it was made from, what cleaning dropped, and whether it is whole."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput

FORMAT = 3
MANIFEST = "manifest.json"
VALID_TEXTS = "valid.jsonl"
_AGAIN = "make it with `bmscale prepare CONFIG`"


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
    if data_hash(tokenizer, splits, manifest["splits"]) != manifest["data_hash"]:
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
    source_language: str
    target_language: str
    pairs_kept: int = Field(ge=0)


class _Split(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sources: list[_Source]
    """The corpora of the split in their order: each has the next `pairs_kept` pairs of the shards."""
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
    if described(data) != {"bytes": entry["bytes"], "sha256": entry["sha256"]}:
        raise BadInput(
            f"{path}: must have {entry['bytes']:,} bytes and the SHA-256 of {MANIFEST}, it has {len(data):,} bytes; "
            f"{_AGAIN} --force"
        )


def described(data: bytes) -> dict[str, Any]:
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


def data_hash(tokenizer: Tokenizer, splits: dict[str, PairShards], entries: dict[str, Any]) -> str:
    """The identity of what training sees: the tokenizer, every token of every split, in order, and where one corpus
    ends and the next begins."""
    parts: dict[str, Any] = {split: shards.index for split, shards in splits.items()}
    for split, entry in entries.items():
        parts[f"{split}/sources"] = [source["pairs_kept"] for source in entry["sources"]]
    return hashlib.sha256(json.dumps([tokenizer.sha256, parts], sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
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


def write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())
