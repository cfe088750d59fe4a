"""A training step played through with sizes alone: what a rank takes and gives back, in the order in which it does.

What DeepSpeed 0.19.8 holds is read off its code (deepspeed/runtime): engine.py for stage 0, bf16_optimizer.py for stage
1 in bf16, zero/stage_1_and_2.py for stage 1 in fp32 and stage 2, zero/stage3.py. A block of the model takes what
activations.py measures, in one piece.
"""

import math
from dataclasses import dataclass

from bmscale.model.sizes import count_blocks
from bmscale.planning.activations import Cost
from bmscale.planning.space import Block, Space
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero

ALL_REDUCE = 500_000_000
"""Elements that stage 0, and stage 1 in bf16, flatten at a time (engine.py, MEMORY_OPT_ALLREDUCE_SIZE)."""

PIECES = 6
"""Gradients of a block: about as many as it has matrices of its width."""


@dataclass(frozen=True)
class Loss:
    """Bytes of the loss and of what stands before and behind the blocks."""

    states: float
    """The last states, whose gradients are computed with the loss."""
    head: float
    """The head's gradient in fp32."""
    chunk: float
    """Logits of a chunk and what is made of them."""
    cast: float
    """The head's gradient in the type of the weights."""
    ends: float
    """States after the last block of each stack and normed, masks."""


class Rehearsal:
    """One rank, from making the model to the end of its first step."""

    def __init__(
        self,
        workload: Workload,
        zero: Zero,
        ranks: int,
        costs: list[Cost],
        loss: Loss,
        *,
        checkpointing: bool,
        micro_batches: int,
        gathered: float,
    ) -> None:
        """`costs` are of a block of each stack; `gathered` elements are whole at a time under stage 3."""
        self.workload, self.zero, self.ranks, self.costs, self.loss = workload, zero, ranks, costs, loss
        self.checkpointing, self.micro_batches = checkpointing, micro_batches
        self.space = Space()
        blocks = count_blocks(workload.config)
        self._blocks = [(stack, size) for stack, (depth, size) in enumerate(blocks) for _ in range(depth)]
        self._tables = workload.parameters - sum(size for _, size in self._blocks)
        self.mixed = workload.precision == "bf16" and zero.stage > 0
        self.item = 2 if self.mixed else 4
        """Bytes of a weight, and of its gradient as the backward pass makes it."""
        self.bf16_optimizer = self.mixed and zero.stage == 1
        stays = zero.optimizer == "none"
        self.groups = [group / (ranks if zero.stage else 1) for group in workload.groups if group] if stays else []
        """Elements of each group of the optimizer that this rank steps on the accelerator."""
        # Weights that lie on the device already are not copied there: those of one rank, and on CPU those in RAM.
        elsewhere = zero.parameters != "none" and not workload.on_cpu
        self.gathers = gathered if zero.stage == 3 and (ranks > 1 or elsewhere) else 0.0
        self._bucket: Block | None = None
        self._filled = 0.0
        self._gradients: list[Block] = []  # of parameters, as they come
        self._own: list[Block] = []  # the rank's part, reduced
        self._earlier: list[Block] = []  # the same of the micro-batches before

    def play(self) -> Space:
        """All of it. A step has as many micro-batches as make a difference."""
        if self.workload.on_cpu:
            self._build()
        else:
            self._take_states()
        count = min(self.micro_batches, 2)
        for index in range(count):
            self._micro_batch(first=index == 0, last=index == count - 1)
        self._step()
        return self.space

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """On CPU the rank that makes the model computes with it: what it was made of leaves gaps."""
        pieces = [self._tables, *(size for _, size in self._blocks)]
        if self.zero.stage == 3:
            weights = []
            for size in pieces:
                whole = self._take("parameters", 4 * size)
                weights.append(self._take("parameters", self.item * size / self.ranks))
                self._free(whole)
        else:
            weights = [self._take("parameters", 4 * size) for size in pieces]
            self._free(self._take("parameters", 4 * self.workload.largest_matrix))  # a first value
            if self.mixed:
                weights = [self._recast(block) for block in weights]
        self._take_states(weights)

    def _recast(self, block: Block) -> Block:
        narrow = self._take("parameters", block.size / 2)
        self._free(block)
        return narrow

    def _take_states(self, weights: list[Block] | None = None) -> None:
        """`weights` are those that were made, and go as they are flattened."""
        zero, workload = self.zero, self.workload
        moments = 12 if workload.keeps_average else 8
        if zero.stage == 0:
            if weights is None:
                self._take("parameters", 4 * workload.parameters)
            self._take("optimizer", moments * workload.parameters)
            return
        if zero.stage == 3:
            if zero.parameters == "none":
                self._take("parameters", self.item * workload.parameters / self.ranks)
            self._free(*(weights or []))
            for group in self.groups:
                narrow = [self._take("masters", 4 * group)] if self.mixed else []
                self._take("masters", 4 * group)
                self._free(*narrow)
            self._free(self._take("gradients", 4 * max(self.groups, default=0.0)))
            self._bucket = self.space.take("buffers", self.item * zero.bucket, self._written(0.0))
            self._take("gradients", 4 * sum(self.groups))
        else:
            tables, blocks = (weights or [])[:1], (weights or [])[1:]
            for whole, made in zip(workload.groups, (blocks, tables), strict=True):
                if not whole:
                    continue
                self._take("parameters", self.item * whole)
                self._free(*made)
                if zero.optimizer != "none":
                    continue
                narrow = [self._take("masters", 2 * whole / self.ranks)] if self.mixed else []
                self._take("masters", 4 * whole / self.ranks)
                self._free(*narrow)
                if self.bf16_optimizer:
                    self._take("gradients", 4 * whole)
            if not self.bf16_optimizer:
                self._free(*[self._take("gradients", 4 * group) for group in self.groups])
        for group in self.groups:
            self._take("optimizer", moments * group)

    # -- a micro-batch -----------------------------------------------------------------------------------------------

    def _micro_batch(self, *, first: bool, last: bool) -> None:
        ends = self._take("activations", self.loss.ends)
        whole = [self._take("live", self.item * self.gathers)] if self.gathers else []
        kept = [self._forward(self.costs[stack]) for stack, _ in self._blocks]
        states, head = self._take("logits", self.loss.states), self._take("logits", self.loss.head)
        self._free(self._take("logits", self.loss.chunk))
        scaled = [self._take("logits", size) for size in (self.loss.states, self.loss.head, self.loss.cast)]
        self._free(states, head, *scaled[1 : 2 if self.loss.cast else 1])
        self._begin_bucket()
        for (stack, size), block in zip(reversed(self._blocks), reversed(kept), strict=True):
            self._backward(self.costs[stack], block, size, first=first)
        self._receive(self._tables, self._take("gradients", self.item * self._tables), first=first)
        self._free(ends, *scaled[:1], *scaled[2 if self.loss.cast else 1 :], *whole)
        self._reduce(last=last)

    def _forward(self, cost: Cost) -> Block:
        passing = self._take("activations", cost.forward)
        kept = self._take("activations", cost.entry if self.checkpointing else cost.saved)
        self._free(passing)
        return kept

    def _backward(self, cost: Cost, kept: Block, size: int, *, first: bool) -> None:
        again = [self._take("activations", cost.saved - cost.entry)] if self.checkpointing else []
        passing = self._take("activations", cost.backward)
        for _ in range(PIECES):
            self._receive(size / PIECES, self._take("gradients", self.item * size / PIECES), first=first)
        self._free(passing, kept, *again)

    # -- gradients ---------------------------------------------------------------------------------------------------

    def _begin_bucket(self) -> None:
        if self._bucket is None and (self.zero.stage == 2 or (self.zero.stage == 1 and not self.mixed)):
            copies = 2 if self.zero.overlap else 1
            written = 0.0 if self.workload.on_cpu else None
            self._bucket = self.space.take("buffers", copies * self.item * self.zero.bucket, written)
        self._filled = 0.0

    def _receive(self, size: float, gradient: Block, *, first: bool) -> None:
        """The gradient of a block is there: it stays, is added to that of an earlier micro-batch, or goes into the
        bucket."""
        if self.zero.stage < 2:
            if first:
                self._gradients.append(gradient)
            else:
                self._free(gradient)
            return
        self._into_bucket(size)
        self._free(gradient)

    def _into_bucket(self, size: float) -> None:
        while size > 0:
            if self._filled >= self.zero.bucket:
                self._flush()
            part = min(size, self.zero.bucket - self._filled)
            self._filled, size = self._filled + part, size - part
            assert self._bucket is not None
            self.space.write(self._bucket, self._written(self._filled))

    def _written(self, elements: float) -> float:
        """Bytes of a bucket that are taken. A GPU takes all of it at once."""
        return self.item * (elements if self.workload.on_cpu else self.zero.bucket)

    def _flush(self) -> None:
        """What the bucket holds is flattened once more and reduced, and the own part of it kept in fp32."""
        if self.zero.stage < 3 and self.mixed and not self._own:
            self._own = [self._take("gradients", 4 * group) for group in self.groups]
        flat = self._take("buffers", self.item * self._filled)
        if self.zero.stage == 3:
            if self.workload.on_cpu:
                self._free(self._take("buffers", flat.size))  # gloo's
            if self.mixed:
                each = 4 * self._filled / self.ranks / 16  # parameter by parameter
                self._free(*[self._take("buffers", each) for _ in range(16)])
        self._free(flat)
        if self.zero.stage < 3 and not self.mixed and not self._own:
            self._own = [self._take("gradients", 4 * sum(self.groups))]
        self._filled = 0.0

    def _reduce(self, *, last: bool) -> None:
        """At the end of a micro-batch, or of all."""
        zero, count = self.zero, self.workload.parameters
        if zero.stage >= 2:
            self._flush()
        elif last and zero.stage == 1 and not self.mixed:
            for gradient in self._gradients:
                self._into_bucket(gradient.size / self.item)
                self._free(gradient)
            self._gradients = []
            self._flush()
        elif last and not zero.plain:
            flat = self._take("buffers", 4 * min(count, ALL_REDUCE))
            narrow = [self._take("buffers", flat.size / 2)] if self.bf16_optimizer else []  # reduced in bf16
            self._free(flat, *narrow)
        if zero.stage < 3 and self._bucket is not None and (last or zero.stage == 2):
            self._free(self._bucket)
            self._bucket = None
        if zero.stage == 2 and not self.mixed:  # what comes later is added to the first
            self._free(*(self._own if self._earlier else ()))
            self._own, self._earlier = [], self._earlier or self._own

    def _step(self) -> None:
        """The optimizer steps: in fp32 and under stage 3 the own gradients are flattened for it, a group at a time."""
        zero = self.zero
        if zero.stage == 3 or (zero.stage and not self.mixed):
            most = zero.sub_group if zero.stage == 3 else math.inf
            for group in self.groups:
                self._free(self._take("gradients", 4 * min(group, most)))
        if self.bf16_optimizer and self.ranks > 1:
            self._free(self._take("buffers", 2 * max(self.workload.groups)))
        self._free(*self._gradients, *self._own, *self._earlier)

    def _take(self, part: str, size: float) -> Block:
        return self.space.take(part, size)

    def _free(self, *blocks: Block) -> None:
        self.space.free(*blocks)
