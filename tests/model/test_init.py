"""First values: a function of (seed, name, shape), of the documented spread, with a first loss near ln V."""

import math
from typing import Any

import pytest
import torch
from transformers import initialization

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration, init
from bmscale.model.config import PRESETS
from bmscale.model.tasks import TASKS


def config_of(preset="modern", **options):
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 3}
    return EncoderDecoderConfig(**{**PRESETS[preset], **shape, "vocab_size": 2000, **options})


def test_a_value_depends_on_seed_and_name_only():
    config = config_of()
    name = "model.encoder.layers.0.feed_forward.up_proj.weight"
    torch.manual_seed(1)
    first = init.initial_value(name, (64, 128), 0, config)
    torch.manual_seed(2)
    assert torch.equal(first, init.initial_value(name, torch.Size([64, 128]), 0, config))
    assert not torch.equal(first, init.initial_value(name, (64, 128), 1, config))
    assert not torch.equal(first, init.initial_value(name.replace("up", "gate"), (64, 128), 0, config))
    assert (first.dtype, first.device.type) == (torch.float32, "cpu")


def test_values_are_pinned():
    """A change here changes every training run that is to be reproduced."""
    value = init.initial_value("lm_head.weight", (2, 2), 0, config_of())
    expected = torch.tensor([0.026577986776828766, 0.40166065096855164, 0.0344230979681015, 0.1434430032968521])
    torch.testing.assert_close(value.flatten(), expected, rtol=1e-6, atol=0)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"parameter named model\.adapter\.weight"):
        init.initial_value("model.adapter.weight", (2, 2), 0, config_of())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_draws_from_the_same_distributions(preset, tied):
    config = config_of(preset, tie_word_embeddings=tied, qk_norm=True)
    torch.manual_seed(0)
    theirs = dict(EncoderDecoderForConditionalGeneration(config).named_parameters())
    assert theirs
    for name, theirs_value in theirs.items():
        parameter = theirs_value.detach()
        ours = init.initial_value(name, parameter.shape, 0, config)
        deviation = float(ours.std(correction=0))
        assert float(parameter.std(correction=0)) == pytest.approx(deviation, rel=0.03), name
        assert float(parameter.mean()) == pytest.approx(float(ours.mean()), abs=0.1 * deviation + 1e-9), name


@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_documented_spread_of_one_stack(task, tied):
    """Each kind of parameter against the table of init.py, by us and by transformers."""
    width, depth, wide = 128, 3, 384
    config = one_stack(task, tie_word_embeddings=tied, qk_norm=True, bias=True)
    torch.manual_seed(0)
    theirs = dict(TASKS[task].model(config).named_parameters())
    seen = set()
    for name, value in theirs.items():
        ours = init.initial_value(name, value.shape, 0, config)
        assert ours.shape == value.shape
        kind = name.split(".")[-2]
        seen.add(kind)
        if name.endswith(".bias"):
            expected = 0.0
        elif name.endswith("norm.weight"):
            expected = 0.0
            assert (ours == 1).all()
        elif kind in ("o_proj", "down_proj"):
            expected = math.sqrt(2 / (5 * (wide if kind == "down_proj" else width) * 2 * depth))
        else:
            expected = math.sqrt(2 / (5 * width))
        for parameter in (ours, value.detach()):
            # the classifier has 640 weights, whose deviation is known to 3 %
            assert float(parameter.std(correction=0)) == pytest.approx(expected, rel=0.1), name
    assert ("lm_head" in seen) == (task != "classification" and not tied)
    assert ("dense" in seen) == (task == "classification")


@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
def test_the_first_loss_of_one_stack_is_near_the_logarithm_of_the_choices(task):
    model: Any = TASKS[task].model(one_stack(task))
    init.initialise(model, 3)
    ids = torch.randint(4, 2000, (8, 20), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5 if task == "classification" else ids.roll(2, 1)
    with torch.no_grad():
        sums = model(input_ids=ids, labels=labels, return_loss_sums=True)
    assert float(sums.nll / sums.tokens) == pytest.approx(math.log(5 if task == "classification" else 2000), abs=0.4)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, init.initial_value(name, parameter.shape, 3, model.config)), name


def one_stack(task, **options):
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 2000, "num_labels": 5}
    return TASKS[task].configure(**{**shape, **options})


def test_residual_outputs_shrink_with_depth():
    std = {
        depth: float(
            init.initial_value(
                "model.decoder.layers.0.cross_attention.o_proj.weight",
                (128, 128),
                0,
                config_of(num_decoder_layers=depth),
            ).std()
        )
        for depth in (2, 8)
    }
    assert std[2] / std[8] == pytest.approx(2, rel=1e-4)
    assert std[2] == pytest.approx(math.sqrt(2 / (5 * 128 * 6)), rel=0.02)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_near_ln_v(preset, width, tied):
    config = config_of(preset, hidden_size=width, tie_word_embeddings=tied)
    predicts_itself = config.scale_embeddings and tied
    with initialization.no_init_weights():
        model = EncoderDecoderForConditionalGeneration(config)
    init.initialise(model, 3)
    ids = torch.randint(4, 2000, (8, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sums = model(input_ids=ids[:, :10], labels=ids[:, 10:], return_loss_sums=True)
    first = float(sums.nll / sums.tokens)
    if predicts_itself:
        assert math.log(2000) < first < math.log(2000) + width**0.5
    else:
        assert first == pytest.approx(math.log(2000), abs=0.4)


def test_initialise_gives_each_parameter_its_own_value():
    model = EncoderDecoderForConditionalGeneration(config_of())
    init.initialise(model, 5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, init.initial_value(name, parameter.shape, 5, model.config)), name
