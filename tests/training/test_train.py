"""The loop, run as a user runs it: what it leaves behind, resuming, early stopping, ranks."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from bmscale.data.toy import toy_pairs
from bmscale.errors import BadInput
from bmscale.experiment import RunFolder, read_experiment
from bmscale.training.train import _newest_state, log, warn_of_the_end


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "model" / which / "model.safetensors")


def test_the_run_folder_holds_what_the_readme_says(trained):
    run = trained / "runs/tiny"
    record = yaml.safe_load((run / "run.yaml").read_text())
    assert record["experiment"]["training"]["seed"] == 0
    assert record["identity"]["training.tokens_per_step"] == 600
    # What an earlier version wrote here is compared with what this one finds: the kinds of keys must stay.
    assert record["identity"]["model"]["model_type"] == "bmscale_encoder_decoder"
    assert record["identity"].keys() == {
        *("task", "data_hash", "model", "training.seed", "training.tokens_per_step", "training.optimizer"),
        *("training.label_smoothing", "training.clip_norm", "training.precision"),
    }
    assert record["starts"][0]["world_size"] == 1
    assert record["starts"][0]["versions"]["torch"] == torch.__version__
    assert json.loads((run / "exit.json").read_text()) == {"class": "done", "code": 0, "message": "trained"}
    assert "validation at step 12" in (run / "log.txt").read_text()
    states = [path.name for path in sorted((run / "state").iterdir())]
    assert states == ["latest", "step-00000008", "step-00000012"]
    assert [line["step"] for line in metrics(run) if line.get("event") == "saved"] == [4, 8, 12]
    for which in ("best", "last"):
        assert (run / "model" / which / "provenance.json").is_file()


def test_metrics_add_up(trained):
    steps = [line for line in metrics(trained / "runs/tiny") if "loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12]
    for line in steps:
        assert line["loss"] > 0
        assert line["grad_norm"] > 0
        assert line["tokens_per_second"] > 0
        assert line["mfu"] is None  # no peak is known for this CPU
        assert len(line["memory_gib"]) == 1
        assert 0 <= line["padding"] < 0.2
        assert 0 <= line["waiting_for_data"] < 1
    assert [line["lr"] for line in steps] == pytest.approx([5e-3 * factor for factor in (0.5, 1, 1, 1, 1, 1)])
    assert 500 * 12 <= steps[-1]["tokens"] <= 600 * 12
    assert steps[-1]["nll"] < steps[0]["nll"]
    validations = [line for line in metrics(trained / "runs/tiny") if "valid_loss" in line]
    assert [line["step"] for line in validations] == [6, 12]
    assert {"bleu", "chrf"} <= validations[0].keys()


def test_the_first_loss_is_that_of_a_uniform_guess(trained):
    first = next(line for line in metrics(trained / "runs/tiny") if "loss" in line)
    assert first["nll"] == pytest.approx(5.7, abs=0.3)  # ln 300


def test_a_finished_run_is_left_alone(bmscale, trained):
    before = (trained / "runs/tiny/metrics.jsonl").read_bytes()
    result = bmscale("train", "tiny.yaml", folder=trained)
    assert "trained to its end already" in result.stderr
    assert (trained / "runs/tiny/metrics.jsonl").read_bytes() == before


def interrupted_copy(trained: Path, name: str) -> Path:
    """A run that died after its state of step 8, with more in its metrics than that state knows of."""
    run = trained / "runs" / name
    shutil.copytree(trained / "runs/tiny", run)
    shutil.rmtree(run / "state/step-00000012")
    shutil.rmtree(run / "model/last")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    return run


def test_resuming_is_exact_with_dropout_on(bmscale, trained):
    run = interrupted_copy(trained, "resumed")
    result = bmscale("train", "tiny.yaml", "run=runs/resumed", folder=trained)
    assert "resumed from runs/resumed/state/step-00000008: step 8 of 12" in result.stderr
    whole = trained / "runs/tiny"
    assert deterministic(run) == deterministic(whole)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, weights(whole)[name]), name


def test_a_run_that_dies_at_its_very_end_is_not_finished(bmscale, trained):
    """Killed after the last step but before model/last: the next start validates, writes the model and is exact."""
    program = (
        "import sys\nfrom bmscale.cli import main\nfrom bmscale.training import train\n"
        "def die(*_): raise KeyboardInterrupt\n"
        "train._Loop.finish = die\n"
        "sys.exit(main(['train', 'tiny.yaml', 'run=runs/dies', 'evaluation.every_steps=5']))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    run = trained / "runs/dies"
    assert not (run / "model/last").exists()
    assert json.loads((run / "exit.json").read_text())["class"] == "interrupted"
    bmscale("train", "tiny.yaml", "run=runs/dies", "evaluation.every_steps=5", folder=trained)
    assert torch.equal(
        weights(run)["model.encoder.embed.tokens.weight"],
        weights(trained / "runs/tiny")["model.encoder.embed.tokens.weight"],
    )
    assert [line["step"] for line in metrics(run) if "valid_loss" in line] == [5, 10, 12]


def deterministic(run: Path) -> list[dict]:
    """The metrics without what depends on machine and ranks, and without the events of the run's life."""
    machine = (
        "tokens_per_second",
        "read_tokens_per_second",
        "flops_per_second",
        "padding",
        "waiting_for_data",
        "mfu",
        "memory_gib",
        "seconds",
    )
    return [
        {key: value for key, value in line.items() if key not in machine}
        for line in metrics(run)
        if "event" not in line
    ]


@pytest.mark.parametrize("deepspeed", ["zero2", "zero3"])
def test_two_ranks_train_the_same_run(bmscale, trained, deepspeed):
    """Without dropout, whose masks belong to a rank, two ranks give the run of one: with text in the loop as well."""
    runs = {}
    for name, ranks, choice in ((f"{deepspeed}-alone", 1, "none"), (f"{deepspeed}-two", 2, deepspeed)):
        settings = ["model.dropout=0.0", f"training.deepspeed={choice}", f"run=runs/{name}", "training.max_steps=6"]
        bmscale("train", "tiny.yaml", *settings, folder=trained, ranks=ranks)
        runs[ranks] = trained / "runs" / name
    alone, two = (deterministic(run) for run in runs.values())
    assert len(two) == len(alone)
    for one, other in zip(alone, two, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    # AdamW makes a step of the rate from any gradient: where that is all but 0, rounding decides its sign. So weights
    # are compared as wholes.
    expected = weights(runs[1])
    for name, tensor in weights(runs[2]).items():
        assert (tensor - expected[name]).norm() < 1e-4 * expected[name].norm(), name


def test_offload_trains_the_same_run(bmscale, trained):
    """Optimizer and parameters in host memory, through DeepSpeed's own Adam."""
    settings = ["model.dropout=0.0", "training.max_steps=4", "evaluation.pairs=0"]
    for choice in ("none", "zero2_offload", "zero3_offload"):
        run = f"runs/offload-{choice}"
        bmscale("train", "tiny.yaml", *settings, f"training.deepspeed={choice}", f"run={run}", folder=trained)
    plain = deterministic(trained / "runs/offload-none")
    for choice in ("zero2_offload", "zero3_offload"):
        for one, other in zip(plain, deterministic(trained / f"runs/offload-{choice}"), strict=True):
            assert other == pytest.approx(one, rel=1e-4)


def test_bf16_and_activation_checkpointing_train(bmscale, trained):
    settings = ["training.precision=bf16", "training.activation_checkpointing=true", "run=runs/bf16"]
    bmscale("train", "tiny.yaml", *settings, folder=trained)
    fp32, bf16 = (deterministic(trained / "runs" / name)[-1]["valid_loss"] for name in ("tiny", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=0.02)


def test_early_stopping(bmscale, trained):
    settings = ["run=runs/early", "training.optimizer.learning_rate=1.0e-12", "training.max_steps=50"]
    more = ["training.early_stopping_patience=2", "evaluation.every_steps=2", "evaluation.pairs=0"]
    result = bmscale("train", "tiny.yaml", *settings, *more, folder=trained)
    assert "stopped early at step" in result.stderr
    last = metrics(trained / "runs/early")[-1]
    assert 4 <= last["step"] < 50
    assert "already" in bmscale("train", "tiny.yaml", *settings, *more, folder=trained).stderr


def test_a_longer_run_goes_on(bmscale, trained):
    shutil.copytree(trained / "runs/tiny", trained / "runs/longer")
    bmscale("train", "tiny.yaml", "run=runs/longer", "training.max_steps=14", folder=trained)
    assert metrics(trained / "runs/longer")[-1]["step"] == 14
    record = yaml.safe_load((trained / "runs/longer/run.yaml").read_text())
    assert len(record["starts"]) == 2
    assert record["total_steps"] == 14


def test_a_run_that_changes_shape_four_times_follows_the_data(bmscale, trained):
    """Shrunk, grown, under other stages: every step trains on what it would have, with the losses it would have."""
    settings = ["model.dropout=0.0", "training.log_every_steps=1", "evaluation.pairs=0", "evaluation.every_steps=99"]
    shapes = [("none", 1), ("zero2", 2), ("zero3", 4), ("zero0", 1), ("zero1", 2)]
    for number, (deepspeed, ranks) in enumerate(shapes, 1):
        more = [f"training.deepspeed={deepspeed}", f"training.max_steps={3 * number}", "run=runs/shapes"]
        result = bmscale("train", "tiny.yaml", *settings, *more, folder=trained, ranks=ranks)
        assert number == 1 or "probe batch: loss" in result.stderr
    bmscale("train", "tiny.yaml", *settings, "training.max_steps=15", "run=runs/one-shape", folder=trained)
    changed, whole = (
        [line for line in deterministic(trained / "runs" / name) if "loss" in line] for name in ("shapes", "one-shape")
    )
    assert [line["step"] for line in changed] == list(range(1, 16))
    for one, other in zip(changed, whole, strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    starts = yaml.safe_load((trained / "runs/shapes/run.yaml").read_text())["starts"]
    assert [start["world_size"] for start in starts] == [1, 2, 4, 1, 2]


def test_best_follows_the_selected_score(bmscale, trained):
    settings = ["evaluation.select=chrf", "evaluation.every_steps=3", "run=runs/chrf"]
    bmscale("train", "tiny.yaml", *settings, folder=trained)
    validations = [line for line in metrics(trained / "runs/chrf") if "chrf" in line]
    best = max(validations, key=lambda line: line["chrf"])
    provenance = json.loads((trained / "runs/chrf/model/best/provenance.json").read_text())
    assert provenance["optimizer_step"] == best["step"]


MIXED = """\
name: mixed
data:
  directory: prepared-mixed
  source_language: en
  target_language: de
  language_tags: true
  keep_text: true
  train:
    - {toy: train, pairs: 300, name: large}
    - {path: back.tsv, source_language: de, target_language: en, name: small}
  valid:
    - {toy: valid, pairs: 20}
    - {path: back-valid.tsv, source_language: de, target_language: en}
  tokenizer: {vocabulary_size: 300}
  cleaning: {duplicate: false}
model: {hidden_size: 32, num_attention_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1, dropout: 0.0}
training:
  tokens_per_step: 600
  max_micro_batch_tokens: 700
  max_steps: 6
  precision: fp32
  schedule: {type: constant, warmup_steps: 4}
  sampling: {temperature: 5}
  subword_sampling: {alpha: 0.2}
  ema_decay: 0.9
  log_every_steps: 2
evaluation: {every_steps: 6, pairs: 3}
"""


def test_two_languages_sampled_subwords_and_a_running_mean_on_two_ranks(bmscale, tmp_path):
    """All that a step may draw is a function of the step: two ranks train the run of one."""
    for name, split, count in (("back", "train", 100), ("back-valid", "valid", 20)):
        rows = "".join(f"{target}\t{source}\n" for source, target in toy_pairs(split, count, 0))
        (tmp_path / f"{name}.tsv").write_text(rows, encoding="utf-8")
    (tmp_path / "mixed.yaml").write_text(MIXED, encoding="utf-8")
    bmscale("prepare", "mixed.yaml", folder=tmp_path)
    bmscale("train", "mixed.yaml", "run=runs/one", "training.deepspeed=none", folder=tmp_path)
    bmscale("train", "mixed.yaml", "run=runs/two", "training.deepspeed=zero2", folder=tmp_path, ranks=2)
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    for line, other in zip(deterministic(one), deterministic(two), strict=True):
        assert other == pytest.approx(line, rel=1e-4)
    validation = deterministic(one)[-1]
    assert {"valid_loss", "valid_loss_en-de", "valid_loss_de-en", "bleu_en-de", "bleu_de-en"} <= validation.keys()
    for name, tensor in weights(one, "ema").items():
        assert torch.allclose(tensor, weights(two, "ema")[name], atol=2e-5), name
        if tensor.ndim > 1:
            assert not torch.equal(tensor, weights(one)[name]), name
    assert list(one.glob("mixed/events*"))  # TensorBoard's
    sentence = "Der alte Mann sieht das Haus.\n"
    into = {
        language: bmscale("translate", "runs/one/model/best", "--to", language, folder=tmp_path, stdin=sentence).stdout
        for language in ("en", "de")
    }
    assert all(text.strip() for text in into.values())
    refused = bmscale("translate", "runs/one/model/best", "--to", "fr", folder=tmp_path, stdin="x", check=False)
    assert refused.returncode == 2
    assert "target language: must be one of de, en" in refused.stderr


def test_a_run_that_saved_nothing_begins_anew_and_says_so(tmp_path, caplog):
    run = RunFolder(tmp_path)
    log.propagate = True

    def newest(metrics: list[str], *starts: dict[str, str]) -> Path | None:
        caplog.clear()
        run.metrics.write_text("".join(f"{line}\n" for line in metrics))
        given = {"experiment": {}, "identity": {}, "total_steps": 9, "starts": [{"time": "now"}, *starts]}
        run.record.write_text(yaml.safe_dump(given))
        return _newest_state(run, "")

    assert newest([]) is None
    assert not caplog.text
    assert newest(['{"step": 2, "loss": 1.0}', '{"step": 4, "loss": 1.0}', "[" * 100_000]) is None
    assert "no training state was ever saved: the run begins at step 0, and forgets 2 lines of metrics" in caplog.text
    saved = "holds no training state, and the run had saved one"
    with pytest.raises(BadInput, match=saved):
        newest(['{"step": 4, "event": "saved"}'])
    with pytest.raises(BadInput, match=saved):
        newest([], {"resumed_from": "step-00000004"})
    run.last.mkdir(parents=True)
    with pytest.raises(BadInput, match=saved):
        newest([])
    assert newest(['{"step": 9, "event": "save_failed"}']) is None


def test_a_switch_may_be_there_before_the_run(bmscale, prepared):
    """STOP before the first step: there is nothing to save, and the message says what to remove."""
    folder = prepared / "runs/stopped"
    folder.mkdir(parents=True)
    (folder / "STOP").touch()
    result = bmscale("train", "tiny.yaml", "run=runs/stopped", folder=prepared)
    said = "nothing to save; remove runs/stopped/STOP, then the same command goes on with the run"
    assert said in result.stderr
    assert json.loads((folder / "exit.json").read_text())["message"].endswith(said)
    assert not (folder / "state").exists()


def test_what_comes_at_the_end_only_is_said(caplog):
    log.propagate = True
    experiment = read_experiment("toy", ["training.save_every_steps=50", "evaluation.every_steps=40"])
    warn_of_the_end(experiment, 50)
    assert not caplog.messages
    warn_of_the_end(experiment, 45)
    assert caplog.messages == [
        "a training state is saved at the end only: training.save_every_steps is 50, and there are 45 steps"
    ]
    warn_of_the_end(experiment, 39)
    assert "the model is validated at the end only: evaluation.every_steps is 40, and there are 39 steps" in caplog.text
