"""`bmscale export MODEL --to FORMAT`: write the artefact, open it in a fresh process, compare, and only then keep it.

The artefact is written beside its place and moved there when the gate (gate.py) let it pass, with the report
`export.json` and the model card `README.md` (place.py). What does not pass is removed; its report stays as
`.NAME.failed.json`.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bmscale.deployment.card import export_card
from bmscale.deployment.comparison import changes, comparison_rows
from bmscale.deployment.formats import Format, make_format
from bmscale.deployment.gate import Examples, Question
from bmscale.deployment.place import card_of, check_place, names_in, report_of, sha256_of
from bmscale.deployment.scratch import REPLACED, remove_stale, scratch_folder
from bmscale.errors import BadInput, BmscaleError
from bmscale.model.folder import PROVENANCE, ModelFolder, open_model_folder, read_json, tensor_files, write_json
from bmscale.model.seal import sha256_of_file

log = logging.getLogger("bmscale")

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
    BmscaleError, after removing what was written, for an artefact that the gate did not let pass, and for a model that
    was replaced meanwhile.
    """
    if not isinstance(model, ModelFolder):
        model = open_model_folder(model, None)
    made = make_format(to, options)
    made.check(model)
    _check_finite(model)
    out = check_place(Path(out), made.suffix, model.path)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    failed = out.with_name(f".{out.name}.failed.json")
    failed.unlink(missing_ok=True)
    report: dict[str, Any] = {"format": to, "options": dict(options or {}), **_about(model)}
    with scratch_folder(out) as scratch:
        fresh = scratch / out.name
        log.info("writing %s", out)
        made.write(model, fresh)
        report["artefact"] = {**made.describe(fresh), "bytes": size_of(fresh), "sha256": _sha256_of_files(fresh)}
        log.info("comparing it with the model on %s", examples.name)
        report["gate"] = _pass(made, Question(to, dict(options or {}), str(model.path), str(fresh), examples))
        _check_unchanged(model)
        if not report["gate"]["passed"]:
            write_json(failed, report)
            raise BmscaleError(
                f"{out}: is not written: it is not the model: {'; '.join(report['gate']['reasons'])}. The report is "
                f"{failed}"
            )
        report["changes"] = changes(report)
        card = export_card(out.name, model, made, report, licence)
        check_place(out, made.suffix, model.path)  # again: much time has gone by
        _keep(made, fresh, out, report, card)
    return report


def _check_finite(model: ModelFolder) -> None:
    """Raises BadInput for weights that no program could compute with."""
    for name, file in tensor_files(model).items():
        with safe_open(file, framework="pt") as tensors:
            if not tensors.get_tensor(name).isfinite().all():
                raise BadInput(f"{file}: tensor {name} has values that are not finite; export another model of the run")


def _check_unchanged(model: ModelFolder) -> None:
    """Raises BmscaleError where the model's folder is another one by now.

    An export takes no lock of the run: it only reads, training replaces a whole folder by a rename, and the two may go
    on side by side. What must not happen is weights of one model under the name of another.
    """
    try:
        is_same = read_json(model.path / PROVENANCE) == model.provenance
    except (BadInput, OSError):  # the moment between two renames
        is_same = False
    if not is_same:
        raise BmscaleError(f"{model.path}: was replaced while it was exported, as training does; export it again")


def _sha256_of_files(path: Path) -> dict[str, str]:
    """Of the one file, or of all that lie in a folder, however deep."""
    files = {path.name: path} if path.is_file() else {name: path / name for name in sorted(names_in(path))}
    return {name: sha256_of_file(file) for name, file in files.items() if file.is_file()}


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
        code, said = _run(command, {**os.environ, **quiet})
        if code == 0 and answer.is_file():
            found: dict[str, Any] = json.loads(answer.read_bytes())
            return found
    said = said.strip()[-4000:]
    return {
        "passed": False,
        "reasons": [f"{made.name}: it could not be opened and compared: {said.splitlines()[-1] if said else 'killed'}"],
        "stderr": said,
    }


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Code and error output of a process that ends, with what it started, before this one is interrupted."""
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
    ) as process:
        try:
            _, said = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said


def _keep(made: Format, fresh: Path, out: Path, report: dict[str, Any], card: str) -> None:
    """Move the artefact to its place, in which an older export makes room, with report and card."""
    data = card.encode()
    names = {path.name for path in (report_of(out, made.suffix), card_of(out, made.suffix))}
    names |= {out.name} if made.suffix else names_in(fresh)
    report.update(files=sorted(names), card_sha256=sha256_of(data))
    if made.suffix:
        write_json(report_of(out, made.suffix), report)
        card_of(out, made.suffix).write_bytes(data)
        fresh.replace(out)
        return
    write_json(report_of(fresh, ""), report)
    card_of(fresh, "").write_bytes(data)
    if out.is_dir():
        out.rename(fresh.with_name(REPLACED))
    fresh.rename(out)


def summary(report: Mapping[str, Any]) -> str:
    """A few lines for a terminal."""
    gate = report["gate"]
    figures, greedy = gate["log_probabilities"], gate["greedy"]
    lines = [
        f"{'log-probabilities:':<28} {figures['tokens']:,} tokens of {figures['texts']} texts, at most "
        f"{figures['max_difference']:.2g} nats apart",
        f"{'greedy outputs:':<28} {greedy['texts'] - greedy['different']} of {greedy['texts']} the same",
    ]
    for name, trained, exported, change in comparison_rows(report):
        lines.append(f"{name + ':':<28} {trained} trained, {exported} exported, {change}")
    return "\n".join(lines)
