"""What matrix products reach on this machine: the peak that MFU is taken against."""

import json
import subprocess
import sys
import time

import torch

from bmscale.benchmark.process import environment
from bmscale.errors import BmscaleError

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Edges of the square matrices that are tried; the fastest counts."""

SECONDS = 1.5
"""How long each size is tried."""


def measure(dtype: torch.dtype, device: str, seconds: float = SECONDS) -> float:
    """The fastest product of square matrices that this process sees (FLOP/s, a multiply-add as two)."""
    best = 0.0
    for edge in SIZES[device]:
        one, other = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        repeats = 1 if device == "cpu" else 20
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            _wait(device)
            begun = time.perf_counter()
            for _ in range(repeats):
                torch.mm(one, other)
            _wait(device)
            best = max(best, repeats * 2 * edge**3 / (time.perf_counter() - begun))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_ranks(precision: str, ranks: int, threads: int) -> float:
    """The sum over so many processes at once, each with so many threads (FLOP/s). Raises BmscaleError."""
    command = [sys.executable, "-m", "bmscale.benchmark.peak", precision]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=environment(threads))
        for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise BmscaleError("the peak of matrix products could not be measured; the reason stands above")
    return sum(json.loads(answer) for answer in answers)


if __name__ == "__main__":
    device = "cpu"
    if torch.cuda.is_available():
        device = "cuda"
        torch.cuda.set_device(int(sys.argv[2]))
    print(measure({"fp32": torch.float32, "bf16": torch.bfloat16}[sys.argv[1]], device))
