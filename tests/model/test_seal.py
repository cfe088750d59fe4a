"""Bytes that changed are found, by their file."""

import json
from typing import Any

import pytest

from bmscale.errors import BadInput
from bmscale.model.seal import check_files, seal


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "vocabulary.json").write_bytes(b"[]")
    (tmp_path / "empty").touch()
    return tmp_path


def test_what_was_sealed_passes(folder):
    record = json.loads(json.dumps(seal(folder)))
    assert set(record["files"]) == {"model.bin", "vocabulary.json", "empty"}
    (folder / "README.md").touch()  # what came later is no matter
    check_files(folder, record)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"weighty", r"model\.bin: damaged or changed: its SHA-256"),
        (b"weight", r"model\.bin: damaged: must have 7 bytes; has 6; copy the folder again"),
        (None, r"model\.bin: missing"),
    ],
)
def test_what_changed_is_named(folder, content, message):
    record = seal(folder)
    (folder / "model.bin").unlink()
    if content is not None:
        (folder / "model.bin").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        check_files(folder, record)


def test_records_of_earlier_versions_and_damaged_ones(folder):
    for record in (None, {}, {"compute_type": "int8"}):
        check_files(folder, record)
    damaged: list[Any] = [None, {}, {"bytes": "7"}, []]
    for kept in damaged:
        with pytest.raises(BadInput, match=r"its record of model\.bin must have bytes and sha256"):
            check_files(folder, {"files": {"model.bin": kept}})
    with pytest.raises(BadInput, match="damaged or changed"):
        check_files(folder, {"files": {"model.bin": {"bytes": 7}}})
