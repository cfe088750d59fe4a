"""Which DeepSpeed configuration runs, and what may not stand in it."""

import json
from pathlib import Path

import pytest

from bmscale.config import shipped_names
from bmscale.engine import deepspeed_config
from bmscale.engine.deepspeed_config import choose, complete, find, read
from bmscale.errors import BadInput
from bmscale.experiment import TrainingConfig

NAMES = [name.removesuffix(".json") for name in shipped_names("ds_configs")]


def training(**values) -> TrainingConfig:
    return TrainingConfig(max_steps=1, **values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_shipped_file_is_taken_by_deepspeed(name, precision, monkeypatch):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    file = read(name)
    assert str(file.stage) == name.removeprefix("zero")[0]
    config = complete(file, training(precision=precision), world_size=2)
    DeepSpeedZeroConfig(**config["zero_optimization"])
    assert config["train_batch_size"] == 2
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"]["enabled"] == (precision == "bf16" and file.stage > 0)
    assert "offload" not in name or file.offloads("optimizer")


def test_shipped_files_carry_nothing_but_sharding():
    for name in NAMES:
        assert set(read(name).values) <= {"zero_optimization", "aio"}


@pytest.mark.parametrize(
    ("experiment", "environment", "world_size", "chosen"),
    [
        (None, {}, 1, None),
        (None, {}, 2, "zero2"),
        ("none", {}, 1, None),
        ("zero3", {}, 2, "zero3"),
        (None, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero1.json"}, 2, "ds_configs/zero1.json"),
        ("zero1", {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero1.json"}, 2, "ds_configs/zero1.json"),
        (None, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 2, "zero3"),
        (None, {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"}, 1, None),
    ],
)
def test_choice(experiment, environment, world_size, chosen):
    assert choose(experiment, environment, world_size) == chosen


@pytest.mark.parametrize(
    ("experiment", "environment", "message"),
    [
        ("zero1", {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}, "must be the same"),
        ("none", {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds_configs/zero2.json"}, "must be the same"),
        ("none", {}, "for 2 ranks; got 'none'"),
    ],
)
def test_contradicting_choices_are_refused(experiment, environment, message):
    with pytest.raises(BadInput, match=message):
        choose(experiment, environment, 2)


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(BadInput, match="no such file or name: 'zero22'; did you mean 'zero2'"):
        find("zero22")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 64}, r"train_batch_size: must be absent or 2, .*training\.tokens_per_step.* got 64"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: must be absent or 1"),
        ({"gradient_clipping": 0.5}, r"gradient_clipping: must be absent or 1\.0, .*training\.clip_norm"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled: must be absent or false, .*training\.precision.* got true"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled: must be absent or false"),
        ({"optimizer": {"type": "AdamW"}}, r"optimizer: must be absent: training\.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, r"scheduler: must be absent: training\.schedule"),
    ],
)
def test_a_file_that_contradicts_the_experiment_is_refused(tmp_path, values, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **values}), encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        complete(read(str(path)), training(precision="fp32"), world_size=2)


def test_auto_is_filled_in(tmp_path):
    path = tmp_path / "mine.json"
    values = {"zero_optimization": {"stage": 1}, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    path.write_text(json.dumps(values), encoding="utf-8")
    config = complete(read(str(path)), training(precision="bf16", clip_norm=None), world_size=4)
    assert (config["train_batch_size"], config["bf16"]["enabled"], config["gradient_clipping"]) == (4, True, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zero_optimization": {"stage": 2}', r"mine\.json:1: not JSON"),
        ("{}", "zero_optimization: must be given"),
        ('{"zero_optimization": {"stage": 4}}', r"zero_optimization\.stage: must be 0, 1, 2 or 3; got 4"),
        ("[]", "zero_optimization: must be given"),
    ],
)
def test_damaged_files(tmp_path: Path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        deepspeed_config.read(str(path))
