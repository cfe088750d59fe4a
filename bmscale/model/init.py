"""First values of parameters: a pure function of (seed, parameter name, shape), whatever the ranks or the ZeRO stage.

| parameter                                   | first value                                                          |
|---------------------------------------------|----------------------------------------------------------------------|
| matrix, fan-in n                            | normal, std sqrt(2 / (5 n)): "small init" for pre-norm translation    |
|                                             | models (Nguyen and Salazar 2019)                                     |
| matrix whose output is added to the stream  | the same / sqrt(N), N residual branches in the stack (Radford 2019)  |
| embedding, shared head                      | normal, std sqrt(2 / (5 D)); D^-1/2 where embeddings are multiplied  |
|                                             | by sqrt(D), so that they enter at 1 (Vaswani 2017, fairseq)          |
| norm weight                                 | 1                                                                    |
| bias                                        | 0                                                                    |

In μP D is the base width for embedding and head, N is counted in a stack of base_layers, and a classifier's last matrix
has a factor of its own (parametrization.py).

With these the first loss lies within a few tenths of a nat of ln V, except where embeddings that are multiplied by
sqrt(D) are the head as well: there each token predicts itself at first, sqrt(D) nats too much. That is unlearned in
some fifty steps. A smaller gain of the last norm avoids it, and was measured to learn more slowly from then on: on
300,000 target tokens of package descriptions (D = 256, 1,024 tokens a step, rate 2e-3) a gain of 4 D^-1/2 reached 5.29
nats and a gain of 1 5.20.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import initialization

from bmscale.model.config import EncoderDecoderConfig, TransformerConfig
from bmscale.model.parametrization import depth_of, init_depth, is_mup, width_multiplier

Module = TypeVar("Module", bound=nn.Module)

_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
_MATRICES = ("_proj.weight", "dense.weight")


def matrix_std(fan_in: int, branches: int = 1) -> float:
    """Standard deviation of a matrix with `fan_in` columns that is one of `branches` writing to a residual stream."""
    return float((2 / (5 * fan_in * branches)) ** 0.5)


def embedding_std(config: TransformerConfig) -> float:
    """Standard deviation of an embedding matrix, which is also the head where they are tied."""
    width = config.base_hidden_size if is_mup(config) else config.hidden_size
    return float(width**-0.5) if config.scale_embeddings else matrix_std(width)


def head_factor(config: TransformerConfig) -> float:
    """What the standard deviation of a head of its own is multiplied by: 1 but in μP, where it is that of the base
    width."""
    return width_multiplier(config) ** 0.5


def classifier_factor(config: TransformerConfig) -> float:
    """What the standard deviation of a classifier's last matrix is multiplied by: 1 but in μP."""
    return width_multiplier(config) ** -0.5


def residual_branches(depth: int, *, reads_source: bool) -> int:
    """Residual branches of a stack: self-attention and feed-forward in each block, and cross-attention in a decoder
    that reads a source."""
    return (3 if reads_source else 2) * depth


def initial_value(name: str, shape: Sequence[int], seed: int, config: TransformerConfig) -> torch.Tensor:
    """The first value of a parameter: fp32, on CPU, of `shape`.

    `name` is the one in `named_parameters()` of the whole model. Raises ValueError for a name that it does not know.
    """
    if name.endswith(".bias"):
        return torch.zeros(tuple(shape))
    if name.endswith("norm.weight"):
        return torch.ones(tuple(shape))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32).mul_(_std(name, shape, config))


def _std(name: str, shape: Sequence[int], config: TransformerConfig) -> float:
    if name.endswith("embed.tokens.weight"):
        return embedding_std(config)
    if name.endswith(_RESIDUAL_OUTPUTS):
        return matrix_std(shape[1], _branches(name, config))
    if name.endswith("head.weight"):
        return matrix_std(shape[1]) * head_factor(config)
    if name.endswith("classifier.weight"):
        return matrix_std(shape[1]) * classifier_factor(config)
    if name.endswith(_MATRICES):
        return matrix_std(shape[1])
    raise ValueError(f"no first value is known for a parameter named {name}")


def _branches(name: str, config: TransformerConfig) -> int:
    """Residual branches of the stack that a parameter is part of."""
    reads_source = isinstance(config, EncoderDecoderConfig) and "decoder." in name
    return residual_branches(init_depth(config, depth_of(name, config)), reads_source=reads_source)


def initialise(model: nn.Module, seed: int) -> None:
    """Give every parameter of a model that lies whole in memory its first value."""
    config: Any = model.config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, seed, config))


def mark_residual_output(module: Module, branches: int) -> Module:
    """Note on a matrix that it is one of `branches` writing to a residual stream; `initialise_module` reads it."""
    module.residual_branches = branches  # type: ignore[assignment]
    return module


def initialise_module(module: nn.Module, config: TransformerConfig) -> None:
    """The same distributions drawn from PyTorch's global generator: what transformers calls for parameters that no
    file holds. Its `initialization` functions leave alone what was loaded."""
    if isinstance(module, nn.Embedding):
        initialization.normal_(module.weight, std=embedding_std(config))
    elif isinstance(module, nn.Linear):
        branches = getattr(module, "residual_branches", 1)
        factor = getattr(module, "init_factor", 1.0)
        initialization.normal_(module.weight, std=matrix_std(module.in_features, branches) * factor)
        if module.bias is not None:
            initialization.zeros_(module.bias)
    elif getattr(module, "weight", None) is not None:  # a norm
        initialization.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            initialization.zeros_(module.bias)
