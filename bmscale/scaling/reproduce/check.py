"""Published against ours: one figure, the tolerance it must be within, and all figures of a paper with its plot."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Check:
    """A figure of ours must lie between `low` and `high`, both included."""

    quantity: str
    published: str
    ours: float
    low: float
    high: float
    tolerance: str
    digits: int = 4

    @property
    def passed(self) -> bool:
        """False for what is no number, too."""
        return self.low <= self.ours <= self.high

    def to_dict(self) -> dict[str, Any]:
        """For JSON; infinite bounds and what is no number are null."""
        plain = {"ours": self.ours, "low": self.low, "high": self.high}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        said = {"quantity": self.quantity, "published": self.published, "tolerance": self.tolerance}
        return {**said, **finite, "passed": self.passed}


def relative(quantity: str, published: float, ours: float, share: float, digits: int = 4) -> Check:
    """Within ± `share` of the published figure."""
    room = share * abs(published)
    text = f"± {100 * share:g} %"
    return Check(quantity, f"{published:.10g}", ours, published - room, published + room, text, digits)


def absolute(quantity: str, published: float, ours: float, room: float, digits: int = 4) -> Check:
    """Within ± `room` of the published figure."""
    return Check(quantity, f"{published:.10g}", ours, published - room, published + room, f"± {room:g}", digits)


def at_most(quantity: str, published: str, ours: float, most: float, digits: int = 4) -> Check:
    """No more than `most`."""
    return Check(quantity, published, ours, -math.inf, most, f"<= {most:.{digits}f}".rstrip("0"), digits)


def between(quantity: str, published: str, ours: float, low: float, high: float, digits: int = 4) -> Check:
    """From `low` to `high`."""
    return Check(quantity, published, ours, low, high, f"{low:g} to {high:g}", digits)


@dataclass(frozen=True)
class Reproduction:
    """What one paper published, what its data gives here, and a picture like the paper's."""

    paper: str
    citation: str
    checks: tuple[Check, ...]
    draw: "Callable[[Figure], None]"
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every figure is within its tolerance."""
        return all(check.passed for check in self.checks)

    def table(self) -> str:
        """The figures under each other, for people."""
        header = ("", "published", "ours", "tolerance", "")
        rows = [
            (c.quantity, c.published, f"{c.ours:.{c.digits}f}", c.tolerance, "ok" if c.passed else "OUTSIDE")
            for c in self.checks
        ]
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = [f"{self.paper}: {self.citation}"]
        for row in [header, *rows]:
            cells = [
                text.ljust(width) if i in (0, 3) else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = [check.to_dict() for check in self.checks]
        return {
            "paper": self.paper,
            "citation": self.citation,
            "passed": self.passed,
            "checks": checks,
            "notes": list(self.notes),
        }
