"""Tables from files: what is recognised, which unit, and what is refused."""

import json

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.reading import make_table, open_table

ROWS = [
    {"N": 1e6 * size, "D": 1e8 * data, "loss": 3.0 - 0.1 * size - 0.01 * data}
    for size in (1, 2, 4, 8)
    for data in (1, 3, 9)
]


def write(path, rows, delimiter=","):
    names = list(rows[0])
    lines = [delimiter.join(names), *(delimiter.join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_runs_of_one_trunk_are_told_from_rows_of_one_run():
    rows = [
        {
            "run": f"run-{k}",
            "group": f"trunk-{k // 2}",
            "N": 10**6 * (1 + k // 2),
            "D": 10**8 * (1 + k % 2),
            "loss": 9.0 - k,
        }
        for k in range(6)
    ]
    table = make_table("study", rows)
    assert table.groups == ("trunk-0", "trunk-0", "trunk-1", "trunk-1", "trunk-2", "trunk-2")
    assert table.runs == tuple(f"run-{k}" for k in range(6))
    assert table.select([4, 5]).runs == ("run-4", "run-5")
    assert "rows are runs by 'run', which are not independent where they share 'group'" in table.notes
    assert (table.drawn_by(2), table.drawn_by(3)) == (table.groups, table.runs)
    alone = make_table("runs", [{key: value for key, value in row.items() if key != "group"} for row in rows])
    assert alone.groups == alone.runs == table.runs


def test_csv_tsv_and_jsonl_say_the_same(tmp_path):
    csv = open_table(write(tmp_path / "runs.csv", ROWS))
    tsv = open_table(write(tmp_path / "runs.tsv", ROWS, "\t"))
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for table in (tsv, open_table(lines)):
        for name in ("N", "D", "C", "loss"):
            np.testing.assert_array_equal(table[name], csv[name])
    assert csv["C"][0] == 6 * 1e6 * 1e8
    assert "C is from C = 6 N D" in csv.notes
    assert csv.warnings == ()


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        ("params", 1),
        ("Model Size", 1),
        ("num_params", 1),
        ("params_m", 1e6),
        ("Params (M)", 1e6),
        ("parameters_B", 1e9),
    ],
)
def test_names_and_units_of_headers(header, factor):
    table = make_table("t", [{header: row["N"] / factor, "tokens": row["D"], "val_loss": row["loss"]} for row in ROWS])
    np.testing.assert_allclose(table["N"], [row["N"] for row in ROWS])


def test_columns_are_named_with_a_unit():
    rows = [{"size": row["N"] / 1e6, "seen": row["D"] / 1e9, "nll": row["loss"]} for row in ROWS]
    table = make_table("t", rows, ["N=size*1e6", "D=seen*1e9", "loss=nll"])
    np.testing.assert_allclose(table["D"], [row["D"] for row in ROWS])
    assert "N is 'size' times 1e+06" in table.notes


def test_values_with_suffixes():
    rows = [{**row, "N": f"{row['N'] / 1e6:g}M"} for row in ROWS]
    np.testing.assert_allclose(make_table("t", rows)["N"], [row["N"] for row in ROWS])
    rows[3]["N"] = 2e6
    with pytest.raises(BadInput, match="must have one unit; some rows have K, M, B or T and some not"):
        make_table("t", rows)


def test_a_comma_is_a_thousands_mark_or_refused():
    rows = [{**row, "N": f"{row['N']:,.1f}"} for row in ROWS]
    np.testing.assert_array_equal(make_table("t", rows)["N"], [row["N"] for row in ROWS])
    for text in ("7,707643736287224", "1,5", "1000,000", "1,0000", "1,00,000"):
        rows[2]["loss"] = text
        with pytest.raises(BadInput, match=f"row 3, column 'loss' must be a number; got '{text}'; write the decimal"):
            make_table("t", rows)


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        ("N,D,loss,loss", [], "columns must have different names; 'loss' is in columns 3, 4"),
        ("N,D,loss,params", [], "one column must be N; got 'N' and 'params'"),
        ("N,D,loss,params", ["N=N", "N=D"], "--columns: N must be given once; got 'N' and 'D'"),
        ("N,D,loss,params", ["N=D", "D=D"], "--columns: 'D' must be one of ours; got N and D"),
    ],
)
def test_two_columns_for_one(tmp_path, header, columns, said):
    path = tmp_path / "runs.csv"
    lines = [f"{row['N']},{row['D']},{row['loss']},{2 * row['N']}" for row in ROWS]
    path.write_text("\n".join([header, *lines]), encoding="utf-8")
    with pytest.raises(BadInput, match=said):
        open_table(path, columns)
    if header.endswith("params"):
        assert open_table(path, ["N=params"])["N"][0] == 2 * ROWS[0]["N"]


def test_tokens_come_from_compute():
    rows = [{"N": row["N"], "flops": 6 * row["N"] * row["D"], "loss": row["loss"]} for row in ROWS]
    np.testing.assert_allclose(make_table("t", rows)["D"], [row["D"] for row in ROWS])


def test_encoder_and_decoder_and_other_conventions():
    rows = [{"N_e": 1e6, "N_d": 2e6, "N_embedding": 5e5, "D": row["D"], "loss": row["loss"]} for row in ROWS]
    table = make_table("t", rows)
    assert table["N"][0] == 3e6
    assert table["N_embedding"][0] == 5e5


def test_rows_of_a_run_are_one_group():
    table = make_table("t", [{**row, "run_name": f"run{index // 3}"} for index, row in enumerate(ROWS)])
    assert len(set(table.groups)) == 4


def test_dropping_rows():
    table = make_table("t", ROWS, drop=["rows=1-2,5", "loss>2.8"])
    assert 1 not in table.rows
    assert table["loss"].max() <= 2.8
    assert table.dropped[0] == "rows=1-2,5: 3 rows (1, 2, 5)"
    assert make_table("t", ROWS, drop=["rows=4-99999999999"]).rows == (1, 2, 3)
    top = make_table("t", ROWS, drop=["highest-loss=2"])
    assert sorted(table.rows)[-1] == 12
    assert top["loss"].max() == sorted(row["loss"] for row in ROWS)[-3]


@pytest.mark.parametrize(
    ("columns", "drop", "said"),
    [
        (["N"], [], "must be OURS=THEIRS"),
        (["X=N"], [], "OURS must be one of N, D, C"),
        (["N=size"], [], "has the columns N, D, loss; got 'size'"),
        (["N=N*1e"], [], "the factor must be a number"),
        ([], ["loss"], "must be rows=1-5,9"),
        ([], ["loss>9"], "matches none"),
        ([], ["loss<9"], "which leaves none"),
        ([], ["price>9"], "must have the column price"),
        ([], ["loss>1e"], "must be a number"),
    ],
)
def test_options_that_cannot_be_read(columns, drop, said):
    with pytest.raises(BadInput, match=said):
        make_table("t", ROWS, columns, drop)


def test_files_that_are_no_tables(tmp_path):
    for name, text, said in [
        ("none.csv", None, "there is no such file"),
        ("empty.csv", "N,D,loss\n", "must have rows below its header"),
        ("names.csv", "a,b\n1,2\n", "must have columns for N, D and loss; got a, b"),
        ("short.csv", "N,D,loss\n1,2\n", "row 1 must have 3 fields"),
        ("words.csv", "N,D,loss\n1e6,1e8,low\n", "row 1, column 'loss' must be a number; got 'low'"),
        ("bad.jsonl", "{\n", "must be JSON objects"),
        ("long.csv", f"N,D,loss\n1e6,1e8,{'1' * 200_000}\n", "must be CSV; line 2: field larger than field limit"),
        ("deep.jsonl", "[" * 100_000 + "]" * 100_000, "must be JSON objects, one a line"),
        ("digits.jsonl", '{"N": ' + "1" * 5001 + "}", "must be JSON objects, one a line; Exceeds the limit"),
        ("list.jsonl", "[[1, 2]]", "row 1 must be a JSON object"),
    ]:
        path = tmp_path / name
        if text is not None:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(BadInput, match=said):
            open_table(path)
    (tmp_path / "latin.csv").write_bytes(b"N,D,loss\n\xff\n")
    with pytest.raises(BadInput, match="must be UTF-8"):
        open_table(tmp_path / "latin.csv")
    with pytest.raises(BadInput, match="it is a folder"):
        open_table(tmp_path)
