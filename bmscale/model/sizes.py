"""Named model sizes, and how many parameters a configuration has.

A size gives widths and depths; the feed-forward width follows from the kind of feed-forward layer
(`config.default_intermediate_size`), so that a size has about the same parameters in every preset.
"""

from dataclasses import dataclass

from bmscale.model.config import (
    GATED,
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    EncoderOnlyConfig,
    TransformerConfig,
    is_classifier,
)


def _width(width: int, heads: int, key_heads: int | None = None) -> dict[str, int]:
    """Heads of width D / H; as many key heads as heads where none are given, so that changing one option is enough."""
    size = {"hidden_size": width, "num_attention_heads": heads}
    return size if key_heads is None else {**size, "num_key_value_heads": key_heads}


def _two_stacks(width: int, layers: int, heads: int, key_heads: int | None = None) -> dict[str, int]:
    return {**_width(width, heads, key_heads), "num_encoder_layers": layers, "num_decoder_layers": layers}


def _one_stack(width: int, layers: int, heads: int, key_heads: int | None = None) -> dict[str, int]:
    return {**_width(width, heads, key_heads), "num_hidden_layers": layers}


# Totals are with V = 32,000 and tied embeddings; grouped key heads from 3b on.

# Of an encoder-decoder.
SIZES: dict[str, dict[str, int]] = {
    "tiny": _two_stacks(128, 2, 2),  # 5 M, trains on a laptop in minutes
    "mini": _two_stacks(256, 3, 4),  # 14 M
    "small": _two_stacks(384, 4, 6),  # 29 M
    "base": _two_stacks(512, 6, 8),  # 61 M, Vaswani 2017 base
    "big": _two_stacks(1024, 6, 16),  # 212 M, Vaswani 2017 big
    "300m": _two_stacks(1024, 9, 16),
    "1b": _two_stacks(1536, 14, 12),
    "3b": _two_stacks(2560, 19, 20, 4),
    "7b": _two_stacks(4096, 17, 32, 8),
    "13b": _two_stacks(5120, 21, 40, 8),
    "30b": _two_stacks(7168, 25, 56, 8),
    "70b": _two_stacks(8192, 45, 64, 8),
}

# Of a decoder. The names are those of an encoder-decoder of about the same parameters, but for base and big, which are
# the usual ones of one stack: GPT-2 small's and two thirds of GPT-2 medium's.
DECODER_SIZES: dict[str, dict[str, int]] = {
    "tiny": _one_stack(128, 4, 2),  # 5 M
    "mini": _one_stack(256, 6, 4),  # 13 M
    "small": _one_stack(384, 8, 6),  # 26 M
    "base": _one_stack(768, 12, 12),  # 110 M
    "big": _one_stack(1024, 16, 16),  # 238 M
    "300m": _one_stack(1024, 21, 16),
    "1b": _one_stack(2048, 18, 16),
    "3b": _one_stack(3072, 28, 24, 8),
    "7b": _one_stack(4096, 38, 32, 8),
    "13b": _one_stack(5120, 46, 40, 8),
    "30b": _one_stack(7168, 56, 56, 8),
    "70b": _one_stack(8192, 100, 64, 8),
}

# Of an encoder: the same stacks, up to the size at which encoders are trained.
ENCODER_SIZES = {name: DECODER_SIZES[name] for name in ("tiny", "mini", "small", "base", "big", "300m", "1b", "3b")}


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has, each shared one counted once."""

    embedding: int
    """Token tables and head over the vocabulary: V x D once where they are tied, else once for each."""
    non_embedding: int
    """Everything else: the blocks, the last norm of each stack, and a classifier's own matrices."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.non_embedding


def count_parameters(config: TransformerConfig) -> ParameterCount:
    """Exact counts from the configuration alone; no model is built.

    An EncoderOnlyConfig is counted as a masked language model unless its `architectures` names the classifier.
    """
    table, width = config.vocab_size * config.hidden_size, config.hidden_size
    if isinstance(config, EncoderDecoderConfig):
        encoder = _stack(config, config.num_encoder_layers, reads_source=False)
        decoder = _stack(config, config.num_decoder_layers, reads_source=True)
        return ParameterCount(table * (1 if config.tie_word_embeddings else 3), encoder + decoder)
    assert isinstance(config, DecoderOnlyConfig | EncoderOnlyConfig)
    stack = _stack(config, config.num_hidden_layers, reads_source=False)
    if is_classifier(config):
        return ParameterCount(table, stack + (width + 1) * (width + int(config.num_labels)))
    return ParameterCount(table * (1 if config.tie_word_embeddings else 2), stack)


def count_blocks(config: TransformerConfig) -> list[tuple[int, int]]:
    """(depth, parameters of one block) of each stack, in the order in which they run."""
    if isinstance(config, EncoderDecoderConfig):
        stacks = [(config.num_encoder_layers, False), (config.num_decoder_layers, True)]
    else:
        assert isinstance(config, DecoderOnlyConfig | EncoderOnlyConfig)
        stacks = [(config.num_hidden_layers, False)]
    one, two = ([_stack(config, depth, reads_source=reads) for _, reads in stacks] for depth in (1, 2))
    return [(int(depth), more - less) for (depth, _), less, more in zip(stacks, one, two, strict=True)]


def _stack(config: TransformerConfig, depth: int, *, reads_source: bool) -> int:
    """The blocks of a stack and its last norm."""
    norm = config.hidden_size * (2 if config.norm == "layer_norm" else 1)
    around = norm * (2 if config.sandwich_norm else 1)  # the norms of one residual branch
    attention = _attention(config)
    block = attention + (2 * config.head_dim if config.qk_norm else 0) + _feed_forward(config) + 2 * around
    if reads_source:
        block += attention + around
    return int(depth * block + norm)


def _attention(config: TransformerConfig) -> int:
    """Query, key, value and output projections."""
    query = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    biases = query + 2 * keys + config.hidden_size if config.bias else 0
    return 2 * config.hidden_size * (query + keys) + biases


def _feed_forward(config: TransformerConfig) -> int:
    """Up and down projections, and the gate where there is one."""
    inward = 2 if config.feed_forward in GATED else 1
    biases = inward * config.intermediate_size + config.hidden_size if config.bias else 0
    return int((inward + 1) * config.hidden_size * config.intermediate_size + biases)
