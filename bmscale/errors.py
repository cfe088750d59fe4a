"""What can go wrong, as classes; each carries the exit code that a shell or a scheduler reads.

The codes are a contract (README, "Exit codes"): 0 done, 1 failed, 2 bad input, 3 diverged, 4 out of memory,
5 lost rank or hang, 75 preempted (requeue me).
"""

import errno


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


def exit_code(error: BaseException) -> int:
    """The code of any error, those of Python and torch included."""
    if isinstance(error, BmscaleError):
        return error.exit_code
    # torch's own for accelerators, by its name: this file imports no torch. On CPUs it raises a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory.exit_code
    if isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error)):
        return OutOfMemory.exit_code
    if isinstance(error, OSError):
        # A disk that is full is no mistake of the user's; a file that cannot be opened or made is.
        return 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else BadInput.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def message(error: BaseException) -> str:
    """What to say of any error where no traceback says it."""
    if isinstance(error, BmscaleError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}"
    return f"{type(error).__name__}: {error}"
