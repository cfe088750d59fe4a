"""Memory as an allocator gives it out: blocks, the gaps between them, and what of it was ever written.

Whole pages, the lowest gap that is large enough, else the end: as engine/host_memory.cpp does it on CPU. PyTorch's
allocator for GPUs takes other gaps; of it only what lives is of interest.
"""

import bisect
import math
from collections import Counter
from dataclasses import dataclass

PAGE = 4096


@dataclass
class Block:
    """Memory that somebody holds."""

    part: str
    """What it is for."""
    address: int
    size: float
    written: float
    """Bytes from its beginning: those never written take no memory on CPU."""


class Space:
    """Blocks in one line of addresses, from 0."""

    def __init__(self) -> None:
        self.end = 0
        self.live: Counter[str] = Counter()
        """Written bytes by part."""
        self.peak: dict[str, float] = {}
        """`live` when it was most."""
        self._most = 0.0
        self._gaps: list[tuple[int, int]] = []  # address and size, none touches another or the end
        self._written = 0.0  # highest address that ever was
        self._virgin: list[tuple[float, float]] = []  # from, to: below it, never written

    @property
    def resident(self) -> float:
        """Bytes that were ever written, which is what a process has taken of the system."""
        return self._written - sum(to - start for start, to in self._virgin)

    def take(self, part: str, size: float, written: float | None = None) -> Block:
        """A block; all of it is written unless told otherwise."""
        block = Block(part, self._place(size), size, 0.0)
        self.write(block, size if written is None else written)
        return block

    def write(self, block: Block, written: float) -> None:
        """Its first bytes are written, as far as they were not yet."""
        more = min(written, block.size) - block.written
        if more <= 0:
            return
        start, to = block.address + block.written, block.address + block.written + more
        block.written += more
        left = [(a, b) for a, b in self._virgin if b <= start or a >= to]
        cut = [piece for a, b in self._virgin if b > start and a < to for piece in ((a, start), (to, b))]
        self._virgin = left + [(a, b) for a, b in cut if a < b]
        if start > self._written:
            self._virgin.append((self._written, start))
        self._written = max(self._written, to)
        self.live[block.part] += more  # type: ignore[assignment]
        total = sum(self.live.values())
        if total > self._most:
            self._most, self.peak = total, dict(self.live)

    def free(self, *blocks: Block) -> None:
        """Give blocks back."""
        for block in blocks:
            self.live[block.part] -= block.written  # type: ignore[assignment]
            start, size = block.address, _pages(block.size)
            if not size:
                continue
            at = bisect.bisect(self._gaps, (start, 0))
            if at < len(self._gaps) and self._gaps[at][0] == start + size:
                size += self._gaps.pop(at)[1]
            if at and sum(self._gaps[at - 1]) == start:
                at -= 1
                before = self._gaps.pop(at)
                start, size = before[0], before[1] + size
            if start + size == self.end:
                self.end = start
            else:
                self._gaps.insert(at, (start, size))

    def _place(self, bytes_: float) -> int:
        size = _pages(bytes_)
        if not size:
            return self.end
        for at, (start, room) in enumerate(self._gaps):
            if room >= size:
                self._gaps[at : at + 1] = [(start + size, room - size)] if room > size else []
                return start
        self.end += size
        return self.end - size


def _pages(size: float) -> int:
    """The bytes of whole pages that hold so many."""
    return math.ceil(size / PAGE) * PAGE
