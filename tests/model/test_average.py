"""The average is the mean of every parameter, opens as any model folder, and is only of models that belong together."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from bmscale.data.tokenizer import TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.model.average import average_models
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import load_model, open_model_folder, write_model_folder
from bmscale.model.tasks import TASKS

TEXT = [f"{one} {two} dog sees the {two} cat." for one in ("the", "a", "no") for two in ("old", "red", "new", "big")]
SHAPE = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def write(
    folder: Path, spiece: Path, seed: int, *, dtype=torch.float32, provenance=None, shard=2**30, **options
) -> Path:
    config = EncoderDecoderConfig(vocab_size=22, **{"hidden_size": 16, **SHAPE, **options})
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config)
    record = {"step": 100 * seed, "target_language": "de", "scores": {"bleu": 1.0}, **(provenance or {})}
    write_model_folder(
        folder, config, model.named_parameters(), spiece, record, dtype=dtype, length_penalty=0.0, max_shard_bytes=shard
    )
    return folder


@pytest.fixture(scope="module")
def spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    path.write_bytes(train_tokenizer(TEXT, TokenizerConfig(vocabulary_size=22)))
    return path


@pytest.fixture
def folders(spiece, tmp_path) -> list[Path]:
    return [write(tmp_path / name, spiece, seed) for seed, name in enumerate(("a", "b", "c"), start=1)]


def test_every_parameter_is_the_mean(folders, tmp_path):
    found = average_models(folders, tmp_path / "deep" / "out")
    assert found == [{"folder": name, "step": step} for name, step in (("a", 100), ("b", 200), ("c", 300))]
    models = [load_model(folder).state_dict() for folder in folders]
    average = load_model(tmp_path / "deep" / "out").state_dict()
    assert average.keys() == models[0].keys()
    for name, tensor in average.items():
        expected = torch.stack([model[name].double() for model in models]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_provenance_keeps_what_all_agree_in_and_names_what_was_averaged(folders, spiece, tmp_path):
    write(folders[1], spiece, 2, provenance={"max_source_tokens": 50, "seed": 1, "kept_by": {"run_started": "now"}})
    write(folders[2], spiece, 3, provenance={"max_source_tokens": 40, "seed": 2})
    average_models(folders[1:], tmp_path / "out")
    provenance = open_model_folder(tmp_path / "out").provenance
    assert provenance["target_language"] == "de"
    assert provenance["max_source_tokens"] == 40
    assert [one["folder"] for one in provenance["averaged"]] == ["b", "c"]
    assert not {"step", "scores", "seed", "kept_by"} & provenance.keys()
    assert "- average of: b, c" in (tmp_path / "out/README.md").read_text()
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["length_penalty"] == 0.0


def test_models_in_bf16_and_in_shards_are_averaged_in_fp32(spiece, tmp_path):
    """Of two neighbours in bf16 the mean is between them, which bf16 cannot hold."""
    folders = [write(tmp_path / name, spiece, 5, dtype=torch.bfloat16, shard=2000) for name in ("a", "b")]
    assert len(open_model_folder(folders[0]).weights) > 2
    shard = open_model_folder(folders[1]).weights[0]
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name] = torch.nextafter(tensors[name], torch.tensor(torch.inf, dtype=torch.bfloat16))
    from safetensors.torch import save_file

    save_file(tensors, shard, metadata={"format": "pt"})
    average_models(folders, tmp_path / "out")
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    one, two = (load_file(open_model_folder(folder).weights[0])[name].float() for folder in folders)
    assert torch.equal(stored[name], (one + two) / 2)
    assert not torch.equal(stored[name], stored[name].bfloat16().float())


def test_an_average_replaces_an_older_one_and_dropout_is_no_difference(folders, spiece, tmp_path):
    average_models(folders[:2], tmp_path / "out")
    write(folders[2], spiece, 3, dropout=0.3)
    average_models(folders[1:], tmp_path / "out")
    assert [one["folder"] for one in open_model_folder(tmp_path / "out").provenance["averaged"]] == ["b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 32}, r"c: must have the architecture and shape of .*a .*hidden_size is 32, there 16"),
        ({"num_decoder_layers": 2}, r"num_decoder_layers is 2, there 1"),
        ({"rope_theta": 500.0}, r"rope_theta is 500\.0, there 10000\.0"),
        ({"norm": "layer_norm"}, r"norm is 'layer_norm', there 'rms_norm'"),
    ],
)
def test_models_of_another_shape_or_function_are_refused(folders, spiece, tmp_path, options, message):
    write(folders[2], spiece, 3, **options)
    with pytest.raises(BadInput, match=message):
        average_models(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused(folders, tmp_path):
    (tmp_path / "other.model").write_bytes(
        train_tokenizer([text[::-1] for text in TEXT], TokenizerConfig(vocabulary_size=22))
    )
    write(folders[1], tmp_path / "other.model", 2)
    with pytest.raises(BadInput, match=r"b/spiece\.model: must be the tokenizer of .*a "):
        average_models(folders, tmp_path / "out")


def test_a_folder_that_would_be_lost_is_refused(folders, tmp_path):
    with pytest.raises(BadInput, match=r"at least two model folders; got 1"):
        average_models(folders[:1], tmp_path / "out")
    with pytest.raises(BadInput, match=r"must be given once; it is .*a again"):
        average_models([folders[0], tmp_path / "b/../a"], tmp_path / "out")
    with pytest.raises(BadInput, match=r"a: must not be one of the folders that are averaged"):
        average_models(folders, folders[0])
    other = tmp_path / "thesis"
    other.mkdir()
    with pytest.raises(BadInput, match=r"thesis: exists and is no model folder"):
        average_models(folders, other)
    shutil.copytree(folders[0], other, dirs_exist_ok=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"thesis: exists and is no model folder, or holds more than a model"):
        average_models(folders, other)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match=r"file: exists and is no model folder"):
        average_models(folders, tmp_path / "file")
    assert sorted(path.name for path in other.iterdir())[-2:] == ["spiece.model", "tokenizer_config.json"]


def test_damage_that_shows_while_averaging_leaves_nothing_behind(folders, tmp_path, monkeypatch):
    from bmscale.model import average

    def fail(file, name):
        raise BadInput(f"{file}: cannot be read")

    monkeypatch.setattr(average, "_read", fail)
    with pytest.raises(BadInput, match="cannot be read"):
        average_models(folders, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def write_one_stack(folder, spiece, seed, task):
    shape = {"vocab_size": 22, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {} if task == "language_model" else {"mask_token_id": 5}
    torch.manual_seed(seed)
    model: Any = TASKS[task].model(TASKS[task].configure(**shape, **options))
    write_model_folder(folder, model.config, model.named_parameters(), spiece, {"step": seed})
    return folder


@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
def test_models_of_every_task_are_averaged(spiece, tmp_path, task):
    folders = [write_one_stack(tmp_path / name, spiece, seed, task) for seed, name in enumerate(("a", "b"))]
    average_models(folders, tmp_path / "out")
    models = [load_model(folder).state_dict() for folder in folders]
    assert open_model_folder(tmp_path / "out", task).provenance["averaged"][1] == {"folder": "b", "step": 1}
    for name, tensor in load_model(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(tensor, (models[0][name] + models[1][name]) / 2, rtol=1e-6, atol=1e-7)


def test_models_of_two_tasks_are_refused(spiece, tmp_path):
    folders = [write_one_stack(tmp_path / task, spiece, 1, task) for task in ("masked_lm", "classification")]
    with pytest.raises(BadInput, match=r"architectures is \['EncoderOnlyForSequenceClassification'\], there"):
        average_models(folders, tmp_path / "out")
