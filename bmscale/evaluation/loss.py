"""Cross-entropy of a model: of one batch of any task, and of a whole set of sentence pairs over all ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bmscale.data.batch import Batch, read_buckets
from bmscale.data.micro_batches import split_step
from bmscale.data.shards import PairShards
from bmscale.engine import process_group
from bmscale.model.loss import LossSums


def batch_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> LossSums:
    """Sums over what a batch predicts (nats): smoothed loss, which carries the gradient, and plain nll."""
    sums: LossSums = model(**vars(batch), label_smoothing=label_smoothing, return_loss_sums=True)
    return sums


@dataclass(frozen=True)
class ValidationLoss:
    """Loss on a whole set, without label smoothing."""

    nll: float
    """Nats a target token, </s> included."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nll), a target token."""
        return math.exp(min(self.nll, 700.0))


def validation_loss(
    model: nn.Module,
    shards: PairShards,
    max_batch_tokens: int,
    *,
    pairs: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    between: Callable[[], None] = lambda: None,
) -> ValidationLoss:
    """The loss over `pairs` of `shards` (all of them unless given), shared among the ranks. Collective; the caller
    switches gradients off. `between` is called before each batch, on every rank the same number of times."""
    chosen = np.arange(len(shards)) if pairs is None else np.asarray(pairs)
    sources, targets = shards.source_lengths, shards.target_lengths
    longest = int((sources[chosen] + targets[chosen]).max())
    rounds = split_step(
        chosen, sources, targets, world_size=world_size, max_micro_batch_tokens=max(max_batch_tokens, longest)
    )
    device = next(model.parameters()).device
    wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
    total = torch.zeros((), dtype=wide, device=device)
    for batches in rounds:  # the same number on every rank: a forward pass is collective under ZeRO-3
        between()
        total += batch_loss(model, read_buckets(shards, batches[rank]).to(device)).nll.to(wide)
    process_group.sum_over_ranks(total)
    tokens = int(targets[chosen].sum())
    return ValidationLoss(float(total) / tokens, tokens)
