import os
import shutil
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


GAPS = """
import torch
from bmscale.engine import host_memory
assert host_memory.keep()
held, least = [], host_memory.peak()
for number in range(400):
    torch.ones(2**20)  # 4 MiB, freed before the next
    held.append(torch.ones(()))  # a small one that stays
print(host_memory.peak() - least, torch.ones(2**20).data_ptr() % 4096)
"""

PEAK = """
import subprocess, sys
import torch
from bmscale.engine import host_memory
kept = torch.ones(2**27)
own = [sys.executable, "-c", "from bmscale.engine import host_memory; print(host_memory.peak())"]
print(host_memory.peak(), subprocess.run(own, capture_output=True, text=True, check=True).stdout)
"""


def numbers(program: str) -> list[int]:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("c++") is None, reason="the region is built by a compiler")
def test_a_tensor_fits_where_one_of_its_size_lay():
    """In glibc's heap small tensors that stay keep it from it, and each of these takes 4 MiB more."""
    grown, behind_a_page = numbers(GAPS)
    assert grown < 32 * 2**20
    assert behind_a_page == 0


UNBUILT = """
from bmscale.engine import host_memory
kept = host_memory.keep()
print(int(kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="there is a region on Linux only")
@pytest.mark.parametrize("how", ["no compiler", "one that fails", "no folder", "few addresses"])
def test_without_a_region_tensors_stay_in_the_heap_and_it_is_said(how, tmp_path):
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    if how == "no folder":
        environment["TORCH_EXTENSIONS_DIR"] = str(tmp_path / "file")
        (tmp_path / "file").touch()
    elif how != "few addresses":
        environment["CXX"] = "nothing-of-that-name" if how == "no compiler" else "false"
    limited = f"ulimit -v {24 * 2**20}; " if how == "few addresses" else ""  # KiB
    command = f'{limited}exec "{sys.executable}" -c "$PROGRAM"'
    environment["PROGRAM"] = UNBUILT
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=True)
    assert "tensors stay in the C library's heap" in done.stderr
    assert done.stdout == "1\n"


SHAPES = """
import torch
from bmscale.engine import host_memory
assert host_memory.keep()
weight, least = torch.ones(256, 256, dtype=torch.bfloat16), host_memory.peak()
for rows in range(1, 800):
    torch.nn.functional.linear(torch.ones(rows, 256, dtype=torch.bfloat16), weight)
print(host_memory.peak() - least, host_memory.PRIMITIVES_KEPT)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a measurement of Linux")
def test_products_of_many_shapes_do_not_pile_up():
    """About 0.65 MB each, of which oneDNN would keep a thousand."""
    grown, kept = numbers(SHAPES)
    assert grown < 1.5 * kept * 2**20 < 0.3 * 800 * 2**20


SHUFFLED = """
import random, threading
import torch
from bmscale.engine import host_memory
assert host_memory.keep()

def shuffle(seed):
    draw, held = random.Random(seed), []
    for number in range(600):
        if held and draw.random() < 0.5:
            value, tensor = held.pop(draw.randrange(len(held)))
            assert bool((tensor == value).all())
        else:
            held.append((number, torch.full((draw.randint(1, 300_000),), float(number))))
    assert all(bool((tensor == value).all()) for value, tensor in held)
    done.append(seed)

done = []
torch.set_num_threads(1)
threads = [threading.Thread(target=shuffle, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("c++") is None, reason="the region is built by a compiler")
def test_no_tensor_lies_in_another():
    assert numbers(SHUFFLED) == [4]


def test_the_peak_is_the_process_own():
    parent, child = numbers(PEAK)
    assert parent > 2**29 > child > 2**26


def faults(what: str) -> int:
    """Page faults that eight tensors of some 60 MiB take one after the other."""
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, what], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_freed_tensor_leaves_its_memory_to_the_next() -> None:
    assert faults("keep") < faults("leave") / 10
