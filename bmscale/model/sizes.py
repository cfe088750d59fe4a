"""Named model sizes, and how many parameters a configuration has.

A size gives widths and depths; the feed-forward width follows from the kind of feed-forward layer
(`config.default_intermediate_size`), so that a size has about the same parameters in every preset.
"""

from dataclasses import dataclass

from bmscale.model.config import GATED, EncoderDecoderConfig


def _size(width: int, layers: int, heads: int, key_heads: int | None = None) -> dict[str, int]:
    """Heads of width D / H; as many key heads as heads where none are given, so that changing one option is enough."""
    size = {
        "hidden_size": width,
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "num_attention_heads": heads,
    }
    return size if key_heads is None else {**size, "num_key_value_heads": key_heads}


# Totals are with V = 32,000 and tied embeddings; grouped key heads from 3b on.
SIZES: dict[str, dict[str, int]] = {
    "tiny": _size(128, 2, 2),  # 5 M, trains on a laptop in minutes
    "mini": _size(256, 3, 4),  # 14 M
    "small": _size(384, 4, 6),  # 29 M
    "base": _size(512, 6, 8),  # 61 M, Vaswani 2017 base
    "big": _size(1024, 6, 16),  # 212 M, Vaswani 2017 big
    "300m": _size(1024, 9, 16),
    "1b": _size(1536, 14, 12),
    "3b": _size(2560, 19, 20, 4),
    "7b": _size(4096, 17, 32, 8),
    "13b": _size(5120, 21, 40, 8),
    "30b": _size(7168, 25, 56, 8),
    "70b": _size(8192, 45, 64, 8),
}


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has, each shared one counted once."""

    embedding: int
    """Token tables and head: V x D once where they are tied, else three times."""
    non_embedding: int
    """Everything else: the blocks and the last norm of each stack."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.non_embedding


def count_parameters(config: EncoderDecoderConfig) -> ParameterCount:
    """Exact counts from the configuration alone; no model is built."""
    norm = config.hidden_size * (2 if config.norm == "layer_norm" else 1)
    around = norm * (2 if config.sandwich_norm else 1)  # the norms of one residual branch
    cross = _attention(config)
    own = cross + (2 * config.head_dim if config.qk_norm else 0)
    feed_forward = _feed_forward(config)
    encoder = config.num_encoder_layers * (own + feed_forward + 2 * around) + norm
    decoder = config.num_decoder_layers * (own + cross + feed_forward + 3 * around) + norm
    table = config.vocab_size * config.hidden_size
    return ParameterCount(table * (1 if config.tie_word_embeddings else 3), encoder + decoder)


def _attention(config: EncoderDecoderConfig) -> int:
    """Query, key, value and output projections."""
    query = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    biases = query + 2 * keys + config.hidden_size if config.bias else 0
    return 2 * config.hidden_size * (query + keys) + biases


def _feed_forward(config: EncoderDecoderConfig) -> int:
    """Up and down projections, and the gate where there is one."""
    inward = 2 if config.feed_forward in GATED else 1
    biases = inward * config.intermediate_size + config.hidden_size if config.bias else 0
    return int((inward + 1) * config.hidden_size * config.intermediate_size + biases)
