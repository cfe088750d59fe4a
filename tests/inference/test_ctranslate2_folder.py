"""How a call is shared among the workers of an engine."""

from types import SimpleNamespace

import pytest

from bmscale.data.workers import cores
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import _workers, batch_tokens, open_ctranslate2_folder, open_engine


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ("1", 1),
        ("3", 3),
        ("4,2", 4),
        ("0", None),
        (None, None),
        ("", None),
        ("abc", None),
        ("-2", None),
        ("²", None),
        ("9" * 30, 1024),
    ],
)
def test_workers_are_as_many_as_the_environment_says(given, workers, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert _workers() == (workers or cores())


@pytest.mark.parametrize(
    ("workers", "lengths", "most", "expected"),
    [
        (1, [5, 5, 5, 5], 100, 20),
        (2, [5, 5, 5, 5], 100, 10),
        (2, [5, 5, 5, 5], 8, 8),
        (2, [5, 5, 5], 100, 8),
        (4, [9, 1, 1, 1], 100, 9),  # no row is divided
        (2, [9], 4, 4),
        (2, [0, 0], 100, 1),  # 0 would mean no bound
        (2, [], 100, 1),
    ],
)
@pytest.mark.parametrize("name", ["num_translators", "num_generators"])
def test_each_worker_has_rows(workers, lengths, most, expected, name):
    assert batch_tokens(SimpleNamespace(**{name: workers}), lengths, most) == expected


def test_a_device_of_no_number_is_refused(wild):
    with pytest.raises(BadInput, match="device: must be auto, cpu, cuda"):
        open_engine(open_ctranslate2_folder(wild.exported), "cuda:²")
