"""The papers' data: what is said where it is missing, how it is fetched, and what is refused."""

import hashlib
import io
import json
import lzma
import os
import pickle
import urllib.error
from dataclasses import replace
from typing import Any

import pytest

from bmscale.cli import main
from bmscale.errors import BadInput, BmscaleError
from bmscale.scaling.reproduce import gadre, porian, source
from bmscale.scaling.reproduce.papers import PAPERS
from bmscale.scaling.reproduce.source import Part, Source, altered, download, find, read_rows

CONTENT = b"n,loss\n1,2.5\n"
PLAIN = Source(
    "Someone 2024",
    "someone/data",
    "f" * 40,
    "MIT",
    (Part("a b/x=1.csv", hashlib.sha256(CONTENT).hexdigest()),),
    "x.csv",
)
SOURCES = [paper.source for paper in PAPERS.values() if paper.source]


class Web:
    """Answers as urllib's opener does, from a dictionary, and remembers what was asked."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.pages = pages
        self.asked: list[str] = []

    def open(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        if url not in self.pages:
            raise urllib.error.URLError("no network here")
        return io.BytesIO(self.pages[url])


@pytest.fixture
def web(monkeypatch) -> Web:
    made = Web({})
    monkeypatch.setattr(source, "_opener", lambda: made)
    return made


def test_where_data_is_missing_the_command_says_where_to_get_it(tmp_path, capsys):
    assert main(["scaling", "reproduce", "besiroglu", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    known = PAPERS["besiroglu"].source
    assert known is not None
    for part in ("Besiroglu et al. 2024", f"github.com/{known.repository}", "licence MIT", "--download"):
        assert part in said
    assert known.parts[0].path in said
    assert known.parts[0].sha256 in said


def test_all_that_is_missing_is_said_at_once(tmp_path, capsys):
    assert main(["scaling", "reproduce", "all", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for known in SOURCES:
        assert f"github.com/{known.repository} at {known.commit}, licence {known.licence}" in said
        assert all(part.sha256 in said for part in known.parts)


def test_every_source_is_pinned():
    for known in SOURCES:
        assert len(known.commit) == 40
        for part in known.parts:
            assert len(part.sha256) == 64
            assert known.url(part).startswith(f"https://raw.githubusercontent.com/{known.repository}/{known.commit}/")


def test_a_download_is_verified_and_done_once(tmp_path, web):
    url = "https://raw.githubusercontent.com/someone/data/" + "f" * 40 + "/a%20b/x%3D1.csv"
    web.pages[url] = CONTENT
    download(PLAIN, tmp_path / "new")
    download(PLAIN, tmp_path / "new")
    assert web.asked == [url]
    path = find(PLAIN, tmp_path / "new")
    assert path.read_bytes() == CONTENT
    assert not altered(PLAIN, path)
    path.write_bytes(CONTENT + b"2,2.4\n")
    assert altered(PLAIN, path)


def test_other_bytes_are_refused_and_not_kept(tmp_path, web):
    web.pages[PLAIN.url(PLAIN.parts[0])] = CONTENT.replace(b"2.5", b"2.4")
    with pytest.raises(BmscaleError, match="must have the sha256") as failed:
        download(PLAIN, tmp_path)
    assert failed.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_put_where(tmp_path, web):
    with pytest.raises(BmscaleError, match=r"no network here[^$]*by hand[^$]*licence MIT"):
        download(PLAIN, tmp_path)


def test_what_is_too_large_is_refused(tmp_path, web, monkeypatch):
    monkeypatch.setattr(source, "LARGEST", len(CONTENT) - 1)
    web.pages[PLAIN.url(PLAIN.parts[0])] = CONTENT
    with pytest.raises(BmscaleError, match="at most"):
        download(PLAIN, tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_nothing_but_https_is_opened(url):
    with pytest.raises(urllib.error.URLError, match="unknown url type"):
        source._opener().open(url)


def run(name: str, loss: float) -> bytes:
    results = [
        {"loss": 9.9, "val_data": ["training/eval_data/val_tok_mult/paloma_c4_en/1.tar"]},
        {"loss": loss, "val_data": ["training/eval_data/c4_val/shard-{0..1}.tar"]},
    ]
    given = {"params": 1000, "tokens": 40000, "chinchilla_multiplier": 2.0}
    return json.dumps({"name": name, "hyperparameters": given, "results": results}).encode()


def test_a_table_made_of_several_files(tmp_path, web):
    contents = {"a.json": run("a", 3.25), "b.json": run("b", 3.5)}
    parts = tuple(Part(path, hashlib.sha256(content).hexdigest()) for path, content in contents.items())
    made = replace(gadre.SOURCE, parts=parts)
    web.pages = {made.url(part): contents[part.path] for part in parts}
    download(made, tmp_path)
    rows = read_rows(made, tmp_path)
    assert [(row.text("name"), row.number("loss_c4_val")) for row in rows] == [("a", 3.25), ("b", 3.5)]
    assert [row.number(name) for row in rows[:1] for name in ("N", "D", "mult")] == [1000, 40000, 2]
    assert not altered(made, find(made, tmp_path))


def test_tables_of_isoflop_curves_are_unpacked(monkeypatch):
    pandas = pytest.importorskip("pandas")
    curve = {"flops": 1e16, "orig_n": [1e6, 2e6], "orig_t": [3e6, 4e6], "orig_loss": [4.5, 4.25]}
    none = {"flops": 2e16, "orig_n": float("nan"), "orig_t": float("nan"), "orig_loss": float("nan")}
    setting = dict(zip(porian.SETTING, ("rw", "tuned", "short", "const", "standard", "val"), strict=True))
    table = pandas.DataFrame([{**setting, "data": pandas.DataFrame([curve, none])}])
    packed = lzma.compress(pickle.dumps(table))
    monkeypatch.setattr(porian, "PICKLED", Anything())  # today's pandas writes other names than the one of the source
    lines = porian.to_csv({"table": packed}).decode().splitlines()
    assert lines[0] == "dataset,hparams,warmup,decay,param_count,val,flops,n,t,loss"
    assert lines[1:] == [
        f"rw,tuned,short,const,standard,val,1e+16,{n},{t},{loss}" for n, t, loss in ((1e6, 3e6, 4.5), (2e6, 4e6, 4.25))
    ]


class Anything:
    def __contains__(self, name: object) -> bool:
        return True


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("never",)


def test_a_pickle_that_runs_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"tables only; got posix\.mkdir"):
        porian.to_csv({"table": lzma.compress(pickle.dumps(Runs()))})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", '{"n": ' + "[" * 100_000 + "]" * 100_000 + "}", "must be JSONL as published"),
        ("x.csv", "n,loss\n1,2.5\n2,low\n", r"x.csv:3: loss must be a number above 0; got 'low'"),
        ("x.csv", "n,loss\n1,nan\n", r"x.csv:2: loss must be a number above 0; got 'nan'"),
        ("x.csv", "n,loss\n1,-1\n", r"x.csv:2: loss must be a number above 0; got '-1'"),
        ("x.csv", "n,loss\n1\n", r"x.csv:2: must have the column loss"),
        ("x.csv", "n,lost\n1,2\n", r"x.csv:2: must have the column loss; got n, lost"),
        ("x.csv", "n,loss\n", r"x.csv: must have lines; got none"),
        ("x.jsonl", '{"loss": 2}\n{"loss": }\n', r"x.jsonl: must be JSONL as published"),
        ("x.jsonl", "5\n", r"x.jsonl: must be JSONL as published"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=said):
        _ = [row.number("loss") for row in read_rows(replace(PLAIN, file=name), tmp_path)]
