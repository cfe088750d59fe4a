"""Readers of documents and labelled texts: every format gives the same texts, mistakes are named with their line."""

import gzip
import json
import lzma

import pytest
import zstandard
from pydantic import ValidationError

from bmscale.data.corpus import OriginConfig
from bmscale.data.documents import (
    DocumentCorpusConfig,
    LabelledCorpusConfig,
    document_files,
    listed,
    read_documents,
    read_labelled,
)
from bmscale.errors import BadInput

DOCUMENTS = ["First  line.\n\tSecond\r\nline\u2028 ▁ end", "Ein Absatz\x85mit Ü.", "<s> third </s>"]
LABELLED = [("some  text ", "pos"), ("ein Text", "neg"), ("mehr \u2028 Text", "pos")]

COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def write(path, text, compression=""):
    path = path.with_name(path.name + compression)
    path.write_bytes(COMPRESS[compression](text.encode("utf-8", "surrogatepass")))
    return str(path)


def documents(value, **options):
    return list(read_documents(DocumentCorpusConfig.model_validate({"path": value} | options)))


def labelled(value, **options):
    return list(read_labelled(LabelledCorpusConfig.model_validate({"path": value} | options)))


@pytest.mark.parametrize("compression", COMPRESS)
def test_every_format_and_compression(tmp_path, compression):
    text = write(tmp_path / "a.txt", "\ufeff\n" + "\n \n\r\n".join(DOCUMENTS) + "\r\n\n", compression)
    assert documents(text) == DOCUMENTS
    rows = "".join(json.dumps({"text": text, "id": 1}) + "\n\n" for text in DOCUMENTS)
    assert documents(write(tmp_path / "a.jsonl", rows, compression)) == DOCUMENTS
    lines = "one\n  two\n\nthree\r\n"
    assert documents(write(tmp_path / "b.txt", lines, compression), separated_by="line") == ["one", "  two", "three"]
    assert documents(write(tmp_path / "c.txt", lines, compression), separated_by="file") == [lines]
    assert documents(write(tmp_path / "d.tsv", "x\tone\ny\ttwo\n", compression), text_column=1) == ["one", "two"]
    tsv = "".join(f"{label}\t{text}\n" for text, label in LABELLED)
    assert labelled(write(tmp_path / "l.tsv", tsv, compression)) == LABELLED
    rows = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in LABELLED)
    assert labelled(write(tmp_path / "l.jsonl", rows, compression)) == LABELLED


def test_blank_documents_are_left_out_unless_asked_for(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "\\ufeffa"}\n{"text": " \\n"}\n')
    assert documents(path) == ["a"]
    assert list(read_documents(DocumentCorpusConfig(path=path), blank=True)) == ["a", " \n"]
    path = write(tmp_path / "a.tsv", "x\t\ny\tb\n")
    assert labelled(path) == [("b", "y")]
    assert list(read_labelled(LabelledCorpusConfig(path=path), blank=True)) == [("", "x"), ("b", "y")]


def test_a_folder_of_text_files(tmp_path):
    (tmp_path / "set" / "inner").mkdir(parents=True)
    write(tmp_path / "set" / "b.txt", "second\n")
    write(tmp_path / "set" / "a.txt", "first\n", ".xz")
    write(tmp_path / "set" / "inner" / "c.txt", "third")
    (tmp_path / "set" / "README.md").write_text("no text")
    corpus = {"path": str(tmp_path / "set"), "format": "text", "separated_by": "file"}
    config = DocumentCorpusConfig.model_validate(corpus)
    assert list(read_documents(config)) == ["first\n", "second\n", "third"]
    assert [file.name for file in document_files(config)] == ["a.txt.xz", "b.txt", "c.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: with format: text, a folder must hold files that end with \.txt, "):
        documents(str(tmp_path / "empty"), format="text")


def test_datasets_and_names_of_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"text": [text for text, _ in LABELLED], "label": [1, 0, 1], "number": [3, 4, 5]}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    features |= {"number": datasets.Value("int64")}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    made.to_parquet(str(tmp_path / "a.parquet"))
    made.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "set").mkdir()
    made.to_parquet(str(tmp_path / "set" / "train-00000.parquet"))
    for place in ("a.parquet", "saved", "set"):
        assert labelled(str(tmp_path / place)) == LABELLED
        assert documents(str(tmp_path / place)) == rows["text"]
    assert [label for _, label in labelled(str(tmp_path / "saved"), label_key="number")] == ["3", "4", "5"]
    with pytest.raises(BadInput, match=r"row 1 of split 'train': the key 'body' must hold a string, got only 'text'"):
        documents(str(tmp_path / "saved"), text_key="body")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 5}\n', r"a\.jsonl:2: the key 'text' must hold a string, got a int"),
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: .* got only 'body'; set text_key"),
        ("a.jsonl", "[]\n", r"a\.jsonl:1: a row must be an object with the key 'text'"),
        ("a.jsonl", "{\n", r"a\.jsonl:1: a line must be one JSON object"),
        ("a.jsonl", "\n", r"a\.jsonl: a corpus must hold at least one document, this one is empty"),
        ("a.txt", " \n\n", r"a\.txt: a corpus must hold at least one document"),
        ("a.doc", "x", r"a\.doc: the extension must be one of .*\.txt"),
    ],
)
def test_mistakes_in_documents(tmp_path, name, text, message):
    with pytest.raises(BadInput, match=message):
        documents(write(tmp_path / name, text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "pos\tx\nneg\n", r"a\.tsv:2: a row must have at least 2 tab-separated columns, got 1"),
        ("a.tsv", "pos\tx\n\ty\n", r"a\.tsv:2: column 0 must hold a label, it is empty"),
        ("a.jsonl", '{"text": "x"}\n', r"a\.jsonl:1: the key 'label' must hold .* got only 'text'; set label_key"),
        ("a.jsonl", '{"text": "x", "label": -1}\n', r"a\.jsonl:1: the key 'label' must hold .* got -1"),
        ("a.jsonl", '{"text": "x", "label": 1.5}\n', r"a\.jsonl:1: the key 'label' must hold .* got a float"),
        ("a.jsonl", '{"text": "x", "label": null}\n', r"a\.jsonl:1: the key 'label' must hold .* got null"),
        ("a.jsonl", '{"text": "x", "label": " "}\n', r"a\.jsonl:1: the key 'label' must hold .* got ' '"),
        ("a.tsv", "", r"a\.tsv: a corpus must hold at least one labelled text"),
    ],
)
def test_mistakes_in_labelled_texts(tmp_path, name, text, message):
    with pytest.raises(BadInput, match=message):
        labelled(write(tmp_path / name, text))


def test_missing_and_damaged_files(tmp_path):
    path = tmp_path / "corpus.txt"
    write(path, "x")
    with pytest.raises(BadInput, match=r"corpis\.txt: no such file; did you mean .*corpus\.txt\?"):
        documents(str(tmp_path / "corpis.txt"))
    path.write_bytes(b"fine\n\n\xff\n")
    with pytest.raises(BadInput, match=r"corpus\.txt:3: text must be UTF-8"):
        documents(str(path))
    packed = tmp_path / "a.txt.xz"
    packed.write_bytes(lzma.compress(b"text\n" * 1000)[:-9])
    with pytest.raises(BadInput, match=r"a\.txt\.xz: truncated or damaged"):
        documents(str(packed))


def test_integer_labels_are_their_digits(tmp_path):
    assert labelled(write(tmp_path / "a.jsonl", '{"text": "x", "label": 12}\n')) == [("x", "12")]


def test_toy_corpus():
    def toy(kind, split, count, seed=0):
        config = {"toy": split, "documents": count, "seed": seed}
        if kind == "documents":
            return list(read_documents(DocumentCorpusConfig.model_validate(config)))
        return list(read_labelled(LabelledCorpusConfig.model_validate(config)))

    train = toy("documents", "train", 40)
    assert train[:10] == toy("documents", "train", 10)
    assert train != toy("documents", "train", 40, seed=1)
    assert all(3 <= sum(map(text.count, ".?!")) <= 9 for text in train)
    texts = toy("labelled", "train", 60)
    assert {label for _, label in texts} == {"en", "de"}
    assert {text for text, _ in texts}.isdisjoint(text for text, _ in toy("labelled", "valid", 60))


@pytest.mark.parametrize("kind", [DocumentCorpusConfig, LabelledCorpusConfig])
def test_configuration(kind: type[OriginConfig]):
    assert kind.model_validate("a/b.jsonl.xz").short_name == "b"
    assert kind.model_validate({"toy": "train"}).short_name == "toy-train"
    assert DocumentCorpusConfig(path="a/b.txt.gz").short_name == "b"
    for wrong in ({}, {"path": "a", "toy": "train"}, {"path": "a", "revision": "x"}, {"pairs": 5, "path": "a"}):
        with pytest.raises(ValidationError):
            kind.model_validate(wrong)


def test_many_labels_fit_a_message():
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1020))).endswith("18, 19 and 1,000 more")
