"""A forecast frozen of a table and of a study, then outcomes: scored, late, changed, lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.forecast import Asked, check_out, forecast, freeze, read, to_text
from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.records import Records, canonical, columns_of, digest, open_records
from bmscale.scaling.scoring import CHANGED, FORECAST, LATE, OPEN, UNTIMED, score
from tests.scaling.conftest import TRUTH, runs

STUDY = """
experiment:
  data:
    source_language: sx
    target_language: sy
    train: {synthetic: train, pairs: 1000}
    valid: {synthetic: valid, pairs: 10}
    tokenizer: {type: word, vocabulary_size: 260}
  training: {tokens_per_step: 1000, precision: fp32}
head_dim: 8
sizes:
  - {width: 8, layers: 1}
  - {width: 16, layers: 1}
  - {width: 32, layers: 1}
  - {width: 64, layers: 1}
flops: [1.0e10, 3.0e10, 1.0e11, 3.0e11]
holdouts: [{size: w64-l1, budget: 3.0e12}]
learning_rate: 1.0e-2
"""
LAW = {"E": 0.44, "A": 25.0, "B": 60.0, "alpha": 0.33, "beta": 0.3}
CELL = "w64-l1-3e12-s0"
LATER = "2100-01-01T00:00:00+00:00"
EARLIER = "2020-01-01T00:00:00+00:00"


def rows_of(folder: Path, *, holdouts: bool, started: str | None) -> list[dict]:
    """Lines as `scaling run` writes them, with losses of a known law."""
    study = open_records(str(folder)).study
    assert study is not None
    generator, rows = np.random.default_rng(0), []
    for trunk in study.trunks:
        for cell in trunk.cells:
            counted = columns_of(study, trunk, cell)
            columns = {name: counted[name] for name in "NDC"}
            loss = CHINCHILLA.predict(LAW, {name: np.array([columns[name]]) for name in "ND"})[0]
            row = {
                "cell": cell.name, "kind": cell.kind, "size": cell.size, "seed": cell.seed, "budget": cell.budget,
                **columns, "loss": float(loss * np.exp(0.002 * generator.standard_normal())), "steps": cell.steps,
                "cooldown_steps": cell.steps - cell.branch_step, "tokens_per_step": 1000, "precision": "fp32",
                "learning_rate": 1e-2, "started": started, "run": cell.name, "irreducible_loss": 0.44,
            }  # fmt: skip
            if (cell.kind == "holdout") == holdouts:
                rows.append(row)
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_holdouts(folder: Path, started: str | None) -> float:
    rows = rows_of(folder, holdouts=True, started=started)
    write(folder / "holdouts.jsonl", rows)
    return float(rows[0]["loss"])


@pytest.fixture(scope="session")
def frozen_study(tmp_path_factory) -> Path:
    """A study whose grid is done, with a forecast of its hold-out."""
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "study.yaml").write_text(STUDY, encoding="utf-8")
    write(folder / "table.jsonl", rows_of(folder, holdouts=False, started=EARLIER))
    records = open_records(str(folder))
    freeze(records, forecast(records, Asked(), law="chinchilla", draws=200))
    return folder


@pytest.fixture
def study(frozen_study, tmp_path) -> Path:
    folder = tmp_path / "study"
    shutil.copytree(frozen_study, folder)
    return folder


@pytest.fixture
def table(tmp_path) -> Path:
    """A CSV of runs named r0 to r34."""
    made = runs(noise=0.003)
    lines = [f"r{i},{made['N'][i]},{made['D'][i]},{made['loss'][i]}" for i in range(len(made))]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["run,N,D,loss", *lines]) + "\n", encoding="utf-8")
    return path


def quick(records: Records, asked: Asked) -> dict:
    return forecast(records, asked, law="chinchilla", draws=100)


def test_a_forecast_made_in_time_is_scored(study):
    outcome = train_holdouts(study, LATER)
    (one,) = score(open_records(str(study)))
    (cell,) = one.cells
    assert (one.notes, one.remarks) == ((), ())
    assert (cell.cell, cell.status, cell.outcome, cell.started) == (CELL, FORECAST, outcome, LATER)
    assert cell.error == pytest.approx(outcome / one.content["cells"][0]["loss"] - 1)
    assert cell.error is not None
    assert abs(cell.error) < 0.03
    assert cell.factor == pytest.approx(10, rel=0.01)
    assert cell.interval_95[0] < cell.interval_90[0] < cell.predicted < cell.interval_90[1] < cell.interval_95[1]
    assert cell.inside(90) == (cell.interval_90[0] <= outcome <= cell.interval_90[1])


def test_an_outcome_outside_is_said_to_be_outside(study):
    row = rows_of(study, holdouts=True, started=LATER)[0]
    write(study / "holdouts.jsonl", [{**row, "loss": row["loss"] * 1.2}])
    (cell,) = score(open_records(str(study)))[0].cells
    assert (cell.inside(90), cell.inside(95), cell.status) == (False, False, FORECAST)
    assert cell.error == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(("started", "status"), [(EARLIER, LATE), (None, UNTIMED), (LATER, FORECAST)])
def test_a_cell_that_was_trained_before_is_no_forecast(study, started, status):
    train_holdouts(study, started)
    assert score(open_records(str(study)))[0].cells[0].status == status


def test_the_run_folder_says_when_a_cell_was_trained_whatever_its_row_says(study):
    train_holdouts(study, LATER)
    run = study / "runs" / CELL / "run.yaml"
    run.parent.mkdir(parents=True)
    run.write_text(f"experiment: {{}}\nidentity: {{}}\ntotal_steps: 1\nstarts: [{{time: '{EARLIER}'}}]\n")
    assert score(open_records(str(study)))[0].cells[0].status == LATE


def test_before_the_outcome_it_is_open(study):
    (cell,) = score(open_records(str(study)))[0].cells
    assert (cell.status, cell.error, cell.inside(90)) == (OPEN, None, None)


def test_a_changed_file_is_noticed_and_no_forecast(study):
    train_holdouts(study, LATER)
    path = study / "forecast.json"
    content, whole = read(path)
    assert whole
    content["cells"][0]["loss"] *= 1.001
    path.write_text(json.dumps(content))
    (one,) = score(open_records(str(study)))
    assert one.notes == ("forecast.json was changed after it was frozen: its content has another hash",)
    assert one.cells[0].status == CHANGED


def test_the_hash_does_not_depend_on_how_the_json_is_laid_out(study):
    path = study / "forecast.json"
    content, _ = read(path)
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert read(path)[1]
    assert canonical({"b": 1.5, "a": "é"}) == '{"a":"é","b":1.5}'.encode()


def test_a_file_made_anew_breaks_the_chain(study):
    records = open_records(str(study))
    second = freeze(records, quick(records, Asked(budgets=(1e13,))))
    assert second.name == "forecast-2.json"
    assert read(second)[0]["previous"] == {
        "file": "forecast.json",
        "sha256": read(study / "forecast.json")[0]["sha256"],
    }
    assert [one.notes for one in score(records)] == [(), ()]
    content, _ = read(study / "forecast.json")
    values = {**{key: value for key, value in content.items() if key != "sha256"}, "warnings": ["other"]}
    (study / "forecast.json").write_text(json.dumps({**values, "sha256": digest(values)}))
    assert score(records)[1].notes[0].startswith("forecast.json is not the file that forecast-2.json was frozen after")
    (study / "forecast.json").unlink()
    assert "no longer there" in score(records)[0].notes[0]


def test_rows_that_changed_since_are_named(study):
    rows = rows_of(study, holdouts=False, started=EARLIER)
    rows[3]["loss"] += 0.001
    write(study / "table.jsonl", rows[:-1])
    (one,) = score(open_records(str(study)))
    assert one.notes == (
        f"rows that it was fitted on are no longer in the table: {rows[-1]['cell']}",
        f"rows that it was fitted on have other values now: {rows[3]['cell']}",
    )


def test_a_table_that_grew_is_a_remark(study):
    rows = rows_of(study, holdouts=False, started=EARLIER)
    more = {**rows[0], "cell": "w8-l1-1e10-s9", "seed": 9}
    write(study / "table.jsonl", [{**row, "seconds": 1.0} for row in rows])
    assert score(open_records(str(study)))[0].remarks == ("the table's file is another one, its rows are the same",)
    write(study / "table.jsonl", [*rows, more])
    (one,) = score(open_records(str(study)))
    assert (one.notes, one.remarks) == ((), ("the table has 1 rows more than then: w8-l1-1e10-s9",))


def test_another_cell_under_the_same_name_is_noticed(study):
    row = rows_of(study, holdouts=True, started=LATER)[0]
    write(study / "holdouts.jsonl", [{**row, "D": row["D"] * 2}])
    assert "was trained as another cell" in score(open_records(str(study)))[0].notes[0]


def test_cells_that_are_trained_or_begun_are_refused(study):
    records = open_records(str(study))
    with pytest.raises(BadInput, match=r"w8-l1-1e10-s0: is trained, with loss"):
        quick(records, Asked(("w8-l1-1e10-s0",)))
    trunk = study / "runs" / "w64-l1-s0-trunk"
    trunk.mkdir(parents=True)
    last = max(cell.branch_step for _, cell in records.cells().values() if cell.size == "w64-l1" and cell.budget < 1e12)
    (trunk / "metrics.jsonl").write_text(f'{{"step": {last + 1}, "loss": 2.0}}\n')
    with pytest.raises(BadInput, match=rf"its trunk w64-l1-s0-trunk is at step {last + 1}, beyond"):
        quick(records, Asked())
    (trunk / "metrics.jsonl").write_text(f'{{"step": {last}, "loss": 2.0}}\n')
    assert quick(records, Asked())["cells"][0]["cell"] == CELL
    (study / "runs" / CELL).mkdir()
    with pytest.raises(BadInput, match=r"its run has begun"):
        quick(records, Asked())


def test_trained_holdouts_are_left_out_where_something_else_is_asked_for(study):
    train_holdouts(study, EARLIER)
    records = open_records(str(study))
    with pytest.raises(BadInput, match=rf"^{CELL}: is trained, with loss .*: it can no longer be forecast$"):
        quick(records, Asked())
    with pytest.raises(BadInput, match=rf"^{CELL}: is trained"):
        quick(records, Asked((CELL,), budgets=(1e13,)))
    content = quick(records, Asked(budgets=(1e13,)))
    assert (content["cells"], [one["budget"] for one in content["budgets"]]) == ([], [1e13])
    assert f"warning: left out: {CELL}: is trained, with loss" in to_text(content)


def test_without_names_the_holdouts_without_outcome_or_run_are_forecast(study):
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(text.replace("holdouts: [", "holdouts: [{size: w32-l1, budget: 1.0e12}, "))
    other = "w32-l1-1e12-s0"
    assert [cell["cell"] for cell in quick(open_records(str(study)), Asked())["cells"]] == [other, CELL]
    write(
        study / "holdouts.jsonl", [row for row in rows_of(study, holdouts=True, started=LATER) if row["cell"] == CELL]
    )
    content = quick(open_records(str(study)), Asked())
    assert [cell["cell"] for cell in content["cells"]] == [other]
    assert content["warnings"][-1].startswith(f"left out: {CELL}: is trained")
    (study / "runs" / other).mkdir(parents=True)
    with pytest.raises(BadInput, match=rf"^{other}: its run has begun"):
        quick(open_records(str(study)), Asked())


def test_nothing_is_written_over(study, tmp_path):
    records = open_records(str(study))
    content, before = quick(records, Asked()), (study / "forecast.json").read_bytes()
    with pytest.raises(BadInput, match=r"--out: must be a new file"):
        freeze(records, content, study / "forecast.json")
    assert (study / "forecast.json").read_bytes() == before
    with pytest.raises(BadInput, match="must be of finite numbers"):
        freeze(records, {**content, "budgets": [{"N": float("inf")}]}, tmp_path / "infinite.json")
    assert not (tmp_path / "infinite.json").exists()
    assert freeze(records, content, tmp_path / "mine.json").name == "mine.json"
    for out, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "mine.json" / "other.json", "mine.json is no folder that can be written to"),
    ):
        with pytest.raises(BadInput, match=said):
            check_out(records, out)
    check_out(records, tmp_path / "new" / "other.json")


def test_a_table_on_its_own(table):
    records = open_records(str(table))
    asked = Asked(("big:N=2.9e9,D=5.8e10",), (1e21,), (2.2, 1.5), None)
    content = quick(records, asked)
    path = freeze(records, content)
    assert path.name == "runs.forecast.json"
    expected = CHINCHILLA.predict(TRUTH, {"N": np.array([2.9e9]), "D": np.array([5.8e10])})[0]
    low, high = content["cells"][0]["interval_90"]
    assert low < expected < high
    (budget,), (reached, beyond) = content["budgets"], content["losses"]
    assert budget["N_interval_95"][0] < budget["N"] < budget["N_interval_95"][1]
    assert 6 * budget["N"] * budget["D"] == pytest.approx(1e21)
    assert reached["C"] == pytest.approx(6 * reached["N"] * reached["D"])
    assert beyond["D"] is None
    assert "out of reach" in to_text(content)
    with table.open("a") as file:
        file.write(f"big,2.9e9,5.8e10,{expected}\n")
    (one,) = score(open_records(str(table)))
    assert (one.notes, one.cells[0].outcome, one.cells[0].status) == ((), expected, UNTIMED)
    with pytest.raises(BadInput, match=r"big: is in .* already"):
        quick(open_records(str(table)), asked)
    with pytest.raises(BadInput, match=r"again: row 36 of the table has the same N, D"):
        quick(open_records(str(table)), Asked(("again:N=2.9001e9,D=5.8e10",)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(), "nothing to forecast"),
        (Asked(("big",)), "must be NAME:N=1e8,D=2e9; got 'big'"),
        (Asked(("big:N=1e8,X=2",)), "must give columns of the table"),
        (Asked(("big:N=much,D=1e9",)), "N must be a number"),
    ],
)
def test_what_cannot_be_forecast_is_refused(table, asked, said):
    with pytest.raises(BadInput, match=said):
        quick(open_records(str(table)), asked)


def test_few_draws_make_no_interval(table):
    with pytest.raises(BadInput, match="at least 100"):
        forecast(open_records(str(table)), Asked(budgets=(1e20,)), draws=10)
