"""The most memory that a rank takes at any time, taken apart: accelerator, host and disk.

States follow what DeepSpeed 0.19.8 holds (stage_1_and_2.py, stage3.py) with AdamW in fp32: 4 bytes of master weight, 8
of moments and 4 of gradient a parameter, spread over the ranks from the stage on that says so. Activations are those of
activations.py, the loss those of model/loss.py; what comes and goes is played through (rehearsal.py).
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from bmscale.planning.hardware import CALIBRATION, Calibration, Machine
from bmscale.planning.rehearsal import Loss, Rehearsal
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero

_LOGITS_PER_CHUNK = 2**24  # model/loss.py
_MODEL_FILE = 2 * 2**30  # model/folder.py
_STATE_FILE = 2**28  # training/checkpoint.py


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
    stacks, gathered = workload.stacks(rows, autocast=zero.stage == 0), live_elements(workload, zero)
    space = Rehearsal(
        *(workload, zero, ranks, [cost for _, cost in stacks], _loss(workload, rows)),
        checkpointing=checkpointing,
        micro_batches=micro_batches,
        gathered=gathered,
    ).play()
    lives = sum(space.peak.values())
    if on_cpu:
        # With states on disk, freed memory goes back to the system at once (engine/host_memory.py, give_back).
        holes = 0.0 if zero.offload == "nvme" else space.resident - lives
        context = _context(zero, ranks, calibration)
    else:
        states = sum(space.peak.get(part, 0.0) for part in ("parameters", "masters", "optimizer"))
        # States are allocated once; it is what comes and goes that leaves holes.
        context, holes = calibration.context, calibration.fragmentation * (lives - states)
    accelerator = Breakdown(**space.peak, fragmentation=holes, context=context)
    ram, nvme = _offloaded(workload, zero, ranks, micro_batches)
    written = ram + _writing(workload, zero, machine)
    if on_cpu:
        # What tensors have taken stays with the process; files are put together beside them.
        still = sum(space.live.values()) if zero.offload == "nvme" else space.resident
        return Memory(accelerator, max(accelerator.total + ram, still + context + written), nvme)
    # Below stage 3 a rank first makes the whole model in RAM, in fp32.
    built = 4.0 * (workload.parameters if zero.stage < 3 else workload.largest_matrix)
    return Memory(accelerator, calibration.host_process + max(written, built), nvme)


def weight_bytes(workload: Workload, zero: Zero) -> int:
    """Of a parameter that the model computes with: bf16 from stage 1 on, else fp32."""
    return 2 if workload.precision == "bf16" and zero.stage > 0 else 4


def _context(zero: Zero, ranks: int, calibration: Calibration) -> float:
    """Of a CPU rank: the interpreter, and the libraries that only a training step loads."""
    deepspeed = 0.0 if zero.plain else calibration.deepspeed
    return calibration.interpreter + calibration.kernels + deepspeed + (calibration.peers if ranks > 1 else 0.0)


def live_elements(workload: Workload, zero: Zero) -> float:
    """Elements that stage 3 holds whole at a time.

    A parameter is let go unless its next use comes within the reuse distance: in the forward pass the last blocks are,
    whose backward pass follows. Besides them the one that is used and those that are gathered ahead.
    """
    return float(min(workload.parameters, zero.reuse / 2 + workload.largest_matrix + zero.prefetch))


def _loss(workload: Workload, rows: int) -> Loss:
    """Bytes of the loss, as model/loss.py has them: it computes the gradients of states and head (in fp32) with
    itself."""
    item = 2 if workload.precision == "bf16" else 4
    width, shape = workload.config.hidden_size, workload.shape(rows)
    # The states after the last block of each stack, and those that its norm makes of them.
    ends = 0.0
    for length in (shape.source, shape.target):
        ends += 2 * shape.rows * length * width * item
    if shape.source:
        ends += shape.rows * shape.target * shape.source
    if workload.packed or shape.source:
        ends += shape.rows * (shape.source or shape.target) ** 2
    count, table = workload.predictions(rows), workload.table
    if not count:
        return Loss(0.0, 0.0, 0.0, 0.0, ends)
    most = max(1, _LOGITS_PER_CHUNK // workload.config.vocab_size)
    chunk, several = min(count, most) * workload.config.vocab_size, count > most
    # Logits and probabilities, beside which those of the chunk before are still held; softmax in fp32 of bf16 logits
    # makes a copy of them on CPU.
    alone = 10 if item == 2 else 8
    each = 8 if item == 2 and not workload.on_cpu else 12 if several else alone
    cast = table * item if item == 2 else 0.0
    return Loss(count * width * item, 4.0 * table, max(chunk * each, chunk * 4 + cast), cast, ends)


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
