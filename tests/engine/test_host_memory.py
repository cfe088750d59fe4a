import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from bmscale.engine import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(8):
    torch.ones(2**24 - 2**20 - number * 2**14)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    """Page faults that eight tensors of some 60 MiB take one after the other."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, what], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_freed_tensor_leaves_its_memory_to_the_next() -> None:
    assert faults("keep") < faults("leave") / 10
