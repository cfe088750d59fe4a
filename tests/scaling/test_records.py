"""Rows of a study: one a cell, with what the report reads of them."""

from typing import Any

import pytest

from bmscale.cli import main
from bmscale.errors import BadInput
from bmscale.scaling.records import ABOVE_0, FROM_0, NAMES, Records, finite, open_records
from tests.scaling.test_forecast import CELL, EARLIER, STUDY, rows_of, write


@pytest.fixture
def records(tmp_path) -> Records:
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    for name, holdouts in (("table", False), ("holdouts", True)):
        write(tmp_path / f"{name}.jsonl", rows_of(tmp_path, holdouts=holdouts, started=EARLIER))
    return open_records(str(tmp_path))


def test_a_cell_has_one_row(records, capsys):
    rows = records.rows()
    write(records.file, [*rows, rows[2]])
    said = rf"{records.file}: row 17: cell: must be in one row; {rows[2]['cell']} is in row 3 already"
    with pytest.raises(BadInput, match=f"^{said}"):
        records.rows()
    assert main(["scaling", "report", str(records.folder)]) == 2
    assert f"row 17: cell: must be in one row; {rows[2]['cell']} is in row 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(("table", key) for key in (*NAMES, *ABOVE_0, *FROM_0)),
        ("holdouts", "cell"),
        ("holdouts", "learning_rate"),
    ],
)
def test_a_row_without_a_key_is_named(records, kind, key):
    rows = records.rows(kind)
    del rows[-1][key]
    path = records.folder / f"{kind}.jsonl"
    write(path, rows)
    with pytest.raises(BadInput, match=rf"^{path}: row {len(rows)}: {key}: must be a .*; it is not there"):
        _ = records.outcomes


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cell", "", 'a name, .*; got ""'),
        ("cell", 7, "a name, .*; got 7"),
        ("learning_rate", "0.01", 'a number above 0, .*; got "0.01"'),
        ("steps", 0, "a number above 0, .*; got 0"),
        ("C", float("nan"), "a number above 0, .*; got NaN"),
        ("seed", -1, "a number from 0, .*; got -1"),
    ],
)
def test_a_row_with_an_odd_value_is_named(records, key, value, said):
    rows = records.rows()
    write(records.file, [{**rows[0], key: value}, *rows[1:]])
    with pytest.raises(BadInput, match=rf"row 1: {key}: must be {said}"):
        records.rows()


def test_outcomes_have_a_finite_loss_or_none(records):
    assert records.outcomes[CELL]["loss"] == records.rows("holdouts")[0]["loss"]
    given: list[Any] = [1, "2.5", None, "x", float("inf"), 10**400, []]
    assert [finite(value) for value in given] == [1.0, 2.5, None, None, None, None, None]


def test_a_table_on_its_own_has_what_columns_it_has(tmp_path):
    rows = [{"cell": "a", "N": 1e6, "D": 1e7, "loss": loss} for loss in (3.0, 2.9)]
    write(tmp_path / "mine.jsonl", rows)
    records = open_records(str(tmp_path / "mine.jsonl"))
    assert records.rows() == rows
    assert list(records.outcomes) == ["row 1", "row 2"]
