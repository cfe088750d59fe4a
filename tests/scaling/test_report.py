"""report.html of a study: what stands on it, and that it stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bmscale.cli import main
from bmscale.scaling import forecast as forecasting
from bmscale.scaling.approaches import isoflop
from bmscale.scaling.forecast import Asked, forecast, freeze
from bmscale.scaling.laws import ENCODER_DECODER
from bmscale.scaling.records import open_records
from bmscale.scaling.runs import choose, savings
from bmscale.scaling.scoring import FORECAST, score
from bmscale.scaling.study import read_study
from tests.scaling.test_forecast import CELL, EARLIER, LATER, frozen_study, rows_of, study, train_holdouts, write

__all__ = ["frozen_study", "study"]  # fixtures


def words(path: Path) -> str:
    """The text of a page without its style and pictures, spaces as one."""
    found: list[str] = []

    class Reader(HTMLParser):
        inside = 0

        def handle_starttag(self, tag, attributes):
            self.inside += tag in ("style", "svg")

        def handle_endtag(self, tag):
            self.inside -= tag in ("style", "svg")

        def handle_data(self, data):
            if not self.inside:
                found.append(data)

    Reader().feed(path.read_text(encoding="utf-8"))
    return " ".join(" ".join(found).split())


def report(given: Path, *options: str) -> Path:
    assert main(["scaling", "report", str(given), "--law", "chinchilla", "--draws", "50", *options]) == 0
    path = given / "report.html" if given.is_dir() else given.with_name(f"{given.stem}.report.html")
    assert path.is_file()
    return path


def test_it_shows_forecast_and_outcome_and_stands_alone(study):
    train_holdouts(study, LATER)
    page = report(study)
    said = words(page)
    assert "Before you believe" not in said
    assert re.search(r"Forecast in time 1 cell [01] inside the 90\s% interval", said)
    assert CELL in said
    assert LATER[:10] in said
    for section in ("Allocation", "Back-test", "Checklist", "Irreducible loss", "Saved by branching", "Certificate"):
        assert section in said
    assert re.search(r"known.*0\.44", said)
    assert "2, isoFLOP curves, parabola" in said
    assert re.search(r"the minimum lies between the smallest and the largest size at \d of 4 budgets", said)
    text = page.read_text()
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|(?:src|href)=\"(?!#)", text)
    assert text.count("<svg") == 4
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in ("forecast", "loss", "isoflop", "residuals"):
        picture = (study / f"report-{name}.svg").read_text()
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert "var(--" not in picture
        assert "#1d1f23" in picture


def test_the_irreducible_loss_is_inside_or_outside(study):
    """The interval of E that stands beside it decides."""
    rows = rows_of(study, holdouts=False, started=EARLIER)
    for known in (0.44, 0.05):
        write(study / "table.jsonl", [{**row, "irreducible_loss": known} for row in rows])
        found = re.search(r"95 % (0\.\d+) to (0\.\d+): the known loss is (\w+)", words(report(study)))
        assert found is not None
        low, high, where = float(found[1]), float(found[2]), found[3]
        assert where == ("inside" if low <= known <= high else "outside")
    assert where == "outside"


def test_what_branching_saved_is_that_of_the_grid(study):
    """As `scaling run --dry-run` counts it, and the same when the hold-out is trained."""
    made, scratch = savings(choose(read_study(str(study / "study.yaml"), []), None, None, holdouts=False))
    told = f"{made:.4g} FLOP for the grid with its repeats, {100 * (1 - made / scratch):.1f} % fewer"
    assert told in words(report(study))
    train_holdouts(study, LATER)
    said = words(report(study))
    assert told in said
    assert "Hold-outs are not counted" in said
    assert re.search(rf"Saved by branching {100 * (1 - made / scratch):.0f} %[^%]*hold-outs not counted", said)


def test_the_table_of_a_forecast_fits_a_window_of_1000_px(study):
    """Text that cannot be wrapped, column by column: 94 characters needed 1,026 px of the 945 px of the page."""
    train_holdouts(study, EARLIER)
    text = report(study).read_text(encoding="utf-8")
    (rows,) = re.findall(r'<table class="runs">\s*<thead>(.*?)</table>', text.partition('<section id="law">')[0], re.S)
    widths: dict[int, int] = {}
    for row in re.findall(r"<tr>(.*?)</tr>", rows, re.S):
        for column, (_, attributes, inner) in enumerate(re.findall(r"<(t[hd])([^>]*)>(.*?)</\1>", row, re.S)):
            lines = [re.sub(r"<[^>]+>", "", line).replace("&nbsp;", "\u00a0") for line in inner.split("<br>")]
            one_line = 'scope="row"' in attributes or re.search(r'"(n|nowrap)"', attributes)
            parts = lines if one_line else [word for line in lines for word in line.split(" ")]
            widths[column] = max(widths.get(column, 0), *map(len, parts))
    assert len(widths) == 10
    assert sum(widths.values()) <= 80


def test_it_says_what_was_late_changed_or_touched(study):
    train_holdouts(study, EARLIER)
    said = words(report(study))
    assert f"forecast.json was made after the training began of {CELL}" in said
    assert "not a forecast" in said
    assert "Forecast in time none" in said
    train_holdouts(study, LATER)
    rows = rows_of(study, holdouts=False, started=EARLIER)
    write(study / "table.jsonl", [{**rows[0], "loss": 3.0}, *rows[1:]])
    content = json.loads((study / "forecast.json").read_text())
    (study / "forecast.json").write_text(json.dumps({**content, "frozen": "2019-01-01T00:00:00+00:00"}))
    said = words(report(study))
    assert "forecast.json was changed after it was frozen" in said
    assert f"rows that it was fitted on have other values now: {rows[0]['cell']}" in said
    assert "Forecast in time none" in said


def test_two_forecasts_of_a_cell_are_both_shown(study):
    records = open_records(str(study))
    freeze(records, forecast(records, Asked(), law="tied", draws=100))
    train_holdouts(study, LATER)
    said = words(report(study))
    assert f"forecast more than once, each is shown: {CELL}" in said
    assert "forecast-2.json was made by the law tied" in said


def test_a_table_that_no_law_fits_has_a_page(study):
    (study / "forecast.json").write_text("{")
    write(study / "table.jsonl", rows_of(study, holdouts=False, started=EARLIER)[:2])
    said = words(report(study))
    assert "No law was fitted" in said
    assert "forecast.json cannot be read as a forecast" in said


def test_it_says_what_the_bootstrap_drew_and_what_the_loss_was_computed_in(study):
    rows = rows_of(study, holdouts=False, started=EARLIER)
    assert "Intervals: bootstrap of 16 runs, 50 draws" in words(report(study))
    write(study / "table.jsonl", [{**row, "group": f"trunk-{n % 8}"} for n, row in enumerate(rows)])
    assert "Intervals: bootstrap of 8 trunks that 16 runs share, 50 draws" in words(report(study))
    assert "nats a target token, computed in fp32" in words(study / "report.html")
    write(study / "table.jsonl", [{**row, "group": row["size"], "precision": "bf16"} for row in rows])
    said = words(report(study))
    assert "16 runs as if they were independent, though they share 4 trunks: too narrow" in said
    assert "nats a target token, computed in bf16, as the training, and not in fp32" in said


def test_several_splits_of_encoder_and_decoder(tmp_path, capsys):
    """p_e and p_d with intervals, by the report and by the fit of the same table."""
    truth = {"E": 0.44, "A": 20.0, "B": 60.0, "p_e": 0.08, "p_d": 0.2, "beta": 0.3}
    total, tokens, share = (grid.ravel() for grid in np.meshgrid([2e5, 8e5, 3e6], [1e7, 3e7, 9e7], [0.2, 0.5, 0.8]))
    columns = {"N_e": share * total, "N_d": (1 - share) * total, "D": tokens}
    loss = ENCODER_DECODER.predict(truth, columns)
    loss *= np.exp(0.001 * np.random.default_rng(0).standard_normal(len(loss)))
    rows = [{"run": f"r{i}", **{name: v[i] for name, v in columns.items()}, "loss": loss[i]} for i in range(len(loss))]
    write(tmp_path / "split.jsonl", rows)
    table = str(tmp_path / "split.jsonl")
    options = ["--law", "encoder-decoder", "--draws", "50", "--restarts", "0", "--json"]
    assert main(["scaling", "fit", table, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("p_e", "p_d"):
        low, high = found["intervals"]["parameters"][name]
        assert low < found["fit"]["parameters"][name] < high
        assert found["fit"]["parameters"][name] == pytest.approx(truth[name], rel=0.15)
    said = words(report(tmp_path / "split.jsonl"))
    assert "best share of the encoder, p_e/(p_e + p_d)" in said
    assert said.count("Intervals: bootstrap of 27 runs, 50 draws") == 2  # of the law, of p_e and p_d
    assert re.search(r"p_e 0\.0[78]\d* 0\.0\d+ to 0\.\d+", said)
    assert (tmp_path / "split.report-split.svg").is_file()


def test_fit_and_forecast_take_a_study(study, capsys, monkeypatch):
    options = ["--law", "chinchilla", "--draws", "0", "--restarts", "0", "--json"]
    assert main(["scaling", "fit", str(study), *options]) == 0
    assert json.loads(capsys.readouterr().out)["table"]["rows"] == 16
    again = ["scaling", "forecast", str(study), "--law", "chinchilla", "--draws", "100", "--budget", "1e12"]
    assert main(again) == 0
    assert capsys.readouterr().out.endswith("forecast-2.json\n")
    monkeypatch.setattr(forecasting, "analyse", lambda *_, **__: pytest.fail("refused after the fit"))
    assert main([*again, "--out", str(study / "forecast.json")]) == 2
    assert "--out: must be a new file" in capsys.readouterr().err
    assert main(["scaling", "forecast", str(study), "--budget", "-1"]) == 2


@pytest.mark.parametrize("name", ["split", "synthetic"])
def test_results_that_come_with_bmscale_hold_together(tmp_path, monkeypatch, name):
    """Rows, metrics and the study."""
    monkeypatch.chdir(tmp_path)
    records = open_records(name)
    assert records.is_shipped
    rows = [*records.rows(), *records.rows("holdouts"), *records.rows("from_scratch")]
    cells = records.cells()
    assert {row["cell"] for row in rows} == set(cells)
    for row in rows:
        lines = (records.folder / "runs" / row["cell"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        valid = [line for line in map(json.loads, lines) if "valid_loss" in line]
        assert (valid[-1]["step"], valid[-1]["valid_loss"]) == (row["steps"], row["loss"])
        assert row["steps"] == cells[row["cell"]][1].steps
    if name == "synthetic":
        assert len(isoflop(records.table()).optima) == 7  # it refuses a best size at the edge


def test_the_forecast_that_comes_with_bmscale_was_made_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (frozen,) = score(open_records("synthetic"))
    assert [cell.status for cell in frozen.cells] == [FORECAST, FORECAST]
    assert all(cell.error is not None and abs(cell.error) < 0.01 for cell in frozen.cells)
    assert not frozen.notes


def test_results_that_come_with_bmscale_are_not_written_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scaling", "report", "synthetic", "--law", "chinchilla", "--draws", "50"]) == 0
    assert capsys.readouterr().out == "studies/synthetic/report.html\n"
    assert "Forecast in time 2 cells" in words(tmp_path / "studies/synthetic/report.html")
    asked = ["scaling", "forecast", "synthetic", "--budget", "1e15", "--law", "chinchilla", "--draws", "100"]
    with monkeypatch.context() as before_the_fit:
        before_the_fit.setattr(forecasting, "analyse", lambda *_, **__: pytest.fail("refused after the fit"))
        assert main(asked) == 2
    assert "--out: must be given" in capsys.readouterr().err
    assert main([*asked, "--out", "next.json"]) == 0
    assert json.loads((tmp_path / "next.json").read_text())["previous"]["file"] == "forecast.json"
