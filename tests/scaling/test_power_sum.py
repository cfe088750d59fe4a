"""Budgets, losses and tokens in closed form, against the law itself."""

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling import approaches
from bmscale.scaling.laws import BLEU, CHINCHILLA, ENCODER_DECODER, KAPLAN, SATURATING
from bmscale.scaling.power_sum import PowerSum
from tests.scaling.conftest import TRUTH

KAPLAN_2020 = {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}
SPLIT = {"E": 0.4, "A": 20.0, "B": 60.0, "p_e": 0.08, "p_d": 0.2, "beta": 0.3}


@pytest.mark.parametrize(("law", "parameters"), [(CHINCHILLA, TRUTH), (KAPLAN, KAPLAN_2020)])
def test_no_other_size_is_better_at_a_budget(law, parameters):
    best = PowerSum.of(law, parameters).at_budget(1e21)
    assert pytest.approx(1e21) == 6 * best.N * best.D
    sizes = best.N * np.geomspace(0.2, 5, 401)
    losses = law.predict(parameters, {"N": sizes, "D": 1e21 / 6 / sizes})
    assert sizes[np.argmin(losses)] == pytest.approx(best.N, rel=0.01)
    assert losses.min() == pytest.approx(best.loss, rel=1e-6)
    assert approaches.from_law(law, parameters).at(1e21) == pytest.approx((best.N, best.D))


def test_encoder_and_decoder_get_their_best_shares():
    law = PowerSum.of(ENCODER_DECODER, SPLIT)
    assert law.encoder_share == pytest.approx(0.08 / 0.28)
    shares = np.linspace(0.01, 0.99, 981)
    columns = {"N_e": shares * 1e6, "N_d": (1 - shares) * 1e6, "D": np.full(981, 1e8)}
    losses = ENCODER_DECODER.predict(SPLIT, columns)
    assert shares[np.argmin(losses)] == pytest.approx(law.encoder_share, abs=0.002)
    assert losses.min() == pytest.approx(law.loss(1e6, 1e8), rel=1e-6)


def test_a_loss_and_what_it_costs_belong_together():
    law = PowerSum.of(CHINCHILLA, TRUTH)
    best = law.at_budget(3e20)
    again = law.for_loss(best.loss)
    assert again is not None
    assert pytest.approx((3e20, best.N, best.D)) == (again.C, again.N, again.D)
    assert law.tokens(best.loss, best.N) == pytest.approx(best.D)
    assert law.tokens(law.loss(1e8, 4e9), 1e8) == pytest.approx(4e9)


def test_what_no_number_of_tokens_reaches():
    law = PowerSum.of(CHINCHILLA, TRUTH)
    assert law.for_loss(TRUTH["E"]) is None
    assert law.tokens(law.loss(1e8, float("inf")), 1e8) is None


def test_laws_without_a_best_split_are_refused():
    with pytest.raises(BadInput, match="no best N and D"):
        PowerSum.of(SATURATING, {"alpha": 2.0, "C": 1e-6, "p": 0.25}).at_budget(1e20)
    with pytest.raises(BadInput, match="says nothing of N and D"):
        PowerSum.of(BLEU, {"C": 100.0, "k": -0.5})


@pytest.mark.parametrize("A", [1e300, 1e-300])
def test_an_extreme_draw_is_out_of_the_range_of_numbers_and_raises_nothing(A):
    law = PowerSum.of(CHINCHILLA, {"E": 1.0, "A": A, "B": 1 / A, "alpha": 0.01, "beta": 0.01})
    best, reached = law.at_budget(1e20), law.for_loss(1.1)
    assert {best.N, best.D} == {0.0, np.inf}
    assert best.loss == np.inf
    assert reached is not None
    assert reached.C in (0.0, np.inf) or np.isfinite(reached.C)
    assert PowerSum.of(CHINCHILLA, TRUTH).loss(0.0, 1e9) == np.inf
