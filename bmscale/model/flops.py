"""Floating-point operations of the model, counted from the lengths of the sentences.

Convention: the products of matrices, a multiply-add as two operations; norms, activations and softmax are not counted.
Attention is counted T x T, the causal half that a kernel may skip included, as torch.utils.flop_counter does. A
backward pass costs twice its forward pass. Recomputation under activation checkpointing is not counted: it is the same
training done with more work. Padding costs nothing here; give padded lengths to count it.
"""

import numpy as np
import numpy.typing as npt

from bmscale.model.config import GATED, EncoderDecoderConfig

Lengths = npt.ArrayLike
"""Tokens of each sentence, </s> included; one number or an array."""


def forward_flops(
    config: EncoderDecoderConfig, source_lengths: Lengths, target_lengths: Lengths
) -> npt.NDArray[np.float64]:
    """Operations of a forward pass with logits at each target token, a pair: the shape of the lengths."""
    source, target = np.asarray(source_lengths, np.float64), np.asarray(target_lengths, np.float64)
    query = config.hidden_size * config.num_attention_heads * config.head_dim
    keys = config.hidden_size * config.num_key_value_heads * config.head_dim
    feed_forward = (3 if config.feed_forward in GATED else 2) * config.hidden_size * config.intermediate_size
    # Scores and weighted values: two products of width H x K for each pair of positions.
    pair = 2 * config.num_attention_heads * config.head_dim
    encoder = source * (2 * query + 2 * keys + feed_forward) + pair * source * source
    decoder = target * (4 * query + 2 * keys + feed_forward) + source * 2 * keys + pair * target * (target + source)
    head = target * config.hidden_size * config.vocab_size
    products = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + head
    return np.asarray(2 * products)


def training_flops(
    config: EncoderDecoderConfig, source_lengths: Lengths, target_lengths: Lengths
) -> npt.NDArray[np.float64]:
    """Operations of a forward and a backward pass, a pair: the shape of the lengths. Sum them for a step."""
    return 3 * forward_flops(config, source_lengths, target_lengths)
