"""Where the papers' data is: BMSCALE_SCALING_DATA, or shared/scaling-data beside the clone."""

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[4] / "shared" / "scaling-data"


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of the published data; tests that need it are skipped by its name where it is absent."""
    given = os.environ.get("BMSCALE_SCALING_DATA")
    folder = Path(given) if given else BESIDE
    if not folder.is_dir():
        assert not given, f"BMSCALE_SCALING_DATA: must be a folder; got '{given}'"
        pytest.skip(f"no published data in {folder} (set BMSCALE_SCALING_DATA)")
    return folder
