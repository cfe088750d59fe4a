"""Every mistake a person makes: one clear message, exit code 2, no traceback, nothing written."""

import io
import json
import lzma
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bmscale.cli import main

WORDS_EN = [
    "the",
    "a",
    "old",
    "new",
    "small",
    "house",
    "tree",
    "dog",
    "cat",
    "sees",
    "finds",
    "likes",
    "wants",
    "green",
    "red",
]
WORDS_DE = [
    "das",
    "ein",
    "alt",
    "neu",
    "klein",
    "Haus",
    "Baum",
    "Hund",
    "Katze",
    "sieht",
    "findet",
    "mag",
    "will",
    "gruen",
    "rot",
]

CONFIG = """\
name: x
data:
  directory: prepared
  source_language: en
  target_language: de
  train: train.tsv
  valid: valid.tsv
  tokenizer: {vocabulary_size: 50}
model: {hidden_size: 16, num_attention_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1}
training:
  tokens_per_step: 200
  max_micro_batch_tokens: 400
  max_steps: 2
  precision: fp32
evaluation: {every_steps: 2, pairs: 2}
"""


def corpus(count: int, start: int = 0) -> str:
    rows = []
    for number in range(start, start + count):
        picks = [(number * factor) % len(WORDS_EN) for factor in (1, 3, 7, 11)]
        rows.append(" ".join(WORDS_EN[i] for i in picks) + "\t" + " ".join(WORDS_DE[i] for i in picks) + "\n")
    return "".join(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder in which everything is right: corpus, prepared data, a trained run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "train.tsv").write_text(corpus(15))
    (folder / "valid.tsv").write_text(corpus(3, start=4))
    (folder / "x.yaml").write_text(CONFIG)
    for command in ("prepare", "train"):
        arguments = [sys.executable, "-m", "bmscale", command, "x.yaml"]
        result = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def change(file: str, old: str, new: str) -> Callable[[], None]:
    def apply() -> None:
        text = Path(file).read_text()
        assert old in text
        Path(file).write_text(text.replace(old, new))

    return apply


def write(file: str, content: str | bytes) -> Callable[[], object]:
    return lambda: Path(file).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(file: str, keep: int) -> Callable[[], object]:
    return lambda: Path(file).write_bytes(Path(file).read_bytes()[:keep])


def remove(path: str) -> Callable[[], object]:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def stranger() -> None:
    Path("runs/other").mkdir()
    Path("runs/other/thesis.txt").write_text("x")


def uneven() -> None:
    Path("p.en").write_text("a\nb\n")
    Path("p.de").write_text("c\n")


def only_a_test_split() -> None:
    Path("set").mkdir()
    shutil.copy("train.tsv", "set/test.csv")


def nothing() -> None:
    pass


def saved_by(run: str | None) -> Callable[[], None]:
    def apply() -> None:
        from bmscale.training.checkpoint import _seal

        (path,) = Path("runs/x/state").glob("*/state.json")
        values = {**json.loads(path.read_bytes()), "run": run}
        del values["sha256"]
        path.write_text(json.dumps({**values, "sha256": _seal(values)}))

    return apply


def change_run(key: str, value: object) -> Callable[[], None]:
    def apply() -> None:
        path = Path("runs/x/run.yaml")
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), key: value}))

    return apply


def log_is_a_folder() -> None:
    Path("runs/x/log.txt").unlink()
    Path("runs/x/log.txt").mkdir()


def no_states_and_metrics() -> None:
    shutil.rmtree("runs/x/state")
    Path("runs/x/metrics.jsonl").unlink()


def change_identity(change: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    def apply() -> None:
        path = Path("runs/x/run.yaml")
        values = yaml.safe_load(path.read_text())
        change(values["identity"])
        path.write_text(yaml.safe_dump(values))

    return apply


def shape(**options: object) -> Callable[[], None]:
    """Another one in run.yaml than that of the state, which is of a version that did not note its run."""

    def apply() -> None:
        saved_by(None)()
        change_identity(lambda identity: identity["model"].update(options))()

    return apply


def other_data() -> None:
    """Another training set prepared into the folder that the run was trained from, and the run's models gone."""
    Path("train.tsv").write_text(corpus(14))
    shutil.rmtree("runs/x/model")
    assert main(["prepare", "x.yaml", "--force"]) == 0


def pieces_of_two_sizes() -> None:
    """A second run, of another width."""
    folder = Path("runs/x/model/best")
    shutil.copytree(folder, "wide")
    from bmscale.model.folder import open_model_folder, write_model_folder

    config = open_model_folder(folder).config
    config.hidden_size = config.intermediate_size = 32
    config.head_dim = 16
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_config(config)
    write_model_folder("wide", config, model.named_parameters(), folder / "spiece.model", {})


BEST = "runs/x/model/best"
LAST = "runs/x/model/last"
FRESH = "data.directory=fresh"

MISTAKES: dict[str, tuple[Callable[[], object], str, str]] = {
    # configuration
    "misspelt section": (change("x.yaml", "training:", "trainig:"), "train x.yaml", r"x\.yaml:10: trainig: unknown key; did you mean 'training'"),
    "misspelt key": (change("x.yaml", "max_steps", "max_stesp"), "train x.yaml", r"x\.yaml:13: training\.max_stesp: unknown key; did you mean 'max_steps'"),
    "misspelt model option": (change("x.yaml", "hidden_size", "hiden_size"), "train x.yaml", r"x\.yaml:9: model\.hiden_size: unknown key; did you mean 'hidden_size'"),
    "misspelt override": (nothing, "train x.yaml training.sede=1", r"override 'training\.sede=1': training\.sede: unknown key; did you mean 'seed'"),
    "mistyped number": (change("x.yaml", "max_steps: 2", "max_steps: many"), "train x.yaml", r"x\.yaml:13: training\.max_steps: must be a valid integer; got 'many'"),
    "mistyped choice": (nothing, "train x.yaml training.schedule.type=cosin", r"training\.schedule\.type: must be .*; got 'cosin'; did you mean 'cosine'"),
    "out of range": (nothing, "train x.yaml training.label_smoothing=1.5", r"training\.label_smoothing: must be less than 1; got 1\.5"),
    "no such config": (nothing, "train xx.yaml", r"xx\.yaml: no such file; did you mean 'x\.yaml'"),
    "unknown experiment preset": (write("x.yaml", "preset: tooy\n"), "train x.yaml", r"x\.yaml:1: preset: 'tooy': no preset of that name; did you mean 'toy'"),
    "unknown model preset": (nothing, "train x.yaml model.preset=modem", r"model.*preset must be one of .*; got 'modem'"),
    "unknown size": (nothing, "train x.yaml model.size=tinny", r"model.*size must be one of .*; got 'tinny'"),
    "key twice": (change("x.yaml", "name: x", "name: x\nname: y"), "train x.yaml", r"x\.yaml:2: key 'name' is given twice \(first on line 1\)"),
    "not YAML": (write("x.yaml", "data: [1, 2\n"), "train x.yaml", r"x\.yaml:\d: not YAML"),
    "override without a value": (nothing, "train x.yaml training.seed", r"override 'training\.seed': must have the form key\.sub=value"),
    "steps and epochs": (nothing, "train x.yaml training.max_epochs=3", r"exactly one of max_steps and max_epochs must be given; got both"),
    "fp16": (nothing, "train x.yaml training.precision=fp16", r"precision must be bf16 or fp32; got fp16"),
    "selection without translations": (nothing, "train x.yaml evaluation.select=bleu evaluation.pairs=0", r"evaluation\.pairs must be above 0"),
    "heads that do not divide": (nothing, "train x.yaml model.num_attention_heads=3", r"hidden_size must be a multiple of num_attention_heads.* 16 and num_attention_heads 3"),
    "key heads that do not divide": (nothing, "train x.yaml model.num_key_value_heads=3", r"num_key_value_heads must divide num_attention_heads; got 3 and 2"),
    # data
    "missing corpus": (nothing, f"prepare x.yaml data.train=trian.tsv {FRESH}", r"trian\.tsv: .*'?train\.tsv"),
    "no data section": (write("x.yaml", "name: x\n"), "prepare x.yaml", r"x\.yaml: data: must be given"),
    "unequal line counts": (uneven, f"prepare x.yaml data.train=p {FRESH}", r"p\.en.*2.*p\.de.*1"),
    "not UTF-8": (write("bad.tsv", b"fine\tgut\nno\xff\tnein\n"), f"prepare x.yaml data.train=bad.tsv {FRESH}", r"bad\.tsv:2: .*UTF-8"),
    "too few columns": (write("bad.tsv", "a b\tc d\nonly one\n"), f"prepare x.yaml data.train=bad.tsv {FRESH}", r"bad\.tsv:2: "),
    "empty corpus": (write("empty.tsv", ""), f"prepare x.yaml data.train=empty.tsv {FRESH}", r"empty\.tsv: .*at least one pair"),
    "JSONL that does not parse": (write("bad.jsonl", '{"en": "a", "de": "b"}\n{"en": \n'), f"prepare x.yaml data.train=bad.jsonl {FRESH}", r"bad\.jsonl:2: "),
    "JSONL without the key": (write("bad.jsonl", '{"en": "a", "fr": "b"}\n'), f"prepare x.yaml data.train=bad.jsonl {FRESH}", r"bad\.jsonl:1: .*'de'"),
    "truncated archive": (write("cut.tsv.xz", lzma.compress(corpus(500).encode())[:-40]), f"prepare x.yaml data.train=cut.tsv.xz {FRESH}", r"cut\.tsv\.xz: "),
    "vocabulary too large": (nothing, f"prepare x.yaml data.tokenizer.vocabulary_size=5000 {FRESH}", r"data\.tokenizer\.vocabulary_size: .*at most \d+ pieces, got 5,000"),
    "other data in the folder": (nothing, "prepare x.yaml data.tokenizer.vocabulary_size=45", r"prepared.*vocabulary_size"),
    "one state kept only": (nothing, "train x.yaml training.keep_states=1", r"training\.keep_states: .*greater than or equal to 2; got 1"),
    "a rollback that cannot be": (nothing, "train x.yaml training.max_rollbacks=-1", r"training\.max_rollbacks: .*greater than or equal to 0"),
    "spikes that judge before they know": (nothing, "train x.yaml training.spikes.window=8", r"training\.spikes: least must be at most window, 8; got 32"),
    "checkpoints of no run": (nothing, "checkpoint list prepared", r"prepared: not a run folder: it has no run\.yaml"),
    "prune all but one": (nothing, "checkpoint prune runs/x --keep 1", r"--keep: must be at least 2"),
    "export of a state that is not there": (nothing, "checkpoint export runs/x --step 7", r"must hold a state of step 7; it has step-00000002"),
    "export of a running mean that was not kept": (nothing, "checkpoint export runs/x --ema", r"has no running mean"),
    "export over the present folder": (nothing, "checkpoint export runs/x --to .", r"exists and is no model folder, or holds more than a model"),
    "export over a folder above": (nothing, "checkpoint export runs/x --to runs/..", r"exists and is no model folder"),
    "export over the run": (nothing, "checkpoint export runs/x --to runs/x", r"runs/x: exists and is no model folder"),
    "export over the states": (nothing, "checkpoint export runs/x --to runs/x/state", r"runs/x/state: exists and is no model folder"),
    "export among the states": (nothing, "checkpoint export runs/x --to runs/x/state/step-00000009", r"must not lie among the training states"),
    "export over other files": (stranger, "checkpoint export runs/x --to runs/other", r"runs/other: exists and is no model folder"),
    "export over a model and more": (write(f"{BEST}/thesis.txt", "x"), f"checkpoint export runs/x --to {BEST}", r"holds more than a model"),
    "export over a file": (nothing, "checkpoint export runs/x --to valid.tsv", r"valid\.tsv: exists and is no model folder"),
    "state of another run": (saved_by("another"), "train x.yaml training.max_steps=4", r"step-00000002: was saved by another run"),
    "export of a state of another run": (saved_by("another"), "checkpoint export runs/x --to out", r"step-00000002: was saved by another run"),
    "state under another number": (lambda: Path("runs/x/state/step-00000002").rename("runs/x/state/step-00000001"), "train x.yaml training.max_steps=4", r"holds no training state that is whole"),
    "export with another shape": (shape(hidden_size=32), "checkpoint export runs/x --to out", r"must be of the model in runs/x/run\.yaml, and is not: tensor "),
    "export with a shape that cannot be": (shape(hidden_size="many"), "checkpoint export runs/x --to out", r"runs/x/run\.yaml: damaged: identity\.model: "),
    "export without identity": (change_identity(lambda identity: identity.clear()), "checkpoint export runs/x --to out", r"runs/x/run\.yaml: damaged: its identity must hold data_hash and model"),
    "export without any tokenizer of the run": (other_data, "checkpoint export runs/x --to out", r"spiece\.model: must be in prepared with the data of the run"),
    "run.yaml without an experiment": (change_run("experiment", {}), "train x.yaml", r"run\.yaml: damaged: its experiment must hold the section training"),
    "run.yaml with a list for a section": (change_run("experiment", {"training": [1]}), "train x.yaml", r"run\.yaml: damaged: its experiment must hold the section training"),
    "states and metrics are gone": (no_states_and_metrics, "train x.yaml", r"holds no training state, and the run had saved one"),
    "run is a file": (nothing, "train x.yaml run=valid.tsv", r"valid\.tsv: must be the folder of a run, or free for a new one; .*valid\.tsv is no folder"),
    "run below a file": (nothing, "train x.yaml run=valid.tsv/a/b", r"valid\.tsv/a/b: must be the folder of a run, .*valid\.tsv is no folder"),
    "too many tokens": (nothing, f"train x.yaml training.tokens_per_step={10**21}", r"training\.tokens_per_step: must be less than or equal to 1099511627776"),
    "too many epochs": (nothing, f"train x.yaml training.max_steps=null training.max_epochs={10**12}", r"training\.max_epochs: must be at most 1,000,000; got 1,000,000,000,000"),
    "verify with an option of export": (nothing, "checkpoint verify runs/x --step 2", r"--step: is an option of export; leave it out of verify"),
    "export with an option of prune": (nothing, "checkpoint export runs/x --to out --keep 2", r"--keep: is an option of prune; leave it out of export"),
    "empty run.yaml": (write("runs/x/run.yaml", ""), "train x.yaml", r"runs/x/run\.yaml: damaged: it must be a mapping, and is empty"),
    "log is a folder": (log_is_a_folder, "train x.yaml", r"runs/x/log\.txt: must be a file or free for one, and is a folder"),
    "name of a folder of the run": (nothing, "train x.yaml run=runs/new name=state", r"name: must not be one that the run folder uses itself; got 'state'"),
    "another experiment altogether": (nothing, "train x.yaml training.seed=1 training.clip_norm=2 training.label_smoothing=0.2 training.tokens_per_step=9 training.precision=bf16 training.optimizer.learning_rate=1", r"holds a run of another experiment; training\.seed: the run has 0, now 1; .*; and 1 more\. Choose"),
    "every state damaged": (lambda: [path.write_bytes(b"x") for path in Path("runs/x/state").glob("*/state.json")], "checkpoint export runs/x", r"must be whole to be exported: .*state\.json: damaged"),
    "two target languages without tags": (change("x.yaml", "train: train.tsv", "train: [train.tsv, {path: valid.tsv, target_language: fr}]"), f"prepare x.yaml {FRESH}", r"x\.yaml:2: data: .*several target languages \(de, fr\).*set language_tags: true"),
    "validation of a language never trained": (change("x.yaml", "valid: valid.tsv", "valid: {path: valid.tsv, target_language: fr}"), f"prepare x.yaml {FRESH}", r"valid translates into fr, which no training corpus does"),
    "malformed language code": (nothing, f"prepare x.yaml data.target_language=german {FRESH}", r"data\.target_language: .*got 'german'"),
    "two origins of a corpus": (change("x.yaml", "train: train.tsv", "train: {path: train.tsv, toy: train}"), f"prepare x.yaml {FRESH}", r"exactly one of path, .*dataset, toy.*; got path and toy"),
    "subset of a file": (change("x.yaml", "train: train.tsv", "train: {path: train.tsv, subset: de-en}"), f"prepare x.yaml {FRESH}", r"subset goes with dataset, which is not given; got path"),
    "damaged Parquet": (write("bad.parquet", b"PAR1 no more"), f"prepare x.yaml data.train=bad.parquet {FRESH}", r"bad\.parquet: cannot be read as a dataset"),
    "dataset folder without the split": (only_a_test_split, f"prepare x.yaml data.train=set {FRESH}", r"set: cannot be read as a dataset \(split 'train'\)"),
    "row of the hub's form without a side": (write("bad.jsonl", '{"translation": {"en": "a"}}\n'), f"prepare x.yaml data.train=bad.jsonl {FRESH}", r"bad\.jsonl:1: the key 'de' must hold a string, got only 'en'"),
    "tokenizer without the tags": (nothing, f"prepare x.yaml data.language_tags=true data.tokenizer.path=prepared/spiece.model {FRESH}", r"prepared/spiece\.model: with data\.language_tags it must have the piece <2de>"),
    # training
    "no text to sample from": (nothing, "train x.yaml training.subword_sampling.alpha=0.1 run=runs/new", r"training\.subword_sampling: needs the text beside the tokens; set data\.keep_text: true"),
    "weights of no corpus": (nothing, "train x.yaml training.sampling.weights.tarin=2 run=runs/new", r"training\.sampling\.weights: must have one weight for each .* which are train; got tarin"),
    "weights and temperature": (nothing, "train x.yaml training.sampling.weights.train=2 training.sampling.temperature=5", r"exactly one of temperature and weights must be given; got both"),
    "a weight of nothing": (nothing, "train x.yaml training.sampling.weights.train=0", r"weights\.train must be above 0 and finite; got 0"),
    "tracker that is not installed": (nothing, "train x.yaml training.trackers=[tensorbord] run=runs/new", r"training\.trackers: must name trackers that are installed.*got 'tensorbord'"),
    "more steps for statistics than are kept": (nothing, "train x.yaml training.spikes.window=20", r"training\.spikes: least must be at most window, 20; got 32"),
    "decay of 1": (nothing, "train x.yaml training.ema_decay=1", r"training\.ema_decay: must be less than 1; got 1"),
    "data not prepared": (remove("prepared"), "train x.yaml", r"prepared.*bmscale prepare"),
    "data truncated": (lambda: cut(str(next(Path("prepared/train").glob("*.bin"))), 4)(), "train x.yaml", r"prepared/train"),
    "step smaller than a sentence": (nothing, "train x.yaml training.tokens_per_step=3", r"training\.tokens_per_step: must hold the longest target, \d+ tokens; got 3"),
    "batch smaller than a sentence": (nothing, "train x.yaml training.max_micro_batch_tokens=5", r"training\.max_micro_batch_tokens: must hold the longest pair, \d+ tokens.*; got 5"),
    "positions shorter than a sentence": (nothing, "train x.yaml model.max_position_embeddings=4", r"model\.max_position_embeddings: must hold the longest"),
    "misspelt key on submit": (nothing, "submit x.yaml training.sede=1 --nodes=2", r"training\.sede: unknown key; did you mean 'seed'"),
    "submit before prepare": (nothing, "submit x.yaml data.directory=none", r"none: no prepared data here"),
    "unknown ds_config": (nothing, "train x.yaml training.deepspeed=zero22 run=runs/new", r"training\.deepspeed: no such file or name: 'zero22'; did you mean 'zero2'"),
    "contradicting ds_config": (write("ds.json", '{"zero_optimization": {"stage": 2}, "train_batch_size": 64}'), "train x.yaml training.deepspeed=ds.json run=runs/new", r"ds\.json: train_batch_size: must be absent or 1, .*; got 64"),
    "prepared from other data": (nothing, "train x.yaml data.source_language=fr run=runs/new", r"prepared: was prepared from another configuration; data\.source_language: was 'en', now 'fr'"),
    "section of a ds_config that is no mapping": (write("ds.json", '{"zero_optimization": {"stage": 2}, "bf16": true}'), "train x.yaml training.deepspeed=ds.json run=runs/new", r"ds\.json: bf16: must be a mapping; got True"),
    "misspelt key in a ds_config": (write("ds.json", '{"zero_optimization": {"stage": 2, "overlap_com": true}}'), "train x.yaml training.deepspeed=ds.json run=runs/new", r"ds\.json: zero_optimization\.overlap_com: .*did you mean 'overlap_comm'"),
    "run folder that cannot be made": (nothing, "train x.yaml run=train.tsv/run", r"train\.tsv"),
    "test sets of one name": (lambda: (shutil.copytree("runs", "a"), shutil.copy("valid.tsv", "a/valid.tsv")), "evaluate runs/x --test valid.tsv --test a/valid.tsv", r"two are called 'valid'"),
    "run of another experiment": (nothing, "train x.yaml training.seed=5 training.optimizer.learning_rate=0.5", r"runs/x: holds a run of another experiment; training\.seed: the run has 0, now 5; training\.optimizer\.learning_rate: the run has 0\.001, now 0\.5"),
    "run of another parametrization": (nothing, "train x.yaml model.parametrization=mup", r"holds a run of another experiment; model\.parametrization: the run has None, now 'mup'"),
    "a base of nothing": (nothing, "train x.yaml model.base_layers=2", r"model: base_layers goes with parametrization: mup only; got 2"),
    "folder that is no run": (stranger, "train x.yaml run=runs/other", r"runs/other: is not empty and holds no run\.yaml"),
    "schedule changed under a run": (nothing, "train x.yaml training.schedule.type=cosine training.max_steps=9", r"--new-schedule"),
    # evaluation and inference
    "evaluate what is no run": (nothing, "evaluate prepared", r"prepared: not a run folder"),
    "report of what is no run": (nothing, "report prepared", r"prepared: not a run folder: it has no run\.yaml; give the folder that `bmscale train` wrote"),
    "report of a run that is not there": (nothing, "report runs/xx", r"runs/xx: not a run folder"),
    "report of a damaged run": (write("runs/x/run.yaml", "experiment: [\n"), "report runs/x", r"runs/x/run\.yaml: damaged: "),
    "report of a run.yaml without experiment": (write("runs/x/run.yaml", "x: 1\n"), "report runs/x", r"run\.yaml: damaged: must hold the section experiment"),
    "missing test set": (nothing, "evaluate runs/x --test tset.tsv", r"tset\.tsv"),
    "missing model folder": (nothing, "translate runs/x/model/bset", r"runs/x/model/bset: no such model folder"),
    "run folder as model": (nothing, "translate runs/x", r"runs/x/model/best"),
    "model without weights": (remove(f"{BEST}/model.safetensors"), f"translate {BEST}", r"model\.safetensors"),
    "truncated weights": (cut(f"{BEST}/model.safetensors", 2000), f"translate {BEST}", r"model\.safetensors"),
    "model without tokenizer": (remove(f"{BEST}/spiece.model"), f"translate {BEST}", r"spiece\.model"),
    "damaged model configuration": (cut(f"{BEST}/config.json", 50), f"translate {BEST}", r"config\.json"),
    "model that the run does not have": (nothing, "evaluate runs/x --model averge", r"--model: must be the name of a folder in runs/x/model: best, last; got 'averge'"),
    "more translations than beams": (nothing, f"translate {BEST} --n-best 6", r"n_best: must be a whole number from 1 to the beam size, 5; got 6"),
    "no translations": (nothing, f"translate {BEST} --n-best 0", r"n_best: .*got 0"),
    "missing prefixes": (nothing, f"translate {BEST} --prefixes none.txt", r"none\.txt: cannot be read"),
    "more prefixes than sentences": (write("p.txt", "das\n"), f"translate {BEST} --prefixes p.txt", r"prefixes: .*the sentences end after line 0"),
    "score and search": (nothing, f"translate {BEST} --score --beam-size 3", r"--score: .*leave --beam-size out"),
    # comparing and averaging
    "compare with nothing": (nothing, "compare runs/x --test valid.tsv", r"compare: must have at least two different systems"),
    "compare with what is not there": (nothing, "compare runs/x runs/y --test valid.tsv", r"runs/y: must be a run folder, a model folder, or a file of translations"),
    "compare other numbers of lines": (write("t.txt", "das\n"), "compare runs/x t.txt --test valid.tsv", r"t\.txt: must have one translation a line for each sentence of the test set, 3; got 1 lines"),
    "compare on a missing test set": (nothing, f"compare runs/x {LAST} --test tset.tsv", r"tset\.tsv"),
    "average without kept models": (nothing, "average runs/x --last 2", r"--last: runs/x/model must hold 2 models of validations; it has 0 \(none\).*evaluation\.keep_models"),
    "average of last and best": (nothing, "average runs/x --last 2 --best 2", r"exactly one of --last N and --best N must be given; got both"),
    "average of a run without a number": (nothing, "average runs/x", r"exactly one of --last N and --best N must be given; got neither"),
    "average of one": (nothing, f"average {BEST} --to out", r"at least two model folders; got 1"),
    "average without a name": (nothing, f"average {BEST} {LAST}", r"--to: must name the folder to write"),
    "average of two shapes": (pieces_of_two_sizes, f"average {BEST} wide --to out", r"wide: must have the architecture and shape of"),
    "average over other files": (nothing, f"average {BEST} {LAST} --to prepared", r"prepared: exists and is no model folder"),
    "language of another model": (nothing, f"translate {BEST} --to fr", r"target language: the model translates into de alone; got fr"),
    # before a run
    "a width that no machine has": (nothing, "train x.yaml model.hidden_size=1000000000000", r"model: hidden_size must be at most 1,048,576; got 1,000,000,000,000"),
    "the same in a plan": (nothing, "plan x.yaml --gpu h100 model.hidden_size=1000000000000", r"model: hidden_size must be at most 1,048,576"),
    "blocks without end": (nothing, "plan x.yaml --gpu h100 model.num_encoder_layers=1000000000", r"num_encoder_layers must be at most 16,384"),
    "a folder for a configuration": (nothing, "plan prepared", r"CONFIG: must be a YAML file or the name of a preset \(.*toy.*\); got the folder prepared"),
    "a folder with a configuration": (lambda: shutil.copytree("runs", "a.yaml") and shutil.copy("x.yaml", "a.yaml"), "plan a.yaml", r"got the folder a\.yaml; did you mean 'a\.yaml/x\.yaml'"),
    "a plan written to a file": (nothing, "plan x.yaml --gpu h100 --write valid.tsv/plan", r"--write: must be a free path or a folder; got 'valid\.tsv/plan', and .*valid\.tsv is no folder"),
    "a picture below a file": (nothing, "plan x.yaml --gpu h100 --plot valid.tsv/plan.svg", r"--plot: must be a free path or a folder"),
    "a picture over a folder": (lambda: Path("p.svg").mkdir(), "plan x.yaml --gpu h100 --plot p.svg", r"--plot: must be a file; got 'p\.svg', which is a folder"),
    "a plan beside an unknown ds_config": (nothing, "plan x.yaml --gpu h100 training.deepspeed=zero22", r"training\.deepspeed: no such file or name: 'zero22'; did you mean 'zero2'"),
    "benchmark on more ranks than there are": (nothing, "benchmark step/tiny/fp32/zero2x9999", r"case step/tiny/fp32/zero2x9999: must have at most \d+ ranks? on this machine.*; got 9999"),
    "benchmark of a corpus that is not there": (nothing, "benchmark prepare --corpus trian.tsv", r"trian\.tsv: no such file; did you mean train\.tsv"),
    "benchmark of an empty corpus": (write("empty.tsv", ""), "benchmark prepare --corpus empty.tsv", r"empty\.tsv: .*at least one pair"),
    "benchmark into a file": (nothing, "benchmark prepare --output valid.tsv", r"--output: must be a free path or a folder; got 'valid\.tsv'"),
    # scaling
    "a check of one width": (nothing, "scaling coordinates x.yaml --widths 32", r"--widths: must be two or more different numbers above 0, such as 32,64,128; got '32'"),
    "a check of widths and depths": (nothing, "scaling coordinates x.yaml --widths 32,64 --depths 2,4", r"--widths and --depths: one of them must be given; got both"),
    "a check of no steps": (nothing, "scaling coordinates x.yaml --steps 0", r"--steps: must be above 0; got 0"),
    "a check at no rate": (nothing, "scaling coordinates x.yaml --rate nan", r"--rate: must be above 0 and finite; got nan"),
    "a check drawn as a text": (nothing, "scaling coordinates x.yaml --plot p.txt", r"--plot: must end in \.png or \.svg; got 'p\.txt'"),
    "transfer over an uneven width": (nothing, "scaling transfer x.yaml --widths 32,41", r"--widths: must be multiples of the head size \d+; got 41"),
    "transfer to a rate that is none": (nothing, "scaling transfer x.yaml --rates 1e-3,fast", r"--rates: must be two or more different numbers above 0"),
    "transfer into a file": (nothing, "scaling transfer x.yaml --output valid.tsv", r"--output: must be a free path or a folder; got 'valid\.tsv'"),
    "no beams": (nothing, f"translate {BEST} --beam-size 0", r"beam_size: must be a whole number of at least 1; got 0"),
}  # fmt: skip


def tree(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, work, capsys, monkeypatch):
    apply, command, message = MISTAKES[mistake]
    apply()
    capsys.readouterr()
    before = tree(work)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    code = main(command.split())
    output = capsys.readouterr()
    assert code == 2, output.err
    assert output.out == ""
    assert "Traceback" not in output.err
    assert len(re.findall("^bmscale: error: ", output.err, re.MULTILINE)) == 1, output.err
    assert re.search(message, output.err, re.DOTALL), output.err
    assert tree(work) == before, "something was written"


def test_launchers_that_start_one_process_only(work, capsys, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert main(["train", "x.yaml", "run=runs/new"]) == 2
    assert "MASTER_ADDR but no WORLD_SIZE" in capsys.readouterr().err


def test_launcher_and_experiment_must_agree(work, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero2.json")
    assert main(["train", "x.yaml", "training.deepspeed=zero3", "run=runs/new"]) == 2
    assert "they must be the same" in capsys.readouterr().err


def test_an_export_has_the_tokenizer_that_the_run_trained_with(work, capsys):
    """Although its prepared folder holds other data now."""
    wanted = Path(f"{BEST}/spiece.model").read_bytes()
    Path("train.tsv").write_text(corpus(14))
    assert main(["prepare", "x.yaml", "data.tokenizer.vocabulary_size=48", "--force"]) == 0
    assert Path("prepared/spiece.model").read_bytes() != wanted
    assert main(["checkpoint", "export", "runs/x", "--to", "out"]) == 0
    assert Path("out/spiece.model").read_bytes() == wanted


def test_without_states_there_is_nothing_to_verify(work, capsys, monkeypatch):
    shutil.rmtree("runs/x/state")
    for action in ("list", "verify"):
        assert main(["checkpoint", action, "runs/x"]) == 1
        assert capsys.readouterr() == ("", "bmscale: error: runs/x/state: holds no training state\n")
    Path("runs/x/state").write_text("x")  # as one that cannot be read
    assert main(["checkpoint", "verify", "runs/x"]) == 2
    assert capsys.readouterr().err == "bmscale: error: runs/x/state: Not a directory\n"


def test_the_command_itself_ends_with_2_and_one_line(work):
    arguments = [sys.executable, "-m", "bmscale", "train", "x.yaml", "training.sede=1"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
