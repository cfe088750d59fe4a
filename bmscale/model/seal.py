"""The SHA-256 of the files of a folder, kept with it, so that bytes which changed since are found when it is opened."""

import hashlib
from pathlib import Path
from typing import Any

from bmscale.errors import BadInput


def sha256_of_file(path: Path) -> str:
    """In hexadecimal; the file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> dict[str, Any]:
    """`{"files": {name: {"bytes", "sha256"}}}` of all files that lie in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {"files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in files}}


def check_files(folder: Path, record: Any) -> None:
    """Compare the files of a folder with a record that has what `seal` returned: first all sizes, then what they hold.

    A record without it (of an earlier version) is not checked, and never the file that the record stands in. Raises
    BadInput, naming the file, for one that is missing, or has other bytes.
    """
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict):
        return
    again = "copy the folder again, or export the model again"
    for name, kept in files.items():
        path = folder / Path(name).name
        if not isinstance(kept, dict) or not isinstance(kept.get("bytes"), int):
            raise BadInput(f"{folder}: damaged: its record of {name} must have bytes and sha256; {again}")
        if not path.is_file():
            raise BadInput(f"{path}: missing; {again}")
        if path.stat().st_size != kept["bytes"]:
            raise BadInput(f"{path}: damaged: must have {kept['bytes']:,} bytes; has {path.stat().st_size:,}; {again}")
    for name, kept in files.items():
        path = folder / Path(name).name
        if sha256_of_file(path) != kept.get("sha256"):
            raise BadInput(f"{path}: damaged or changed: its SHA-256 is not that of what was exported; {again}")
