"""Shards: what was written is read back, in any batching, and damage is noticed at open."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmscale.data.shards import DocumentShards, DocumentWriter, PairShards, ShardWriter
from bmscale.errors import BadInput

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=9)


def flat(pairs):
    tokens = np.array([i for pair in pairs for side in pair for i in side], dtype=np.uint32)
    lengths = [np.array([len(pair[side]) for pair in pairs], dtype=np.int32) for side in (0, 1)]
    return tokens, *lengths


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(IDS, IDS), max_size=30), shard_tokens=st.integers(1, 60), batch=st.integers(1, 7))
def test_round_trip_does_not_depend_on_batches(tmp_path_factory, pairs, shard_tokens, batch):
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    with ShardWriter(one, 100, shard_tokens) as writer:
        for source, target in pairs:
            writer.add(source, target)
    with ShardWriter(many, 100, shard_tokens) as writer:
        for start in range(0, len(pairs), batch):
            writer.add_batch(*flat(pairs[start : start + batch]))
    shards = PairShards.open(many)
    assert shards.index == PairShards.open(one).index  # SHA-256 of every file among them
    assert [tuple(side.tolist() for side in shards.pair(i)) for i in range(len(shards))] == pairs
    assert shards.source_lengths.tolist() == [len(s) for s, _ in pairs]
    assert shards.target_lengths.tolist() == [len(t) for _, t in pairs]
    assert shards.source_lengths.dtype == shards.target_lengths.dtype == np.int32
    for shard in shards.index["shards"]:
        tokens = shard["bytes"] // 2
        assert tokens <= shard_tokens or any(len(s) + len(t) == tokens for s, t in pairs)


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_smallest_type_that_holds_the_vocabulary(tmp_path, vocabulary_size, dtype):
    with ShardWriter(tmp_path, vocabulary_size) as writer:
        writer.add([vocabulary_size - 1, 2], [5, 2])
        with pytest.raises(ValueError, match="ids must be below"):
            writer.add([vocabulary_size, 2], [2])
        with pytest.raises(ValueError, match="lengths add up to"):
            writer.add_batch(np.zeros(3), np.array([1], np.int32), np.array([1], np.int32))
    source, target = PairShards.open(tmp_path).pair(0)
    assert source.dtype == dtype
    assert (source.tolist(), target.tolist()) == ([vocabulary_size - 1, 2], [5, 2])
    assert not source.flags.writeable


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path, 100, shard_tokens=8) as writer:
        for i in range(5):
            writer.add([i, 2], [i, i, 2])
    return tmp_path


def test_another_process_maps_the_same_files(folder):
    shards = PairShards.open(folder)
    data = pickle.dumps(shards)
    assert len(data) < 500
    assert pickle.loads(data).pair(3)[1].tolist() == [3, 3, 2]
    with pytest.raises(IndexError):
        shards.pair(5)


@pytest.mark.parametrize("name", ["tokens-00001.bin", "offsets.bin", "source_lengths.bin", "target_lengths.bin"])
def test_truncated_and_missing_files_are_noticed(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=rf"{name}: must have .* bytes by index.json, it has"):
        PairShards.open(folder)
    path.unlink()
    with pytest.raises(BadInput, match=rf"{name}: .* it is missing"):
        PairShards.open(folder)


def test_damaged_or_absent_index(folder):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"pairs": 4}))
    with pytest.raises(BadInput, match="do not match 4 pairs"):
        PairShards.open(folder)
    path.write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(BadInput, match="format must be 2, got 99"):
        PairShards.open(folder)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(BadInput, match="damaged index"):
        PairShards.open(folder)
    path.write_text("[" * 100_000)
    with pytest.raises(BadInput, match=r"index\.json: damaged index"):
        PairShards.open(folder)
    path.unlink()
    path.mkdir()  # as unreadable as a file without permission
    with pytest.raises(BadInput, match=r"index\.json: cannot be read: Is a directory"):
        PairShards.open(folder)
    path.rmdir()
    with pytest.raises(BadInput, match="bmscale prepare"):
        PairShards.open(folder)


WRONG: list[object] = [
    None,
    -1,
    1.5,
    True,
    "5",
    [],
    {},
    [{}],
    [{"file": "tokens-00000.bin"}],
    "<f2",
    "<i4",
    "foo",
    10**400,
]


@pytest.mark.parametrize("key", ["format", "dtype", "pairs", "source_tokens", "target_tokens", "lengths", "shards"])
def test_an_index_of_any_other_shape_is_one_bad_input(folder, key):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    for changed in [*({**index, key: value} for value in WRONG), {k: v for k, v in index.items() if k != key}]:
        path.write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=r"index\.json: .*bmscale prepare"):
            PairShards.open(folder)
    entry = {**index["shards"][0], "file": "../tokens-00000.bin"}
    path.write_text(json.dumps({**index, "shards": [entry, *index["shards"][1:]]}))
    with pytest.raises(BadInput, match=r"index\.json: damaged index, shards must be tokens-00000\.bin"):
        PairShards.open(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("source_lengths.bin", [2, 2, 0, 2, 2], "at least 1 token"),
        ("target_lengths.bin", [3, 3, -3, 3, 3], "at least 1 token"),
        ("source_lengths.bin", [2, 2, 2, 2, 3], r"source_lengths\.bin: the lengths must add up to 10 tokens .* are 11"),
        ("target_lengths.bin", [3, 3, 3, 3, 9], r"target_lengths\.bin: the lengths must add up to 15 tokens .* are 21"),
        ("offsets.bin", [0, 5, 10, 15, 21], r"offsets\.bin: damaged: does not follow the lengths"),
        ("offsets.bin", [1, 5, 10, 15, 20], r"offsets\.bin: damaged: does not follow the lengths"),
    ],
)
@pytest.mark.parametrize("at_a_time", [2, 100])
def test_damage_that_keeps_the_size_is_noticed(folder, name, values, message, at_a_time, monkeypatch):
    monkeypatch.setattr("bmscale.data.shards.CHECKED_AT_A_TIME", at_a_time)
    PairShards.open(folder)
    (folder / name).write_bytes(np.array(values, dtype="<i8" if name == "offsets.bin" else "<i4").tobytes())
    with pytest.raises(BadInput, match=message):
        PairShards.open(folder)


@pytest.mark.parametrize("cut", [4, -4])
def test_shards_that_cut_a_pair_are_noticed(folder, cut):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    tokens = b"".join((folder / shard["file"]).read_bytes() for shard in index["shards"])
    index["shards"] = [
        {"file": "tokens-00000.bin", "bytes": len(tokens[:cut]), "sha256": ""},
        {"file": "tokens-00001.bin", "bytes": len(tokens[cut:]), "sha256": ""},
    ]
    (folder / "tokens-00000.bin").write_bytes(tokens[:cut])
    (folder / "tokens-00001.bin").write_bytes(tokens[cut:])
    path.write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"index\.json: damaged: a pair lies across two shards"):
        PairShards.open(folder)


def test_a_failed_writer_leaves_nothing_readable(tmp_path):
    with pytest.raises(ValueError, match="ids must be"), ShardWriter(tmp_path, 100) as writer:
        writer.add([1, 2], [100, 2])
    with pytest.raises(BadInput):
        PairShards.open(tmp_path)


def test_reading_needs_numpy_only():
    code = "import sys, bmscale.data.shards; print([m for m in ('torch', 'datasets', 'pyarrow', 'sentencepiece') if m in sys.modules])"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


DOCUMENTS = [[0, 5, 2], [0, 2], [0, 7, 8, 9, 2], [0, 6, 2]]


@pytest.fixture
def documents(tmp_path):
    with DocumentWriter(tmp_path / "documents", 100, shard_tokens=6) as writer:
        for ids in DOCUMENTS:
            writer.add(ids, 10 * len(ids))
    return tmp_path / "documents"


def test_documents_round_trip_and_pickle(documents, tmp_path):
    with DocumentWriter(tmp_path / "batch", 100, shard_tokens=6) as writer:
        lengths = np.array([len(ids) for ids in DOCUMENTS])
        writer.add_batch(np.concatenate(DOCUMENTS), lengths.astype(np.int32), 10 * lengths)
    shards = DocumentShards.open(documents)
    assert shards.index == DocumentShards.open(tmp_path / "batch").index
    assert (shards.index["documents"], shards.index["tokens"], shards.index["text_bytes"]) == (4, 13, 130)
    assert len(shards.index["shards"]) > 1
    for opened in (shards, pickle.loads(pickle.dumps(shards))):
        assert [opened.document(i).tolist() for i in range(len(opened))] == DOCUMENTS
    assert shards.lengths.tolist() == [3, 2, 5, 3]
    assert shards.text_bytes.tolist() == [30, 20, 50, 30]
    assert shards.lengths.dtype == np.int32
    assert shards.text_bytes.dtype == np.int64
    assert not shards.document(2).flags.writeable
    with pytest.raises(IndexError, match="document 4 of 4"):
        shards.document(4)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("lengths.bin", [3, 2, 5, 0], "at least 1 token"),
        ("lengths.bin", [3, 2, 5, 4], r"lengths\.bin: the lengths must add up to 13 tokens .* are 14"),
        ("text_bytes.bin", [30, 20, 50, 31], r"text_bytes\.bin: the lengths must add up to 130 bytes .* are 131"),
        ("offsets.bin", [0, 3, 5, 11], r"offsets\.bin: damaged: does not follow the lengths"),
        ("offsets.bin", [0, 3, 5], r"offsets\.bin: must have 32 bytes"),
    ],
)
def test_damaged_documents_are_noticed(documents, name, values, message):
    (documents / name).write_bytes(np.array(values, dtype="<i4" if name == "lengths.bin" else "<i8").tobytes())
    with pytest.raises(BadInput, match=message):
        DocumentShards.open(documents)


def test_one_form_is_not_taken_for_the_other(documents, folder):
    with pytest.raises(BadInput, match="must hold documents, it holds pairs"):
        DocumentShards.open(folder)
    with pytest.raises(BadInput, match="must hold pairs, it holds documents"):
        PairShards.open(documents)
