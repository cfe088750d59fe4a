"""Readers: every format gives the same pairs, and every mistake is told by file and line."""

import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from pydantic import ValidationError

from bmscale.config import Document, validate
from bmscale.data.corpus import CorpusConfig, input_files, read_pairs
from bmscale.errors import BadInput

# U+2028, U+0085 and a form feed are no line ends; a lone \r is part of the text.
PAIRS = [("a house", "ein Haus"), ("line\u2028sep\x85 \x0c end", "Zeile\rweiter"), ("ü ¿ 漢", ""), ("last", "letzte")]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    # Two frames: what `cat a.zst b.zst` makes.
    ".zst": lambda data: (
        zstandard.ZstdCompressor().compress(data[:20]) + zstandard.ZstdCompressor().compress(data[20:])
    ),
}


def read(corpus: CorpusConfig | str | dict) -> list[tuple[str, str]]:
    return list(read_pairs(CorpusConfig.model_validate(corpus), "en", "de"))


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_format_and_compression_gives_the_same_pairs(tmp_path, suffix, line_end):
    tsv = "".join(f"{s}\t{t}{line_end}" for s, t in PAIRS)
    jsonl = "".join(json.dumps({"en": s, "de": t}, ensure_ascii=False) + line_end for s, t in PAIRS)
    nested = "".join(json.dumps({"id": 7, "translation": {"en": s, "de": t}}) + line_end for s, t in PAIRS)
    compress = COMPRESS[suffix]
    sources = [
        write(tmp_path / f"x.tsv{suffix}", compress(tsv.encode())),
        write(tmp_path / f"x.jsonl{suffix}", compress(jsonl.encode())),
        write(tmp_path / f"y.jsonl{suffix}", compress(nested.encode())),
    ]
    for side, language in enumerate(("en", "de")):
        text = "".join(pair[side] + line_end for pair in PAIRS)
        write(tmp_path / f"prefix.{language}{suffix}", compress(text.encode()))
    sources.append(str(tmp_path / "prefix"))
    for source in sources:
        assert read(source) == PAIRS, source


def test_explicit_sides_columns_keys_and_bom(tmp_path):
    en = write(tmp_path / "left.txt", b"\xef\xbb\xbfone\ntwo")  # no line end after the last line
    de = write(tmp_path / "right.txt", b"eins\nzwei\n")
    assert read({"source_path": en, "target_path": de}) == [("one", "eins"), ("two", "zwei")]
    tsv = write(tmp_path / "t.txt", b"id\teins\tx\tone\n")
    assert read({"path": tsv, "format": "tsv", "source_column": 3, "target_column": 1}) == [("one", "eins")]
    jsonl = write(tmp_path / "k.jsonl", b'{"src": "one", "tgt": "eins"}\n\n')
    assert read({"path": jsonl, "source_key": "src", "target_key": "tgt"}) == [("one", "eins")]


def test_datasets_from_parquet_folder_and_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    flat = datasets.Dataset.from_list([{"en": s, "de": t} for s, t in PAIRS])
    flat.to_parquet(str(tmp_path / "flat.parquet"))
    nested = datasets.Dataset.from_list([{"translation": {"en": s, "de": t}} for s, t in PAIRS])
    (tmp_path / "folder").mkdir()
    nested.to_parquet(str(tmp_path / "folder" / "train-0.parquet"))
    datasets.DatasetDict({"train": flat}).save_to_disk(str(tmp_path / "saved"))
    for name in ("flat.parquet", "folder", "saved"):
        assert read(str(tmp_path / name)) == PAIRS, name
    with pytest.raises(BadInput, match=r"folder.*split 'nosuch'"):
        read({"path": str(tmp_path / "folder"), "split": "nosuch"})
    with pytest.raises(BadInput, match=r"row 1 .*the key 'fr' must hold a string, got only 'en', 'de'"):
        read({"path": str(tmp_path / "flat.parquet"), "target_key": "fr"})


def test_input_files(tmp_path):
    (tmp_path / "p.en").touch()
    (tmp_path / "p.de.gz").touch()
    files = input_files(CorpusConfig(path=str(tmp_path / "p")), "en", "de")
    assert files == [tmp_path / "p.en", tmp_path / "p.de.gz"]
    assert input_files(CorpusConfig(toy="train"), "en", "de") == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "x.tsv",
            b"a\tb\nonly one\n",
            r"x\.tsv:2: a row must have at least 2 tab-separated columns, got 1: 'only one'",
        ),
        ("x.tsv", b"a\tb\nc\t\xff\n", r"x\.tsv:2: text must be UTF-8, byte 3 of the line is 0xff"),
        ("x.tsv", b"", r"x\.tsv: a corpus must hold at least one pair, this one is empty"),
        ("x.jsonl", b'{"en": "a", "de": "b"}\n{"en": \n', r"x\.jsonl:2: .*does not parse"),
        ("x.jsonl", b'{"en": "a", "fr": "b"}\n', r"x\.jsonl:1: the key 'de' must hold a string, got only 'en', 'fr'"),
        ("x.jsonl", b'{"en": "a", "de": 5}\n', r"x\.jsonl:1: the key 'de' must hold a string, got a int"),
        ("x.jsonl", b'{"en": ' + b"7" * 5000 + b"}\n", r"x\.jsonl:1: .*does not parse"),
        ("x.jsonl", b"[" * 100_000 + b"\n", r"x\.jsonl:1: .*does not parse"),
        ("x.jsonl", b"[1]\n", r"x\.jsonl:1: a row must be an object"),
        ("x.doc", b"a\tb\n", r"x\.doc: the extension must be one of .*got '\.doc'"),
        ("x.tsv.gz", gzip.compress(b"a\tb\n" * 9999, mtime=0)[:-30], r"x\.tsv\.gz: truncated or damaged"),
        ("x.tsv.gz", b"a\tb\n", r"x\.tsv\.gz: truncated or damaged"),
        ("x.tsv.xz", lzma.compress(b"a\tb\n" * 9999)[:-30], r"x\.tsv\.xz: truncated or damaged"),
        ("x.tsv.xz", b"a\tb\n", r"x\.tsv\.xz: truncated or damaged"),
        ("x.tsv.zst", zstandard.compress(b"a\tb\n" * 9999)[:-5], r"x\.tsv\.zst: truncated or damaged"),
        ("x.tsv.zst", b"a\tb\n", r"x\.tsv\.zst: truncated or damaged"),
    ],
)
def test_damaged_files_are_told_by_file_and_line(tmp_path, name, data, message):
    with pytest.raises(BadInput, match=message):
        read(write(tmp_path / name, data))


def test_missing_files_name_the_nearest(tmp_path):
    (tmp_path / "train.tsv").write_text("a\tb\n")
    (tmp_path / "p.en").write_text("a\n")
    with pytest.raises(BadInput, match=r"trian\.tsv: no such file; did you mean .*train\.tsv\?"):
        read(str(tmp_path / "trian.tsv"))
    with pytest.raises(BadInput, match=r"p\.de: no such file \(nor with \.gz"):
        read(str(tmp_path / "p"))
    with pytest.raises(BadInput, match=r"the folder .*nowhere does not exist"):
        read(str(tmp_path / "nowhere" / "x.tsv"))


@pytest.mark.parametrize(("en", "de"), [(3, 5), (5, 3), (0, 2)])
def test_unequal_sides_give_both_counts(tmp_path, en, de):
    (tmp_path / "p.en").write_text("x\n" * en)
    (tmp_path / "p.de").write_text("x\n" * de)
    with pytest.raises(BadInput, match=rf"p\.en has {en}, .*p\.de has {de}"):
        read(str(tmp_path / "p"))


@pytest.mark.parametrize("name", ["x.tsv", "x.jsonl", "x"])
def test_a_pipe_is_refused_and_does_not_hang(tmp_path, name):
    os.mkfifo(tmp_path / name)
    corpus = CorpusConfig(path=str(tmp_path / name), format="tsv")
    for opened in (read, lambda corpus: input_files(corpus, "en", "de")):
        with pytest.raises(BadInput, match=rf"{name}: must be a regular file or a folder"):
            opened(corpus)


def test_the_home_folder_is_expanded_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = CorpusConfig(source_path="~/a.en", target_path="~/a.de")
    assert (given.source_path, given.target_path) == (f"{tmp_path}/a.en", f"{tmp_path}/a.de")
    assert CorpusConfig(path="a/~b").path == "a/~b"


@pytest.mark.parametrize("path", ["", "a\0b", "a\udc80", "~nobody-of-this-name/x"])
def test_paths_that_no_file_can_have_are_refused(path):
    with pytest.raises(BadInput, match=r"data: path: .*(must be a path|no home folder|valid string)"):
        validate(CorpusConfig, Document({"path": path}, {(): "data"}))


def test_the_toy_corpus_is_not_asked_for_more_than_it_has():
    with pytest.raises(ValidationError, match="less than or equal to 10000000"):
        CorpusConfig(toy="train", pairs=10**15)


@pytest.mark.parametrize("value", [{}, {"path": "a.tsv", "toy": "train"}, {"source_path": "a"}, {"pth": "a"}])
def test_a_corpus_has_exactly_one_origin(value):
    with pytest.raises(ValidationError):
        CorpusConfig.model_validate(value)
