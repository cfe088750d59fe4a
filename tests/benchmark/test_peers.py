"""The peers of the benchmark: what they report is what they trained on, and a lacking package is one line."""

import importlib.util
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import sentencepiece

PEERS = Path(__file__).parents[2] / "bmscale" / "benchmark" / "peers"
PAIRS = 200
BATCH = 10
EPOCH = PAIRS // BATCH


def write_pairs(folder: Path) -> None:
    """200 toy pairs of 1 to 12 words, and a small joint tokenizer with the ids that bmscale gives."""
    draw = random.Random(3)
    words = ["".join(draw.choices("abdegiklmnorstu", k=draw.randint(2, 6))) for _ in range(80)]
    sources = [[draw.choice(words) for _ in range(draw.randint(1, 12))] for _ in range(PAIRS)]
    for name, lines in (("source", sources), ("target", [[*reversed(line), "x"] for line in sources])):
        (folder / f"{name}.txt").write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=[str(folder / "source.txt"), str(folder / "target.txt")],
        model_prefix=str(folder / "spm"),
        vocab_size=120,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> SimpleNamespace:
    """The toy corpus with the lengths of its sides, </s> counted."""
    folder = tmp_path_factory.mktemp("peers")
    write_pairs(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    lengths = {
        side: [len(model.encode(line)) + 1 for line in (folder / f"{side}.txt").read_text(encoding="utf-8").split("\n")]
        for side in ("source", "target")
    }
    lengths = {side: counts[:PAIRS] for side, counts in lengths.items()}
    return SimpleNamespace(folder=folder, pieces=model.get_piece_size(), **lengths)


def run_peer(script: str, corpus: SimpleNamespace, check: bool = True, **spec: Any) -> Any:
    """Run a peer on the toy corpus by this interpreter; its RESULT.json, or the finished process unless `check`."""
    folder = corpus.folder
    given = {
        "source": str(folder / "source.txt"),
        "target": str(folder / "target.txt"),
        "tokenizer": str(folder / "spm.model"),
        "vocabulary_size": corpus.pieces,
        "hidden_size": 32,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feed_forward_size": 64,
        "dropout": 0.1,
        "precision": "fp32",
        "threads": 1,
        "warmup_steps": 2,
        "steps": 3,
        "max_seconds": 600,
        "learning_rate": 3e-3,
        "seed": 5,
        "work": str(folder / "work" / str(spec.get("system"))),
        "device": "cpu",
        "system": script,
        "a_key_of_a_later_core": True,
    }
    (folder / "spec.json").write_text(json.dumps({**given, **spec}), encoding="utf-8")
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(PEERS / f"{script}.py"), str(folder / "spec.json"), str(result)]
    # In a folder of its own: a peer finds nothing of bmscale beside it.
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if not check:
        return process
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(result.read_text(encoding="utf-8"))


@pytest.mark.parametrize("system", ["hf-marian", "hf-t5", "hf-marian-grouped"])
def test_trainer_counts_what_it_trained_on(corpus, system):
    """The warm-up is an epoch and the timed updates are the next: every pair once, in whatever order."""
    given = run_peer("hf_trainer", corpus, system=system, sentences_per_step=BATCH, warmup_steps=EPOCH, steps=EPOCH)
    assert given["system"] == system
    assert set(given["versions"]) >= {"torch", "transformers"}
    assert given["steps"] == EPOCH
    assert given["source_tokens"] == sum(corpus.source)
    assert given["target_tokens"] == sum(corpus.target)
    # Ten pairs drawn at random nearly always hold a long one; ten out of fifty sorted by length do not.
    full = PAIRS * (max(corpus.source) + max(corpus.target))
    real = sum(corpus.source) + sum(corpus.target)
    assert real < given["slots"] <= full
    assert (given["slots"] < 0.75 * full) == system.endswith("-grouped")
    check_training(given, corpus.pieces)


def test_torch_counts_what_it_trained_on(corpus):
    """An update of the whole corpus: its tokens are known, and so is its padding."""
    given = run_peer("torch_transformer", corpus, system="torch", tokens_per_step=sum(corpus.target))
    assert given["steps"] == 3
    assert given["source_tokens"] == 3 * sum(corpus.source)
    assert given["target_tokens"] == 3 * sum(corpus.target)
    assert given["slots"] == 3 * PAIRS * (max(corpus.source) + max(corpus.target))
    check_training(given, corpus.pieces)


def test_torch_batches_by_tokens(corpus):
    given = run_peer(
        "torch_transformer", corpus, system="torch", tokens_per_step=600, steps=10, precision="bf16", dropout=0.0
    )
    assert given["precision"] == "bf16"
    updates = round(sum(corpus.target) / 600)  # of an epoch; each differs from the mean by less than a sentence
    assert abs(given["target_tokens"] - 10 * sum(corpus.target) / updates) < 10 * max(corpus.target)
    assert given["slots"] < 1.4 * (given["source_tokens"] + given["target_tokens"])
    assert given["losses"][1] < given["losses"][0]
    check_training(given, corpus.pieces)


def check_training(given: dict[str, Any], pieces: int) -> None:
    assert given["seconds"] > 0
    assert 0.05 < given["peak_memory_gib"] < 8
    # An encoder layer has 4 D² + 2 D F of matrices, a decoder layer 8 D² + 2 D F, and there is one V x D.
    matrices = 32 * pieces + 12 * 32**2 + 4 * 32 * 64
    assert matrices < given["parameters"] < 1.15 * matrices
    first, last = given["losses"]
    assert abs(first - math.log(pieces)) < 1.5  # random weights know nothing: about log V nats a token
    assert 0 < last < first + 0.2


@pytest.mark.parametrize("script", ["joeynmt", "eole", "ctranslate2_decode"])
def test_lacking_package_is_one_line(corpus, script):
    package = script.removesuffix("_decode")
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    process = run_peer(script, corpus, check=False)
    assert process.returncode == 3
    assert process.stderr.count("\n") == 1
    assert f"lacks the package '{package}'" in process.stderr
    assert sys.executable in process.stderr


def test_wrong_spec_is_one_line(corpus):
    process = run_peer("torch_transformer", corpus, check=False, vocabulary_size=corpus.pieces + 1, tokens_per_step=600)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert f"must have {corpus.pieces + 1} pieces" in process.stderr


@pytest.fixture
def protocol(monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(PEERS)])
    given = importlib.util.spec_from_file_location("peers_protocol", PEERS / "protocol.py")
    assert given
    assert given.loader
    module = importlib.util.module_from_spec(given)
    monkeypatch.setitem(sys.modules, "peers_protocol", module)
    given.loader.exec_module(module)
    assert str(PEERS) not in sys.path  # else `import joeynmt` would find the peer, and not the package
    return module


def spec(**keys: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"warmup_steps": 1, "steps": 2, "max_seconds": 600, "device": "cpu"} | keys)


def test_meter_counts_timed_updates_only(protocol):
    meter = protocol.Meter(spec(), torch=None)
    meter.batch(100, 100, 900, 400.0)
    assert not meter.update()
    meter.batch(1, 2, 4, 6.0)
    meter.batch(3, 2, 8, 2.0)  # a second batch of the same update
    assert not meter.update()
    meter.batch(5, 5, 10, 5.0)
    assert meter.update()
    meter.batch(7, 7, 7, 7.0)  # a system that goes on for a while
    assert meter.update()
    given = meter.result("fp32", 3)
    assert (given["source_tokens"], given["target_tokens"], given["slots"], given["steps"]) == (9, 9, 22, 2)
    assert given["losses"] == [pytest.approx(413 / 109)] * 2


def test_meter_stops_in_time(protocol):
    meter = protocol.Meter(spec(steps=1000, max_seconds=0), torch=None)
    for _ in range(2):
        meter.batch(1, 1, 2, 1.0)
        finished = meter.update()
    assert finished
    assert meter.result("fp32", 3)["steps"] == 1


def test_unfinished_training_is_no_result(protocol, capsys):
    meter = protocol.Meter(spec(), torch=None)
    meter.batch(1, 1, 2, 1.0)
    meter.update()
    with pytest.raises(SystemExit):
        meter.result("fp32", 3)
    assert "ended after 1 updates" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [1, 10, 777, 12_345])
def test_batch_size_gives_the_tokens_wanted(protocol, wanted):
    size = protocol.batch_size_for(wanted, lambda slots: 0.8 * slots)
    assert abs(0.8 * size - wanted) <= max(1, 0.01 * wanted)
