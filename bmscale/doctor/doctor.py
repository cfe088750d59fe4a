"""`bmscale doctor`: is the machine well, do the ranks reach each other, does the engine do what was asked?

1. each rank looks at its machine, and at what the experiment asks of it;
2. the ranks meet over the launcher's store and exchange what they found;
3. they start the process group as training would, and measure an all-reduce;
4. with an experiment, they take three steps of a tiny model.

Whatever can still be checked is, when something has failed; nothing is waited for without a limit.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import IO, TYPE_CHECKING

from bmscale.doctor import packages
from bmscale.doctor.findings import Finding, Line, Report, attempt, failure, merged
from bmscale.doctor.meeting import GRACE, GivenUp, Meeting, Worker, not_met
from bmscale.errors import BadInput, LostRank

if TYPE_CHECKING:
    from bmscale.doctor.checks import Checks

log = logging.getLogger("bmscale")

CHECK_SECONDS, BUILD_SECONDS = 120.0, 900.0
"""For one look at the machine, and for DeepSpeed's operators to be built."""
TRIAL_TIMES = 3
"""The steps of the tiny model may take so many times as long as other stages."""
NEEDED = {"launcher", "ranks", "operators", "deepspeed", "engine", "all-reduce"}
"""Checks that must not fail on any rank for all of them to do more together."""
UNKNOWN = "an unknown host"


def doctor(config: str | None, overrides: Sequence[str], *, seconds: float, as_json: bool) -> int:
    """Make all checks, print a line for each on rank 0, and return 1 where one failed, else 0.

    `seconds` is how long ranks may take to meet, and for each stage that they go through together. Raises BadInput for
    an experiment that cannot be read.
    """
    if not 0 < seconds < float("inf"):
        raise BadInput(f"--seconds: must be above 0; got {seconds:g}")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what c10d warns of, with its stack, the checks say
    with _own_stdout() as out:
        visit = _Visit(out, as_json, seconds)
        absent = list(packages.missing())
        if absent:
            missing = Finding("machine", "fail", f"cannot be looked at without {', '.join(absent)}")
            visit.show([attempt("versions", packages.check_versions), missing])
            return visit.end()
        from bmscale.doctor.checks import Checks
        from bmscale.experiment import read_experiment

        experiment = None if config is None else read_experiment(config, list(overrides))
        try:
            with _told_of_the_end():
                visit.make(Checks(experiment, dict(os.environ)))
        except _Ended:
            visit.gave_up = True
            visit.show(
                [
                    Finding(
                        "ranks",
                        "fail",
                        "the launcher ended this rank: another one has died, and the launcher says which",
                    )
                ]
            )
        return visit.end()


class _Ended(Exception):
    """SIGTERM came."""


@contextlib.contextmanager
def _told_of_the_end() -> Iterator[None]:
    """A launcher ends its other ranks when one dies: what was found until then is still said."""

    def end(*_: object) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _own_stdout() -> Iterator[IO[str]]:
    """Standard output for the lines alone: what libraries and compilers write to it goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="replace") as out:
            yield out
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class _Visit:
    """One run of the command on one rank: what has been found so far, and who is there."""

    def __init__(self, out: IO[str], as_json: bool, seconds: float) -> None:
        self._out, self._as_json, self._seconds = out, as_json, seconds
        rank = os.environ.get("RANK", "0")
        self.rank, self.host = int(rank) if rank.isdigit() else 0, socket.gethostname()
        self.lines: list[Line] = []
        self.worker, self.meeting = Worker(), Meeting(None, self.rank, 1)
        self.gave_up = False
        """Whether a thread still waits for something: the process must be ended hard then."""
        self.hosts = {self.rank: self.host}

    def make(self, checks: "Checks") -> None:
        """All checks, in their order."""
        findings = [self.alone(name, check) for name, check in checks.alone().items()]
        try:
            # With a limit of our own: what listens at the port may be no store, and never answer.
            meet = partial(Meeting.of_launch, self.rank, checks.world_size, self._seconds)
            self.meeting = self.worker.do(meet, self._seconds + GRACE)
            self.hosts = self.meeting.exchange("hosts", self.host, self._seconds)
            findings.append(self.who_came())
        except LostRank as error:
            findings.append(failure("ranks", not_met(checks.world_size, self._seconds) if self.worker.stuck else error))
            self.gave_up = self.gave_up or self.worker.stuck
        self.share("machine", findings, BUILD_SECONDS)
        for name, check in checks.together().items():
            self.together(name, check, self._seconds * (TRIAL_TIMES if name == "trial" else 1))
        if not self.gave_up:
            self.worker.do(checks.leave, GRACE)

    def alone(self, name: str, check: Callable[[], Finding]) -> Finding:
        """What one check finds on this rank."""
        limit = BUILD_SECONDS if name == "operators" else CHECK_SECONDS
        found = attempt(name, partial(self.worker.do, check, limit))
        if self.worker.stuck:  # in a file system that is gone, mostly: the next check has a thread of its own
            self.gave_up, self.worker = True, Worker()
        return found

    def who_came(self) -> Finding:
        """Whether all ranks have come."""
        absent = sorted(set(range(self.meeting.world_size)) - set(self.hosts))
        if absent:
            shown = ", ".join(str(rank) for rank in absent[:8]) + (" …" if len(absent) > 8 else "")
            found = (
                f"{len(absent)} of {self.meeting.world_size} ranks did not come within {self._seconds:.0f} s: {shown}"
            )
            return Finding("ranks", "fail", found, "look at what they say; --seconds waits longer")
        hosts = len(set(self.hosts.values()))
        return Finding("ranks", "ok", f"all {len(self.hosts)} on {hosts} host{'s' if hosts > 1 else ''}")

    def together(self, name: str, check: Callable[[], Sequence[Finding]], seconds: float) -> None:
        """A stage that every rank goes through at once. A rank that fails tells the others, who would wait for it."""
        failed = next((line.check for line in self.lines if line.status == "fail" and line.check in NEEDED), None)
        if failed is not None:
            self.share(name, [Finding(name, "warn", f"not tried, since {failed} failed")], seconds)
            return
        try:
            findings = self.worker.do(check, seconds, lambda: self.meeting.broken(name))
        except Exception as error:
            if not isinstance(error, GivenUp):  # the others have limits of their own
                self.meeting.say_broken(name, self.place(self.rank))
            findings = [failure(name, error)]
        self.gave_up = self.gave_up or self.worker.stuck
        self.share(name, findings, GRACE + seconds)

    def share(self, topic: str, findings: Sequence[Finding], seconds: float) -> None:
        """Exchange what was found, and show it. Ranks that are silent now have failed."""
        before = self.meeting.present
        said = self.meeting.exchange(topic, [asdict(finding) for finding in findings], seconds)
        found = {rank: [Finding(**values) for values in words] for rank, words in sorted(said.items())}
        lost = [self.place(rank) for rank in sorted(before - self.meeting.present)]
        if lost:
            advice = "look at what they say, and at their nodes"
            found[self.rank].append(Finding("ranks", "fail", f"no word of {', '.join(lost)} after {topic}", advice))
        reports = [Report(rank, self.hosts.get(rank, UNKNOWN), findings) for rank, findings in found.items()]
        self.show(reports)

    def place(self, rank: int) -> str:
        """`rank 3 on node7`."""
        return f"rank {rank} on {self.hosts.get(rank, UNKNOWN)}"

    def show(self, found: Sequence[Finding] | Sequence[Report]) -> None:
        """Say on rank 0 what was found, on this rank or on all."""
        reports = [one for one in found if isinstance(one, Report)]
        findings = [one for one in found if isinstance(one, Finding)]
        new = merged(reports or [Report(self.rank, self.host, findings)])
        self.lines += new
        if self.rank == 0 and not self._as_json:
            self._out.writelines(f"{line.to_text()}\n" for line in new)
            self._out.flush()

    def end(self) -> int:
        """Say the rest, and return the exit code. Ends the process itself where work was given up."""
        statuses = [line.status for line in self.lines]
        counts = {status: statuses.count(status) for status in ("ok", "warn", "fail")}
        if self.rank == 0:
            if self._as_json:
                checks = [line.to_dict() for line in self.lines]
                values = {"ok": not counts["fail"], "hosts": self.hosts, "checks": checks}
                self._out.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
            self._out.flush()
            log.info("%d checks: %d ok, %d warnings, %d failed", len(statuses), *counts.values())
        elif 0 not in self.meeting.present:  # who cannot say it
            for line in self.lines:
                if line.status == "fail":
                    log.error("rank %d on %s: %s", self.rank, self.host, line.to_text())
        # A launcher ends all ranks as soon as one has failed: the first rank must have said all before.
        self.meeting.exchange("end", None, GRACE)
        code = 1 if counts["fail"] else 0
        if self.gave_up:
            sys.stderr.flush()
            os._exit(code)
        return code
