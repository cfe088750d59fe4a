"""AdamW with parameter groups."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bmscale.config import suggest
from bmscale.errors import BadInput
from bmscale.experiment import OptimizerConfig
from bmscale.model.parametrization import AdamScales, adam_scales

# The order of the groups; within a kind, that of the parameters.
_DECAYED, _PLAIN, _STILL = range(3)


def parameter_groups(model: nn.Module, config: OptimizerConfig, frozen: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases and embeddings without.

    Decay on a norm or a bias pulls a scale towards 0 that no matrix product depends on, and on embeddings it shrinks
    rare words, which get a gradient seldom. `lr_scale` multiplies the rate of the schedule for a group. Under
    `parametrization: mup` rate, decay and epsilon of a group go by width and depth as well (model/parametrization.py),
    and there are more groups. Parameters whose names begin with one of `frozen` keep their moments, as every training
    state expects, but have the rate 0 and a gradient of zeros, so that they do not count in its norm either.
    """
    shape: Any = model.config
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found: dict[tuple[int, AdamScales], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if is_frozen(name, frozen):
            parameter.register_hook(torch.zeros_like)
            found.setdefault((_STILL, AdamScales(rate=0.0)), []).append(parameter)
            continue
        # Under ZeRO-3 a parameter is a flat piece: its own shape says nothing, ds_shape does.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        kind = _DECAYED if dimensions >= 2 and id(parameter) not in embeddings else _PLAIN
        found.setdefault((kind, adam_scales(name, shape)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay * scales.decay if kind == _DECAYED else 0.0,
            "lr_scale": scales.rate,
            "lr": config.learning_rate * scales.rate,
            "eps": config.epsilon * scales.epsilon,
        }
        for (kind, scales), parameters in sorted(found.items(), key=lambda entry: entry[0][0])
    ]


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
