"""The closed formula against the model itself, and the counts of the named sizes."""

import pytest
import torch

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import PRESETS
from bmscale.model.sizes import SIZES, count_parameters

# name: (non-embedding, total) parameters of the modern preset at V = 32,000
COUNTS = {
    "tiny": (984_576, 5_080_576),
    "mini": (5_607_680, 13_799_680),
    "small": (16_523_520, 28_811_520),
    "base": (44_843_008, 61_227_008),
    "big": (179_339_264, 212_107_264),
    "300m": (269_007_872, 301_775_872),
    "1b": (924_954_624, 974_106_624),
    "3b": (2_913_978_880, 2_995_898_880),
    "7b": (6_738_505_728, 6_869_577_728),
    "13b": (12_882_304_000, 13_046_144_000),
    "30b": (29_452_788_736, 29_682_164_736),
    "70b": (69_082_046_464, 69_344_190_464),
}


def build(config):
    with torch.device("meta"):
        return EncoderDecoderForConditionalGeneration(config)


def sizes_of(model):
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {id(module.weight): module.weight.numel() for module in model.modules() if module is model.lm_head}
    tables |= {
        id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    return total - sum(tables.values()), total


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes(name):
    config = EncoderDecoderConfig(**PRESETS["modern"], **SIZES[name], vocab_size=32_000)
    count = count_parameters(config)
    assert (count.non_embedding, count.total) == COUNTS[name]
    assert sizes_of(build(config)) == COUNTS[name]


@pytest.mark.parametrize(("name", "nominal"), [("300m", 3e8), ("1b", 1e9), ("3b", 3e9), ("7b", 7e9), ("70b", 70e9)])
def test_names_are_honest(name, nominal):
    assert COUNTS[name][1] == pytest.approx(nominal, rel=0.03)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_size_weighs_about_the_same_in_every_preset(preset):
    config = EncoderDecoderConfig(**PRESETS[preset], **SIZES["base"], vocab_size=32_000)
    assert count_parameters(config).total == pytest.approx(COUNTS["base"][1], rel=0.03)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 100},
        {"bias": True, "qk_norm": True, "feed_forward": "geglu"},
        {"sandwich_norm": True, "norm": "layer_norm", "num_encoder_layers": 3, "num_decoder_layers": 1},
    ],
)
def test_formula_is_exact(preset, options):
    config = EncoderDecoderConfig(
        **{**PRESETS[preset], "vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, **options}
    )
    count = count_parameters(config)
    assert (count.non_embedding, count.total) == sizes_of(build(config))
