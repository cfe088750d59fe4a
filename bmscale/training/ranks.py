"""RUN/ranks: one small file a rank, which says where it runs and how far it is: to the other ranks, and to scripts."""

import contextlib
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bmscale.experiment import RunFolder


@dataclass(frozen=True)
class RankState:
    """The content of RUN/ranks/rank-NNNNN.json, which is there from the start of a rank to its clean end.

    Times are those of the rank's own clock, in seconds since 1970: only differences mean something elsewhere.
    """

    rank: int
    world_size: int
    host: str
    pid: int
    started: int
    """By which another process under the same number is told apart; see `start_of`."""
    step: int
    """The step being worked on, 1 for the first of the run."""
    phase: str
    turn: int
    """Changes of phase or step up to now. Ranks go through the same ones, so the least is the least far."""
    since: float
    """When the phase began."""
    moved: float
    """When the rank last came forward, within the phase as well."""
    beat: float
    """When this was written."""
    stack: str | None = None
    """Where the rank's code stands, once it has not come forward for long."""
    error: str | None = None
    """The traceback of what ended the rank."""

    @property
    def idle(self) -> float:
        """Seconds without coming forward when this was written."""
        return self.beat - self.moved

    @property
    def name(self) -> str:
        """`rank 1 (node7, process 4711)`."""
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def place(self) -> str:
        """`reading data, step 12`."""
        return f"{self.phase}, step {self.step}"


def _path(run: RunFolder, rank: int) -> Path:
    return run.ranks / f"rank-{rank:05d}.json"


def write(run: RunFolder, state: RankState) -> None:
    """Replace a rank's file in one stroke."""
    run.ranks.mkdir(parents=True, exist_ok=True)
    final = _path(run, state.rank)
    temporary = final.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(state), ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(final)


def read(run: RunFolder, ranks: Iterable[int]) -> dict[int, RankState]:
    """Those of `ranks` that have begun and not come to a clean end."""
    found = {}
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError, TypeError):
            found[rank] = RankState(**json.loads(_path(run, rank).read_bytes()))
    return found


def read_own(run: RunFolder, rank: int) -> RankState | None:
    """What this very process wrote as `rank`; None when it has not begun."""
    state = read(run, [rank]).get(rank)
    own = state is not None and (state.host, state.pid) == (socket.gethostname(), os.getpid()) and not is_gone(state)
    return state if own else None


def remove(run: RunFolder, rank: int) -> None:
    """Take a rank's file away, and the folder with the last one."""
    _path(run, rank).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        run.ranks.rmdir()


def clear(run: RunFolder) -> None:
    """Forget the ranks of earlier starts. Before any rank of this one writes."""
    for path in run.ranks.glob("rank-*"):
        path.unlink(missing_ok=True)


def start_of(pid: int) -> int | None:
    """When a process of this machine began (Linux: clock ticks since boot; 0 elsewhere); None when it is no more."""
    if sys.platform == "linux":
        try:
            # proc(5): the name in parentheses may hold anything; after it come the state and, as field 22, the start.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else int(fields[19])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def is_gone(state: RankState) -> bool:
    """Whether a rank's process has ended. Of another machine nobody knows: False."""
    return state.host == socket.gethostname() and start_of(state.pid) != state.started


def on_this_node(rank: int) -> range:
    """The ranks beside `rank` under its launcher, itself included: launchers number a node's ranks in a row."""
    first = rank - int(os.environ.get("LOCAL_RANK", "0"))
    return range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
