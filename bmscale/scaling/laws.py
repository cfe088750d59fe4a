"""The laws that `fit` knows, by name in LAWS: each with its equation and its source."""

from collections.abc import Mapping

from bmscale.errors import BadInput
from bmscale.scaling.law import Law, Shape, Term
from bmscale.scaling.repetition import DataConstrained


def _exponent(name: str, steps: int = 20) -> Shape:
    return Shape(name, 0.03, 2.0, steps)


E = Term("E")

CHINCHILLA = Law(
    "chinchilla",
    "L = E + A/N^alpha + B/D^beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, equation 2",
    (E, Term("A", {"N": "alpha"}), Term("B", {"D": "beta"})),
    (_exponent("alpha"), _exponent("beta")),
)
TIED = Law(
    "tied",
    "L = E + A/N^alpha + B/D^alpha",
    "Gadre et al. 2024, arXiv 2403.08540: their E + (a M^eta + b M^-eta) C^-eta with M = D/N and C = 6 N D is this "
    "with alpha = 2 eta, A = a/6^eta, B = b/6^eta",
    (E, Term("A", {"N": "alpha"}), Term("B", {"D": "alpha"})),
    (_exponent("alpha", 40),),
)
FRONTIER = Law(
    "frontier",
    "L* = E + A/C^gamma",
    "Hoffmann et al. 2022 and Kaplan et al. 2020 (there E = 0): the loss of the best model of each budget",
    (E, Term("A", {"C": "gamma"})),
    (Shape("gamma", 0.01, 1.0, 40),),
)


def _kaplan(column: str) -> Law:
    scale, exponent = f"{column}_c", f"alpha_{column}"
    return Law(
        f"kaplan-{column.lower()}",
        f"L = ({scale}/{column})^{exponent}",
        "Kaplan et al. 2020, arXiv 2001.08361, equations 1.1 and 1.2",
        (Term(scale, {column: 1.0}),),
        (_exponent(exponent, 40),),
        power=exponent,
    )


KAPLAN_N, KAPLAN_D = _kaplan("N"), _kaplan("D")


def _kaplan_to_paper(plain: Mapping[str, float]) -> dict[str, float]:
    ratio, alpha_d = plain["ratio"], plain["alpha_D"]
    n_c = plain["N_term"] ** (1 / ratio)
    return {"N_c": n_c, "D_c": plain["D_c"], "alpha_N": ratio * alpha_d, "alpha_D": alpha_d}


def _kaplan_from_paper(paper: Mapping[str, float]) -> dict[str, float]:
    ratio = paper["alpha_N"] / paper["alpha_D"]
    return {"N_term": paper["N_c"] ** ratio, "D_c": paper["D_c"], "ratio": ratio, "alpha_D": paper["alpha_D"]}


KAPLAN = Law(
    "kaplan",
    "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
    "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5; Gordon et al. 2021 use it for translation",
    (Term("N_term", {"N": "ratio"}), Term("D_c", {"D": 1.0})),
    (Shape("ratio", 0.1, 5.0), _exponent("alpha_D")),
    power="alpha_D",
    names=("N_c", "D_c", "alpha_N", "alpha_D"),
    to_paper=_kaplan_to_paper,
    from_paper=_kaplan_from_paper,
)


def _saturating_to_paper(plain: Mapping[str, float]) -> dict[str, float]:
    slope, p = plain["slope"], plain["p"]
    return {"alpha": slope**p, "C": plain["level"] / slope, "p": p}


def _saturating_from_paper(paper: Mapping[str, float]) -> dict[str, float]:
    slope = paper["alpha"] ** (1 / paper["p"])
    return {"slope": slope, "level": slope * paper["C"], "p": paper["p"]}


SATURATING = Law(
    "saturating",
    "L = alpha (1/D + C)^p",
    "Bansal et al. 2022, arXiv 2202.01994",
    (Term("slope", {"D": 1.0}), Term("level")),
    (_exponent("p", 40),),
    power="p",
    names=("alpha", "C", "p"),
    to_paper=_saturating_to_paper,
    from_paper=_saturating_from_paper,
)
_SIZES = Term("A", {"N_e": "p_e", "N_d": "p_d"})
GHORBANI = Law(
    "encoder-decoder-sizes",
    "L = E + A N_e^-p_e N_d^-p_d",
    "Ghorbani et al. 2021, arXiv 2109.07740, for runs of one data size",
    (E, _SIZES),
    (_exponent("p_e"), _exponent("p_d")),
)
ENCODER_DECODER = Law(
    "encoder-decoder",
    "L = E + A N_e^-p_e N_d^-p_d + B/D^beta",
    "Ghorbani et al. 2021, arXiv 2109.07740, with a term for data as Hoffmann et al. 2022 have it",
    (E, _SIZES, Term("B", {"D": "beta"})),
    (_exponent("p_e", 12), _exponent("p_d", 12), _exponent("beta", 12)),
)
BLEU = Law(
    "bleu",
    "BLEU = C e^(k L)",
    "Gordon et al. 2021, EMNLP, Data and Parameter Scaling Laws for Neural Machine Translation",
    (Term("C", {"exp_loss": "minus_k"}),),
    (Shape("minus_k", 0.05, 20.0, 40),),
    target="bleu",
    names=("C", "k"),
    to_paper=lambda plain: {"C": plain["C"], "k": -plain["minus_k"]},
    from_paper=lambda paper: {"C": paper["C"], "minus_k": -paper["k"]},
)
DATA_CONSTRAINED = DataConstrained(
    "data-constrained",
    "L = E + A/N'^alpha + B/D'^beta, N' = U_N (1 + R_N* (1 - e^(-R_N/R_N*))), D' = U (1 + R_D* (1 - e^(-R_D/R_D*)))",
    "Muennighoff et al. 2023, arXiv 2305.16264 (there alpha = beta)",
    CHINCHILLA.terms,
    (_exponent("alpha", 12), _exponent("beta", 12), Shape("R_D*", 2.0, 60.0, 4), Shape("R_N*", 1.0, 30.0, 4)),
)

LAWS = {
    law.name: law
    for law in (
        CHINCHILLA,
        TIED,
        FRONTIER,
        KAPLAN_N,
        KAPLAN_D,
        KAPLAN,
        DATA_CONSTRAINED,
        SATURATING,
        GHORBANI,
        ENCODER_DECODER,
        BLEU,
    )
}


def find_law(name: str) -> Law:
    """The law of this name. Raises BadInput for a name that is not there."""
    if name not in LAWS:
        raise BadInput(f"law: must be one of {', '.join(LAWS)}; got '{name}'")
    return LAWS[name]
