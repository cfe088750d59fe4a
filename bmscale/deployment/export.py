"""`bmscale export MODEL --to FORMAT`: write the artefact, open it in a fresh process, compare, and only then keep it.

The artefact is written beside its place and moved there when the gate (gate.py) let it pass, with the report
`export.json` and the model card `README.md`: inside a folder, beside a file. What does not pass is removed; its report
stays as `.NAME.failed.json`.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bmscale.deployment.card import export_card
from bmscale.deployment.formats import Format, make_format
from bmscale.deployment.gate import Examples, Question
from bmscale.errors import BadInput, BmscaleError
from bmscale.model.folder import CARD, ModelFolder, open_model_folder

log = logging.getLogger("bmscale")

REPORT = "export.json"
_PACKAGES = ("bmscale", "torch", "transformers", "sentencepiece", "sacrebleu")


def export(
    model: ModelFolder | str | Path,
    to: str,
    out: str | Path,
    examples: Examples,
    *,
    options: Mapping[str, str | None] | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write the model to `out` in a format, and return the report.

    Raises BadInput for a model that has no place in the format and an `out` that is taken by anything but an export;
    BmscaleError, after removing what was written, for an artefact that the gate did not let pass.
    """
    if not isinstance(model, ModelFolder):
        model = open_model_folder(model, None)
    made = make_format(to, options)
    made.check(model)
    out = check_place(Path(out), made)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.exporting")
    failed = out.with_name(f".{out.name}.failed.json")
    _remove(fresh)
    failed.unlink(missing_ok=True)
    report: dict[str, Any] = {"format": to, "options": dict(options or {}), **_about(model)}
    try:
        log.info("writing %s", out)
        made.write(model, fresh)
        report["artefact"] = {**made.describe(fresh), "bytes": size_of(fresh)}
        log.info("comparing it with the model on %s", examples.name)
        report["gate"] = _pass(made, Question(to, dict(options or {}), str(model.path), str(fresh), examples))
        if not report["gate"]["passed"]:
            _write_json(failed, report)
            raise BmscaleError(
                f"{out}: is not written: it is not the model: {'; '.join(report['gate']['reasons'])}. The report is "
                f"{failed}"
            )
        card = export_card(out.name, model, made, report, licence)
        _keep(made, fresh, out, report, card)
    finally:
        _remove(fresh)
    return report


def check_place(out: Path, made: Format) -> Path:
    """Where the artefact goes, with the format's ending. Raises BadInput for a place that holds anything else."""
    if made.suffix and out.suffix != made.suffix:
        raise BadInput(f"--out: must end in {made.suffix}; got {out}")
    if out.name in ("", ".."):
        out = out.resolve()
    if (out.exists() or out.is_symlink()) and not (_report_of(made, out).is_file() and not out.is_symlink()):
        raise BadInput(f"{out}: exists and is no export (it has no {REPORT}); give another --out")
    return out


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _about(model: ModelFolder) -> dict[str, Any]:
    provenance = model.provenance
    known = ("experiment", "step", "parameters", "source_language", "target_language", "data_hash", "tokenizer_sha256")
    return {
        "model": {
            "path": str(model.path),
            "task": model.task.name,
            **{key: provenance.get(key) for key in known},
            "bytes": size_of(model.path),
        },
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _pass(made: Format, question: Question) -> dict[str, Any]:
    """What the gate found, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "question.json", Path(folder) / "answer.json"
        question.save(asked)
        # Nothing is fetched, and remote code leaves nothing in the user's cache.
        quiet = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(folder) / "modules")}
        command = [sys.executable, "-m", "bmscale.deployment.gate", str(asked), str(answer)]
        ended = subprocess.run(
            command, env={**os.environ, **quiet}, stderr=subprocess.PIPE, text=True, errors="replace", check=False
        )
        if ended.returncode == 0 and answer.is_file():
            found: dict[str, Any] = json.loads(answer.read_bytes())
            return found
    said = ended.stderr.strip()[-4000:]
    return {
        "passed": False,
        "reasons": [f"{made.name}: it could not be opened and compared: {said.splitlines()[-1] if said else 'killed'}"],
        "stderr": said,
    }


def _keep(made: Format, fresh: Path, out: Path, report: dict[str, Any], card: str) -> None:
    """Move the artefact to its place, in which an older export makes room, with report and card."""
    if fresh.is_dir():
        _write_json(fresh / REPORT, report)
        (fresh / CARD).write_text(card, encoding="utf-8")
    else:
        _write_json(_report_of(made, out), report)
        out.with_suffix(".README.md").write_text(card, encoding="utf-8")
    if out.is_dir():
        replaced = out.with_name(f".{out.name}.replaced")
        _remove(replaced)
        out.rename(replaced)
        fresh.rename(out)
        _remove(replaced)
    else:
        fresh.replace(out)


def _report_of(made: Format, out: Path) -> Path:
    return out.with_suffix(f".{REPORT}") if made.suffix else out / REPORT


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    # A difference that is no number is written as a word, since JSON has none for it.
    text = json.dumps(value, indent=2, ensure_ascii=False).replace(": Infinity", ': "infinite"')
    path.write_text(text.replace(": NaN", ': "not a number"') + "\n", encoding="utf-8", errors="replace")


def summary(report: Mapping[str, Any]) -> str:
    """A few lines for a terminal."""
    gate = report["gate"]
    figures, greedy = gate["log_probabilities"], gate["greedy"]
    lines = [
        f"log-probabilities: {figures['tokens']:,} tokens of {figures['texts']} texts, at most "
        f"{figures['max_difference']:.2g} nats apart",
        f"greedy outputs:    {greedy['texts'] - greedy['different']} of {greedy['texts']} the same",
    ]
    for metric in gate.get("test", {}).get("metrics", {}).values():
        trained, exported = metric["systems"]
        p_value = exported["p_values"]["bootstrap"]
        chance = "no difference" if p_value is None else f"p = {p_value:.3f}"
        lines.append(
            f"{metric['name'] + ':':<18} {trained['score']:.2f} trained, {exported['score']:.2f} exported ({chance})"
        )
    before, after = report["model"]["bytes"], report["artefact"]["bytes"]
    lines.append(f"size:              {before:,} bytes as a model folder, {after:,} exported")
    return "\n".join(lines)
