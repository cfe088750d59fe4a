"""AdamW with parameter groups."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bmscale.config import suggest
from bmscale.errors import BadInput
from bmscale.experiment import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig, frozen: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases and embeddings without.

    Decay on a norm or a bias pulls a scale towards 0 that no matrix product depends on, and on embeddings it shrinks
    rare words, which get a gradient seldom. `lr_scale` multiplies the rate of the schedule for a group. Parameters
    whose names begin with one of `frozen` keep their moments, as every training state expects, but have the rate 0 and
    a gradient of zeros, so that they do not count in its norm either.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    still: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if is_frozen(name, frozen):
            parameter.register_hook(torch.zeros_like)
            still.append(parameter)
            continue
        # Under ZeRO-3 a parameter is a flat piece: its own shape says nothing, ds_shape does.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if dimensions >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": still, "weight_decay": 0.0, "lr_scale": 0.0},
    ]
    return [{**group, "lr": config.learning_rate * group["lr_scale"]} for group in groups if group["params"]]


def check_frozen(model: nn.Module, frozen: Sequence[str]) -> None:
    """Raises BadInput for a beginning that no parameter's name has, and where nothing would be trained."""
    names = [name for name, _ in model.named_parameters()]
    unknown = next((start for start in frozen if not any(is_frozen(name, [start]) for name in names)), None)
    if unknown is not None:
        raise BadInput(
            f"training.freeze: '{unknown}' must begin the name of a parameter{suggest(unknown, _beginnings(names))} "
            f"(such as {names[0]})"
        )
    if all(is_frozen(name, frozen) for name in names):
        raise BadInput("training.freeze: must leave something to train; it names all parameters")


def is_frozen(name: str, frozen: Sequence[str]) -> bool:
    """Whether one of `frozen` is the name or begins it at a dot: model.layers.1 is not model.layers.12."""
    return any(name == start or name.startswith(f"{start}.") for start in frozen)


def _beginnings(names: Sequence[str]) -> list[str]:
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)))


def make_optimizer(model: nn.Module, config: OptimizerConfig, frozen: Sequence[str] = ()) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused: one pass over the parameters, on CPU as well."""
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(parameter_groups(model, config, frozen), betas=betas, eps=config.epsilon, fused=True)
