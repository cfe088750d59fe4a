"""Language models, masked language models and classifiers, through the commands that a translator goes through."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bmscale.data.tokenizer import LosslessTokenizerConfig, train_tokenizer
from bmscale.data.toy import toy_pairs
from bmscale.evaluation.report import write_report
from bmscale.experiment import RunFolder

COMMON = """\
model: {hidden_size: 32, num_attention_heads: 2, num_hidden_layers: 2, dropout: 0.1}
training:
  max_micro_batch_tokens: 256
  max_steps: 12
  log_every_steps: 1
  save_every_steps: 4
  precision: fp32
  trackers: []
  optimizer: {learning_rate: 5.0e-3}
  schedule: {warmup_steps: 3}
"""
DOCUMENTS = """\
data:
  directory: documents
  train: {toy: train, documents: 200}
  valid: {toy: valid, documents: 20}
  tokenizer: {vocabulary_size: 500}
evaluation: {every_steps: 6, test: [{toy: test, documents: 12}]}
"""
ROWS = "  sequence_length: 64\n  tokens_per_step: 512\n"
TASKS = {
    "language_model": f"task: language_model\n{DOCUMENTS}{COMMON}{ROWS}",
    "masked_lm": f"task: masked_lm\n{DOCUMENTS}{COMMON}{ROWS}",
    "classification": f"""\
task: classification
data:
  directory: labelled
  train: {{toy: train, documents: 200}}
  valid: {{toy: valid, documents: 30}}
  tokenizer: {{path: documents/spiece.model}}
evaluation: {{every_steps: 6, test: [{{toy: test, documents: 20}}]}}
{COMMON}  tokens_per_step: 16
""",
}


@pytest.fixture(scope="module")
def tasks(bmscale, tmp_path_factory) -> Path:
    """A folder with an experiment of each task, trained by one process without DeepSpeed."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text)
    bmscale("prepare", "language_model.yaml", folder=folder)
    bmscale("prepare", "classification.yaml", folder=folder)
    for name in TASKS:
        bmscale("train", f"{name}.yaml", folder=folder)
    return folder


def metrics(run: Path) -> list[dict]:
    """What a run computed, without events and what depends on the clock."""
    timed = (
        "tokens_per_second",
        "read_tokens_per_second",
        "flops_per_second",
        "waiting_for_data",
        "memory_gib",
        "seconds",
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in timed} for line in lines if "event" not in line]


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "model" / which / "model.safetensors")


@pytest.mark.parametrize("name", TASKS)
def test_each_task_learns_and_says_so(tasks, name, monkeypatch):
    monkeypatch.chdir(tasks)
    run = Path("runs") / name
    steps = [line for line in metrics(run) if "loss" in line]
    assert steps[-1]["nll"] < steps[0]["nll"]
    validations = [line for line in metrics(run) if "valid_loss" in line]
    assert [line["step"] for line in validations] == [6, 12]
    figures = {"language_model": {"bits_per_byte"}, "masked_lm": {"accuracy"}}
    assert figures.get(name, {"accuracy", "macro_f1"}) <= validations[0].keys()
    provenance = json.loads((run / "model/best/provenance.json").read_text())
    assert provenance["task"] == name
    page = write_report(RunFolder(run)).read_text()
    assert name.replace("_", " ") in page
    assert "Data card" in page
    assert "not at hand" not in page
    card = (run / "model/best/README.md").read_text()
    for text in (page, card):
        assert not re.search("translat|target|source|training pair", text), "words of translation"


@pytest.mark.parametrize(
    ("name", "stage"), [("language_model", "zero3"), ("masked_lm", "zero2"), ("classification", "zero3")]
)
def test_two_ranks_train_what_one_does(bmscale, tasks, name, stage):
    """Dropout draws by rank, so it is off; the losses agree as far as sums in another order do."""
    alone = tasks / "runs" / f"{name}-alone"
    plain = [f"{name}.yaml", "model.dropout=0"]
    bmscale("train", *plain, f"run=runs/{alone.name}", folder=tasks)
    run = f"runs/{name}-{stage}"
    bmscale("train", *plain, f"run={run}", f"training.deepspeed={stage}", folder=tasks, ranks=2)
    mine, other = metrics(tasks / run), metrics(alone)
    assert len(mine) == len(other)
    for one, two in zip(mine, other, strict=True):
        assert one["tokens"] == two["tokens"]
        for key in ("loss", "valid_loss", "grad_norm", "bits_per_byte"):
            if key in one:
                assert one[key] == pytest.approx(two[key], rel=2e-4, abs=2e-5), (one["step"], key)


@pytest.mark.parametrize("name", TASKS)
def test_each_task_resumes_exactly(bmscale, tasks, name):
    whole, run = tasks / "runs" / name, tasks / "runs" / f"{name}-resumed"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "state/step-00000012")
    shutil.rmtree(run / "model/last")
    said = bmscale("train", f"{name}.yaml", f"run=runs/{run.name}", folder=tasks).stderr
    assert "step 8 of 12" in said
    assert metrics(run) == metrics(whole)
    for key, tensor in weights(run).items():
        assert torch.equal(tensor, weights(whole)[key]), key


def test_the_models_are_evaluated_and_used(bmscale, tasks):
    run = "runs/language_model"
    found = json.loads(bmscale("evaluate", run, folder=tasks).stdout)["test"]["toy-test"]
    validation = [line for line in metrics(tasks / run) if "valid_loss" in line][-1]
    assert found["bits_per_byte"] == pytest.approx(validation["bits_per_byte"], rel=0.1)
    assert found["loss"] == pytest.approx(validation["valid_loss"], rel=0.1)
    text = bmscale("generate", f"{run}/model/best", "--prompt", "The old man", folder=tasks).stdout
    assert text.startswith("The old man")

    masked = json.loads(bmscale("evaluate", "runs/masked_lm", folder=tasks).stdout)["test"]["toy-test"]
    assert 0 <= masked["accuracy"] <= 100
    assert masked["masked_tokens"] > 50

    found = json.loads(bmscale("evaluate", "runs/classification", folder=tasks).stdout)["test"]["toy-test"]
    assert found["texts"] == 20
    assert set(found["labels"]) <= {"de", "en"}
    assert found["scores"]["accuracy"]["low"] <= found["scores"]["accuracy"]["score"]
    said = bmscale("predict", "runs/classification/model/best", folder=tasks, stdin="The man.\nDer Mann.\n").stdout
    assert [line.split("\t")[0] in ("de", "en") for line in said.splitlines()] == [True, True]

    (tasks / "french.tsv").write_text("en\tThe man.\nfr\tL'homme.\n")
    refused = bmscale("evaluate", "runs/classification", "--test", "french.tsv", folder=tasks, check=False)
    assert refused.returncode == 2
    assert "french: every label must be one that the model knows (de, en); got 'fr'" in refused.stderr
    refused = bmscale("evaluate", run, "--beam-size", "2", folder=tasks, check=False)
    assert refused.returncode == 2
    assert "are of translation; runs/language_model is of language_model" in refused.stderr
    refused = bmscale("predict", f"{run}/model/best", folder=tasks, check=False)
    assert refused.returncode == 2


def test_a_classifier_begins_with_a_masked_language_model(bmscale, tasks):
    """The stack is that of the folder, which is frozen here, so it must come out as it went in."""
    given = ["classification.yaml", "run=runs/tuned", "init_from=runs/masked_lm/model/last", "training.freeze=[model]"]
    # Sizes come from the folder: those of the file are left out.
    experiment = yaml.safe_load((tasks / "classification.yaml").read_text())
    experiment["model"] = {"dropout": 0.0}
    (tasks / "tuned.yaml").write_text(yaml.safe_dump(experiment))
    said = bmscale("train", "tuned.yaml", *given[1:], folder=tasks).stderr
    assert "parameters are those of runs/masked_lm/model/last" in said
    assert "new ones: dense.weight, dense.bias, classifier.weight, classifier.bias" in said
    before, after = weights(tasks / "runs/masked_lm"), weights(tasks / "runs/tuned")
    shared = before.keys() & after.keys()
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(before[name], after[name]), name
    assert after["classifier.weight"].abs().sum() > 0
    record = yaml.safe_load((tasks / "runs/tuned/run.yaml").read_text())
    assert record["identity"]["init_from"] == "runs/masked_lm/model/last"
    # A run that has a state of its own goes on without the folder.
    shutil.rmtree(tasks / "runs/tuned/state/step-00000012")
    (tasks / "runs/masked_lm").rename(tasks / "runs/moved")
    said = bmscale("train", "tuned.yaml", *given[1:], folder=tasks).stderr
    (tasks / "runs/moved").rename(tasks / "runs/masked_lm")
    assert "step 8 of 12" in said
    for name, tensor in weights(tasks / "runs/tuned").items():
        assert torch.equal(tensor, after[name]), name


def test_what_is_not_frozen_moves_on_two_ranks(bmscale, tasks):
    options = ["language_model.yaml", "training.freeze=[model.layers.0]", "training.max_steps=4"]
    bmscale("train", *options, "run=runs/half", "init_from=runs/language_model/model/last", folder=tasks, ranks=2)
    before, after = weights(tasks / "runs/language_model"), weights(tasks / "runs/half")
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("model.layers.0."), name


MISTAKES = {
    "task of another architecture": (["language_model.yaml", "task=masked"], r"task: must be one of .*'masked_lm'\?"),
    "data of another task": (["language_model.yaml", "data.directory=labelled"], "labelled: must hold prepared doc"),
    "key of another task": (["language_model.yaml", "training.masking.rate=0.2"], "masking: unknown key"),
    "option of another architecture": (["masked_lm.yaml", "model.num_decoder_layers=2"], "num_decoder_layers: unknown"),
    "preset of another architecture": (
        ["masked_lm.yaml", "model.preset=llama"],
        "must be one of eurobert with task: masked_lm",
    ),
    "row longer than the model": (
        ["language_model.yaml", "model.max_position_embeddings=32"],
        r"model\.max_position_embeddings: must hold a row of training\.sequence_length, 64 tokens; got 32",
    ),
    "row longer than a step": (["masked_lm.yaml", "training.tokens_per_step=32"], "must hold a row of"),
    "text longer than the model": (
        ["classification.yaml", "model.max_position_embeddings=8"],
        r"must hold the longest text, \d+ tokens; got 8",
    ),
    "freeze what is not there": (
        ["language_model.yaml", "training.freeze=[model.layer]"],
        r"training\.freeze: 'model\.layer' must begin the name of a parameter; did you mean 'model\.layers'\?",
    ),
    "freeze everything": (["masked_lm.yaml", "training.freeze=[model]"], "must leave something to train"),
    "begin with other pieces": (
        ["language_model.yaml", "init_from=other"],
        r"init_from: documents must be prepared with the tokenizer of other, and was with another",
    ),
    "begin with nothing": (["masked_lm.yaml", "init_from=nowhere"], "nowhere: no such model folder"),
    "begin with another width": (
        ["language_model.yaml", "init_from=runs/language_model/model/last", "model.intermediate_size=192"],
        r"init_from: .* must have the shape",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_line(bmscale, tasks, mistake):
    arguments, message = MISTAKES[mistake]
    if not (tasks / "other").exists():
        shutil.copytree(tasks / "runs/language_model/model/last", tasks / "other")
        about = json.loads((tasks / "other/provenance.json").read_text())
        pieces = [english for english, _ in toy_pairs("valid", 300, 9)]
        model = train_tokenizer(pieces, LosslessTokenizerConfig(vocabulary_size=500), lossless=True)
        (tasks / "other/spiece.model").write_bytes(model)
        del about["tokenizer_sha256"]  # which no folder must have
        (tasks / "other/provenance.json").write_text(json.dumps(about))
    result = bmscale("train", *arguments, "run=runs/mistake", folder=tasks, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert re.search(message, line), line
    assert "Traceback" not in result.stderr
