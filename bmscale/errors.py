"""What can go wrong, as classes; each carries the exit code that a shell or a scheduler reads.

The codes are a contract (README, "Exit codes"): 0 done, 1 failed, 2 bad input, 3 diverged, 4 out of memory,
5 lost rank or hang, 75 preempted (requeue me).
"""


class BmscaleError(Exception):
    """A failure with a message made for the person who reads it: shown without a traceback."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = self.exit_code if exit_code is None else exit_code


class BadInput(BmscaleError):
    """A mistake in what was given: the message names file and line or key, what must hold and what was given."""

    exit_code = 2


class Diverged(BmscaleError):
    """Training left the finite numbers and could not go on."""

    exit_code = 3


class OutOfMemory(BmscaleError):
    """The accelerator or the host had no memory left."""

    exit_code = 4


class LostRank(BmscaleError):
    """A rank died or stopped answering."""

    exit_code = 5
