"""`prepare`: the same bytes whatever the workers and the format, nothing half-done, nothing lost by accident."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from pydantic import ValidationError

from bmscale.data import prepare as module
from bmscale.data.clean import RULES, normalise
from bmscale.data.manifest import format_report, load_manifest
from bmscale.data.prepare import DataConfig, prepare
from bmscale.data.shards import PairShards
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput

VALID = [
    ("a  valid\u00a0source", " Ein  gültiges Ziel "),
    ("", "leer"),
    ("12", "99"),
    ("same", "same"),
    ("same", "same"),
]


def make_pairs(count=600, seed=0):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghiklmnoprstuw", k=draw.randint(2, 8))) for _ in range(200)]
    return [(" ".join(draw.choices(words, k=8)), " ".join(draw.choices(words, k=8))) for _ in range(count)]


def write_tsv(path, pairs):
    path.write_text("".join(f"{s}\t{t}\n" for s, t in pairs), encoding="utf-8", newline="")
    return str(path)


@pytest.fixture
def settings(tmp_path):
    return {
        "directory": str(tmp_path / "data"),
        "source_language": "en",
        "target_language": "de",
        "train": write_tsv(tmp_path / "train.tsv", make_pairs()),
        "valid": write_tsv(tmp_path / "valid.tsv", VALID),
        "tokenizer": {"vocabulary_size": 150},
    }


def contents(folder):
    """Every file but the manifest, which holds times and paths."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_shards_hold_the_text(settings):
    manifest = prepare(DataConfig(**settings), workers=1)
    folder = Path(settings["directory"])
    assert load_manifest(folder) == manifest
    tokenizer = Tokenizer.load(folder / "spiece.model")
    train = PairShards.open(folder / "train")
    texts = [tuple(tokenizer.decode(side) for side in train.pair(i)) for i in range(len(train))]
    assert texts == make_pairs()
    assert all(side[-1] == 2 for side in train.pair(0))
    split = manifest["splits"]["train"]
    assert split["source_tokens"] == train.source_lengths.sum()
    assert split["target_tokens"] == train.target_lengths.sum()
    characters = sum(len(s) for s, _ in make_pairs())
    per_token = characters / (split["source_tokens"] - len(train))
    assert split["source_characters_per_token"] == pytest.approx(per_token, abs=1e-4)


def test_validation_is_neither_cleaned_nor_changed(settings):
    manifest = prepare(DataConfig(**settings), workers=1)
    folder = Path(settings["directory"])
    rows = [json.loads(line) for line in (folder / "valid.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [(row["source"], row["target"]) for row in rows] == VALID
    valid = PairShards.open(folder / "valid")
    tokenizer = Tokenizer.load(folder / "spiece.model")
    assert manifest["splits"]["valid"]["pairs_kept"] == len(valid) == len(VALID)
    encoded = [tuple(tokenizer.encode(normalise(side)) for side in pair) for pair in VALID]
    assert [tuple(side.tolist() for side in valid.pair(i)) for i in range(len(valid))] == encoded
    unknown = sum(side.count(3) for pair in encoded for side in pair)
    pieces = sum(len(side) - 1 for pair in encoded for side in pair)
    assert unknown
    assert manifest["splits"]["valid"]["unk_rate"] == pytest.approx(unknown / pieces, abs=1e-8)


def test_rules_are_counted(settings, tmp_path):
    good = make_pairs()
    bad = [("", "x"), good[5], ("same text", "same text"), (f"{good[0][0]} 35", f"{good[0][1]} 80"), good[6]]
    long = (" ".join(["abc"] * 40), " ".join(["cba"] * 40))
    write_tsv(tmp_path / "train.tsv", [*good, *bad, long])
    manifest = prepare(DataConfig(**settings, max_source_tokens=60, max_target_tokens=60), workers=1)
    counts = {rule: entry["pairs"] for rule, entry in manifest["dropped"].items() if entry["pairs"]}
    assert counts == {"empty": 1, "duplicate": 2, "identical": 1, "digits_mismatch": 1, "too_many_tokens": 1}
    train = manifest["splits"]["train"]
    assert (train["pairs_read"], train["pairs_kept"]) == (606, 600)
    assert manifest["dropped"]["too_many_tokens"]["samples"] == [list(long)]
    lines = format_report(manifest).split("\n")
    assert [line.split()[0] for line in lines] == ["rule", *RULES, "kept", "read"]
    assert lines[4].split() == ["identical", "1", "0.17", "same", "text", "|", "same", "text"]
    assert lines[-2].split() == ["kept", "600", "99.01"]


def test_same_bytes_for_any_workers_and_format(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PAIRS", 64)  # several chunks, so that processes really start
    monkeypatch.setattr(module, "INLINE_TRAINING_PAIRS", 64)
    pairs = make_pairs()
    write_tsv(tmp_path / "train.tsv", [*pairs, *pairs[::7], *[("", "x")] * 9])
    pairs = [*pairs, *pairs[::7], *[("", "x")] * 9]
    (tmp_path / "side.en").write_text("".join(f"{s}\n" for s, _ in pairs))
    (tmp_path / "side.de").write_text("".join(f"{t}\n" for _, t in pairs))
    rows = "".join(json.dumps({"translation": {"en": s, "de": t}}) + "\n" for s, t in pairs)
    (tmp_path / "train.jsonl").write_text(rows)
    runs = [(str(tmp_path / "train.tsv"), 1), (str(tmp_path / "side"), 2), (str(tmp_path / "train.jsonl"), 3)]
    results = []
    for source, workers in runs:
        directory = str(tmp_path / f"out{workers}")
        train = {"path": source, "name": "same"}
        manifest = prepare(DataConfig(**(settings | {"directory": directory, "train": train})), workers=workers)
        results.append((manifest["data_hash"], manifest["splits"], manifest["dropped"], contents(directory)))
    assert results[0] == results[1] == results[2]
    assert results[0][2]["duplicate"]["pairs"] == 86


def test_the_data_hash_follows_the_text(settings, tmp_path):
    first = prepare(DataConfig(**settings), workers=1)["data_hash"]
    pairs = make_pairs()
    write_tsv(tmp_path / "train.tsv", [pairs[1], pairs[0], *pairs[2:]])
    second = prepare(DataConfig(**settings), workers=1, force=True)["data_hash"]
    assert first != second
    write_tsv(tmp_path / "train.tsv", pairs)
    assert prepare(DataConfig(**settings), workers=1, force=True)["data_hash"] == first


def test_a_second_run_does_nothing_and_a_different_one_is_refused(settings, tmp_path, monkeypatch):
    manifest = prepare(DataConfig(**settings), workers=1)
    before = contents(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", lambda *_: pytest.fail("prepared again"))
        assert prepare(DataConfig(**settings), workers=1) == manifest
    other = settings | {"tokenizer": {"vocabulary_size": 140}}
    with pytest.raises(BadInput, match=r"data\.tokenizer\.vocabulary_size: 150 -> 140\n.*--force"):
        prepare(DataConfig(**other), workers=1)
    write_tsv(tmp_path / "train.tsv", make_pairs(seed=1))
    with pytest.raises(BadInput, match=r"data\.train: the contents of .*train\.tsv changed"):
        prepare(DataConfig(**settings), workers=1)
    assert contents(tmp_path / "data") == before
    prepare(DataConfig(**other), workers=1, force=True)
    assert load_manifest(tmp_path / "data")["tokenizer"]["vocabulary_size"] == 140
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "train.tsv", "valid.tsv"]


def test_other_folders_are_left_alone(settings, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("precious")
    for force in (False, True):
        with pytest.raises(BadInput, match=r"holds files but no manifest\.json"):
            prepare(DataConfig(**settings), workers=1, force=force)
    assert (tmp_path / "data" / "thesis.txt").read_text() == "precious"


def test_dry_run_writes_nothing(settings, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    report = prepare(DataConfig(**settings), dry_run=True, workers=1)
    assert sorted(tmp_path.rglob("*")) == before
    assert report["splits"] == {
        "train": {"pairs_read": 600, "pairs_kept": 600},
        "valid": {"pairs_read": 5, "pairs_kept": 5},
    }
    assert "kept" in format_report(report)


def test_a_failed_run_leaves_nothing_and_a_dead_one_is_cleared(settings, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    stale = tmp_path / f".data.preparing-{host}-{dead.pid}"
    alive = tmp_path / f".data.preparing-{host}-{os.getppid()}"
    elsewhere = tmp_path / ".data.preparing-otherhost-1"
    for folder in (stale, alive, elsewhere):
        folder.mkdir()
    with pytest.raises(BadInput, match="at most"):
        prepare(DataConfig(**(settings | {"tokenizer": {"vocabulary_size": 50_000}})), workers=1)
    left = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert left == sorted([alive.name, elsewhere.name])
    with pytest.raises(BadInput, match=r"manifest\.json is missing; make it with `bmscale prepare CONFIG`"):
        load_manifest(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda data: data[:-20], "damaged"),
        ("manifest.json", lambda data: data.replace(b'"format": 3', b'"format": 9'), "format must be 3, got 9"),
        ("manifest.json", lambda data: b"[" * 100_000, r"manifest\.json: damaged"),
        ("manifest.json", lambda data: b"[]", r"manifest\.json: format must be 3, got None"),
        ("manifest.json", lambda data: b'{"format": 3}', r"manifest\.json: damaged \(config: "),
        ("manifest.json", lambda data: data.replace(b'"inputs"', b'"input"'), r"damaged \(inputs: Field required"),
        ("manifest.json", lambda data: data.replace(b'"valid_texts"', b'"texts"'), r"damaged \(valid_texts: Field req"),
        ("manifest.json", lambda data: data.replace(b'"data_hash": "', b'"data_hash": "0'), "their hashes differ"),
        (
            "manifest.json",
            lambda data: data.replace(b'"source_tokens": ', b'"source_tokens": 1'),
            "source tokens by man",
        ),
        ("valid.jsonl", lambda data: data[:-3], r"valid\.jsonl: must have [\d,]+ bytes and the SHA-256"),
        ("valid.jsonl", lambda data: data.replace(b"leer", b"LEER"), r"valid\.jsonl: must have"),
        ("train/index.json", lambda data: data.replace(b"<u2", b"<f2"), r"train/index\.json: damaged index, dtype"),
        ("train/index.json", lambda data: data.replace(b'"sha256": "', b'"sha256": "0'), "their hashes differ"),
        ("spiece.model", lambda data: data[:-1], r"spiece\.model"),
        ("train/tokens-00000.bin", lambda data: data[:-2], "must have .* bytes"),
    ],
)
def test_a_damaged_folder_is_refused_and_can_be_made_again(settings, tmp_path, name, change, message):
    good = prepare(DataConfig(**settings), workers=1)
    path = tmp_path / "data" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match=message):
        load_manifest(tmp_path / "data")
    with pytest.raises(BadInput, match=message):
        prepare(DataConfig(**settings), workers=1)
    assert prepare(DataConfig(**settings), workers=1, force=True)["data_hash"] == good["data_hash"]


def test_exchanged_splits_are_noticed(settings, tmp_path):
    write_tsv(tmp_path / "valid.tsv", make_pairs(600, seed=1))
    prepare(DataConfig(**settings), workers=1)
    folder = tmp_path / "data"
    for split, place in (("train", "aside"), ("valid", "train"), ("aside", "valid")):
        (folder / split).rename(folder / place)
    manifest = json.loads((folder / "manifest.json").read_text())
    splits = manifest["splits"]
    (folder / "manifest.json").write_text(
        json.dumps(manifest | {"splits": {"train": splits["valid"], "valid": splits["train"]}})
    )
    with pytest.raises(BadInput, match=r"the shards are not those of manifest\.json"):
        load_manifest(folder)


@pytest.mark.parametrize("name", ["manifest.json", "valid.jsonl", "spiece.model", "train/index.json"])
def test_a_file_that_cannot_be_read_is_named(settings, tmp_path, name, monkeypatch):
    prepare(DataConfig(**settings), workers=1)
    read = Path.read_bytes

    def refused(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(BadInput, match=rf"{name}: .*cannot be read: Permission denied"):
        load_manifest(tmp_path / "data")


def test_a_link_is_followed(settings, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "disk" / "prepared")
    prepare(DataConfig(**settings), workers=1)
    prepare(DataConfig(**(settings | {"tokenizer": {"vocabulary_size": 140}})), workers=1, force=True)
    assert link.is_symlink()
    assert load_manifest(link) == load_manifest(tmp_path / "disk" / "prepared")
    assert load_manifest(link)["tokenizer"]["vocabulary_size"] == 140
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(BadInput, match=r"data: data\.directory cannot be "):
        prepare(DataConfig(**settings), workers=1)


def test_the_home_folder_is_expanded(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig(**(settings | {"directory": "~/mine"}))
    assert config.directory == str(tmp_path / "mine")
    for directory in ("", "a\0b", "a\udc80", "~nobody-of-this-name/x"):
        with pytest.raises(ValidationError):
            DataConfig(**(settings | {"directory": directory}))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_mistake_in_the_validation_texts_is_told_before_the_work(settings, tmp_path, monkeypatch, dry_run):
    (tmp_path / "valid.tsv").write_text("good\tgut\nonly one column\n")
    monkeypatch.setattr(module, "_clean_train", lambda *_: pytest.fail("cleaning began"))
    with pytest.raises(BadInput, match=r"valid\.tsv:2: "):
        prepare(DataConfig(**settings), workers=1, dry_run=dry_run)


def test_a_ready_tokenizer(settings, tmp_path):
    first = prepare(DataConfig(**settings), workers=1)
    ready = settings | {
        "directory": str(tmp_path / "again"),
        "tokenizer": {"path": str(tmp_path / "data" / "spiece.model")},
    }
    again = prepare(DataConfig(**ready), workers=1)
    assert again["data_hash"] == first["data_hash"]
    assert again["inputs"]["tokenizer"][0]["sha256"] == first["tokenizer"]["sha256"]


def test_the_tokenizer_trains_on_a_bounded_sample(tmp_path):
    spool = tmp_path / "spool.tsv"
    write_tsv(spool, make_pairs(1000))
    config = DataConfig.model_fields["tokenizer"].default.model_copy(update={"sample_sentences": 100})
    sample = list(module._sample(spool, 1000, config))
    flat = [side for pair in make_pairs(1000) for side in pair]
    assert len(sample) == 100
    places = [flat.index(text) for text in sample]
    assert places == sorted(places)
    assert places[-1] > 1500  # from the whole text, not its beginning
    assert sample == list(module._sample(spool, 1000, config))
    assert sample != list(module._sample(spool, 1000, config.model_copy(update={"seed": 1})))


def test_the_sample_is_bounded_in_bytes_too(tmp_path, monkeypatch):
    spool = tmp_path / "spool.tsv"
    write_tsv(spool, make_pairs(1000))
    monkeypatch.setattr("bmscale.data.spool.SAMPLE_BYTES", spool.stat().st_size // 10)
    config = DataConfig.model_fields["tokenizer"].default
    assert len(list(module._sample(spool, 1000, config))) == pytest.approx(200, abs=4)


def test_toy_corpus(settings, monkeypatch):
    toy = types.ModuleType("bmscale.data.toy")
    asked = []

    def toy_pairs(split, count, seed=0):
        asked.append((split, count, seed))
        return iter(make_pairs(count, seed))

    monkeypatch.setattr(toy, "toy_pairs", toy_pairs, raising=False)
    monkeypatch.setitem(sys.modules, "bmscale.data.toy", toy)
    settings |= {"train": {"toy": "train", "pairs": 500, "seed": 3}}
    manifest = prepare(DataConfig(**settings), workers=1)
    assert set(asked) == {("train", 500, 3)}
    assert manifest["splits"]["train"]["pairs_kept"] == 500
    assert prepare(DataConfig(**settings), workers=1) == manifest
    monkeypatch.setattr(toy, "toy_pairs", lambda split, count, seed: iter(make_pairs(count, 9)))
    with pytest.raises(BadInput, match=r"data\.train: the contents of toy:train changed"):
        prepare(DataConfig(**settings), workers=1)


def test_nothing_left_after_cleaning(settings, tmp_path):
    write_tsv(tmp_path / "train.tsv", [("same", "same")] * 3)
    with pytest.raises(BadInput, match=r"cleaning dropped all of 3 pairs"):
        prepare(DataConfig(**settings), workers=1)
    write_tsv(tmp_path / "train.tsv", make_pairs())
    with pytest.raises(BadInput, match="max_source_tokens"):
        prepare(DataConfig(**settings, max_source_tokens=2), workers=1)


def test_configuration():
    base = {"directory": "d", "source_language": "en", "target_language": "de"}
    config = DataConfig.model_validate(base | {"train": "a.tsv", "valid": {"toy": "valid", "pairs": 5}})
    assert (config.train[0].path, config.valid[0].pairs) == ("a.tsv", 5)
    config = DataConfig.model_validate(base | {"train": ["a.tsv", {"path": "b", "format": "tsv"}], "valid": "v.tsv"})
    assert [corpus.path for corpus in config.train] == ["a.tsv", "b"]
    wrongs: list[dict] = [{"train": []}, {"source_language": "e/n"}, {"extra": 1}]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            DataConfig.model_validate(base | {"train": "a.tsv", "valid": "v.tsv"} | wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("sign", "everyone"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_interrupted_runs_end_with_their_workers(settings, tmp_path, sign, everyone):
    """Ctrl-C goes to the whole process group; a kill to the parent alone."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, json, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored\n"
        "from bmscale.data import prepare as module\n"
        "module.CHUNK_PAIRS = 64\n"
        "def endless(corpus, *_):\n"
        "    if corpus.path.endswith('valid.tsv'):\n"
        "        yield 'source', 'target'\n"
        "        return\n"
        "    print('reading', flush=True)\n"
        "    i = 0\n"
        "    while True:\n"
        "        i += 1\n"
        "        yield f'source {i}', f'target {i}'\n"
        "if __name__ == '__main__':\n"
        "    module.read_pairs = endless\n"
        "    module.prepare(module.DataConfig(**json.loads(sys.argv[1])), workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 120
    while not (spool := [*tmp_path.glob(".data.preparing-*/spool.tsv")]) or not spool[0].stat().st_size:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail("the run did not start")
        time.sleep(0.05)
    if everyone:
        os.killpg(process.pid, sign)
    else:
        process.kill()
    # Standard error ends only when the workers, which hold it too, have ended.
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of a failed test may go on
            os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "data").exists()
    if everyone:
        assert errors.count("Traceback") == 1  # the parent's own KeyboardInterrupt, which the command line catches
        assert not [*tmp_path.glob(".data.preparing-*")]
    else:
        prepare(DataConfig(**settings), workers=1)
        assert not [*tmp_path.glob(".data.preparing-*")]


def several(settings, tmp_path, **options):
    """A German and a French corpus of English, each with its validation set."""
    french = write_tsv(tmp_path / "french.tsv", make_pairs(200, seed=5))
    train = [settings["train"], {"path": french, "target_language": "fr", "name": "fr-news"}]
    valid = [settings["valid"], {"path": write_tsv(tmp_path / "v.tsv", VALID[:2]), "target_language": "fr"}]
    return settings | {"train": train, "valid": valid} | options


def test_several_languages_need_tags_and_get_them(settings, tmp_path):
    with pytest.raises(ValidationError, match=r"several target languages \(de, fr\).*language_tags: true"):
        DataConfig(**several(settings, tmp_path))
    config = DataConfig(**several(settings, tmp_path, language_tags=True, keep_text=True))
    manifest = prepare(config, workers=1)
    assert load_manifest(tmp_path / "data") == manifest
    sources = manifest["splits"]["train"]["sources"]
    assert [(s["name"], s["target_language"], s["pairs_kept"]) for s in sources] == [
        ("train", "de", 600),
        ("fr-news", "fr", 200),
    ]
    assert [s["pairs_kept"] for s in manifest["splits"]["valid"]["sources"]] == [5, 2]
    tokenizer = Tokenizer.load(tmp_path / "data" / "spiece.model")
    train, valid = (PairShards.open(tmp_path / "data" / split) for split in ("train", "valid"))
    for shards, index, tag in ((train, 0, "<2de>"), (train, 600, "<2fr>"), (valid, 4, "<2de>"), (valid, 5, "<2fr>")):
        assert tag in tokenizer.pieces(shards.pair(index)[0])
    assert train.text(600)[0].startswith("<2fr> ")
    assert tokenizer.decode(train.pair(600)[0]) == train.text(600)[0]
    assert not valid.has_texts
    first = json.loads((tmp_path / "data" / "valid.jsonl").read_text().splitlines()[0])
    assert first["source"] == VALID[0][0]  # the text of a user has no tag


def test_a_tokenizer_without_the_tags_is_refused(settings, tmp_path):
    prepare(DataConfig(**settings), workers=1)
    ready = {"path": str(tmp_path / "data" / "spiece.model")}
    config = several(settings, tmp_path, language_tags=True, tokenizer=ready, directory=str(tmp_path / "tagged"))
    with pytest.raises(BadInput, match=r"must have the piece <2de>; train it with --user_defined_symbols=<2de>,<2fr>"):
        prepare(DataConfig(**config), workers=1)


def test_a_language_that_is_never_trained_is_not_validated(settings):
    valid = {"path": settings["valid"], "target_language": "it"}
    with pytest.raises(ValidationError, match="valid translates into it, which no training corpus does"):
        DataConfig(**(settings | {"valid": valid}))


def test_a_dataset_by_name_gives_the_same_shards(settings, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    pairs = make_pairs()
    rows = [{"translation": {"en": s, "de": t}} for s, t in pairs]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "set" / "train-00000.parquet"))
    named = {"dataset": str(tmp_path / "set"), "name": "train"}
    hashes = [
        prepare(DataConfig(**(settings | {"train": train, "directory": str(tmp_path / name)})), workers=1)["data_hash"]
        for name, train in (
            ("a", settings["train"]),
            ("b", named),
            ("c", str(tmp_path / "set" / "train-00000.parquet")),
        )
    ]
    assert len(set(hashes)) == 1


def test_a_dataset_of_the_hub_that_cannot_be_reached_is_told(settings, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(name, subset, revision):
        raise ConnectionError(f"{name}@{revision}: offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    train = {"dataset": "nobody/nothing", "revision": "v1"}
    with pytest.raises(BadInput, match="nobody/nothing: no such dataset, neither a folder here nor reachable on the"):
        prepare(DataConfig(**(settings | {"train": train})), workers=1)
