"""Where an export lies, and whether an older one may make room for it: only where nothing but an export would go.

The report `export.json` and the model card `README.md` lie inside a folder, and beside a file, as `NAME.export.json`
and `NAME.README.md`. The report names all files of the export, and has the SHA-256 of the card, which its reader may
have written in.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from bmscale.errors import BadInput
from bmscale.model.folder import CARD

REPORT = "export.json"


def check_place(out: Path, suffix: str, model: Path) -> Path:
    """Where the artefact goes, `suffix` being the format's ending of names. Raises BadInput for a place in the model's
    own folder, or one that holds anything but an export as it was written."""
    try:
        out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, or a NUL
        raise BadInput(f"--out: must name where to write; got {str(out)!r}: {error}") from None
    if suffix and out.suffix != suffix:
        raise BadInput(f"--out: must end in {suffix}; got {out}")
    if out.name in ("", ".."):
        out = out.resolve()
    if out.resolve().is_relative_to(model.resolve()):
        raise BadInput(f"{out}: must not lie in the model's own folder, {model}; give another --out")
    is_free = not any(path.exists() or path.is_symlink() for path in places(out, suffix))
    reason = None if is_free else _more_than_an_export(out, suffix)
    if reason:
        raise BadInput(f"{out}: {reason}; move it away, or give another --out")
    return out


def places(out: Path, suffix: str) -> list[Path]:
    """All that an export takes: the folder, or the file, its report and its card."""
    return [out, report_of(out, suffix), card_of(out, suffix)] if suffix else [out]


def report_of(out: Path, suffix: str) -> Path:
    """The report of an export."""
    return out.with_suffix(f".{REPORT}") if suffix else out / REPORT


def card_of(out: Path, suffix: str) -> Path:
    """Its model card."""
    return out.with_suffix(f".{CARD}") if suffix else out / CARD


def names_in(folder: Path) -> set[str]:
    """All files and folders in a folder, however deep."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def sha256_of(data: bytes) -> str:
    """As the report has that of the card."""
    return hashlib.sha256(data).hexdigest()


def _more_than_an_export(out: Path, suffix: str) -> str | None:
    """What would be lost with the export that lies at `out`; None where it is nothing."""
    if any(path.is_symlink() for path in places(out, suffix)) or (out.exists() and out.is_dir() == bool(suffix)):
        return "exists and is no export"
    report, card = _read(report_of(out, suffix)), card_of(out, suffix)
    if report is None:
        return f"exists and is no export (it has no {REPORT} of one)"
    found = {path.name for path in places(out, suffix) if path.exists()} if suffix else names_in(out)
    added = sorted(found - set(report["files"]))
    if added:
        return f"holds more than an export, such as {added[0]}"
    if card.is_file() and sha256_of(card.read_bytes()) != report["card_sha256"]:
        return f"its {card.name} was edited since it was exported"
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """A report that an export wrote; None for anything else."""
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(report, dict) or not {"format", "model", "artefact", "gate", "card_sha256"} <= set(report):
        return None
    files = report.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        return None
    return report if path.name in files else None
