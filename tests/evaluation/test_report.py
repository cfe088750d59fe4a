"""report.html: whole and self-contained for any run, whatever its texts hold and whatever is missing."""

import html
import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from bmscale.evaluation import report
from bmscale.evaluation.classification import confusions, per_label, score_labels
from bmscale.evaluation.report import write_report, write_report_or_warn
from bmscale.experiment import RunFolder, read_experiment

SECTIONS = ("curves", "scores", "samples", "sentences", "data", "model", "experiment")
VOID = {"meta", "br", "path", "rect", "use"}


class Page(HTMLParser):
    """A page that was read: its tags are balanced, its ids are unique, and nothing is loaded from elsewhere."""

    def __init__(self, path: Path, sections: tuple[str, ...] = SECTIONS) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert len(self.html.encode()) < 1_000_000
        assert "url(" not in re.sub(r"url\(#\w+\)", "", self.html)
        assert "@import" not in self.html
        assert [name for name in self.ids if name in SECTIONS] == list(sections)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "form"), tag
        for name, given in attrs:
            value = given or ""
            assert not name.startswith("on")
            assert name not in ("src", "srcset")
            assert name not in ("href", "xlink:href") or value.startswith("#")
            assert "http" not in value or name == "http-equiv"
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that has just begun, with the prepared data elsewhere."""
    experiment = read_experiment("toy", ["data.directory=elsewhere"])
    shape = experiment.model.build(1000).to_diff_dict()
    record = {
        "experiment": experiment.model_dump(),
        "identity": {"data_hash": "0", "model": {key: shape[key] for key in shape if key != "transformers_version"}},
        "total_steps": 400,
        "starts": [],
    }
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.record.write_text(yaml.safe_dump(record), encoding="utf-8")
    return folder


def page(run: RunFolder) -> Page:
    assert write_report(run) == run.report
    assert not run.report.with_suffix(".tmp").exists()
    return Page(run.report)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def logged(step: int, **changes: object) -> dict:
    return {
        "step": step,
        "tokens": step * 4000,
        "nll": 3.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens_per_second": 9.0,
    } | changes


def test_a_trained_run(bmscale, trained):
    run = RunFolder(trained / "runs/tiny")
    after_training = Page(run.report)
    assert "done step 12 of 12" in after_training.text
    bmscale("evaluate", "runs/tiny", folder=trained)
    shown = Page(run.report)
    for chart in ("Loss", "Validation scores", "Learning rate", "Gradient norm", "Throughput"):
        assert f"<title>{chart} by step</title>" in shown.html
    results = json.loads(run.results.read_text())["test"]["toy-test"]
    for score in results["scores"].values():
        assert f"{score['score']:.2f} ± {score['plus_minus']:.2f} {score['signature']}" in shown.text
    samples = [json.loads(line) for line in run.samples.read_text().split("\n")[:-1]]
    assert [row["step"] for row in samples] == [6, 6, 6, 12, 12, 12]
    for row in samples:
        assert row["source"] in shown.text
    rows = [json.loads(line) for line in (run.translations / "toy-test.jsonl").read_text().split("\n")[:-1]]
    assert [row["translation"] for row in rows] == (run.translations / "toy-test.txt").read_text().split("\n")[:-1]
    worst = min(rows, key=lambda row: row["chrf"])
    assert "toy-test: worst" in shown.text
    assert "toy-test: best" in shown.text
    assert " ".join(worst["reference"].split()) in shown.text
    assert "Training pairs kept 600 of 600 read" in shown.text
    assert "length ratio 0 0.00" in shown.text
    assert "Parameters" in shown.text
    assert "no DeepSpeed, 1 rank on cpu" in shown.text


def test_the_report_command_prints_the_path(bmscale, trained):
    (trained / "runs/tiny/report.html").unlink()
    assert bmscale("report", "runs/tiny", folder=trained).stdout == "runs/tiny/report.html\n"
    Page(trained / "runs/tiny/report.html")


def test_the_resolved_experiment_is_one(run, tmp_path):
    resolved = html.unescape(page(run).html.split("<pre>")[1].split("</pre>")[0])
    (tmp_path / "again.yaml").write_text(resolved, encoding="utf-8")
    again = read_experiment(str(tmp_path / "again.yaml"), [])
    assert again == read_experiment("toy", ["data.directory=elsewhere"])


def test_a_run_without_anything_yet(run):
    shown = page(run)
    assert "in progress, or stopped without a word step 0 of 400" in shown.text
    for said in (
        "Nothing was logged yet.",
        "No test set was scored yet",
        "No validation was made yet.",
        "No samples were kept yet",
        "The prepared data is not at hand: elsewhere: no prepared data here",
        "No model was written yet.",
    ):
        assert said in shown.text
    assert "<svg" not in shown.html
    assert "1,112,576" in shown.text, "the parameters are known from the shape alone"


def test_texts_are_shown_and_never_run(run):
    odd = "<script>alert(1)</script> & \"' \x00\x07\x1b\x85\ud800\u2028 مرحبا"
    write_lines(run.samples, [{"step": 1, "source": odd, "reference": odd, "translation": odd}])
    rows = [{"source": odd, "reference": odd, "translation": odd, "chrf": chrf} for chrf in (10, 90)]
    write_lines(run.translations / "<b>.jsonl", rows)
    run.results.write_text(json.dumps({"test": {"<b>": {"scores": {"bleu": {"name": odd, "score": 1, "note": odd}}}}}))
    run.exit.write_text(json.dumps({"class": "failed", "code": 1, "message": odd}))
    record = yaml.safe_load(run.record.read_text())
    record["experiment"]["name"] = odd
    record["experiment"]["data"]["source_language"] = '" onload="x'
    record["starts"] = [{"device": odd, "versions": {odd: odd}}]
    run.record.write_text(yaml.safe_dump(record))
    shown = page(run)
    assert "<script>alert(1)</script> & \"' ␀␇␛\ufffd\ufffd" in shown.text
    assert "مرحبا" in shown.text
    assert shown.html.count('dir="auto"') == 9


def test_damaged_and_odd_lines_are_left_out(run):
    lines = [
        json.dumps(logged(1)),
        json.dumps(logged(2, nll=None, lr="high", grad_norm=[1], tokens=None, skipped=3)),
        '{"step": 3, "nll": NaN, "grad_norm": Infinity, "lr": 1' + "0" * 400 + "}",
        '{"step": "four", "nll": 1.0}',
        '{"step": null}',
        "[1, 2]",
        "\x00\ufffd",
        "[" * 100_000,
        json.dumps({"step": 5, "valid_loss": None, "bleu": None, "chrf": "x"}),
        '{"step": 6, "nl',
    ]
    run.metrics.write_text("\n".join(lines), encoding="utf-8")
    shown = page(run)
    assert "6 damaged lines of metrics.jsonl were left out." in shown.text
    assert "3 steps were skipped" in shown.text
    assert "<title>Loss by step</title>" in shown.html
    assert "Validation scores by step" not in shown.html


@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": 3}', '{"test": {"x": [], "y": {"scores": {"bleu": 3}}}}'])
def test_any_results_make_a_page(run, content):
    for path in (run.results, run.exit, run.samples, run.metrics):
        path.write_text(content)
    page(run)


def test_a_long_run_with_long_texts_stays_small(run):
    long = "wörd " * 300
    metrics = [logged(step, nll=3 + step % 7, grad_norm=1 + step % 11, lr=1 / step) for step in range(1, 20_001)]
    validations = [
        {"step": step, "tokens": step * 4000, "valid_loss": 2.0, "bleu": step % 50, "bleu_plus_minus": 1.0}
        for step in range(10, 20_001, 10)
    ]
    write_lines(run.metrics, metrics + validations)
    sample = {"source": long, "reference": long, "translation": long}
    texts = [f"{number} {long}" for number in range(20)]
    write_lines(run.samples, [sample | {"step": step, "source": text} for step in range(50) for text in texts])
    write_lines(run.translations / "x.jsonl", [sample | {"chrf": number / 10} for number in range(500)])
    run.results.write_text(json.dumps({"test": {"x": {"pairs": 500}}}))
    shown = page(run)
    assert f"{report.SAMPLE_SENTENCES} of 20 sentences" in shown.text
    assert len(re.findall(r"<dt>step ", shown.html)) == report.SAMPLE_SENTENCES * report.POINTS_IN_TIME
    assert "step 0 ·" in shown.text
    assert "step 49 ·" in shown.text
    assert f"{report.VALIDATION_ROWS} of 2,000 validations" in shown.text
    chrf = [float(figure) for figure in re.findall(r'class="score">([\d.]+)<', shown.html)]
    assert chrf == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 49.9, 49.8, 49.7, 49.6, 49.5, 49.4, 49.3, 49.2]


def test_a_classifier_shows_its_labels_and_their_confusions(run):
    record = yaml.safe_load(run.record.read_text())
    record["experiment"] = read_experiment("toy-labels", ["data.directory=elsewhere"]).model_dump()
    run.record.write_text(yaml.safe_dump(record))
    wanted = [f"l{k:03}" for k in range(report.LABELS + 1)] + ["<b>", "<b>", "net"]
    given = [*wanted[:-3], "net", "net", "<b>"]
    scores, labels = score_labels(wanted, given), per_label(wanted, given)
    found = {"texts": len(wanted), "scores": scores, "labels": labels, "confusions": confusions(wanted, given)}
    run.results.write_text(json.dumps({"test": {"x": found, "y": {"labels": 3, "confusions": [1]}}}))
    write_lines(run.metrics, [logged(1), logged(2)])
    write_report(run)
    shown = Page(run.report, tuple(name for name in SECTIONS if name not in ("samples", "sentences")))
    assert "x: labels Label Precision Recall F1 Support <b> 0.0 0.0 0.0 2 l000 100.0 100.0 100.0 1" in shown.text
    assert f"{report.LABELS} of {report.LABELS + 3} labels" in shown.text
    assert "Most frequent confusions. Label Predicted Texts <b> net 2 net <b> 1" in shown.text
    assert "Texts seen 8,000" in shown.text
    assert not re.search(r"translat|target|source", shown.text)


def test_no_sentence_is_both_worst_and_best(run):
    row = {"source": "a", "reference": "b", "translation": "c"}
    write_lines(run.translations / "x.jsonl", [row | {"chrf": number} for number in range(3)])
    run.results.write_text(json.dumps({"test": {"x": {}, "y": {}}}))
    shown = page(run)
    assert re.findall(r'class="score">([\d.]+)<', shown.html) == ["0.0", "2.0"]
    assert "Too few sentences are kept in translations/y.jsonl" in shown.text


def test_how_a_run_ended_is_said(run):
    run.exit.write_text(json.dumps({"class": "out_of_memory", "code": 4, "message": "9 GiB were missing"}))
    write_lines(run.metrics, [logged(20)])
    assert "out of memory step 20 of 400" in (shown := page(run)).text
    assert "The last start ended: 9 GiB were missing" in shown.text


def test_other_data_in_the_prepared_folder_is_not_shown_as_the_run_s(prepared, run):
    record = yaml.safe_load(run.record.read_text())
    record["experiment"]["data"]["directory"] = str(prepared / "prepared")
    run.record.write_text(yaml.safe_dump(record))
    assert "now holds other data than this run was trained on" in page(run).text


def test_a_report_that_cannot_be_written_only_warns(run, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("bmscale"), "propagate", True)
    run.report.mkdir()
    write_report_or_warn(run)
    assert f"`bmscale report {run.path}` tries again" in caplog.text
