"""Configurations: derived widths, what is refused, what a file keeps."""

import pytest
from transformers import AutoConfig

from bmscale.model.config import (
    PRESETS,
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    EncoderOnlyConfig,
    default_intermediate_size,
    option_types,
)
from bmscale.model.tasks import TASKS


def test_derived_widths():
    config = EncoderDecoderConfig(hidden_size=512, num_attention_heads=8)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (64, 8, 1408)
    assert EncoderDecoderConfig(hidden_size=512, feed_forward="relu").intermediate_size == 2048
    assert EncoderDecoderConfig(head_dim=32, intermediate_size=100).intermediate_size == 100


@pytest.mark.parametrize(
    ("width", "kind", "expected"), [(512, "gelu", 2048), (1024, "swiglu", 2816), (384, "geglu", 1024)]
)
def test_default_feed_forward_width(width, kind, expected):
    assert default_intermediate_size(width, kind) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_attention_heads": 7}, "hidden_size must be a multiple of num_attention_heads"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 3},
            "num_key_value_heads must divide num_attention_heads; got 3 and 8",
        ),
        ({"head_dim": 33}, "head_dim must be even with positions: rope; got 33"),
        ({"positions": "sinusoid", "hidden_size": 33, "head_dim": 8}, "hidden_size must be even"),
        ({"hidden_size": 0}, "hidden_size must be above 0"),
        ({"num_attention_heads": 0, "head_dim": 8}, "num_attention_heads must be above 0"),
        ({"num_decoder_layers": -1}, "num_decoder_layers must be above 0"),
        ({"logit_scale": float("inf")}, "logit_scale must be above 0 and finite; got inf"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must lie in"),
    ],
)
def test_what_contradicts_itself_is_refused(options, said):
    with pytest.raises(Exception, match="validate_architecture") as caught:
        EncoderDecoderConfig(**options)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match=said):
        raise caught.value.__cause__


@pytest.mark.parametrize("options", [{"hidden_size": "512"}, {"norm": "batch_norm"}, {"bias": 1.5}])
def test_wrong_types_are_refused(options):
    with pytest.raises(Exception, match=next(iter(options))):
        EncoderDecoderConfig(**options)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_keeps_every_option(preset, tmp_path):
    config = EncoderDecoderConfig(**PRESETS[preset], vocab_size=77, rope_theta=5e5, head_dim=16, dropout=0)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is EncoderDecoderConfig
    for name in option_types():
        assert getattr(again, name) == getattr(config, name), name
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id, again.decoder_start_token_id) == (1, 0, 2, 2)


def test_options_are_those_of_the_model_not_of_the_tokenizer():
    options = option_types()
    assert options["hidden_size"] is int
    assert options["dropout"] is float
    assert not {"vocab_size", "pad_token_id", "use_cache", "is_encoder_decoder", "model_type"} & set(options)
    for preset in PRESETS.values():
        assert set(preset) <= set(options)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (DecoderOnlyConfig, {"num_hidden_layers": 0}, "num_hidden_layers must be above 0"),
        (EncoderOnlyConfig, {"mask_token_id": 32_000}, "mask_token_id must be one of 32000 pieces; got 32000"),
        (EncoderOnlyConfig, {"head_dim": 33}, "head_dim must be even"),
    ],
)
def test_what_contradicts_itself_in_one_stack_is_refused(config, options, said):
    with pytest.raises(Exception, match="validate_architecture") as caught:
        config(**options)
    assert said in str(caught.value.__cause__)


@pytest.mark.parametrize("task", TASKS)
def test_a_file_keeps_every_option_of_a_task(task, tmp_path):
    kind = TASKS[task].config
    for preset in TASKS[task].presets.values():
        config = TASKS[task].configure(**{**preset, "vocab_size": 77, "head_dim": 16, "dropout": 0})
        config.save_pretrained(tmp_path)
        again = AutoConfig.from_pretrained(tmp_path)
        assert type(again) is kind
        for name in option_types(kind):
            assert getattr(again, name) == getattr(config, name), name


def test_options_of_one_stack():
    assert "num_hidden_layers" in option_types(DecoderOnlyConfig)
    assert "num_decoder_layers" not in option_types(DecoderOnlyConfig)
    assert "classifier_pooling" in option_types(EncoderOnlyConfig)
    assert "mask_token_id" not in option_types(EncoderOnlyConfig)
