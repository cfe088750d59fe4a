"""The command line in this process: a process of its own would spend most of a test on importing torch."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bmscale.cli import main

Run = Callable[..., "Output"]


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """`run("predict", folder, stdin="a line\\n")`: what the command printed; `code` is what it must return."""
    log = logging.getLogger("bmscale")
    for name in ("handlers", "propagate", "level"):  # which the command line sets
        monkeypatch.setattr(log, name, getattr(log, name))

    def run_command(*arguments: object, stdin: str = "", code: int = 0) -> Output:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        returned = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert returned == code, captured.err
        return Output(captured.out, captured.err)

    return run_command
