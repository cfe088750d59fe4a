"""The count of operations against what PyTorch counts while the real model runs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import PRESETS
from bmscale.model.flops import forward_flops, training_flops
from bmscale.model.tasks import TASKS


def model_of(preset, **options):
    shape = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "num_encoder_layers": 3}
    config = EncoderDecoderConfig(**{**PRESETS[preset], **shape, "num_decoder_layers": 2, **options})
    torch.manual_seed(0)
    return EncoderDecoderForConditionalGeneration._from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 2, "head_dim": 10}, {"tie_word_embeddings": False}])
def test_the_count_is_pytorchs(preset, options):
    model = model_of(preset, **options)
    ids = torch.randint(4, 50, (2, 20))
    sources, targets = ids[:, :11], ids[:, 11:]
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(input_ids=sources, labels=targets)
    assert forward.get_total_flops() == 2 * forward_flops(model.config, 11, 9)
    with FlopCounterMode(display=False) as step:
        model(input_ids=sources, labels=targets).loss.backward()
    assert step.get_total_flops() == 2 * training_flops(model.config, 11, 9)


@pytest.mark.parametrize("task", ["language_model", "masked_lm", "classification"])
@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 2, "head_dim": 10}, PRESETS["vanilla"]])
def test_the_count_of_one_stack_is_pytorchs(task, options):
    shape = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "num_labels": 7}
    config = TASKS[task].configure(**{**shape, **options})
    model: Any = TASKS[task].model
    model = model._from_config(config, attn_implementation="eager")
    ids = torch.randint(4, 50, (2, 11))
    labels = {"language_model": {"shift_labels": ids}, "masked_lm": {"labels": ids}}
    given = labels.get(task, {"labels": torch.tensor([1, 6])})
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(input_ids=ids, **given)
    assert forward.get_total_flops() == 2 * forward_flops(config, 11)
    with FlopCounterMode(display=False) as step:
        model(input_ids=ids, **given).loss.backward()
    assert step.get_total_flops() == 2 * training_flops(config, 11)


def test_a_masked_model_computes_logits_of_predicted_tokens_only():
    shape = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    model: Any = TASKS["masked_lm"].model(TASKS["masked_lm"].configure(**shape)).bfloat16()
    model.set_attn_implementation("eager")
    ids = torch.randint(4, 50, (2, 11))
    labels = ids.clone()
    labels[:, 3:] = -100
    with FlopCounterMode(display=False) as step:
        model(input_ids=ids, labels=labels, return_loss_sums=True).loss.backward()
    assert step.get_total_flops() == 2 * training_flops(model.config, 11, 3)


def test_an_encoder_decoder_needs_both_lengths():
    with pytest.raises(ValueError, match="lengths of sources and of targets"):
        forward_flops(model_of("modern").config, 11)


def test_the_chunked_loss_costs_the_same_and_skips_padding():
    model = model_of("modern").bfloat16()  # in fp32 one product adds in place, which PyTorch's counter does not see
    ids = torch.randint(4, 50, (2, 20))
    labels = ids[:, 11:].clone()
    labels[0, 4:] = -100
    with FlopCounterMode(display=False) as step:
        model(input_ids=ids[:, :11], labels=labels, return_loss_sums=True).loss.backward()
    skipped_rows = 5
    head = 3 * 2 * skipped_rows * 32 * 50
    assert step.get_total_flops() == 2 * training_flops(model.config, 11, 9) - head


def test_arrays_of_lengths():
    config = model_of("gemma").config
    sources, targets = np.array([3, 8, 1]), np.array([5, 2, 9])
    flops = training_flops(config, sources, targets)
    assert flops.shape == (3,)
    assert list(flops) == [float(training_flops(config, s, t)) for s, t in zip(sources, targets, strict=True)]
    # A long pair costs more than two halves: attention grows with the square.
    assert training_flops(config, 20, 20) > 2 * training_flops(config, 10, 10)
