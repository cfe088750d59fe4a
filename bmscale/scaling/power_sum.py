"""What a law says of a budget or of a loss, in closed form: the best N and D, and the tokens that a loss needs.

Every law of N and D here is L = (E + A/N^e_N + B/D^e_D)^p. With C = 6 N D it is least where both terms' slopes balance,
N = G (C/6)^a and D = (C/6)^b/G (Hoffmann et al. 2022, equation 4), and there both terms fall as C^-γ with
γ = e_N e_D/(e_N + e_D). Encoder and decoder take their best shares p_e and p_d of N (Ghorbani et al. 2021); repeated
data is priced at its first pass, where it is the same law.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bmscale.errors import BadInput
from bmscale.scaling.approaches import Optimum
from bmscale.scaling.law import Law


@dataclass(frozen=True)
class PowerSum:
    """A law at its parameters as L = (E + A/N^e_N + B/D^e_D)^p; A or B is 0 where the law has no such term."""

    E: float
    A: float
    e_n: float
    B: float
    e_d: float
    power: float = 1.0
    encoder_share: float | None = None
    """Of N in the encoder, where the law tells encoder and decoder apart."""

    @classmethod
    def of(cls, law: Law, parameters: Mapping[str, float]) -> "PowerSum":
        """Raises BadInput for a law of anything but N (or N_e and N_d) and D."""
        inner = law.given(parameters)
        k = len(law.terms)
        shape, coefficients = np.exp(inner[k:]), np.exp(inner[:k])
        exponents = law.exponents(shape)
        found: dict[str, float] = {"E": 0.0, "A": 0.0, "e_n": 1.0, "B": 0.0, "e_d": 1.0}
        share = None
        for term, coefficient, row in zip(law.terms, coefficients, exponents, strict=True):
            of = {name: float(row[law.columns.index(name)]) for name in term.exponents}
            if not of:
                found["E"] = float(coefficient)
            elif set(of) == {"N"}:
                found |= {"A": float(coefficient), "e_n": of["N"]}
            elif set(of) == {"D"}:
                found |= {"B": float(coefficient), "e_d": of["D"]}
            elif set(of) == {"N_e", "N_d"}:
                p_e, p_d = of["N_e"], of["N_d"]
                share = p_e / (p_e + p_d)
                found |= {"A": float(coefficient * share**-p_e * (1 - share) ** -p_d), "e_n": p_e + p_d}
            else:
                raise BadInput(
                    f"law {law.name}: says nothing of N and D by themselves: it is {law.equation}; choose a law of "
                    "them, such as --law chinchilla"
                )
        power = 1.0 if law.power_index is None else float(shape[law.power_index])
        return cls(**found, power=power, encoder_share=share)

    @property
    def balances(self) -> bool:
        """Whether both N and D matter: otherwise there is no best split."""
        return self.A > 0 and self.B > 0

    @property
    def gamma(self) -> float:
        """How fast both terms fall with compute."""
        return self.e_n * self.e_d / (self.e_n + self.e_d)

    @property
    def _log_g(self) -> float:
        """In logarithms, here and below: the ends of a bootstrap are beyond the range of numbers."""
        if not self.balances:
            raise BadInput("no best N and D: one of the law's terms is 0, so all compute would go to the other")
        terms = math.log(self.e_n) + math.log(self.A) - math.log(self.e_d) - math.log(self.B)
        return terms / (self.e_n + self.e_d)

    def loss(self, N: float, D: float) -> float:
        """At a size and tokens; infinite at none of them, which an extreme draw of the bootstrap asks for."""
        if N <= 0 or D <= 0:
            return math.inf
        return float((self.E + self.A * N**-self.e_n + self.B * D**-self.e_d) ** self.power)

    def at_budget(self, C: float) -> Optimum:
        """The N and D of least loss for C = 6 N D FLOPs. Raises BadInput where N or D does not matter."""
        return self._at(math.log(C))

    def _at(self, log_c: float) -> Optimum:
        log_nd, a = log_c - math.log(6), self.e_d / (self.e_n + self.e_d)
        n, d = _exp(self._log_g + a * log_nd), _exp((1 - a) * log_nd - self._log_g)
        return Optimum(_exp(log_c), n, d, self.loss(n, d))

    def for_loss(self, loss: float) -> Optimum | None:
        """The cheapest N and D that reach a loss; None where none does."""
        log_g = self._log_g
        left = loss ** (1 / self.power) - self.E
        if left <= 0:
            return None
        terms = np.logaddexp(math.log(self.A) - self.e_n * log_g, math.log(self.B) + self.e_d * log_g)
        return self._at(math.log(6) + (float(terms) - math.log(left)) / self.gamma)

    def tokens(self, loss: float, N: float) -> float | None:
        """Tokens with which a model of N parameters reaches a loss; None where it never does."""
        left = loss ** (1 / self.power) - self.E - self.A * N**-self.e_n
        if left <= 0 or self.B == 0:
            return None
        log_d = (math.log(self.B) - math.log(left)) / self.e_d
        return math.exp(log_d) if log_d < 700 else None


def _exp(value: float) -> float:
    """Infinite beyond the range of numbers."""
    return math.exp(value) if value < 709 else math.inf
