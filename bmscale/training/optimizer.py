"""AdamW with parameter groups."""

from typing import Any

import torch
from torch import nn

from bmscale.experiment import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay; norms, biases and embeddings without.

    Decay on a norm or a bias pulls a scale towards 0 that no matrix product depends on, and on embeddings it shrinks
    rare words, which get a gradient seldom. `lr_scale` multiplies the rate of the schedule for a group.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        # Under ZeRO-3 a parameter is a flat piece: its own shape says nothing, ds_shape does.
        dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if dimensions >= 2 and id(parameter) not in embeddings else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return [{**group, "lr": config.learning_rate * group["lr_scale"]} for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), fused: one pass over the parameters, on CPU as well."""
    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(parameter_groups(model, config), betas=betas, eps=config.epsilon, fused=True)
