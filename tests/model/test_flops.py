"""The count of operations against what PyTorch counts while the real model runs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.config import PRESETS
from bmscale.model.flops import forward_flops, training_flops


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
