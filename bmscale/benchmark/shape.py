"""Named shapes of models to measure."""

from typing import Any

from bmscale.config import suggest
from bmscale.errors import BadInput

VOCABULARY = 8000
"""Pieces of the joint vocabulary of translation cases."""

SHAPES: dict[str, dict[str, Any]] = {
    # Vaswani's block, which every rival has: LayerNorm, ReLU, sinusoids, biases where the preset has them.
    "tiny": {"task": "translation", "preset": "vanilla", "size": "tiny", "dropout": 0.1},
    "d256": {"task": "translation", "preset": "vanilla", "size": "mini", "dropout": 0.1},
    "base": {"task": "translation", "preset": "vanilla", "size": "base", "dropout": 0.1},
    "big": {"task": "translation", "preset": "vanilla", "size": "big", "dropout": 0.1},
    "modern-d256": {"task": "translation", "preset": "modern", "size": "mini", "dropout": 0.1},
    "modern-base": {"task": "translation", "preset": "modern", "size": "base", "dropout": 0.1},
    # GPT-2's and llm-foundry's shapes: (layers, width, heads, tokens of a row), vocabulary 50,304.
    "decoder-125m": {"rows": (12, 768, 12, 1024)},
    "decoder-350m": {"rows": (24, 1024, 16, 2048)},
    "decoder-1.3b": {"rows": (24, 2048, 16, 2048)},
    "decoder-7b": {"rows": (32, 4096, 32, 4096)},
}


def shape(name: str) -> dict[str, Any]:
    """The `task`, the `model` section and, of a decoder, the `sequence_length` of an experiment. Raises BadInput."""
    if name not in SHAPES:
        raise BadInput(f"shape: must be one of {', '.join(SHAPES)}; got '{name}'{suggest(name, SHAPES)}")
    options = dict(SHAPES[name])
    if "rows" not in options:
        return {"task": options.pop("task"), "model": options}
    layers, width, heads, length = options["rows"]
    model = {
        "preset": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "max_position_embeddings": length,
    }
    return {"task": "language_model", "model": model, "sequence_length": length, "vocab_size": 50_304}
