"""Laws: what their papers print, exact derivatives, and the way to the papers' parameters and back."""

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.scaling.laws import BLEU, CHINCHILLA, DATA_CONSTRAINED, KAPLAN, KAPLAN_N, LAWS, SATURATING, TIED, find_law

MUENNIGHOFF = {
    "E": np.exp(0.6254804),
    "A": np.exp(6.255414),
    "B": np.exp(7.3049974),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "R_D*": 15.387756,
    "R_N*": 5.309743,
}


def columns(law, rows: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns as wide as studies are."""
    generator = np.random.default_rng(seed)
    found = {name: np.exp(generator.normal(18, 1.5, rows)) for name in law.needs}
    if "U" in found:
        found["D"] = found["U"] * np.exp(generator.normal(1, 2, rows))
    if "loss" in found:
        found["loss"] = generator.uniform(2, 4, rows)
    return found


def inside(law, seed: int = 0) -> np.ndarray:
    """(log c, log θ) somewhere among the shapes' ranges."""
    generator = np.random.default_rng(seed)
    middle = [np.sqrt(shape.low * shape.high) for shape in law.shapes]
    return np.concatenate([generator.normal(0, 0.5, len(law.terms)), np.log(middle) + generator.uniform(-0.3, 0.3)])


def test_muennighoff_as_published():
    """Trap: U_N is where α A U_N^-α = β B U^-β, not N."""
    at = {"N": np.array([6.34e9, 8.67e9]), "D": np.array([242e9, 178e9]), "U": np.full(2, 25e9)}
    found = DATA_CONSTRAINED.predict(MUENNIGHOFF, at)
    np.testing.assert_allclose(found, [2.2256440889984477, 2.2269634075087867], rtol=1e-12)


def test_unrepeated_data_is_chinchilla():
    at = {"N": np.array([1e8]), "D": np.array([1e10]), "U": np.array([1e10])}
    plain = {name: MUENNIGHOFF[name] for name in CHINCHILLA.parameters}
    np.testing.assert_allclose(DATA_CONSTRAINED.predict(MUENNIGHOFF, at), CHINCHILLA.predict(plain, at), rtol=1e-14)


def test_constants_as_published():
    """Kaplan's L(N), and Hoffmann's equation for Chinchilla itself, computed by hand."""
    n = np.array([1e9])
    np.testing.assert_allclose(
        KAPLAN_N.predict({"N_c": 8.8e13, "alpha_N": 0.076}, {"N": n}), (8.8e13 / 1e9) ** 0.076, rtol=1e-12
    )
    hoffmann = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    found = CHINCHILLA.predict(hoffmann, {"N": np.array([70e9]), "D": np.array([1.4e12])})
    np.testing.assert_allclose(found, 1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28, rtol=1e-12)


def test_forms_by_hand():
    kaplan = {"N_c": 6e13, "D_c": 2e13, "alpha_N": 0.08, "alpha_D": 0.1}
    n, d = 3e8, 5e9
    expected = ((6e13 / n) ** (0.08 / 0.1) + 2e13 / d) ** 0.1
    np.testing.assert_allclose(KAPLAN.predict(kaplan, {"N": np.array([n]), "D": np.array([d])}), expected, rtol=1e-12)
    bansal = {"alpha": 20.0, "C": 1e-9, "p": 0.27}
    np.testing.assert_allclose(
        SATURATING.predict(bansal, {"D": np.array([1e7])}), 20 * (1 / 1e7 + 1e-9) ** 0.27, rtol=1e-12
    )
    gordon = {"C": 300.0, "k": -1.1}
    np.testing.assert_allclose(BLEU.predict(gordon, {"loss": np.array([2.0])}), 300 * np.exp(-2.2), rtol=1e-12)


def test_gadre_is_the_tied_law():
    a, b, eta, compute, ratio = 140.0, 90.0, 0.12, 3e19, 40.0
    theirs = 1.5 + (a * ratio**eta + b * ratio**-eta) * compute**-eta
    n = np.sqrt(compute / (6 * ratio))
    ours = {"E": 1.5, "A": a / 6**eta, "B": b / 6**eta, "alpha": 2 * eta}
    np.testing.assert_allclose(TIED.predict(ours, {"N": np.array([n]), "D": np.array([n * ratio])}), theirs, rtol=1e-12)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_the_derivative_is_exact(law):
    log_x = law.log_columns(columns(law))
    log_x -= law.origin(log_x)
    inner = inside(law)
    slopes = law.log_predict(inner, log_x)[1]
    steps = 1e-6 * np.eye(len(inner))
    numeric = [(law.log_predict(inner + h, log_x)[0] - law.log_predict(inner - h, log_x)[0]) / 2e-6 for h in steps]
    np.testing.assert_allclose(slopes, np.stack(numeric, axis=1), atol=2e-9)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_names_and_centring_change_nothing(law):
    """Through the paper's names and back, and from centred columns to plain ones."""
    at = columns(law)
    log_x = law.log_columns(at)
    origin = law.origin(log_x)
    inner = inside(law)
    expected = law.log_predict(inner, log_x - origin)[0]
    plain = law.shift(inner, origin)
    np.testing.assert_allclose(law.given(law.named(plain)), plain, atol=1e-9)
    np.testing.assert_allclose(np.log(law.predict(law.named(plain), at)), expected, atol=1e-9)


def test_refusals_name_what_must_hold():
    with pytest.raises(BadInput, match="must be one of chinchilla, tied"):
        find_law("hoffmann")
    with pytest.raises(BadInput, match="needs the columns N, D; got N, loss"):
        CHINCHILLA.log_columns({"N": np.ones(3), "loss": np.ones(3)})
    with pytest.raises(BadInput, match="has the parameters E, A, B, alpha, beta"):
        CHINCHILLA.given({"E": 1.0})
    with pytest.raises(BadInput, match="exponents above"):
        CHINCHILLA.given({"E": 1.0, "A": 1.0, "B": 1.0, "alpha": 0.0, "beta": 1.0})


def test_a_parameter_beyond_the_range_of_a_float_is_infinite():
    """A back-test fits laws of the wrong form too: it must not end with them."""
    found = KAPLAN.named(np.log([1e300, 1e10, 0.1, 0.1]))
    assert found["N_c"] == np.inf
    assert found["D_c"] == pytest.approx(1e10)
    assert CHINCHILLA.named(np.array([0.0, 800.0, 0.0, -1.0, -1.0]))["A"] == np.inf
    assert SATURATING.named(np.array([-800.0, 0.0, -1.0]))["C"] == np.inf  # a slope of 0
