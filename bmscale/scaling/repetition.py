"""Repeated data: what tokens are worth that were read before, and parameters beyond what unique tokens pay for."""

from functools import cached_property

import numpy as np

from bmscale.scaling.law import Array, Law


def _excess(log_all: Array, log_unique: Array) -> Array:
    """all/unique − 1; beyond e^50 nothing changes any more, and nothing overflows."""
    return np.expm1(np.minimum(log_all - log_unique, 50.0))


def _saturated(excess: Array, scale: Array) -> Array:
    """1 + R*(1 − e^{−R/R*}): how many times the first pass `excess` = R further passes are worth."""
    return 1 - scale * np.expm1(-excess / scale)


class DataConstrained(Law):
    """Muennighoff et al. 2023: Chinchilla's law on effective parameters N' and tokens D'.

    U is the number of unique tokens (at most D); U_N = min(N, the compute-optimal N for U tokens), that is where
    α A U_N^-α = β B U^-β. R_D = D/U − 1 epochs and R_N = N/U_N − 1 count what is in excess; each of them decays in
    value with the constants R_D* and R_N*. Columns N, D, U; terms E, A, B; shapes alpha, beta, R_D*, R_N*.
    """

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return ("N", "D", "U")

    def origin(self, log_x: Array) -> Array:
        """D and U keep a common origin: their ratio counts."""
        n, d, _ = log_x.mean(axis=0)
        return np.array([n, d, d])

    def _unique(self, log_c: Array | None, shape: Array, log_x: Array) -> tuple[Array, Array]:
        """(…, rows) log U_N and log U_D. Without coefficients no parameters are in excess."""
        log_n, log_d, log_u = log_x.T
        unique_d = np.minimum(log_d, log_u)
        if log_c is None:
            return np.broadcast_to(log_n, (*shape.shape[:-1], len(log_n))), unique_d
        alpha, beta = shape[..., 0:1], shape[..., 1:2]
        balance = np.log(alpha) + log_c[..., 1:2] - np.log(beta) - log_c[..., 2:3]
        with np.errstate(invalid="ignore"):
            best = (balance + beta * unique_d) / alpha
        # A coefficient of 0 leaves no optimum: then nothing is in excess.
        return np.where(best < log_n, best, log_n), unique_d

    def effective(self, log_c: Array | None, shape: Array, log_x: Array) -> Array:
        """(…, rows, 3): log N', log D', log U."""
        unique_n, unique_d = self._unique(log_c, shape, log_x)
        n = unique_n + np.log(_saturated(_excess(log_x[:, 0], unique_n), shape[..., 3:4]))
        d = unique_d + np.log(_saturated(_excess(log_x[:, 1], unique_d), shape[..., 2:3]))
        return np.stack(np.broadcast_arrays(n, d, log_x[:, 2]), axis=-1)

    def log_predict(self, inner: Array, log_x: Array) -> tuple[Array, Array]:
        """log y and its derivative, through U_N as well."""
        shape = np.exp(inner[3:])
        log_c = inner[:3]
        y, slopes = super().log_predict(inner, self.effective(log_c, shape, log_x))
        alpha, beta, scale_d, scale_n = shape
        unique_n, unique_d = self._unique(log_c, shape, log_x)
        excess_n, excess_d = _excess(log_x[:, 0], unique_n), _excess(log_x[:, 1], unique_d)
        by_n, by_d = -alpha * slopes[:, 1], -beta * slopes[:, 2]  # d log y by log N' and log D'
        for column, by, excess, scale in ((5, by_d, excess_d, scale_d), (6, by_n, excess_n, scale_n)):
            decay = np.exp(-excess / scale)
            slopes[:, column] += by * scale * (1 - decay - excess / scale * decay) / _saturated(excess, scale)
        worth = _saturated(excess_n, scale_n)
        by_unique = by_n * np.where(excess_n > 0, 1 - (excess_n + 1) * np.exp(-excess_n / scale_n) / worth, 0.0)
        slopes[:, 1] += by_unique / alpha
        slopes[:, 2] -= by_unique / alpha
        slopes[:, 3] += by_unique * (1 / alpha - unique_n)
        slopes[:, 4] += by_unique * (beta * unique_d - 1) / alpha
        return y, slopes
