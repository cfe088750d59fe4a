"""Damaged forecasts, times and outcomes: said of the file or the cell that is damaged, and of no other."""

import json
from pathlib import Path

import pytest

from bmscale.errors import BadInput
from bmscale.scaling.forecast import files, read
from bmscale.scaling.records import digest, open_records
from bmscale.scaling.scoring import CHANGED, FORECAST, LATE, NO_OUTCOME, UNTIMED, Frozen, score
from tests.scaling.test_forecast import CELL, LATER, frozen_study, rows_of, study, train_holdouts, write
from tests.scaling.test_report import report, words

__all__ = ["frozen_study", "study"]  # fixtures


def edit(folder: Path, *keys: str | int, **changed) -> Path:
    """Change the forecast at a place, with the hash that fits; None takes a key out."""
    path = folder / "forecast.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for key in keys:
        place = place[key]
    for name, value in changed.items():
        if value is None:
            del place[name]
        else:
            place[name] = value
    content["sha256"] = digest({key: value for key, value in content.items() if key != "sha256"})
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def only(folder: Path) -> Frozen:
    (one,) = score(open_records(str(folder)))
    return one


@pytest.mark.parametrize(
    ("started", "status"),
    [
        ("2099-01-01T00:00:00", FORECAST),
        ("2020-01-01T00:00:00", LATE),
        ("2020-01-01", LATE),
        ("yesterday", UNTIMED),
        (True, UNTIMED),
    ],
)
def test_a_time_without_zone_is_utc_and_one_that_is_none_is_not_known(study, started, status):
    train_holdouts(study, started)
    assert only(study).cells[0].status == status


def test_frozen_without_zone_is_utc(study):
    train_holdouts(study, "2026-01-01T12:30:00+02:00")
    for frozen, status in (("2026-01-01T10:30:00", FORECAST), ("2026-01-01T10:30:01", LATE)):
        edit(study, frozen=frozen)
        assert only(study).cells[0].status == status


@pytest.mark.parametrize("starts", ["[{time: soon}]", "[{}]", "[]", "7"])
def test_a_run_that_does_not_say_when_it_began_is_not_dated_by_its_row(study, starts):
    train_holdouts(study, LATER)
    run = study / "runs" / CELL / "run.yaml"
    run.parent.mkdir(parents=True)
    run.write_text(f"experiment: {{}}\nidentity: {{}}\ntotal_steps: 1\nstarts: {starts}\n")
    assert only(study).cells[0].status == UNTIMED


@pytest.mark.parametrize(
    ("place", "changed", "said"),
    [
        ((), {"frozen": "last week"}, "frozen must be a time as in .*; got 'last week'"),
        ((), {"frozen": 7}, "frozen: must be a valid string; got 7"),
        ((), {"table": None}, "table: must be given"),
        ((), {"table": []}, "table: must be"),
        (("table",), {"rows": None}, "table.rows: must be given"),
        (("table",), {"rows": 3}, "table.rows: must be a valid dictionary; got 3"),
        (("table",), {"fitted": 3}, "table.fitted: must be a valid list; got 3"),
        (("table", "largest"), {"C": 0}, "table.largest: C must be above 0; got 0"),
        ((), {"fit": None}, "fit: must be given"),
        ((), {"fit": "chinchilla"}, "fit: must be"),
        ((), {"previous": "forecast-0.json"}, "previous: must be"),
        ((), {"previous": {"file": "forecast-0.json"}}, "previous.sha256: must be given"),
        ((), {"software": 1}, "software: must be"),
        ((), {"budgets": [{"budget": "1e12", "N": 1.0, "D": 1.0}]}, "budgets.0.budget: must be"),
        ((), {"cells": [7]}, "cells.0: must be"),
        (("cells", 0), {"N": 0}, "cells.0: N must be above 0; got 0"),
        (("cells", 0), {"loss": 0}, "cells.0.loss: must be greater than 0; got 0"),
        (("cells", 0), {"loss": None}, "cells.0: must have a loss or a bleu"),
        (("cells", 0), {"interval_90": [0.5]}, "cells.0.interval_90: "),
    ],
)
def test_an_edited_forecast_is_none_and_the_next_one_is_scored(study, place, changed, said):
    outcome = train_holdouts(study, LATER)
    whole = json.loads((study / "forecast.json").read_text(encoding="utf-8"))
    (study / "forecast-2.json").write_text(json.dumps(whole), encoding="utf-8")
    path = edit(study, *place, **changed)
    with pytest.raises(BadInput, match=rf"^{path}: {said}"):
        read(path)
    found = {one.path.name: one for one in score(open_records(str(study)))}
    (note,) = found["forecast.json"].notes
    assert note.startswith("forecast.json cannot be read as a forecast: ")
    other = found["forecast-2.json"]
    assert (other.notes, other.cells[0].outcome, other.cells[0].status) == ((), outcome, FORECAST)


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_numbers_that_have_no_hash_make_no_forecast(study, number):
    path = study / "forecast.json"
    text = path.read_text(encoding="utf-8").replace('"format": 1,', f'"format": 1, "more": {number},')
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=rf"^{path}: must be a forecast, whose content has a hash"):
        read(path)


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf"), "diverged", "missing"])
def test_a_loss_that_is_no_number_is_no_outcome_and_the_cell_is_named(study, loss):
    row = {**rows_of(study, holdouts=True, started=LATER)[0], "loss": loss}
    if loss == "missing":
        del row["loss"]
    write(study / "holdouts.jsonl", [row])
    one = only(study)
    assert one.notes == (f"{CELL} has no finite loss: diverged?",)
    (cell,) = one.cells
    assert (cell.outcome, cell.error, cell.inside(90), cell.status) == (None, None, None, NO_OUTCOME)
    edit(study, frozen="2019-01-01T00:00:00+00:00")
    path = study / "forecast.json"
    path.write_text(path.read_text(encoding="utf-8").replace("2019", "2018"), encoding="utf-8")
    one = only(study)
    assert (one.cells[0].status, one.notes[-1]) == (CHANGED, f"{CELL} has no finite loss: diverged?")


def test_the_page_of_a_cell_that_diverged(study):
    train_holdouts(study, LATER)
    rows = rows_of(study, holdouts=False, started=LATER)
    scratch = [{**rows[n], "cell": f"{rows[n]['cell']}-scratch", "loss": loss} for n, loss in ((0, None), (1, 2.0))]
    write(study / "from_scratch.jsonl", scratch)
    write(study / "holdouts.jsonl", [{**rows_of(study, holdouts=True, started=LATER)[0], "loss": float("nan")}])
    said = words(report(study))
    assert f"forecast.json: {CELL} has no finite loss: diverged?" in said
    assert "Forecast in time none see below" in said
    assert "nan" not in said.lower().split()
    assert "cannot be read" not in said
    assert f"{rows[0]['cell']} {rows[0]['loss']:.6g} – –" in said
    assert f"{rows[1]['cell']} {rows[1]['loss']:.6g} 2 {100 * (rows[1]['loss'] / 2 - 1):+.3f} %" in said


def test_forecasts_of_a_table_with_brackets_in_its_name(tmp_path):
    (tmp_path / "runs[1].jsonl").touch()
    for name in ("runs[1].forecast.json", "runs[1].forecast-2.json", "runs1.forecast.json"):
        (tmp_path / name).write_text('{"frozen": "2026-01-01T00:00:00+00:00"}', encoding="utf-8")
    found = [path.name for path in files(open_records(str(tmp_path / "runs[1].jsonl")))]
    assert found == ["runs[1].forecast.json", "runs[1].forecast-2.json"]


def test_forecasts_are_ordered_by_their_times_in_whatever_zone(tmp_path):
    (tmp_path / "runs.jsonl").touch()
    times = {"": "2026-01-01T12:00:00+05:00", "-2": "2026-01-01T08:00:00", "-3": "no time"}
    for end, time in times.items():
        (tmp_path / f"runs.forecast{end}.json").write_text(json.dumps({"frozen": time}), encoding="utf-8")
    found = [path.name for path in files(open_records(str(tmp_path / "runs.jsonl")))]
    assert found == ["runs.forecast-3.json", "runs.forecast.json", "runs.forecast-2.json"]
