"""Saving and loading a state takes memory for a few pieces, however large the model.

`bash tests/run.sh --full -s tests/training/test_large_state.py` does it with a billion parameters (20 GiB of RAM, 11 of
disk) and prints what it took; without --full a model of 28 million parameters stands for it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "large_state_worker.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read from Linux's /proc")
def test_memory_is_bounded_by_the_pieces(tmp_path, request):
    size = "1b" if request.config.getoption("--full") else "small"
    result = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path), size, "none"],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    assert found["state_gib"] == pytest.approx(12 * found["parameters"] / 2**30, rel=0.01)
    # Of a parameter its master and moments lie in one file, once as tensors and once as bytes.
    file = max(0.25, 3 * found["largest_piece_gib"]) + 3 * found["largest_piece_gib"]
    assert found["save"][0]["gib_more_at_peak"] < 2 * file + 0.25
    # What is read is mapped from the files, and so counts until the system wants the memory for something else.
    if size == "1b":
        assert found["load"][0]["gib_more_at_peak"] < found["state_gib"] / 2
