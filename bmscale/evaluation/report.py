"""`bmscale report RUN`: report.html, one page that shows what a run did, without scripts or other files.

It is made from the files of the run folder alone, and of whatever is there: a run that has just begun, one that
diverged, a metrics file with a broken line. What is missing is said on the page. The looks are in report.html.jinja.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from markupsafe import Markup

from bmscale.data.manifest import load_manifest
from bmscale.errors import BadInput
from bmscale.evaluation.charts import MOST_POINTS, Line, line_chart
from bmscale.evaluation.scores import sentence_chrf
from bmscale.experiment import RunFolder
from bmscale.model.config import option_types
from bmscale.model.sizes import count_parameters
from bmscale.model.tasks import TASKS

log = logging.getLogger("bmscale")

# Bounds that keep the page below a megabyte whatever the run.
POINTS_IN_TIME = 8
"""Steps at which a sample sentence is shown."""
SAMPLE_SENTENCES = 10
EXTREME_SENTENCES = 8
"""How many of the worst, and of the best, sentences of a test set are shown."""
VALIDATION_ROWS = 12
STARTS = 20
INPUT_FILES = 40
LABELS = 200
CHARACTERS = 500
"""Of one sentence."""

Row = dict[str, Any]

_LABELLED = {"pairs_read": "texts read", "pairs_kept": "texts kept", "source_tokens": "tokens"}
"""What a split of labelled texts counts: they are stored as pairs of a text and one token, its label."""

_VALIDATION = {
    "translation": "On the validation data: greedy translations of a part of it, with 95 % intervals of a bootstrap.",
    "classification": "On the validation data, with 95 % intervals.",
}

SCORES = {
    "chrf": "chrF2++",
    "bleu": "BLEU",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
}
"""Scores of a validation, as people call them."""

FIGURES = {"bits_per_byte": "bits per byte", "perplexity": "perplexity", "accuracy": "accuracy"}
"""Scores of a test set that has no intervals."""


def write_report(run: RunFolder) -> Path:
    """Write report.html, replacing the one before; returns its path. The run may be under way.

    Raises BadInput for a folder that is no run or whose run.yaml is damaged.
    """
    record = _read_record(run)
    page = page_environment(Path(__file__).parent).get_template("report.html.jinja").render(_contents(run, record))
    temporary = run.report.with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(run.report)
    return run.report


def write_report_or_warn(run: RunFolder) -> None:
    """The same at the end of another command, which must not fail for its report."""
    try:
        log.info("report: %s", write_report(run))
    except Exception as error:  # whatever it is, the training or the scores before it are done and stay so
        log.warning(
            "%s: could not be written (%s: %s); `bmscale report %s` tries again",
            run.report,
            type(error).__name__,
            error,
            run.path,
        )


# ---- reading what is there


@dataclass(frozen=True)
class _Rows:
    """The objects of a JSON-lines file in the order of their steps, and how many lines could not be read."""

    rows: list[Row] = field(default_factory=list)
    damaged: int = 0


def _read_record(run: RunFolder) -> Row:
    """run.yaml as it stands: the report reads what it knows, so an older run has one too."""
    if not run.record.is_file():
        raise BadInput(f"{run.path}: not a run folder: it has no run.yaml; give the folder that `bmscale train` wrote")
    try:
        record = yaml.safe_load(run.record.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput(f"{run.record}: damaged: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(record, dict) or not isinstance(record.get("experiment"), dict):
        raise BadInput(f"{run.record}: damaged: must hold the section experiment, as `bmscale train` wrote it")
    return record


def _read_json(path: Path) -> Row:
    """A JSON object; empty where there is none."""
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError):
        return {}


def _read_lines(path: Path) -> _Rows:
    """The JSON objects of a file, one a line. A crash may cut the last line, and a full disk any."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):  # a test set's name may be no file's name
        return _Rows()
    rows, damaged = [], 0
    for line in text.split("\n"):  # not splitlines: a sentence may hold U+2028
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = line
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += row is not None
    return _Rows(rows, damaged)


def _read_steps(path: Path) -> _Rows:
    """The same, where each object must have its step."""
    found = _read_lines(path)
    rows = [row for row in found.rows if math.isfinite(_number(row.get("step")))]
    return _Rows(sorted(rows, key=lambda row: _number(row["step"])), found.damaged + len(found.rows) - len(rows))


def _mapping(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    """A figure as a float; NaN for anything that is none, for null and for what no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _column(rows: Iterable[Row], key: str) -> list[float]:
    return [_number(row.get(key)) for row in rows]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


# ---- the sections


def _contents(run: RunFolder, record: Row) -> Row:
    """Everything that the template shows."""
    experiment, metrics, results = record["experiment"], _read_steps(run.metrics), _read_json(run.results)
    validations = [row for row in metrics.rows if "valid_loss" in row]
    logged = [row for row in metrics.rows if not {"event", "valid_loss"} & row.keys()]
    data, task = _mapping(experiment.get("data")), str(experiment.get("task", "translation"))
    unit = TASKS[task if task in TASKS else "translation"].predicts
    return {
        "name": experiment.get("name", run.path.name),
        "task": task,
        "unit": unit,
        "source_language": str(data.get("source_language", "")),
        "target_language": str(data.get("target_language", "")),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "status": _status(run, record, metrics.rows),
        "logged": logged,
        "last": logged[-1] if logged else {},
        "skipped": sum(int(skipped) for skipped in _column(logged, "skipped") if skipped > 0),
        "damaged_lines": metrics.damaged,
        "thinned": len(logged) > MOST_POINTS,
        "charts": _charts(logged, validations, task, unit),
        "best": min(validations, key=lambda row: _or(row.get("valid_loss"), math.inf), default=None),
        "validations": _spread(validations, VALIDATION_ROWS),
        "validation_count": len(validations),
        "score_names": {key: name for key, name in SCORES.items() if any(key in row for row in validations)},
        "validation": _mapping(results.get("validation")),
        "tests": [_test_set(run, str(name), _mapping(test)) for name, test in _mapping(results.get("test")).items()],
        "samples": _samples(_read_steps(run.samples)),
        "data": _data_card(data, _mapping(record.get("identity")).get("data_hash")),
        "model": _model_card(run, record, logged, unit),
        "starts": [_mapping(start) for start in _spread(_sequence(record.get("starts")), STARTS)],
        "start_count": len(_sequence(record.get("starts"))),
        "resolved": yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True, width=100),
    }


def _or(value: Any, instead: float) -> float:
    number = _number(value)
    return instead if math.isnan(number) else number


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _status(run: RunFolder, record: Row, rows: list[Row]) -> Row:
    """How far the run is, and how its last start ended."""
    ended = _read_json(run.exit)
    said = str(ended.get("class", "")).replace("_", " ") if ended else "in progress, or stopped without a word"
    return {
        "said": said,
        "message": "" if ended.get("code") == 0 else str(ended.get("message", "")),
        "step": rows[-1]["step"] if rows else 0,
        "total": record.get("total_steps"),
    }


def _charts(logged: list[Row], validations: list[Row], task: str, unit: str) -> list[Row]:
    """Title, caption and SVG of each chart that has something to show."""
    tokens = [(row["step"], _number(row.get("tokens"))) for row in sorted(logged + validations, key=_step)]
    tokens = [(step, seen) for step, seen in tokens if not math.isnan(seen)]

    def line(label: str, rows: list[Row], key: str, plus_minus: str = "") -> Line:
        # A score without an interval, of an older run, has a band of no width.
        half = [_or(row.get(plus_minus), 0.0) for row in rows] if plus_minus else ()
        return Line(label, _column(rows, "step"), _column(rows, key), half)

    plans: tuple[tuple[str, str, str, Literal["free", "zero", "log"], list[Line]], ...] = (
        (
            "Loss",
            "Negative log-likelihood without label smoothing. Training: mean over the steps of each log line, with "
            "dropout. Validation: the whole set.",
            f"nats a {unit}",
            "free",
            [line("training", logged, "nll"), line("validation", validations, "valid_loss")],
        ),
        (
            "Validation scores",
            _VALIDATION.get(task, "On the validation data."),
            "score",
            "zero",
            [
                line(name, validations, key, f"{key}_plus_minus")
                for key, name in SCORES.items()
                if any(key in row for row in validations)
            ],
        ),
        ("Learning rate", "Of the last step of each log line.", "learning rate", "zero", [line("rate", logged, "lr")]),
        (
            "Gradient norm",
            "Mean over the steps of each log line, before clipping.",
            "global norm",
            "log",
            [line("norm", logged, "grad_norm")],
        ),
        (
            "Throughput",
            f"{unit.capitalize()}s trained on in a second, by all ranks; validation and saving are not counted.",
            f"{unit}s a second",
            "zero",
            [line("tokens", logged, "tokens_per_second")],
        ),
    )
    return [
        {
            "title": title,
            "caption": caption,
            "svg": Markup(line_chart(f"{title} by step", of, lines, tokens, scale=scale, counted=f"{unit}s")),
        }
        for title, caption, of, scale, lines in plans
        if not all(line.is_empty for line in lines)
    ]


def _step(row: Row) -> float:
    return _number(row["step"])


def _samples(found: _Rows) -> Row:
    """Each sample sentence with its translations at a few points in time, the same for all sentences."""
    sentences: dict[tuple[str, str], dict[Any, str]] = {}
    for row in found.rows:
        key = (str(row.get("source", "")), str(row.get("reference", "")))
        sentences.setdefault(key, {})[row["step"]] = str(row.get("translation", ""))
    steps = _spread(list(dict.fromkeys(row["step"] for row in found.rows)), POINTS_IN_TIME)
    shown = []
    for (source, reference), translations in list(sentences.items())[:SAMPLE_SENTENCES]:
        taken = {step: translations[step] for step in steps if step in translations}
        figures = sentence_chrf(list(taken.values()), [reference] * len(taken))
        rows = [
            {"step": step, "translation": translation, "chrf": figure}
            for (step, translation), figure in zip(taken.items(), figures, strict=True)
        ]
        shown.append({"source": source, "reference": reference, "rows": rows})
    return {"sentences": shown, "count": len(sentences), "damaged_lines": found.damaged}


def _test_set(run: RunFolder, name: str, result: Row) -> Row:
    """One test set of results.json, with its worst and its best sentences where the rows are kept."""
    found = _read_lines(run.translations / f"{name}.jsonl")
    # Of equals the longest come first among the best: of many perfect sentences a long one says most.
    rows = [row for row in found.rows if not math.isnan(_number(row.get("chrf")))]
    rows.sort(key=lambda row: (row["chrf"], len(str(row.get("reference", "")))))
    count = min(EXTREME_SENTENCES, len(rows) // 2)  # no sentence is among the worst and among the best
    scores = [_mapping(score) for score in _mapping(result.get("scores")).values()]
    scores = scores or [{"name": said, "score": result[key]} for key, said in FIGURES.items() if key in result]
    labels = list(_mapping(result.get("labels")).items())
    return {
        **result,
        "name": name,
        "scores": scores,
        "search": _mapping(result.get("search")),
        "extremes": {"worst": rows[:count], "best": rows[::-1][:count]},
        "labels": [(label, _mapping(figures)) for label, figures in labels[:LABELS]],
        "label_count": len(labels),
        "confusions": [_mapping(row) for row in _sequence(result.get("confusions"))],
    }


def _data_card(data: Row, data_hash: Any) -> Row:
    """The manifest of the prepared folder, or why there is none to show."""
    directory = str(data.get("directory", ""))
    try:
        manifest = load_manifest(directory)
        kind = manifest.get("kind", "pairs")
    except (BadInput, OSError) as error:
        return {"directory": directory, "missing": str(error)}
    if manifest["data_hash"] != data_hash:
        return {"directory": directory, "missing": f"{directory} now holds other data than this run was trained on"}
    files = [{"part": part, **file} for part, files in manifest["inputs"].items() for file in files]
    return {
        "directory": directory,
        "missing": None,
        "manifest": manifest,
        "kind": kind,
        "splits": [(split, _counts(counts, kind)) for split, counts in manifest["splits"].items()],
        "files": files[:INPUT_FILES],
        "file_count": len(files),
        "tokenizer": _mapping(data.get("tokenizer")),
    }


def _counts(split: Row, kind: str) -> Row:
    """The figures of a split, whatever its kind."""
    figures = {key: value for key, value in split.items() if isinstance(value, int | float)}
    if kind == "labelled":
        figures = {_LABELLED.get(key, key): value for key, value in figures.items() if key != "target_tokens"}
    return {key.replace("_", " "): value for key, value in figures.items()}


def _model_card(run: RunFolder, record: Row, logged: list[Row], unit: str) -> Row:
    """Shape, size and origin of the model; a figure that cannot be had is left out."""
    shape = _mapping(_mapping(record.get("identity")).get("model"))
    options, parameters = shape, None
    try:
        task = TASKS[record["experiment"].get("task", "translation")]
        config = task.configure(
            **{name: value for name, value in shape.items() if name not in ("model_type", "architectures")}
        )
        options = {name: getattr(config, name) for name in ("vocab_size", *option_types(task.config))}
        parameters = count_parameters(config)
    except Exception as error:  # transformers raises several kinds of its own; the run may be of another version
        log.debug("%s: no parameter counts: %s", run.record, error)
    origins = {
        str(folder.relative_to(run.path)): provenance
        for folder in (run.best, run.last)
        if (provenance := _read_json(folder / "provenance.json"))
    }
    counted = [
        (flops, speed)
        for flops, speed in zip(_column(logged, "flops_per_second"), _column(logged, "tokens_per_second"), strict=True)
        if flops > 0 and speed > 0
    ]
    return {
        "options": options,
        "parameters": parameters,
        # The log lines differ a little, with the lengths of their sentences.
        "flops_per_token": float(np.median([flops / speed for flops, speed in counted])) if counted else math.nan,
        "folders": list(origins),
        "origin": [
            (f"{unit}s seen" if key == "target_tokens" else key, values)
            for key, values in _side_by_side(list(origins.values()))
        ],
    }


def _side_by_side(origins: list[Row]) -> list[tuple[str, list[Any]]]:
    """(key, one value, or one of each model where they differ), without what the page says elsewhere."""
    known = ("experiment", "task", "source_language", "target_language", "versions")
    rows = []
    for key in dict.fromkeys(key for origin in origins for key in origin if key not in known):
        values = [origin.get(key) for origin in origins]
        rows.append((key, values[:1] if all(value == values[0] for value in values) else values))
    return rows


# ---- the page

# What HTML forbids or swallows, as pictures of it: a report shows what was in the data.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: "\u2421"}
_NO_CHARACTER = re.compile("[\x80-\x9f\ud800-\udfff\ufffe\uffff]")


def _visible(value: Any) -> Any:
    """Any text of the page but markup of our own: control characters and lone surrogates become visible signs."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _NO_CHARACTER.sub("\ufffd", value.translate(_PICTURES))


def _fixed(value: Any, digits: int = 0) -> str:
    """A figure with thousands separators; a dash where there is none."""
    number = _number(value)
    return "–" if math.isnan(number) else f"{number:,.{digits}f}"


def _short(value: Any, characters: int = CHARACTERS) -> str:
    text = str(value)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _size(value: Any) -> str:
    """Bytes for a person."""
    number = _number(value)
    if math.isnan(number):
        return "–"
    power = min(4, int(math.log(max(number, 1), 1024)))
    return f"{number / 1024**power:,.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _duration(value: Any) -> str:
    number = _number(value)
    if math.isnan(number):
        return "–"
    minutes, seconds = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def page_environment(folder: Path) -> Environment:
    """For templates of a folder, with report.css. Everything printed is escaped, unless it is Markup, which only our
    own charts are."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=ChainableUndefined,  # a file without some key leaves a blank, not a traceback
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fixed": _fixed,
        "short": _short,
        "size": _size,
        "duration": _duration,
        "perplexity": lambda value: math.exp(min(_number(value), 700.0)),
        "language": lambda code: str(code).replace("_", "-"),
    }
    return environment
