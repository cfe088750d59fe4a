"""Floating-point operations of the model, counted from the lengths of the texts.

Convention: the products of matrices, a multiply-add as two operations; norms, activations and softmax are not counted.
Attention is counted T x T, the causal half that a kernel may skip included, as torch.utils.flop_counter does. A
backward pass costs twice its forward pass. Recomputation under activation checkpointing is not counted: it is the same
training done with more work. Padding costs nothing here; give padded lengths to count it. Of packed rows whose
documents do not see each other give the lengths of the documents: what a mask hides is not counted either.
"""

import numpy as np
import numpy.typing as npt

from bmscale.model.config import GATED, EncoderDecoderConfig, TransformerConfig, is_classifier

Lengths = npt.ArrayLike
"""Tokens of each text, special ones included; one number or an array."""


def forward_flops(
    config: TransformerConfig, lengths: Lengths, targets: Lengths | None = None
) -> npt.NDArray[np.float64]:
    """Operations of a forward pass, a text: the shape of the lengths.

    `lengths` are those of the sources of an encoder-decoder, whose `targets` are the lengths of the targets; of the
    texts of any other model, whose `targets` are how many logits over the vocabulary are computed, by default one a
    token. A classifier has none. Raises ValueError for an encoder-decoder without targets.
    """
    if targets is None and isinstance(config, EncoderDecoderConfig):
        raise ValueError("an encoder-decoder needs the lengths of sources and of targets; got one of them")
    length = np.asarray(lengths, np.float64)
    target = length if targets is None else np.asarray(targets, np.float64)
    width = config.hidden_size
    query, keys, feed_forward = _products(config)
    # Scores and weighted values: two products of width H x K for each pair of positions.
    pair = 2 * config.num_attention_heads * config.head_dim
    block = length * (2 * query + 2 * keys + feed_forward) + pair * length * length
    if isinstance(config, EncoderDecoderConfig):
        decoder = target * (4 * query + 2 * keys + feed_forward) + length * 2 * keys + pair * target * (target + length)
        stacks = config.num_encoder_layers * block + config.num_decoder_layers * decoder
    else:
        stacks = config.num_hidden_layers * block
    head = width * (width + config.num_labels) if is_classifier(config) else target * width * config.vocab_size
    return np.asarray(2 * (stacks + head))


def training_flops(
    config: TransformerConfig, lengths: Lengths, targets: Lengths | None = None
) -> npt.NDArray[np.float64]:
    """Operations of a forward and a backward pass, a text: as `forward_flops`. Sum them for a step."""
    return 3 * forward_flops(config, lengths, targets)


def _products(config: TransformerConfig) -> tuple[int, int, int]:
    """Multiply-adds a token of the query (or output) projection, the key (or value) projection, the feed-forward."""
    query = config.hidden_size * config.num_attention_heads * config.head_dim
    keys = config.hidden_size * config.num_key_value_heads * config.head_dim
    feed_forward = (3 if config.feed_forward in GATED else 2) * config.hidden_size * config.intermediate_size
    return query, keys, feed_forward
