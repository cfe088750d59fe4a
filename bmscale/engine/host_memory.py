"""How a process that computes on CPU keeps its memory between tensors."""

import contextlib
import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""

SMALLEST_RETURNED = 2**20
"""Bytes from which `give_back` returns a freed tensor's memory."""

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
    mallopt = _mallopt()
    # Before glibc 2.35 no larger threshold is taken than the second.
    kept = mallopt(_MMAP_THRESHOLD, LARGEST_KEPT) or mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    return bool(mallopt(_TRIM_THRESHOLD, MOST_KEPT) and kept)


def give_back() -> bool:
    """Return the memory of every freed tensor of `SMALLEST_RETURNED` at once, where the C library is glibc; returns
    whether it will.

    Left to itself glibc soon keeps all below 32 MiB, and where tensors of many sizes come and go, as when ZeRO-3
    gathers parameters, what lies between two that live is lost: a billion of them left 2.5 GiB of such holes.
    """
    return bool(_mallopt()(_MMAP_THRESHOLD, SMALLEST_RETURNED))


def _mallopt() -> Callable[[int, int], int]:
    """That of the C library, or one that does nothing and says so."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
            return found
    return lambda number, value: 0
