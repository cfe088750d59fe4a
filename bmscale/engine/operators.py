"""DeepSpeed's C++ operators: which of them a run needs. Each is built once on a machine, by the first that loads it."""

import logging
import sys

import torch

from bmscale.engine.deepspeed_config import DeepSpeedFile, settle_deepspeed

SHARED_MEMORY, ASYNC_IO = "ShareMemCommBuilder", "AsyncIOBuilder"
"""Collectives of ranks on CPUs; reading and writing of states on disk."""


def needed(file: DeepSpeedFile | None) -> list[str]:
    """The operators of a configuration on this machine. AdamW is torch's, so ranks on GPUs need none of their own."""
    zero = file.values["zero_optimization"] if file else {}
    places = [(zero.get(f"offload_{what}") or {}).get("device") for what in ("optimizer", "param")]
    on_cpu = not torch.cuda.is_available() and sys.platform == "linux"  # elsewhere they fall back to gloo
    return [*([SHARED_MEMORY] if on_cpu else []), *([ASYNC_IO] if "nvme" in places else [])]


def load(name: str) -> None:
    """Load an operator, and build it first where that was not done: a minute or more. Raises what DeepSpeed raises."""
    settle_deepspeed()
    quiet = logging.getLogger("torch.utils.cpp_extension")  # warns at length where there is no compiler
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder(name).load(verbose=False)
    finally:
        quiet.setLevel(level)
