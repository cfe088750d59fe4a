"""The closed formula against the model itself, and the counts of the named sizes."""

import pytest
import torch

from bmscale.model import EncoderDecoderConfig
from bmscale.model.config import DECODER_PRESETS, ENCODER_PRESETS, PRESETS
from bmscale.model.sizes import DECODER_SIZES, ENCODER_SIZES, SIZES, count_parameters
from bmscale.model.tasks import TASKS, model_class

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


# The same of the llama preset. An eurobert of that size has as many.
DECODER_COUNTS = {
    "tiny": (853_120, 4_949_120),
    "mini": (4_820_224, 13_012_224),
    "small": (14_162_304, 26_450_304),
    "base": (84_953_856, 109_529_856),
    "big": (205_554_688, 238_322_688),
    "300m": (269_790_208, 302_558_208),
    "1b": (924_919_808, 990_455_808),
    "3b": (2_818_747_392, 2_917_051_392),
    "7b": (6_734_270_464, 6_865_342_464),
    "13b": (12_662_031_360, 12_825_871_360),
    "30b": (29_698_579_456, 29_927_955_456),
    "70b": (69_207_662_592, 69_469_806_592),
}


def build(config):
    with torch.device("meta"):
        return model_class(config)(config)


def sizes_of(model):
    total = sum(parameter.numel() for parameter in model.parameters())
    tables = {id(head.weight): head.weight.numel() for name, head in model.named_modules() if name == "lm_head"}
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


@pytest.mark.parametrize("name", DECODER_SIZES)
def test_named_sizes_of_one_stack(name):
    assert list(DECODER_SIZES) == list(SIZES)
    config = TASKS["language_model"].configure(**DECODER_PRESETS["llama"], **DECODER_SIZES[name], vocab_size=32_000)
    assert sizes_of(build(config)) == DECODER_COUNTS[name]
    count = count_parameters(config)
    assert (count.non_embedding, count.total) == DECODER_COUNTS[name]
    if name not in ENCODER_SIZES:
        return
    config = TASKS["masked_lm"].configure(**ENCODER_PRESETS["eurobert"], **ENCODER_SIZES[name], vocab_size=32_000)
    assert sizes_of(build(config)) == DECODER_COUNTS[name]
    count = count_parameters(config)
    assert (count.non_embedding, count.total) == DECODER_COUNTS[name]


@pytest.mark.parametrize(
    ("name", "nominal"),
    [("300m", 3e8), ("1b", 1e9), ("3b", 3e9), ("7b", 7e9), ("13b", 13e9), ("30b", 30e9), ("70b", 70e9)],
)
def test_names_of_one_stack_are_honest(name, nominal):
    assert DECODER_COUNTS[name][1] == pytest.approx(nominal, rel=0.03)


@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 100, "qk_norm": True},
        {**PRESETS["vanilla"], "sandwich_norm": True},
    ],
)
def test_formula_is_exact_for_one_stack(task, options):
    shape = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "num_labels": 7}
    config = TASKS[task].configure(**{**shape, **options})
    count = count_parameters(config)
    assert (count.non_embedding, count.total) == sizes_of(build(config))


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
