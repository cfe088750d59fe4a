"""`scaling fit` as a whole: what it says, what it warns of, the checklist and the picture."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling import charts
from bmscale.scaling.analysis import analyse, to_text
from bmscale.scaling.checklist import QUESTIONS, UNKNOWN, checklist
from bmscale.scaling.fit import Objective, fit
from bmscale.scaling.laws import CHINCHILLA, ENCODER_DECODER
from bmscale.scaling.tables import Table
from bmscale.scaling.targets import at_budget, for_loss
from tests.scaling.conftest import TRUTH, runs


@pytest.fixture(scope="module")
def analysis():
    return analyse(runs(), law="chinchilla", approach=2, draws=40, restarts=3)


def test_trunks_too_few_to_draw_by_are_said():
    table = runs(sizes=7)
    seven, five = (replace(table, groups=tuple(f"trunk-{k % n}" for k in range(35)), runs=table.runs) for n in (7, 5))
    answers = {}
    for name, one in (("seven", seven), ("five", five)):
        found = analyse(one, law="chinchilla", draws=20, restarts=2)
        said = [text for text in found.warnings if "35 runs share 5 trunks, too few to draw by" in text]
        assert len(said) == (name == "five")
        answers[name] = {item.question: item.answer for item in found.checklist}
        assert answers[name]["runs and rows"] == "35 runs, 35 rows"
        assert found.to_dict()["intervals"]["drawn"] in answers[name]["intervals"]
    assert answers["seven"]["intervals"].startswith("bootstrap of 7 trunks that 35 runs share, 20 draws")
    assert "35 runs as if they were independent, though they share 5 trunks: too narrow" in answers["five"]["intervals"]


def test_it_says_all(analysis):
    text = to_text(analysis)
    assert "law chinchilla: L = E + A/N^alpha + B/D^beta" in text
    assert "3 of 3 random starts end at the same objective" in text
    for word in (
        "approach 2, parabola (C of the table): a",
        "approach 2, akima (C of the table): a",
        "approach 3 (C = 6 N D): a",
        "the minimum lies between the smallest and the largest size at 5 of 5 budgets: 1e+18, 3e+18",
        "rows held out: 7",
        "checklist",
    ):
        assert word in text
    low, high = analysis.parameter_intervals["alpha"]
    assert low < TRUTH["alpha"] < high
    ours = analysis.allocations[-1]
    assert ours.a_interval[0] < TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"]) < ours.a_interval[1]
    assert analysis.warnings == ()


def test_for_programs(analysis):
    found = json.loads(json.dumps(analysis.to_dict()))
    assert found["fit"]["parameters"] == analysis.fit.parameters
    assert found["intervals"]["draws"] == 40
    assert [one["best"] is not None for one in found["isoflop_minima"]] == [True] * 5
    assert found["backtest"]["held_out"] == 7
    assert set(QUESTIONS) <= set(found["checklist"])


def test_auto_refits_what_the_back_test_takes():
    found = analyse(runs(noise=0.001), draws=0, restarts=1)
    assert found.backtest is not None
    assert found.fit.law.name == found.backtest.chosen.law
    assert found.fit.rows == len(found.fitted)
    assert found.bootstrap is None


def test_auto_needs_a_budget_to_hold_out_and_a_named_law_does_not():
    two = runs(budgets=(1e18, 1e20))
    with pytest.raises(BadInput, match="or name the law: --law chinchilla"):
        analyse(two)
    found = analyse(two, law="chinchilla", draws=0, restarts=0)
    assert found.warnings[0].startswith("no back-test: made: a back-test holds out")
    assert found.checklist[QUESTIONS.index("error at runs held out")].answer == UNKNOWN


def test_conventions_of_parameters_stand_side_by_side():
    """Trap 5: the same runs, N with and without what does not grow with it."""
    table = runs(noise=0.0)
    body = table["N"] - 0.9 * table["N"].min()
    found = analyse(table.with_columns(N_body=body), law="chinchilla", draws=0, restarts=0)
    assert set(found.conventions) == {"N", "N_body"}
    assert found.conventions["N_body"] != pytest.approx(found.conventions["N"], abs=0.01)
    assert "a by how N is counted: N " in to_text(found)


def test_the_split_of_encoder_and_decoder():
    generator = np.random.default_rng(0)
    columns = {name: np.exp(generator.uniform(14, 18, 80)) for name in ("N_e", "N_d", "D")}
    truth = {"E": 1.0, "A": 90.0, "B": 50.0, "p_e": 0.1, "p_d": 0.2, "beta": 0.3}
    loss = ENCODER_DECODER.predict(truth, columns)
    n = columns["N_e"] + columns["N_d"]
    table = Table("made", {**columns, "loss": loss, "N": n, "C": 6 * n * columns["D"]})
    found = analyse(table, law="encoder-decoder", draws=0, restarts=0)
    assert found.encoder_share == pytest.approx(1 / 3, abs=1e-3)
    assert "best share of the encoder" in to_text(found)


def test_warnings():
    """Sizes that do not reach the best one, and a law of another form."""
    small = runs(noise=0.0)
    small = small.select(small["N"] < 3e8)
    found = analyse(small, law="chinchilla", draws=0, restarts=0)
    assert any(text.startswith("the best size of the largest budget") for text in found.warnings)
    loss = 500 / small["N"] ** 0.3 + 2000 / small["D"] ** 0.35
    found = analyse(small.with_columns(loss=loss), law="chinchilla", draws=0, restarts=0)
    assert any("E went to 0" in text for text in found.warnings)


def test_the_checklist_is_filled_in_from_what_is_known():
    table = runs().select(list(range(30)))
    items = {item.question: item for item in checklist(table, fit(CHINCHILLA, table.columns, Objective("lad")))}
    assert tuple(items) == QUESTIONS
    assert items["objective of the fit"].answer == "least absolute deviation of log y"
    assert items["runs and rows"].answer == "30 runs, 30 rows"
    assert items["intervals"].answer == UNKNOWN
    assert not items["learning rate tuned at each size"].known
    given = checklist(table, fit(CHINCHILLA, table.columns), study={"learning rate tuned at each size": "by muP"})
    assert given[QUESTIONS.index("learning rate tuned at each size")].answer == "by muP"


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_the_picture(analysis, tmp_path, ending):
    path = tmp_path / "plots" / f"fit{ending}"
    charts.draw(analysis, path)
    first = path.read_bytes()
    assert len(first) > 10_000
    if ending == ".svg":
        for word in (b"training FLOPs", b"parameters N", b"residual", b"chinchilla"):
            assert word in first
        charts.draw(analysis, path)
        assert path.read_bytes() == first


def test_the_picture_without_sizes(tmp_path):
    d = np.geomspace(5e5, 5e8, 11)
    table = Table("made", {"D": d, "loss": 20 * (1 / d + 1e-8) ** 0.27})
    charts.draw(analyse(table, draws=0, restarts=0), tmp_path / "data.svg")
    assert "no isoFLOP curves" in (tmp_path / "data.svg").read_text(encoding="utf-8")


def test_a_picture_of_budgets_with_one_size_each_says_so(tmp_path):
    table = runs(budgets=tuple(1e18 * 2.0**k for k in range(12)), sizes=3)
    alone = table.select([3 * k + k % 3 for k in range(12)])
    charts.draw(analyse(alone, law="chinchilla", draws=0, restarts=0), tmp_path / "fit.svg")
    assert "no budget has three sizes" in (tmp_path / "fit.svg").read_text(encoding="utf-8")


def test_pictures_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"must end in \.png or \.svg; got 'fit\.jpg'"):
        charts.check_path(tmp_path / "fit.jpg")


def test_seeds_of_a_cell_may_differ_by_a_few_tokens():
    table = runs(budgets=(1e18, 1e19), sizes=4)
    columns = {name: np.concatenate([values, values[:1] * (1.0003 if name in "DC" else 1)]) for name, values in
               table.columns.items()}  # fmt: skip
    found = fit(CHINCHILLA, table.columns, restarts=1)

    def seeds(one: Table) -> str:
        return next(item.answer for item in checklist(one, found) if item.question == "seeds of one cell")

    assert seeds(Table("made", columns)) == "up to 2, at 1 cells"
    assert seeds(table) == "one"
    assert seeds(Table("made", columns, groups=("a", *"bcdefgh", "a"))) == "one"  # two points of one run


def test_no_best_sizes_of_a_law_without_one_of_its_terms():
    table = runs(noise=0.0)
    flat = table.with_columns(loss=1.7 + 400 * table["N"] ** -0.34)
    found = analyse(flat, law="chinchilla", draws=20, restarts=2)
    assert found.fit.gone == ("B",)
    with pytest.raises(BadInput, match="no best N and D: B went to 0"):
        at_budget(found, 1e21)
    with pytest.raises(BadInput, match="no best N and D: B went to 0"):
        for_loss(found, 1.8, None)
