"""What the checks found: on one rank, and over all ranks; as lines and for programs."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bmscale.errors import BmscaleError

Status = Literal["ok", "warn", "fail"]
SEVERITY: dict[Status, int] = {"ok": 0, "warn": 1, "fail": 2}

NAME_WIDTH = 13
"""Of the longest name of a check."""
MOST_SHOWN = 3
"""Kinds of trouble that a line shows, and ranks that it names for each."""


@dataclass(frozen=True)
class Finding:
    """What one check found on one rank."""

    check: str
    status: Status
    found: str
    advice: str = ""
    """What to change; empty where `found` says it, and where all is well."""
    alike: str | None = None
    """What was seen here and must be the same on every rank; None where it may differ."""


def attempt(check: str, examine: Callable[[], Finding]) -> Finding:
    """The finding of a check; a failure that says what went wrong where the check itself fails."""
    try:
        return examine()
    except Exception as error:
        return failure(check, error)


def failure(check: str, error: BaseException) -> Finding:
    """An error as a finding: ours are written to be read, of others the first line says most."""
    if isinstance(error, BmscaleError):
        return Finding(check, "fail", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return Finding(check, "fail", f"{type(error).__name__}: {lines[0] if lines else 'no message'}")


@dataclass(frozen=True)
class Report:
    """The findings of one rank."""

    rank: int
    host: str
    findings: Sequence[Finding]

    @property
    def place(self) -> str:
        """`rank 3 on node7`."""
        return f"rank {self.rank} on {self.host}"


@dataclass(frozen=True)
class Line:
    """What one check found over all ranks."""

    check: str
    status: Status
    found: str
    advice: str
    ranks: dict[int, Finding] = field(default_factory=dict)
    """Of each rank that made the check."""

    def to_text(self) -> str:
        """`warn  disk           3 GiB free -> make room`, whatever line breaks were in it."""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.status:<4}  {self.check:<{NAME_WIDTH}}  " + " ".join(f"{self.found}{advice}".split())

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        values = {name: getattr(self, name) for name in ("check", "status", "found", "advice")}
        return {**values, "ranks": {str(rank): asdict(finding) for rank, finding in self.ranks.items()}}


def merged(reports: Sequence[Report]) -> list[Line]:
    """One line a check, in the order in which the checks were made; a check that fails on any rank fails."""
    names = dict.fromkeys(finding.check for report in reports for finding in report.findings)
    return [_merge(name, reports) for name in names]


def _merge(check: str, reports: Sequence[Report]) -> Line:
    found = [(report, finding) for report in reports for finding in report.findings if finding.check == check]
    ranks = {report.rank: finding for report, finding in found}
    worst = max((finding.status for _, finding in found), key=SEVERITY.__getitem__)
    seen = [(report, finding.alike) for report, finding in found if finding.alike is not None]
    other = next((entry for entry in seen if entry[1] != seen[0][1]), None)
    if other is not None and worst != "fail":
        what = "; ".join(f"{report.place} has {alike}" for report, alike in (other, seen[0]))
        return Line(check, "fail", f"must be the same on every rank: {what}", _ALIKE, ranks)
    first = found[0][1]
    if worst == "ok" or len(reports) == 1:
        return Line(check, worst, first.found, first.advice, ranks)
    troubles: dict[tuple[str, str], list[Report]] = {}
    for report, finding in found:
        if finding.status == worst:
            troubles.setdefault((finding.found, finding.advice), []).append(report)
    shown = []
    for (what, _), where in list(troubles.items())[:MOST_SHOWN]:
        shown.append(f"{'every rank' if len(where) == len(reports) else _places(where)}: {what}")
    if len(troubles) > MOST_SHOWN:
        shown.append(f"and {len(troubles) - MOST_SHOWN} more (--json has all)")
    return Line(check, worst, "; ".join(shown), next(iter(troubles))[1], ranks)


_ALIKE = "use nodes of one kind, with one environment and one file system for all of them"


def _places(reports: Sequence[Report]) -> str:
    """`rank 1 on a, rank 2 on a, rank 8 on b and 5 more`."""
    shown = ", ".join(report.place for report in reports[:MOST_SHOWN])
    left = len(reports) - MOST_SHOWN
    return f"{shown} and {left} more" if left > 0 else shown
