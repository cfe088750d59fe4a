"""How a process that computes on CPU keeps its memory between tensors."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""

LARGEST_KEPT = 128 * 2**20
"""Bytes up to which a freed tensor's memory is kept for the next one; what is larger goes back to the system."""

MOST_KEPT = 512 * 2**20
"""Bytes that may lie free at the end of the heap before they go back to the system. (A tensor does not always fit where
one of its size lay, for its alignment, so that this much may well be used.)"""


def keep() -> bool:
    """Keep the memory of freed tensors for later ones, where the C library is glibc; returns whether it will.

    By default glibc hands what is above 32 MiB back to the kernel at every free, and the next tensor of that size pays
    a page fault for each 4 KiB, in which the kernel fills it with zeros: a tenth of a small model's training step.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # Before glibc 2.35 no larger threshold is taken than the second.
    kept = mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    return bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT) and kept)
