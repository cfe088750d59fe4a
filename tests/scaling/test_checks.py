"""Bad tables: refused where nothing can be fitted, warned of where little can be."""

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.checks import budgets, check, check_law
from bmscale.scaling.laws import CHINCHILLA, FRONTIER, GHORBANI, KAPLAN_N
from tests.scaling.conftest import runs


def changed(name: str, row: int, value: float, **shape):
    table = runs(**shape)
    values = table[name].copy()
    values[row] = value
    return table.with_columns(**{name: values})


def test_a_good_table_has_no_warnings():
    assert check(runs()).warnings == ()
    assert check_law(runs(), CHINCHILLA) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("loss", np.nan, "row 4, loss must be finite and above 0; got nan"),
        ("loss", np.inf, "got inf"),
        ("loss", -1.0, "above 0; got -1"),
        ("N", 0.0, "row 4, N must be finite and above 0; got 0"),
        ("D", -5.0, "D must be finite"),
    ],
)
def test_values_without_a_logarithm(name, value, said):
    with pytest.raises(BadInput, match=said):
        check(changed(name, 3, value))


def test_mixed_units_in_a_column():
    table = runs()
    with pytest.raises(BadInput, match=r"N must have one unit in all rows; got nothing between .* \(row 4\)"):
        check(changed("N", 3, table["N"][3] / 1e6))
    # A few rows in billions of tokens, the others in tokens.
    tokens = np.where(np.arange(len(table)) < 10, table["D"] / 1e9, table["D"])
    with pytest.raises(BadInput, match=r"D must have one unit"):
        check(table.with_columns(D=tokens))


def test_compute_beside_parameters_and_tokens():
    table = runs()
    with pytest.raises(BadInput, match=r"C must be about the same multiple of 6 N D .*; got 1e\+03 in row 6"):
        check(table.with_columns(C=np.where(np.arange(len(table)) == 5, 1e3, 1.0) * table["C"] ** 1.0))
    assert "C is 1e-06 times 6 N D" in check(table.with_columns(C=table["C"] / 1e6)).warnings[0]


def test_units_that_look_odd():
    table = runs()
    found = check(table.with_columns(N=table["N"] / 1e9, C=table["C"] / 1e9)).warnings
    assert "if it is in millions" in found[0]
    assert "perplexity" in check(table.with_columns(loss=np.exp(2 * table["loss"]))).warnings[0]


def test_a_loss_that_never_changes():
    table = runs()
    flat = table.with_columns(loss=np.full(len(table), 2.0))
    for refused in (check, lambda table: check_law(table, CHINCHILLA)):
        with pytest.raises(BadInput, match="loss must differ between rows; got 2 in all 35"):
            refused(flat)


def test_duplicates_are_counted():
    table = runs()
    assert "3 rows are there twice" in check(table.select([*range(len(table)), 0, 1, 1])).warnings[0]


def test_too_few_sizes_and_one_budget():
    table = runs()
    two = table.with_columns(N=np.where(table["N"] > np.median(table["N"]), 1e9, 1e8))
    with pytest.raises(BadInput, match="needs at least 3 different values of N; got 2"):
        check_law(two, CHINCHILLA)
    assert check_law(two, KAPLAN_N) == ["N has only 2 different values: its exponent rests on little"]
    with pytest.raises(BadInput, match="needs runs of more than one budget; all have about 1e"):
        check_law(runs(budgets=(1e19,)), CHINCHILLA)
    with pytest.raises(BadInput, match="different values of C; got 1"):
        check_law(runs(budgets=(1e19,)), FRONTIER)
    with pytest.raises(BadInput, match="must have the column N_e"):
        check_law(table, GHORBANI)


def test_few_rows():
    few = runs(budgets=(1e18, 1e20), sizes=4)
    assert "8 rows for 5 parameters" in check_law(few, CHINCHILLA)[-1]
    with pytest.raises(BadInput, match="has 5 parameters; got 4 rows"):
        check_law(few.select([0, 1, 6, 7]), CHINCHILLA)


def test_budgets_are_of_like_compute():
    compute = np.array([1e19, 1e18, 1.1e18, 1e19, 1.2e19, 1e20])
    assert [rows.tolist() for rows in budgets(compute)] == [[1, 2], [0, 3, 4], [5]]
