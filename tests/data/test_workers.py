"""Worker processes: order, bounded memory, errors."""

import os

import pytest

from bmscale.data.workers import Workers
from bmscale.errors import BadInput, BmscaleError


def _crash(_: int) -> int:
    os._exit(9)


def _square(number: int) -> int:
    return number * number


def _wrong(number: int) -> int:
    if number == 30:
        raise BadInput("thirty")
    return number


def test_worker_processes_keep_order_bound_memory_and_pass_errors_on():
    drawn = []

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    with Workers(2) as pool:
        results = pool.map(_square, items())
        assert next(results) == 0
        assert len(drawn) <= 8  # the input is not read ahead without bound
        assert list(results) == [i * i for i in range(1, 100)]
        with pytest.raises(BadInput, match="thirty"):
            list(pool.map(_wrong, range(100)))
        with pytest.raises(BmscaleError, match="worker process was killed"):
            list(pool.map(_crash, range(4)))
