"""How long an optimizer step takes, and how that changes with the number of accelerators.

    step = M (compute + traffic [+ launches]) + exposed communication + offload transfers + optimizer

- compute: model/flops.py over peak x `matmul_efficiency`; the blocks' forward pass once more under activation
  checkpointing. Attention is counted T x T though a causal kernel skips half of it: such kernels reach about half of
  what a plain product does, so the two are taken to cancel.
- traffic: what other operations read and write, as activations.py measures, over bandwidth x `traffic_efficiency`.
- communication: the volumes of ZeRO (Rajbhandari 2020, section 7) in DeepSpeed's types, with rings (Thakur 2005):
  stage 0 reduces fp32 gradients once a step; 1 reduces once, and gathers weights; 2 reduces every micro-batch, and
  gathers weights once; 3 gathers weights twice and reduces once every micro-batch. Across nodes a ring runs at the
  slower of the link of a card and the networks of a node together. What runs beside computing hides `overlap` of the
  shorter of the two.
- offload: pieces over PCIe, disk and the node's memory, each at `link_efficiency` of its bandwidth.

The assumed efficiencies are in hardware.Calibration, once for all models and machines.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bmscale.errors import BadInput
from bmscale.planning.hardware import CALIBRATION, Calibration, Machine
from bmscale.planning.memory import weight_bytes
from bmscale.planning.workload import Workload
from bmscale.planning.zero import Zero


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, and what follows from them."""

    compute: float
    """Matrix products."""
    traffic: float
    """Other operations, by what they read and write or by how long the host takes to start them."""
    communication: float
    """Collectives that nothing hides."""
    hidden: float
    """Collectives that run beside computing; not in the sum."""
    offload: float
    """Transfers to and from RAM and disk, and an optimizer that runs there."""
    optimizer: float
    """AdamW on the accelerator."""
    tokens: float
    """Target tokens of the step (texts, of a classifier)."""
    flops: float
    """Useful operations of the step, over all ranks."""
    peak: float
    """Of all ranks, FLOP/s."""
    ranks: int
    micro_batches: int
    """That each rank runs a step."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.traffic + self.communication + self.offload + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        """Target tokens, all ranks."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """Useful operations over the data-sheet peak."""
        return self.flops / self.seconds / self.peak

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            **asdict(self),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
        }


def micro_batches(workload: Workload, ranks: int, rows: int) -> int:
    """Micro-batches of `rows` rows that each rank runs in a step. Raises BadInput where ranks would have no row."""
    step = workload.rows_per_step
    if ranks > step:
        unit = "texts" if workload.tokens_per_row == 1 else f"rows of {workload.tokens_per_row:,} target tokens"
        raise BadInput(
            f"training.tokens_per_step: a step of {workload.tokens_per_step:,} must hold a row for each of {ranks:,} "
            f"ranks; it holds {step:,} {unit}. The nearest valid choices are {step:,} ranks, or "
            f"training.tokens_per_step={ranks * workload.tokens_per_row}"
        )
    return -(-step // (ranks * rows))


def predict(
    workload: Workload,
    zero: Zero,
    machine: Machine,
    rows: int,
    *,
    checkpointing: bool,
    calibration: Calibration = CALIBRATION,
) -> StepTime:
    """The time of a step in micro-batches of at most `rows` rows a rank. Raises BadInput where ranks have no row."""
    ranks = machine.world_size
    count = micro_batches(workload, ranks, rows)
    rows = -(-workload.rows_per_step // (ranks * count))  # as even as split_step makes them
    compute, traffic = (count * part for part in _computing(workload, zero, machine, rows, checkpointing, calibration))
    communication = _communication(workload, zero, machine, count, calibration)
    beside = communication if zero.overlap or zero.stage == 3 else 0.0
    hidden = calibration.overlap * min(beside, compute + traffic) if not machine.accelerator.is_cpu else 0.0
    offload, optimizer = _stepping(workload, zero, machine, count, calibration)
    return StepTime(
        compute=compute,
        traffic=traffic,
        communication=communication - hidden,
        hidden=hidden,
        offload=offload,
        optimizer=optimizer,
        tokens=float(workload.rows_per_step * workload.tokens_per_row),
        flops=workload.flops(workload.rows_per_step),
        peak=machine.accelerator.peak(workload.precision) * ranks,
        ranks=ranks,
        micro_batches=count,
    )


def _computing(
    workload: Workload, zero: Zero, machine: Machine, rows: int, checkpointing: bool, calibration: Calibration
) -> tuple[float, float]:
    """Seconds of matrix products and of everything else in a micro-batch."""
    card = machine.accelerator
    products, moving = (
        (calibration.cpu_matmul_efficiency, calibration.cpu_traffic_efficiency)
        if card.is_cpu
        else (calibration.matmul_efficiency, calibration.traffic_efficiency)
    )
    passes = 3 if checkpointing else 2  # forward passes and as many backward ones count double
    flops = workload.flops(rows) + (workload.block_flops(rows) if checkpointing else 0.0)
    compute = flops / (card.peak(workload.precision) * products)
    stacks = workload.stacks(rows, autocast=zero.stage == 0)
    moved = sum(
        depth * (cost.forward_traffic * (passes - 1) + cost.backward_traffic) for depth, cost in stacks
    ) + _loss_traffic(workload, rows)
    traffic = moved / (card.bandwidth * moving)
    launches = 0.0 if card.is_cpu else calibration.launch_seconds * calibration.operations_per_block * passes
    launching = launches * sum(depth for depth, _ in stacks)
    return compute, max(traffic, launching - compute)


def _loss_traffic(workload: Workload, rows: int) -> float:
    """Bytes of the loss: logits written and read, softmax, its gradient written and read twice; the head's gradient."""
    item = 2 if workload.precision == "bf16" else 4
    logits = workload.predictions(rows) * workload.config.vocab_size
    return logits * (4 * item + 4 * 4) + 6 * 4 * workload.table


def _communication(workload: Workload, zero: Zero, machine: Machine, count: int, calibration: Calibration) -> float:
    """Seconds of all collectives of a step."""
    if machine.world_size == 1:
        return 0.0
    size, weight = workload.parameters, weight_bytes(workload, zero)
    chunks = max(1.0, size / zero.bucket)
    if zero.stage == 0:
        return _ring(2 * 4 * size, 2, machine, calibration)
    if zero.stage == 1:
        return _ring(weight * size, chunks, machine, calibration) * 2
    if zero.stage == 2:
        reduced = _ring(weight * size, chunks, machine, calibration)
        return count * reduced + _ring(weight * size, chunks, machine, calibration)
    # Stage 3 gathers matrix by matrix, several ahead in one call where they are small.
    gathers = min(max(1.0, size / zero.prefetch), 8.0 * workload.depth)
    gathered = _ring(weight * size, gathers, machine, calibration)
    kept = min(1.0, zero.reuse / 2 / size)  # whole still when the backward pass comes to them
    return count * ((2 - kept) * gathered + _ring(weight * size, chunks, machine, calibration))


def _ring(volume: float, calls: float, machine: Machine, calibration: Calibration) -> float:
    """Seconds of a gather or reduce-scatter of `volume` bytes over all ranks, in `calls` pieces."""
    ranks, card = machine.world_size, machine.accelerator
    bandwidth = card.link if machine.gpus > 1 else card.network
    if machine.nodes > 1:
        bandwidth = min(bandwidth, machine.gpus * card.network)
    hops = (ranks - machine.nodes) * calibration.hop_seconds
    hops += (machine.nodes if machine.nodes > 1 else 0) * calibration.network_hop_seconds
    return volume * (ranks - 1) / ranks / (bandwidth * calibration.link_efficiency) + calls * hops


def _stepping(
    workload: Workload, zero: Zero, machine: Machine, count: int, calibration: Calibration
) -> tuple[float, float]:
    """Seconds of transfers to RAM and disk, and of AdamW, which reads 16 bytes a parameter and writes 12."""
    own = workload.parameters / (machine.world_size if zero.stage else 1)
    weight, card = weight_bytes(workload, zero), machine.accelerator
    stepped = 28 + weight
    pcie = card.host * calibration.link_efficiency
    disk = machine.nvme_bandwidth * calibration.link_efficiency / machine.gpus
    if zero.optimizer == "none":
        efficiency = calibration.cpu_traffic_efficiency if card.is_cpu else calibration.traffic_efficiency
        return 0.0, stepped * own / (card.bandwidth * efficiency)
    # Gradients go down, weights come up; CPUs step.
    cpus = calibration.host_adam_bandwidth
    if card.is_cpu:
        cpus = card.bandwidth * calibration.cpu_traffic_efficiency * machine.gpus
    offload = stepped * own * machine.gpus / cpus
    if not card.is_cpu:
        offload += (count * 4 + weight) * own / pcie
    if zero.optimizer == "nvme":
        offload += 2 * 16 * own / disk
    if zero.parameters != "none":
        offload += count * 2 * weight * own / (disk if zero.parameters == "nvme" else pcie)
    return offload, 0.0


# -- scaling ---------------------------------------------------------------------------------------------------------

COUNTS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Accelerators of a scaling table."""


@dataclass(frozen=True)
class ScalingPoint:
    """One number of accelerators."""

    gpus: int
    step: StepTime
    efficiency: float
    """Tokens a second an accelerator, over those of the first point."""


def scaling(
    workload: Workload,
    zero: Zero,
    machine: Machine,
    rows: int,
    *,
    checkpointing: bool,
    kind: Literal["weak", "strong"],
    counts: Sequence[int] = COUNTS,
    calibration: Calibration = CALIBRATION,
) -> list[ScalingPoint]:
    """Step times over numbers of accelerators, filled node by node.

    Strong: the global step of the workload, whatever the number; counts that it cannot be split over are left out.
    Weak: as many micro-batches a rank as the workload has on `machine`, so that the step grows with the number.
    """
    per_rank = micro_batches(workload, machine.world_size, rows) * rows * workload.tokens_per_row
    points: list[ScalingPoint] = []
    for gpus in counts:
        on_node = min(gpus, machine.gpus)
        if gpus % on_node:
            nearest = gpus // on_node * on_node
            raise BadInput(f"counts: must fill nodes of {on_node}; got {gpus}. The nearest is {nearest}")
        there = Machine(
            *(machine.accelerator, on_node, gpus // on_node),
            *(machine.host_memory, machine.nvme, machine.nvme_bandwidth),
        )
        scaled = workload.with_tokens_per_step(per_rank * gpus) if kind == "weak" else workload
        if gpus > scaled.rows_per_step:
            continue
        step = predict(scaled, zero, there, rows, checkpointing=checkpointing, calibration=calibration)
        each = step.tokens_per_second / gpus
        first = points[0].step.tokens_per_second / points[0].gpus if points else each
        points.append(ScalingPoint(gpus, step, each / first))
    return points
