"""What one block of the model costs beside its parameters: measured by running it on tensors without memory.

A real `Layer` is built and run forward and backward under torch's FakeTensorMode, where tensors have shapes and no
data, so a block of a trillion-parameter model takes as long as a toy's. Counted are the bytes that autograd keeps for
the backward pass (`saved_tensors_hooks`, each storage once, parameters not), the most bytes that live beside them at
any time, and the bytes that operations read and write. All are taken at two batch sizes and
two lengths and extrapolated by their law, c + a B t + b B t² + d t², which is exact at the length of the workload.

On an accelerator the kernels are others than on CPU: attention keeps its inputs, its output and the logarithms of its
sums (FlashAttention, Dao 2022) and RMSNorm its input and a number a row; the trace puts such kernels in place.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bmscale.model.config import DecoderOnlyConfig, EncoderDecoderConfig, EncoderOnlyConfig, TransformerConfig
from bmscale.model.layers import Layer
from bmscale.model.positions import rotation

FUSED = "planned_fused"
"""Name under which the trace registers the attention of an accelerator."""


@dataclass(frozen=True)
class Shape:
    """Rows of a micro-batch and their lengths, padding included."""

    rows: int
    source: int
    """Tokens of a row that an encoder reads; 0 where the model has one stack."""
    target: int
    """Tokens of a row of the decoder, or of the only stack."""


@dataclass(frozen=True)
class Cost:
    """Of one block, or of several, in a forward and a backward pass (bytes)."""

    saved: float
    """Kept for the backward pass."""
    entry: float
    """The block's input: all that is kept of it under activation checkpointing."""
    forward: float
    """The most that lives at a time in the forward pass beside what is kept in the end."""
    backward: float
    """The most that lives at a time in the backward pass beside what was kept."""
    forward_traffic: float
    """Read and written by the operations of the forward pass."""
    backward_traffic: float
    """The same of the backward pass."""


_FIELDS = tuple(Cost.__dataclass_fields__)


@dataclass(frozen=True)
class Stack:
    """Blocks of one kind."""

    depth: int
    law: Callable[[Shape], Cost]
    """The cost of one of them."""


def measure(
    config: TransformerConfig, shape: Shape, *, precision: str, autocast: bool, packed: bool, on_cpu: bool
) -> list[Stack]:
    """The stacks of a model and the law of a block of each, around the lengths of `shape`.

    `precision` is that of the training, bf16 or fp32; with `autocast` the weights are fp32 all the same (ZeRO-0).
    `packed` rows have a mask in self-attention, as the sources of an encoder-decoder always have.
    """
    stacks = []
    for depth, causal, reads in _kinds(config):
        masked = packed or (isinstance(config, EncoderDecoderConfig) and not reads)
        block = _Block(config, causal, reads, masked, precision, autocast, on_cpu)
        stacks.append(Stack(depth, _law(block, shape)))
    return stacks


def _kinds(config: TransformerConfig) -> list[tuple[int, bool, bool]]:
    """(depth, whether causal, whether it reads a source) of each stack."""
    if isinstance(config, EncoderDecoderConfig):
        return [(config.num_encoder_layers, False, False), (config.num_decoder_layers, True, True)]
    assert isinstance(config, DecoderOnlyConfig | EncoderOnlyConfig)
    return [(config.num_hidden_layers, isinstance(config, DecoderOnlyConfig), False)]


def _law(block: "_Block", shape: Shape) -> Callable[[Shape], Cost]:
    """Fit c + a B t + b B t² + d t² to four traces; t is the length as a share of the workload's."""
    reads = block.reads
    own = shape.source if shape.source and not reads else shape.target
    half = 0.5 if own >= 2 else 1.0
    points = [(1, half), (1, 1.0), (2, half), (2, 1.0)]
    costs = []
    for rows, share in points:
        length = max(1, round(own * share))
        cost = block.trace(rows, length, max(1, round(shape.source * share)) if reads else 0)
        costs.append([getattr(cost, name) for name in _FIELDS])
    terms = np.array([_terms(rows, max(1, round(own * share)) / own) for rows, share in points])
    solution = np.linalg.lstsq(terms, np.array(costs), rcond=None)[0]

    def law(of: Shape) -> Cost:
        length = of.source if of.source and not reads else of.target
        return Cost(*(max(0.0, float(value)) for value in _terms(of.rows, length / own) @ solution))

    return law


def _terms(rows: int, share: float) -> np.ndarray:
    return np.array([1.0, rows * share, rows * share**2, share**2])


class _Block:
    """One block on fake tensors."""

    def __init__(
        self,
        config: TransformerConfig,
        causal: bool,
        reads: bool,
        masked: bool,
        precision: str,
        autocast: bool,
        on_cpu: bool,
    ) -> None:
        self.config, self.reads, self.masked, self.on_cpu = config, reads, masked, on_cpu
        bf16 = precision == "bf16"
        self.dtype = torch.bfloat16 if bf16 and not autocast else torch.float32
        self.compute = torch.bfloat16 if bf16 else torch.float32
        self.autocast = bf16 and autocast
        self.mode = FakeTensorMode()
        with self.mode, _default_dtype(self.dtype):
            self.layer = Layer(_with_kernel(config, on_cpu), 0, depth=1, is_causal=causal, reads_source=reads).train()

    def trace(self, rows: int, length: int, source_length: int) -> Cost:
        """A forward and a backward pass of `rows` rows of `length` tokens."""
        width = self.config.hidden_size
        with ExitStack() as stack:
            stack.enter_context(self.mode)
            x = torch.empty(rows, length, width, dtype=self.dtype, requires_grad=True)
            has_rope = self.config.positions == "rope"
            tables = rotation(self.config, torch.arange(length), self.compute) if has_rope else None
            source = torch.empty(rows, source_length, width, dtype=self.compute) if self.reads else None
            source_mask = torch.ones(rows, 1, length, source_length, dtype=torch.bool) if self.reads else None
            if source is not None:
                source.requires_grad_()
            mask = torch.ones(rows, 1, length, length, dtype=torch.bool) if self.masked else None
            shared = [x, source, mask, source_mask, *(tables or ()), *self.layer.parameters()]
            live = stack.enter_context(_Live(shared))
            for parameter in self.layer.parameters():
                stack.enter_context(_dropped_gradient(parameter))
            saved: dict[int, int] = {}
            known = {_key(tensor) for tensor in shared if tensor is not None}
            hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: _note(t, known, saved), lambda t: t)
            with self._kernels(), _autocast(self.autocast), hooks:
                y = self.layer(x, tables, mask, None, source, source_mask)
            kept = sum(saved.values())
            entry = x.untyped_storage().nbytes()
            forward, forward_traffic = live.peak - kept, live.traffic
            # The output is the next block's entry, and counted there.
            live.begin()
            with self._kernels():
                y.backward(torch.empty_like(y))
            backward = live.peak - kept - y.untyped_storage().nbytes()
            return Cost(kept + entry, entry, forward, backward, forward_traffic, live.traffic)

    def _kernels(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.on_cpu else _FusedKernels()


def _note(tensor: torch.Tensor, known: set[int], saved: dict[int, int]) -> torch.Tensor:
    if _key(tensor) not in known:
        saved[_key(tensor)] = tensor.untyped_storage().nbytes()
    return tensor


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _autocast(enabled: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if enabled else nullcontext()


@contextmanager
def _dropped_gradient(parameter: nn.Parameter) -> Iterator[None]:
    """Gradients of parameters are counted by memory.py: here each goes as soon as it is there."""
    handle = parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    try:
        yield
    finally:
        handle.remove()


class _Live(TorchDispatchMode):
    """Counts bytes: of the storages that live, and of what operations move."""

    def __init__(self, outside: list[torch.Tensor | None]) -> None:
        super().__init__()
        self._known = {_key(tensor) for tensor in outside if tensor is not None}
        self.live = 0
        self.begin()

    def begin(self) -> None:
        """Count the peak and the traffic from here."""
        self.peak, self.traffic = self.live, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {_key(tensor): tensor for tensor in _tensors(args)}
        new = 0
        for tensor in _tensors(result):
            storage, key = tensor.untyped_storage(), _key(tensor)
            if key not in inputs:
                new += _bytes(tensor)
            if key not in self._known:
                self._known.add(key)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        name = func._schema.name.split("::")[1]
        if new or name.endswith("_"):
            self.traffic += new + sum(map(_bytes, inputs.values()))
        return result

    def _free(self, key: int, count: int) -> None:
        self._known.discard(key)
        self.live -= count


def _bytes(tensor: torch.Tensor) -> int:
    """Of a tensor's own elements; one that is expanded lies in fewer."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


# -- the kernels of an accelerator -----------------------------------------------------------------------------------


def _with_kernel(config: TransformerConfig, on_cpu: bool) -> TransformerConfig:
    """The same options with the attention that is traced."""
    import copy

    own = copy.copy(config)
    own._attn_implementation = "sdpa" if on_cpu else FUSED
    return own


class _FusedKernels(TorchFunctionMode):
    """F.scaled_dot_product_attention and F.rms_norm as an accelerator computes them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return _FusedAttention.apply(query, key, value, kwargs.get("attn_mask"))
        if func is F.rms_norm:
            return _FusedRMSNorm.apply(args[0], kwargs["weight"])
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Keeps what FlashAttention and the memory-efficient kernel keep; a mask comes to the latter as numbers."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        bias = None if mask is None else mask.to(query.dtype)
        heads = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, heads, query.new_empty(query.shape[:3], dtype=torch.float32), bias)
        return heads

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class _FusedRMSNorm(torch.autograd.Function):
    """Keeps the input and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


AttentionInterface.register(FUSED, sdpa_attention_forward)
