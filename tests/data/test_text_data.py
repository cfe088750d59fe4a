"""`prepare` of documents and labelled texts: nothing lost, the same bytes whatever the workers, mistakes told early."""

import json
import lzma
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from bmscale.data import text_data as module
from bmscale.data.manifest import format_report, load_manifest
from bmscale.data.prepare import DataConfig, prepare
from bmscale.data.shards import DocumentShards, PairShards
from bmscale.data.text_data import DocumentDataConfig, LabelledDataConfig
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput

VALID = ["A document\n\n  with ▁ lines.\t", "\ud83d half a character", "<s> é </s>"]


def make_documents(count=300, seed=0):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 8))) for _ in range(200)]
    return ["\n".join("  ".join(draw.choices(words, k=6)) for _ in range(draw.randint(1, 4))) for _ in range(count)]


def make_labelled(count=300, seed=0):
    return [(text, ("neg", "pos", "other")[i % 3]) for i, text in enumerate(make_documents(count, seed))]


def write_rows(path, rows, keys=("text",)):
    """JSONL of texts, or of tuples in the order of the keys."""
    tuples = [row if isinstance(row, tuple) else (row,) for row in rows]
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in tuples))
    return str(path)


def write_labelled(path, rows):
    return write_rows(path, rows, ("text", "label"))


@pytest.fixture
def documents(tmp_path):
    return {
        "directory": str(tmp_path / "data"),
        "train": write_rows(tmp_path / "train.jsonl", make_documents()),
        "valid": write_rows(tmp_path / "valid.jsonl", VALID),
        "tokenizer": {"vocabulary_size": 400},
    }


@pytest.fixture
def labelled(tmp_path):
    return {
        "directory": str(tmp_path / "data"),
        "train": write_labelled(tmp_path / "train.jsonl", make_labelled()),
        "valid": write_labelled(tmp_path / "valid.jsonl", [("a text", "pos"), ("  zwei ", "other")]),
        "tokenizer": {"vocabulary_size": 400},
        "max_tokens": 40,
    }


def contents(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def prepared(config, *, workers=1, **options):
    kind = LabelledDataConfig if "max_tokens" in config else DocumentDataConfig
    return prepare(kind.model_validate(config), workers=workers, **options)


def test_documents_come_back_from_the_shards(documents, tmp_path):
    manifest = prepared(documents)
    folder = tmp_path / "data"
    assert load_manifest(folder, "documents") == manifest
    assert manifest["kind"] == "documents"
    tokenizer = Tokenizer.load(folder / "spiece.model")
    for split, texts in (("train", make_documents()), ("valid", VALID)):
        shards = DocumentShards.open(folder / split)
        stored = [shards.document(i).tolist() for i in range(len(shards))]
        assert [tokenizer.decode(ids) for ids in stored] == texts
        assert all(ids[0] == 0 and ids[-1] == 2 and not {0, 1, 2, 3, 4} & set(ids[1:-1]) for ids in stored)
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        assert shards.text_bytes.tolist() == sizes
        entry = manifest["splits"][split]
        tokens = sum(map(len, stored))
        assert (entry["tokens"], entry["text_bytes"]) == (tokens, sum(sizes))
        assert entry["bytes_per_token"] == pytest.approx(sum(sizes) / (tokens - 2 * len(texts)), abs=1e-4)
        assert (entry["documents_read"], entry["documents_kept"]) == (len(texts), len(texts))
        source = {"name": split, "documents_read": len(texts), "documents_kept": len(texts), "tokens": tokens}
        assert entry["sources"] == [source]
    lines = (folder / "valid.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == [{"text": text} for text in VALID]
    assert not [*folder.glob("*.spool")]


def test_labelled_texts_are_pairs_with_an_index(labelled, tmp_path):
    manifest = prepared(labelled)
    folder = tmp_path / "data"
    assert load_manifest(folder, "labelled") == manifest
    assert manifest["labels"] == ["neg", "other", "pos"]
    assert manifest["splits"]["train"]["labels"] == {"neg": 100, "other": 100, "pos": 100}
    assert manifest["splits"]["valid"]["labels"] == {"neg": 0, "other": 1, "pos": 1}
    tokenizer = Tokenizer.load(folder / "spiece.model")
    shards = PairShards.open(folder / "train")
    assert set(shards.target_lengths.tolist()) == {1}
    cut = 0
    for i, (text, label) in enumerate(make_labelled()):
        source, target = shards.pair(i)
        whole = [0, *tokenizer.encode(text)]
        assert source.tolist() == (whole if len(whole) <= 40 else [*whole[:39], 2])
        assert manifest["labels"][target[0]] == label
        cut += len(whole) > 40
    assert manifest["splits"]["train"]["texts_cut"] == cut > 0
    lines = (folder / "valid.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    rows = [{"text": "a text", "label": "pos"}, {"text": "  zwei ", "label": "other"}]
    assert [json.loads(line) for line in lines] == rows


def test_empty_and_repeated_texts_are_dropped_and_counted(documents, labelled, tmp_path):
    texts = make_documents()
    write_rows(tmp_path / "train.jsonl", [*texts[:200], " \n", texts[5], *texts[200:], "", texts[5]])
    write_rows(tmp_path / "valid.jsonl", [texts[0], texts[0], "\t"])
    manifest = prepared(documents)
    counts = {rule: entry["documents"] for rule, entry in manifest["dropped"].items()}
    assert counts == {"empty": 2, "duplicate": 2}
    assert manifest["dropped"]["duplicate"]["samples"] == [[texts[5][:200], ""]]
    train, valid = manifest["splits"]["train"], manifest["splits"]["valid"]
    assert (train["documents_read"], train["documents_kept"]) == (304, 300)
    assert (valid["documents_read"], valid["documents_kept"]) == (3, 2)
    report = format_report(manifest).split("\n")
    assert [line.split()[0] for line in report] == ["rule", "empty", "duplicate", "kept", "read"]
    assert (
        prepared(documents | {"deduplicate": False, "directory": str(tmp_path / "b")})["splits"]["train"][
            "documents_kept"
        ]
        == 302
    )
    rows = make_labelled()
    write_labelled(tmp_path / "train.jsonl", [*rows, rows[0], (rows[0][0], "pos")])
    write_labelled(tmp_path / "valid.jsonl", rows[:3])
    manifest = prepared(labelled | {"directory": str(tmp_path / "c")})
    assert manifest["dropped"]["duplicate"] == {"pairs": 1, "samples": [[rows[0][0][:200], "neg"]]}
    assert "texts" in format_report(manifest).split("\n")[0]


@pytest.mark.parametrize("kind", ["documents", "labelled"])
def test_same_bytes_for_any_workers_and_format(kind, tmp_path, request, monkeypatch):
    config = request.getfixturevalue(kind)
    monkeypatch.setattr(module, "CHUNK_TEXTS", 64)  # several chunks, so that processes really start
    monkeypatch.setattr(module, "INLINE_TRAINING_BYTES", 64)
    first = prepared(config, workers=1)
    packed = tmp_path / "packed" / "train.jsonl.xz"
    packed.parent.mkdir()
    packed.write_bytes(lzma.compress((tmp_path / "train.jsonl").read_bytes()))
    monkeypatch.setattr("bmscale.data.spool.CHUNK_BYTES", 1000)
    second = prepared(config | {"directory": str(tmp_path / "again"), "train": str(packed)}, workers=2)
    assert first["data_hash"] == second["data_hash"]
    assert (first["splits"], first["dropped"]) == (second["splits"], second["dropped"])
    assert contents(tmp_path / "data") == contents(tmp_path / "again")


@pytest.mark.parametrize("kind", ["documents", "labelled"])
def test_a_second_run_does_nothing_and_a_different_one_is_refused(kind, tmp_path, request, monkeypatch):
    config = request.getfixturevalue(kind)
    manifest = prepared(config)
    with monkeypatch.context() as patch:
        patch.setattr("bmscale.data.prepare.build_texts", lambda *_: pytest.fail("prepared again"))
        assert prepared(config) == manifest
    with pytest.raises(BadInput, match=r"data\.deduplicate: True -> False\n.*--force"):
        prepared(config | {"deduplicate": False})
    assert prepared(config | {"deduplicate": False}, force=True)["config"]["deduplicate"] is False
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BadInput, match=r"data\.train: the contents of .*train\.jsonl changed"):
        prepared(config | {"deduplicate": False})


def test_dry_run_writes_nothing(documents, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    report = prepared(documents, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert report["splits"] == {
        "train": {"documents_read": 300, "documents_kept": 300},
        "valid": {"documents_read": 3, "documents_kept": 3},
    }
    assert "kept" in format_report(report)


def test_another_kind_is_refused(documents, labelled, tmp_path):
    prepared(documents | {"valid": documents["train"], "train": documents["train"]})
    with pytest.raises(BadInput, match="must hold prepared labelled texts for this task, it holds documents; choose"):
        load_manifest(tmp_path / "data", "labelled")
    with pytest.raises(BadInput, match=r"prepared otherwise:\n  what it holds: documents -> labelled texts\n"):
        prepared(labelled)
    pairs = DataConfig.model_validate(
        {
            "directory": str(tmp_path / "pairs"),
            "source_language": "en",
            "target_language": "de",
            "train": {"toy": "train", "pairs": 300},
            "valid": {"toy": "valid", "pairs": 5},
            "tokenizer": {"vocabulary_size": 150},
        }
    )
    prepare(pairs, workers=1)
    with pytest.raises(BadInput, match="must hold prepared documents for this task, it holds sentence pairs"):
        load_manifest(tmp_path / "pairs", "documents")
    path = tmp_path / "pairs" / "manifest.json"
    old = json.loads(path.read_text())
    del old["kind"]  # as written before there were other kinds
    path.write_text(json.dumps(old))
    assert load_manifest(tmp_path / "pairs", "pairs")["kind"] == "pairs"
    path.write_text(json.dumps(old | {"kind": "images"}))
    with pytest.raises(BadInput, match=r"damaged \(kind must be one of pairs, documents, labelled\)"):
        load_manifest(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda data: data.replace(b'"text_bytes": ', b'"text_bytes": 1'), "text bytes by manifest"),
        ("manifest.json", lambda data: data.replace(b'"documents_kept"', b'"kept"'), r"damaged \(splits\.train"),
        ("manifest.json", lambda data: data.replace(b'"data_hash": "', b'"data_hash": "0'), "their hashes differ"),
        ("valid.jsonl", lambda data: data[1:], r"valid\.jsonl: must have"),
        ("spiece.model", lambda data: data[: len(data) // 2], r"spiece\.model: not a SentencePiece model"),
        ("train/text_bytes.bin", lambda data: data[:-8], r"text_bytes\.bin: must have"),
        ("valid/tokens-00000.bin", lambda data: data[:-2], r"tokens-00000\.bin: must have"),
    ],
)
def test_damage_is_noticed_and_mended(documents, tmp_path, name, change, message):
    good = prepared(documents)
    path = tmp_path / "data" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match=message):
        load_manifest(tmp_path / "data", "documents")
    assert prepared(documents, force=True)["data_hash"] == good["data_hash"]


def test_labels_belong_to_the_identity(labelled, tmp_path):
    first = prepared(labelled)
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(first | {"labels": ["other", "neg", "pos"]}))
    with pytest.raises(BadInput, match="their hashes differ"):
        load_manifest(tmp_path / "data")
    given = labelled | {"labels": ["pos", "neg", "other", "never"], "directory": str(tmp_path / "given")}
    second = prepared(given)
    assert second["labels"] == given["labels"]
    assert second["splits"]["train"]["labels"]["never"] == 0
    assert PairShards.open(tmp_path / "given" / "train").pair(0)[1].tolist() == [1]


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_label_that_is_never_trained_is_refused(labelled, tmp_path, dry_run):
    write_labelled(tmp_path / "valid.jsonl", [("a", "pos"), ("b", "strange"), ("c", "strange")])
    message = r"valid\.jsonl: every label must be one of the labels of the training texts \(neg, other, pos\); 2 of its"
    with pytest.raises(BadInput, match=rf"{message} texts have 'strange'"):
        prepared(labelled, dry_run=dry_run)
    with pytest.raises(BadInput, match=r"train\.jsonl: every label must be one of data\.labels \(pos, neg\); 100 of"):
        prepared(labelled | {"labels": ["pos", "neg"]}, dry_run=dry_run)
    write_labelled(tmp_path / "train.jsonl", [("a", "pos"), ("b", "pos")])
    with pytest.raises(BadInput, match="needs at least two labels, all texts have 'pos'"):
        prepared(labelled, dry_run=dry_run)
    assert not (tmp_path / "data").exists()


def test_nothing_but_white_space(documents, tmp_path):
    write_rows(tmp_path / "train.jsonl", [" ", "\n"])
    with pytest.raises(BadInput, match=r"data\.train: all of 2 texts are empty or white space"):
        prepared(documents)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.jsonl", "valid.jsonl"]


def test_a_ready_tokenizer_must_be_lossless(documents, tmp_path):
    first = prepared(documents)
    ready = documents | {"tokenizer": {"path": str(tmp_path / "data" / "spiece.model")}}
    assert prepared(ready | {"directory": str(tmp_path / "b")})["data_hash"] == first["data_hash"]
    pairs: dict = {"source_language": "en", "target_language": "de", "directory": str(tmp_path / "pairs")}
    pairs |= {"train": {"toy": "train", "pairs": 300}, "valid": {"toy": "valid", "pairs": 5}}
    prepare(DataConfig.model_validate(pairs | {"tokenizer": {"vocabulary_size": 150}}), workers=1)
    ready["tokenizer"] = {"path": str(tmp_path / "pairs" / "spiece.model")}
    with pytest.raises(BadInput, match=r"pairs/spiece\.model: a tokenizer of documents must give every text back"):
        prepared(ready | {"directory": str(tmp_path / "c")})


def test_the_toy_corpus(tmp_path):
    toy: dict = {"train": {"toy": "train", "documents": 200}, "valid": {"toy": "valid", "documents": 10}}
    toy |= {"directory": str(tmp_path / "a"), "tokenizer": {"vocabulary_size": 400}}
    assert prepared(toy)["splits"]["train"]["sources"][0]["name"] == "toy-train"
    assert prepared(toy)["splits"]["valid"]["documents_kept"] == 10
    assert prepared(toy | {"directory": str(tmp_path / "b"), "max_tokens": 64})["labels"] == ["de", "en"]


def test_configuration():
    base = {"directory": "d", "train": "a.jsonl", "valid": ["b.jsonl", {"toy": "valid"}]}
    config = LabelledDataConfig.model_validate(base)
    assert ([corpus.short_name for corpus in config.valid], config.max_tokens) == (["b", "toy-valid"], 512)
    wrongs: list[dict] = [{"labels": ["a", "a"]}, {"labels": ["a"]}, {"max_tokens": 2}, {"train": []}]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            LabelledDataConfig.model_validate(base | wrong)
