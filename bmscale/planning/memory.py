"""The most memory that a rank takes at any time, taken apart: accelerator, host and disk.

States follow what DeepSpeed 0.19.8 holds (stage_1_and_2.py, stage3.py) with AdamW in fp32: 4 bytes of master weight, 8
of moments and 4 of gradient a parameter, spread over the ranks from the stage on that says so. Activations are those of
activations.py, the loss those of model/loss.py. The peak is the largest of three moments: the loss is computed, the
last block is differentiated, the optimizer steps.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from bmscale.planning.hardware import CALIBRATION, Calibration, Machine
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero

_LOGITS_PER_CHUNK = 2**24  # model/loss.py
_MODEL_FILE = 2 * 2**30  # model/folder.py
_STATE_FILE = 2**28  # training/checkpoint.py
_ALL_REDUCE = 500_000_000
"""Elements of gradients that stage 0 flattens at a time (deepspeed/runtime/engine.py, allreduce_gradients)."""


@dataclass(frozen=True)
class Breakdown:
    """Bytes of a rank's accelerator at the moment of its peak (of a CPU rank, of the process)."""

    parameters: float = 0.0
    """Weights that the model computes with."""
    gradients: float = 0.0
    """What is accumulated over the micro-batches of a step."""
    masters: float = 0.0
    """fp32 weights that the optimizer steps, where the model's own are others."""
    optimizer: float = 0.0
    """Moments, and the running mean of the weights where one is kept."""
    activations: float = 0.0
    """What blocks keep for their backward pass, and what one of them needs while it runs."""
    logits: float = 0.0
    """The loss: chunks of logits, the gradients of the last states and of the head."""
    buffers: float = 0.0
    """Buckets of communication."""
    live: float = 0.0
    """Parameters that stage 3 holds whole for the moment."""
    fragmentation: float = 0.0
    """Allowance for what the allocator holds beyond what lives."""
    context: float = 0.0
    """Driver and libraries; of a CPU rank, the interpreter."""

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True)
class Memory:
    """What one rank takes (bytes)."""

    accelerator: Breakdown
    host: float
    """RAM of the rank's process; of a CPU rank what the accelerator's part is as well."""
    nvme: float
    """Disk for offloaded states."""

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self.accelerator), "total": self.accelerator.total, "host": self.host, "nvme": self.nvme}


def estimate(
    workload: Workload,
    zero: Zero,
    machine: Machine,
    rows: int,
    *,
    checkpointing: bool,
    micro_batches: int = 1,
    calibration: Calibration = CALIBRATION,
) -> Memory:
    """Memory of a rank that runs `micro_batches` of `rows` rows a step, the ranks being those of the machine."""
    ranks, on_cpu = machine.world_size, machine.accelerator.is_cpu
    states = _states(workload, zero, ranks)
    buffers, live = _buffers(workload, zero, ranks), _live(workload, zero, ranks)
    kept, forward, backward = _activations(workload, zero, rows, checkpointing)
    loss_forward, loss_backward, tied = _loss(workload, zero, rows)
    step = _step(workload, zero, ranks)
    moments = [
        {**states, "activations": kept + forward, "logits": loss_forward},
        {**states, "activations": kept, "logits": loss_backward},
        {**states, "activations": kept + backward, "logits": tied},
        {**states, "gradients": states["gradients"] + step},
    ]
    moment = max(moments, key=lambda parts: sum(parts.values()))
    moment |= {"buffers": buffers, "live": live}
    context = calibration.interpreter if on_cpu else calibration.context
    # States are allocated once; it is what comes and goes that leaves holes.
    moving = moment.get("activations", 0.0) + moment.get("logits", 0.0) + buffers + live
    accelerator = Breakdown(**moment, fragmentation=calibration.fragmentation * moving, context=context)
    ram, nvme = _offloaded(workload, zero, ranks, micro_batches)
    # Below stage 3 a rank first makes the whole model in RAM, in fp32.
    built = 4.0 * (workload.parameters if zero.stage < 3 else workload.largest_matrix)
    written = ram + _writing(workload, zero, machine)
    if on_cpu:
        still = sum(states.values()) + buffers + context
        return Memory(accelerator, max(accelerator.total + ram, still + written, context + built), nvme)
    return Memory(accelerator, calibration.interpreter + max(written, built), nvme)


def weight_bytes(workload: Workload, zero: Zero) -> int:
    """Of a parameter that the model computes with: bf16 from stage 1 on, else fp32."""
    return 2 if workload.precision == "bf16" and zero.stage > 0 else 4


def _states(workload: Workload, zero: Zero, ranks: int) -> dict[str, float]:
    """Parameters, gradients, masters and moments that stay on the accelerator."""
    count, weight, moments = workload.parameters, weight_bytes(workload, zero), 12 if workload.keeps_average else 8
    if zero.stage == 0:
        return {"parameters": 4 * count, "gradients": 4 * count, "masters": 0.0, "optimizer": moments * count}
    own = count / ranks
    parameters = (0.0 if zero.parameters != "none" else weight * own) if zero.stage == 3 else weight * count
    if zero.optimizer != "none":
        return {"parameters": parameters, "gradients": 0.0, "masters": 0.0, "optimizer": 0.0}
    gradients = 4 * count if zero.stage == 1 else 4 * own
    return {"parameters": parameters, "gradients": gradients, "masters": 4 * own, "optimizer": moments * own}


def _step(workload: Workload, zero: Zero, ranks: int) -> float:
    """What the optimizer's step needs beside: gradients of the own part, flattened once more."""
    if zero.stage == 0 or zero.optimizer != "none":
        return 0.0
    own = workload.parameters / ranks
    return 4 * (own if zero.stage < 3 else min(own, zero.sub_group))


def _buffers(workload: Workload, zero: Zero, ranks: int) -> float:
    """Buckets; of one that is larger than the model only a part is ever touched."""
    if zero.stage == 0:
        return 4.0 * min(workload.parameters, _ALL_REDUCE) if ranks > 1 else 0.0
    elements, weight = min(zero.bucket, workload.parameters), weight_bytes(workload, zero)
    if zero.stage == 1:
        return 4.0 * elements
    copies = 2 if zero.overlap else 1
    if zero.stage == 3:
        copies += 1  # reduce_scatter_coalesced pads and joins the bucket's gradients
    return float(weight * elements * copies)


def live_elements(workload: Workload, zero: Zero) -> float:
    """Elements that stage 3 holds whole at a time.

    A parameter is let go unless its next use comes within the reuse distance: in the forward pass the last blocks are,
    whose backward pass follows. Besides them the one that is used and those that are gathered ahead.
    """
    return float(min(workload.parameters, zero.reuse / 2 + workload.largest_matrix + zero.prefetch))


def _live(workload: Workload, zero: Zero, ranks: int) -> float:
    if zero.stage < 3:
        return 0.0
    return weight_bytes(workload, zero) * live_elements(workload, zero)


def _activations(workload: Workload, zero: Zero, rows: int, checkpointing: bool) -> tuple[float, float, float]:
    """(kept until the backward pass, needed beside in a block's forward, in its backward pass)."""
    stacks = workload.stacks(rows, autocast=zero.stage == 0)
    compute = 2 if workload.precision == "bf16" else 4
    width, shape = workload.config.hidden_size, workload.shape(rows)
    # The states after the last block of each stack, and those that its norm makes of them.
    ends = sum((cost.entry for _, cost in stacks), 0.0) + shape.rows * shape.target * width * compute
    if shape.source:
        ends += shape.rows * shape.source * width * compute + shape.rows * shape.target * shape.source
    if workload.packed or shape.source:
        own = shape.source or shape.target
        ends += shape.rows * own * own
    if not checkpointing:
        kept = sum(depth * cost.saved for depth, cost in stacks)
        return (kept + ends, *(max(getattr(cost, of) for _, cost in stacks) for of in ("forward", "backward")))
    kept = sum(depth * cost.entry for depth, cost in stacks)
    again = max(cost.saved - cost.entry + cost.backward for _, cost in stacks)
    return kept + ends, max(cost.saved - cost.entry + cost.forward for _, cost in stacks), again


def _loss(workload: Workload, zero: Zero, rows: int) -> tuple[float, float, float]:
    """Bytes of the loss in its forward pass, at the start of its backward pass, and what stays of it until the end.

    model/loss.py computes the gradients of states and head with the loss, the head's in fp32.
    """
    count, table = workload.predictions(rows), workload.table
    if not count:
        return 0.0, 0.0, 0.0
    item = 2 if workload.precision == "bf16" else 4
    states = count * workload.config.hidden_size * item
    most = max(1, _LOGITS_PER_CHUNK // workload.config.vocab_size)
    chunk, several = min(count, most) * workload.config.vocab_size, count > most
    # Logits and probabilities, beside which those of the chunk before are still held; softmax in fp32 of bf16 logits
    # makes a copy of them on CPU.
    alone = 10 if item == 2 else 8
    each = 8 if item == 2 and not workload.on_cpu else 12 if several else alone
    cast = table * item if item == 2 else 0.0
    forward = states + 4 * table + max(chunk * each, chunk * 4 + cast)
    backward = 2 * states + 2 * 4 * table + cast
    # A tied head's gradient waits for that of the embedding.
    tied = (2 if workload.config.tie_word_embeddings else 0) * table * weight_bytes(workload, zero)
    return forward, backward, states + tied


def _writing(workload: Workload, zero: Zero, machine: Machine) -> float:
    """RAM of a rank to write a model or a training state, or for a sub-group's first moments before they go to disk."""
    count, largest = workload.parameters, workload.largest_matrix
    # Rank 0 holds a file of a model, and a parameter as it is gathered and as it is copied.
    model = (min(_MODEL_FILE, 4 * count) + 8 * largest) / machine.gpus
    piece = largest / (machine.world_size if zero.stage else 1)
    state = 2 * min(_STATE_FILE + 12 * piece, 12 * count)
    first = 8 * _largest_group(workload, zero, machine.world_size) if zero.optimizer == "nvme" else 0.0
    return max(model, state, first)


def _offloaded(workload: Workload, zero: Zero, ranks: int, micro_batches: int) -> tuple[float, float]:
    """(RAM, disk) of a rank for what does not lie on the accelerator."""
    count, weight = workload.parameters, weight_bytes(workload, zero)
    own = count / ranks
    moments = 12 if workload.keeps_average else 8
    ram = disk = 0.0
    if zero.optimizer == "cpu":
        ram += (4 + moments + 4 + (4 if zero.stage == 3 or micro_batches > 1 else 0)) * own
        ram += weight * own if zero.stage < 3 else 0.0
    elif zero.optimizer == "nvme":
        disk += (4 + moments + 4) * own
        # Gradients stay in RAM; a sub-group's states pass through buffers.
        ram += 4 * own + (8 + moments) * _largest_group(workload, zero, ranks)
    if zero.parameters == "cpu":
        ram += weight * own
    elif zero.parameters == "nvme":
        # A tied head is written before it is tied.
        disk += weight * (own + (workload.table / ranks if workload.config.tie_word_embeddings else 0))
        # Buffers that weights are read into, and one from which those of a sub-group are written.
        ram += weight * (4 * min(own, zero.buffer) + _largest_group(workload, zero, ranks))
    return ram, disk


def _largest_group(workload: Workload, zero: Zero, ranks: int) -> float:
    """Elements of a rank that stage 3 steps together at the most: parameters are added until there are enough."""
    return min(workload.parameters / ranks, max(zero.sub_group + workload.block_matrix / ranks, workload.table / ranks))
