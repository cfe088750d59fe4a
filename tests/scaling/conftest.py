"""Where the papers' data is: BMSCALE_SCALING_DATA, or shared/scaling-data beside the clone; and runs of a known law."""

import os
from pathlib import Path

import numpy as np
import pytest

from bmscale.scaling.laws import CHINCHILLA
from bmscale.scaling.reading import open_table
from bmscale.scaling.tables import Table

BESIDE = Path(__file__).parents[3] / "shared" / "scaling-data"
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of the published data; tests that need it are skipped by its name where it is absent."""
    given = os.environ.get("BMSCALE_SCALING_DATA")
    folder = Path(given) if given else BESIDE
    if not folder.is_dir():
        assert not given, f"BMSCALE_SCALING_DATA: must be a folder; got '{given}'"
        pytest.skip(f"no published data in {folder} (set BMSCALE_SCALING_DATA)")
    return folder


@pytest.fixture(scope="session")
def chinchilla(published) -> Table:
    """The 240 points that Besiroglu et al. 2024 kept of Hoffmann's."""
    return open_table(published / "chinchilla" / "points.csv", drop=["rows=1-5"])


def grid(budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes: int = 7, span: float = 2.0) -> dict[str, np.ndarray]:
    """N, D and C of an isoFLOP grid around N = √(C/120), sizes from 2^-span to 2^span times that."""
    compute = np.repeat(np.array(budgets), sizes)
    n = np.sqrt(compute / 120) * np.tile(2.0 ** np.linspace(-span, span, sizes), len(budgets))
    return {"N": n, "D": compute / (6 * n), "C": compute}


def runs(noise: float = 0.003, seed: int = 0, **shape) -> Table:
    """A table of a grid whose loss is Chinchilla's law at TRUTH, times exp(noise)."""
    columns = grid(**shape)
    loss = CHINCHILLA.predict(TRUTH, columns)
    generator = np.random.default_rng(seed)
    return Table("made", {**columns, "loss": loss * np.exp(noise * generator.standard_normal(len(loss)))})
