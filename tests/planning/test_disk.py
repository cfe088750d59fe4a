"""The disk of offloaded states, measured."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bmscale.planning import disk


def test_a_folder_is_measured_and_left_as_it_was(tmp_path):
    found = disk.measure(tmp_path, seconds=0.02)
    assert found is not None
    assert found.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)  # others write to it as well
    for rate in (found.read, found.write):
        assert 1e5 < rate < 1e12
    assert min(found.read, found.write) <= found.bandwidth <= max(found.read, found.write)
    assert str(tmp_path) in found.source
    assert not list(tmp_path.iterdir())


def test_without_room_or_folder_there_is_no_disk(tmp_path, monkeypatch):
    assert disk.measure(tmp_path / "missing", seconds=0.02) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk.SPARE))
    assert disk.measure(tmp_path, seconds=0.02) is None


def test_the_place_is_the_one_that_is_named_else_that_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert disk.place("$SCRATCH", Path("runs/x")) == tmp_path
    assert disk.place(None, tmp_path / "runs/x") == tmp_path
    (tmp_path / "runs").mkdir()
    assert disk.place(None, tmp_path / "runs/x") == tmp_path / "runs"
