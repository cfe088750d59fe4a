"""Cross-entropy as sums over target tokens, computed in fp32; with the head, chunk by chunk.

Label smoothing (Szegedy 2016, section 7; Vaswani 2017): the target distribution is (1 - eps) on the reference plus
eps / V on each of the V entries of the vocabulary, padding and reference included. That is PyTorch's convention too.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers.utils import ModelOutput

IGNORED = -100
"""The label that no sum counts."""

_LOGITS_PER_CHUNK = 2**24
"""How many fp32 logits are held at a time by default: 64 MiB."""


@dataclass
class LossSums(ModelOutput):
    """Sums over the target tokens of a batch; a ModelOutput so that DeepSpeed's hooks find the tensors in it."""

    # transformers wants a default on every field but the first; each of them is always given.
    loss: torch.Tensor = None  # type: ignore[assignment]
    """What is minimised, label smoothing included (nats, scalar, carries the gradient)."""
    nll: torch.Tensor = None  # type: ignore[assignment]
    """Negative log-likelihood of the references (nats, scalar, without gradient)."""
    tokens: torch.Tensor = None  # type: ignore[assignment]
    """How many labels were counted (int64, scalar)."""
    correct: torch.Tensor | None = None
    """How many of them are what the model finds most probable (int64, scalar). Counted where no gradient is wanted;
    None while training."""

    def mean(self, num_items: torch.Tensor | int | None = None) -> torch.Tensor:
        """The loss a label, or over `num_items` instead (gradient accumulation in transformers' Trainer)."""
        return self.loss / (self.tokens.clamp(min=1) if num_items is None else num_items)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> LossSums:
    """Loss of logits (…, V) against labels (…), where -100 is not counted."""
    vocabulary = logits.shape[-1]
    kept_N = (labels.reshape(-1) != IGNORED).nonzero().squeeze(-1)
    logits_NV = logits.reshape(-1, vocabulary)[kept_N]
    log_p_NV = logits_NV.log_softmax(dim=-1, dtype=_wide(logits))
    labels_N = labels.reshape(-1)[kept_N]
    nll = -log_p_NV.gather(1, labels_N[:, None]).sum()
    loss = nll if label_smoothing == 0 else (1 - label_smoothing) * nll - label_smoothing / vocabulary * log_p_NV.sum()
    correct = None if torch.is_grad_enabled() else (log_p_NV.argmax(dim=-1) == labels_N).sum()
    return LossSums(loss, nll.detach(), torch.tensor(len(kept_N), device=labels.device), correct)


def linear_cross_entropy(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> LossSums:
    """`cross_entropy(hidden @ weight.T, labels)` that holds `chunk` rows of logits at a time.

    Gradients are computed with the loss, while the logits of a chunk are there; nothing is computed twice. Rows
    labelled -100 are left out before the matrix product, so padding costs nothing. `chunk` is by default as many rows
    as make 64 MiB of fp32 logits. The gradient cannot be differentiated again.
    """
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device):  # once, instead of once a chunk inside
        dtype = torch.get_autocast_dtype(device)
        hidden_TD, weight_VD = hidden_TD.to(dtype), weight_VD.to(dtype)
    kept_N = (labels != IGNORED).nonzero().squeeze(-1)
    if len(kept_N) < len(labels):
        hidden_TD, labels = hidden_TD[kept_N], labels[kept_N]
    chunk = chunk or max(1, _LOGITS_PER_CHUNK // len(weight_VD))
    with_gradient = torch.is_grad_enabled()
    with torch.autocast(device, enabled=False):
        loss, nll, correct = _LinearCrossEntropy.apply(
            hidden_TD, weight_VD, labels, label_smoothing, chunk, with_gradient
        )
    tokens = torch.tensor(len(kept_N), device=labels.device)
    return LossSums(loss, nll, tokens, None if with_gradient else correct)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        smoothing: float,
        chunk: int,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = _wide(hidden_ND)
        correct = labels_N.new_zeros(())
        loss, nll = hidden_ND.new_zeros((), dtype=wide), hidden_ND.new_zeros((), dtype=wide)
        wants_hidden, wants_weight = (with_gradient and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        for start in range(0, len(hidden_ND), chunk):
            rows, labels = hidden_ND[start : start + chunk], labels_N[start : start + chunk, None]
            logits_CV = rows @ weight_VD.T
            wants_none = grad_hidden is None and grad_weight is None
            if wants_none or hidden_ND.device.type != "cpu":
                log_p_CV = logits_CV.log_softmax(dim=-1, dtype=wide)
                chunk_nll = -log_p_CV.gather(1, labels).sum()
                sum_log_p = log_p_CV.sum() if smoothing else chunk_nll
                if not with_gradient:
                    correct += (log_p_CV.argmax(dim=-1, keepdim=True) == labels).sum()
                grad_CV = log_p_CV if wants_none else log_p_CV.exp_()
            else:
                # The gradient wants probabilities: on CPU their logarithms are not worth a pass more. (Elsewhere the
                # passes are cheap, and looking for lost labels would wait for the device.)
                grad_CV = logits_CV.softmax(dim=-1, dtype=wide)
                label_log_p_C1 = _log_p_of_labels(grad_CV, logits_CV, labels)
                chunk_nll = -label_log_p_C1.sum()
                if smoothing:  # log p = logit - log z
                    log_z_C1 = logits_CV.gather(1, labels).to(wide) - label_log_p_C1
                    sum_log_p = logits_CV.sum(dtype=wide) - len(weight_VD) * log_z_C1.sum()
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll
            if smoothing:
                loss -= smoothing / len(weight_VD) * sum_log_p
            if wants_none:
                continue
            if smoothing:
                grad_CV -= smoothing / len(weight_VD)
            grad_CV.scatter_add_(1, labels, grad_CV.new_full(labels.shape, smoothing - 1))
            grad_CV = grad_CV.to(hidden_ND.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = grad_CV @ weight_VD
            if grad_weight is not None and grad_weight.dtype == grad_CV.dtype:
                grad_weight.addmm_(grad_CV.T, rows)
            elif grad_weight is not None:
                grad_weight += grad_CV.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll, correct)
        return loss, nll, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # Out of place: the graph may be walked again with retain_graph. The scale is applied in fp32: DeepSpeed's is
        # world size / tokens of the step.
        hidden = None if grad_hidden is None else grad_hidden * upstream.to(grad_hidden.dtype)
        weight = None if grad_weight is None else (grad_weight * upstream).to(ctx.dtype)
        return hidden, weight, None, None, None, None


def _log_p_of_labels(p_NV: torch.Tensor, logits_NV: torch.Tensor, labels_N1: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, 1), also where the probability is too small for its type."""
    p_N1 = p_NV.gather(1, labels_N1)
    lost_N = (p_N1 < torch.finfo(p_N1.dtype).tiny).squeeze(1)
    log_p_N1 = p_N1.log()
    if lost_N.any():
        exact = logits_NV[lost_N].log_softmax(dim=-1, dtype=p_N1.dtype)
        log_p_N1[lost_N] = exact.gather(1, labels_N1[lost_N])
    return log_p_N1


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """fp32, or fp64 for a tensor of that type."""
    return torch.promote_types(tensor.dtype, torch.float32)
