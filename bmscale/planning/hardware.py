"""What computes: a table of accelerators, and this machine measured.

Peaks are dense, without sparsity. bf16 is fp16 where the card has no bf16. Bandwidths are of one direction, a device.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from bmscale.config import suggest
from bmscale.data.workers import cores
from bmscale.errors import BadInput
from bmscale.planning import disk

GIB = 2**30
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Accelerator:
    """One device that a rank computes on."""

    name: str
    memory: float
    """Bytes that nvidia-smi reports as the total; of a CPU rank, its share of the host's."""
    bf16: float
    """Peak of matrix products, FLOP/s."""
    fp32: float
    """The same in fp32, without TF32: what PyTorch does unless told otherwise."""
    bandwidth: float
    """Of its own memory, bytes/s."""
    link: float
    """To the other devices of its node, bytes/s: NVLink, else PCIe."""
    network: float
    """To other nodes, bytes/s."""
    host: float
    """To the host's memory, bytes/s: PCIe."""
    watts: float
    """What it draws at most."""
    gpus_per_node: int
    """Of the usual node."""
    host_memory: float
    """Bytes of RAM of that node."""
    nvme: float
    """Bytes of local NVMe of that node."""
    nvme_bandwidth: float
    """Reading and writing, bytes/s, of the node."""
    source: str
    """Where the figures are from."""

    @property
    def is_cpu(self) -> bool:
        """Whether ranks compute in the host's own memory."""
        return self.name == "cpu"

    def peak(self, precision: str) -> float:
        """FLOP/s of a precision."""
        return self.bf16 if precision == "bf16" else self.fp32

    def limited_to(self, watts: float) -> "Accelerator":
        """The same card at a power limit below its own: the clock goes with the cube root of the power, since power
        goes with clock times voltage squared and the voltage with the clock."""
        factor = min(1.0, watts / self.watts) ** (1 / 3)
        return replace(self, watts=min(watts, self.watts), bf16=self.bf16 * factor, fp32=self.fp32 * factor)


def _card(
    name: str,
    mib: int,
    tera: tuple[float, float],
    giga: tuple[float, float, float, float],
    watts: float,
    node: tuple[int, float, float, float],
    source: str,
) -> Accelerator:
    """`tera`: bf16, fp32. `giga`: memory, link, network, host (GB/s). `node`: cards, RAM (GiB), NVMe (TB), its GB/s."""
    memory, link, network, host = (value * GIGA for value in giga)
    cards, ram, nvme, nvme_rate = node
    return Accelerator(
        *(name, mib * 2**20, tera[0] * TERA, tera[1] * TERA, memory, link, network, host, watts),
        *(cards, ram * GIB, nvme * TERA, nvme_rate * GIGA, source),
    )


ACCELERATORS = {
    card.name: card
    for card in (
        _card(
            *("v100", 32_510, (125, 15.7), (900, 150, 6.25, 12), 350, (16, 1536, 30.7, 25)),
            "NVIDIA V100 data sheet (SXM3 32 GB; fp16, no bf16); DGX-2 data sheet: 8 × 100 Gb/s, 1.5 TB, 30 TB",
        ),
        _card(
            *("a100-40", 40_536, (312, 19.5), (1555, 300, 25, 25), 400, (8, 1024, 15, 25)),
            "NVIDIA A100 data sheet (SXM); DGX A100 data sheet: 200 Gb/s a card, 1 TB, 15 TB",
        ),
        _card(
            *("a100-80", 81_251, (312, 19.5), (2039, 300, 25, 25), 400, (8, 2048, 30, 25)),
            "NVIDIA A100 data sheet (SXM 80 GB); DGX A100 data sheet: 200 Gb/s a card, 2 TB, 30 TB",
        ),
        _card(
            *("h100", 81_559, (989.4, 66.9), (3350, 450, 50, 50), 700, (8, 2048, 30.7, 50)),
            "NVIDIA H100 data sheet (SXM5 80 GB); DGX H100 data sheet: 400 Gb/s a card, 2 TB, 8 × 3.84 TB",
        ),
        _card(
            *("h200", 143_771, (989.4, 66.9), (4800, 450, 50, 50), 700, (8, 2048, 30.7, 50)),
            "NVIDIA H200 data sheet (SXM 141 GB); DGX H200 data sheet: 400 Gb/s a card, 2 TB, 8 × 3.84 TB",
        ),
        _card(
            *("b200", 183_359, (2250, 75), (7700, 900, 50, 50), 1000, (8, 2048, 30.7, 50)),
            "NVIDIA DGX B200 data sheet: 1,440 GB and 64 TB/s for 8 cards, 72 PFLOP/s fp8 dense = 2.25 bf16 a card",
        ),
        _card(
            *("rtx3090", 24_576, (71, 35.6), (936, 12, 1.25, 25), 350, (1, 64, 2, 5)),
            "NVIDIA GA102 whitepaper (bf16 with fp32 sums); PCIe 4.0 through the host between cards; 10 Gb/s network",
        ),
        _card(
            *("rtx4090", 24_564, (165.2, 82.6), (1008, 12, 1.25, 25), 450, (1, 64, 2, 5)),
            "NVIDIA Ada whitepaper (bf16 with fp32 sums); PCIe 4.0 through the host between cards; 10 Gb/s network",
        ),
        _card(
            *("cpu", 8 * 1024, (0.19, 0.082), (8, 1, 1.25, 8), 15, (2, 16, 0.1, 1)),
            "one core of a Zen 4 server, measured: 1024³ matrix products, copies; gloo over the loopback device",
        ),
    )
}
"""By name. `cpu` is one core for each rank, and stands for a machine nobody measured."""


def find_accelerator(name: str) -> Accelerator:
    """By the name that a person gives. Raises BadInput naming the nearest."""
    key = name.lower().replace("nvidia", "").strip(" -_").replace(" ", "").replace("_", "-")
    key = {"a100": "a100-80", "v100-32": "v100", "3090": "rtx3090", "4090": "rtx4090"}.get(key, key)
    if key not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise BadInput(f"--gpu: must be one of {known}; got '{name}'{suggest(key, ACCELERATORS)}")
    return ACCELERATORS[key]


@dataclass(frozen=True)
class Machine:
    """Nodes of like accelerators."""

    accelerator: Accelerator
    gpus: int
    """Accelerators (ranks) of a node."""
    nodes: int
    host_memory: float
    """Bytes of RAM of a node."""
    nvme: float
    """Bytes of disk of a node that states and offloaded tensors may take."""
    nvme_bandwidth: float
    """Bytes/s of that disk, a node, over as much reading as writing."""
    nvme_source: str = ""
    """What was measured of it, where it was."""

    @classmethod
    def of(
        cls,
        accelerator: Accelerator,
        gpus: int | None = None,
        nodes: int = 1,
        *,
        ram_gib: float | None = None,
        nvme_gib: float | None = None,
    ) -> "Machine":
        """The usual node of a card with what was given in place. Raises BadInput for numbers that nobody can have."""
        gpus = accelerator.gpus_per_node if gpus is None else gpus
        for option, given in (("--gpus", gpus), ("--nodes", nodes)):
            if given < 1:
                raise BadInput(f"{option}: must be at least 1; got {given}. The nearest valid choice is {option} 1")
        disk_of_node = (accelerator.nvme, accelerator.nvme_bandwidth)
        usual = cls(accelerator, gpus, nodes, accelerator.host_memory, *disk_of_node)
        return usual.with_sizes(ram_gib, nvme_gib)

    def with_sizes(self, ram_gib: float | None, nvme_gib: float | None) -> "Machine":
        """The same with other memory or disk. Raises BadInput for less than none."""
        for option, size in (("--ram-gib", ram_gib), ("--nvme-gib", nvme_gib)):
            if size is not None and not 0 <= size < math.inf:
                raise BadInput(f"{option}: must be a number of GiB from 0 on; got {size:g}")
        ram = self.host_memory if ram_gib is None else ram_gib * GIB
        nvme = self.nvme if nvme_gib is None else nvme_gib * GIB
        card = self.accelerator
        card = replace(card, memory=ram / self.gpus) if card.is_cpu else card
        return replace(self, accelerator=card, host_memory=ram, nvme=nvme)

    @property
    def world_size(self) -> int:
        """Ranks of all nodes."""
        return self.gpus * self.nodes

    def describe(self) -> str:
        """`4 nodes × 8 h100`."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes:,} nodes"
        return f"{nodes} × {self.gpus} {self.accelerator.name}"


@dataclass(frozen=True)
class Calibration:
    """What is no property of the hardware: measured once, the same for every model and every machine.

    All of them stand here, so that a measurement on real runs has one place to go to.
    """

    matmul_efficiency: float = 0.75
    """Share of the peak that matrix products of a training step reach on an accelerator."""
    traffic_efficiency: float = 0.6
    """Share of the memory's bandwidth that operations reach."""
    cpu_matmul_efficiency: float = 0.85
    """The same two of a CPU, whose peak is itself measured by a matrix product."""
    cpu_traffic_efficiency: float = 0.6
    link_efficiency: float = 0.75
    """Share of link, network, PCIe and disk that large transfers reach."""
    overlap: float = 0.6
    """Share of the shorter of computing and communicating that runs beside the longer, with `overlap_comm`."""
    hop_seconds: float = 2e-6
    """Latency of one step of a ring, an accelerator of the node further."""
    network_hop_seconds: float = 6e-6
    """The same, a node further."""
    launch_seconds: float = 6e-6
    """For the host to start one operation; a block starts `operations_per_block` of them in each direction."""
    operations_per_block: int = 45
    fragmentation: float = 0.05
    """What the allocator reserves beyond what lives, as a share of it."""
    context: float = 1.0 * GIB
    """Of the accelerator: driver, cuBLAS and NCCL."""
    host_process: float = 0.55 * GIB
    """RAM of a rank that computes on an accelerator, before it has a model (assumed)."""
    interpreter: float = 0.38 * GIB
    """RAM of a CPU rank before it has a model."""
    kernels: float = 28 * 2**20
    """RAM that a CPU rank's first step adds for code and for buffers of matrix products."""
    deepspeed: float = 40 * 2**20
    """RAM that DeepSpeed's modules add."""
    peers: float = 20 * 2**20
    """RAM of a CPU rank for collectives with others."""
    host_adam_bandwidth: float = 80 * GIGA
    """Bytes/s at which the CPUs of a node step AdamW, all ranks together."""
    host_watts: float = 0.35
    """What the rest of a node draws, as a share of its accelerators."""
    state_bandwidth: float = 2 * GIGA
    """Bytes/s a node at which training states reach the shared file system."""
    shared_bandwidth: float = 200 * GIGA
    """Bytes/s that the shared file system takes from all nodes together."""
    failures_per_node_day: float = 0.0038
    """Failures that end a job (Llama 3, 2024, section 3.3.4: 419 in 54 days on 2,048 nodes)."""
    margin: float = 0.08
    """Share of the memory that a plan leaves free."""


CALIBRATION = Calibration()


# -- this machine ----------------------------------------------------------------------------------------------------


def measure(seconds: float = 0.3, ranks: int | None = None, folder: Path = Path()) -> Machine:
    """This machine, its figures measured: matrix product, copy, all-reduce, writing and reading in `folder`, each for
    about `seconds`.

    `ranks` are fewer than it has accelerators; ranks on CPU share its cores. Raises BadInput for more.
    """
    import torch

    cuda = torch.cuda.is_available()
    most = torch.cuda.device_count() if cuda else cores()
    gpus = most if ranks is None else ranks
    if not 1 <= gpus <= most:
        raise BadInput(f"--gpus: must be 1 to {most} on this machine; got {gpus}")
    device, threads = torch.device("cuda" if cuda else "cpu"), torch.get_num_threads()
    share = 1 if cuda else gpus  # of what all cores together do
    torch.set_num_threads(1 if cuda else most)
    try:
        size = 8192 if cuda else 1024
        bf16, fp32 = (_product_rate(device, dtype, size, seconds) / share for dtype in (torch.bfloat16, torch.float32))
        copy = _copy_rate(device, seconds) / share
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if cuda else "cpu"
    base = of_device(name) or replace(ACCELERATORS["h100"], name=name)  # what cannot be measured is taken from there
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else host_memory() / gpus
    link = _all_reduce_rate(gpus, cuda, seconds) if gpus > 1 else base.link
    accelerator = replace(
        base, memory=memory, bf16=bf16, fp32=fp32, bandwidth=copy, link=link, source="measured on this machine"
    )
    found = disk.measure(folder, seconds)
    room = (0.0, base.nvme_bandwidth, "") if found is None else (found.free, found.bandwidth, found.source)
    return Machine(accelerator, gpus, 1, host_memory(), *room)


_GROUPS = Path("/sys/fs/cgroup")


def host_memory(groups: Path = _GROUPS) -> float:
    """Bytes of RAM that this machine has, or that a container or a job may take of it."""
    physical = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit, _ in _limits(groups))])


def free_memory(proc: Path = Path("/proc/meminfo"), groups: Path = _GROUPS) -> float:
    """Bytes of RAM that this process may still take."""
    try:
        lines = dict(line.split(":", 1) for line in proc.read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):  # not Linux
        return host_memory(groups)
    return min([free, *(max(0.0, limit - used) for limit, used in _limits(groups))])


def _limits(groups: Path) -> Iterator[tuple[float, float]]:
    """(bytes that may be taken, bytes taken) of each control group (version 2) of this process that has a limit."""
    try:
        own = Path(Path("/proc/self/cgroup").read_text().strip().rsplit(":", 1)[-1].lstrip("/"))
    except OSError:  # not Linux
        return
    for folder in (groups, *(groups / part for part in [own, *own.parents])):
        try:
            limit, used = (float((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such level, or no limit: max
            continue
        # Pages of files that nobody reads count as used, and go when memory is wanted.
        yield limit, used - int(rows.get("inactive_file", 0))


def of_device(name: str) -> Accelerator | None:
    """The entry of a name that a driver gives, such as NVIDIA H100 80GB HBM3; None where there is none."""
    words = name.lower().replace("-", " ").split()
    return next((card for key, card in ACCELERATORS.items() if key.split("-")[0].removeprefix("rtx") in words), None)


def _rate(run: Callable[[], object], work: float, seconds: float, wait: Callable[[], object]) -> float:
    """`work` a run, over the best of several, which is what the machine can do."""
    run()
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        wait()
        best = min(best, time.perf_counter() - start)
    return work / best


def _product_rate(device: "object", dtype: "object", size: int, seconds: float) -> float:
    import torch

    one, other = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))  # type: ignore[call-overload]
    return _rate(lambda: one @ other, 2 * size**3, seconds, _wait(device))


def _copy_rate(device: "object", seconds: float) -> float:
    """Bytes/s read and written."""
    import torch

    count = 2**28 if getattr(device, "type", "") == "cuda" else 2**24
    one = torch.ones(count, device=device)  # type: ignore[call-overload]
    other = torch.empty_like(one)
    return _rate(lambda: other.copy_(one), 2 * 4 * count, seconds, _wait(device))


def _wait(device: object) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if getattr(device, "type", "") == "cuda" else lambda: None


def _all_reduce_rate(ranks: int, cuda: bool, seconds: float) -> float:
    """Bytes/s that each rank sends in an all-reduce."""
    import torch

    if cuda:
        share = 2 * (ranks - 1) / ranks
        tensors = [torch.ones(2**26, device=f"cuda:{index}") for index in range(ranks)]
        return _rate(lambda: torch.cuda.nccl.all_reduce(tensors), share * 4 * 2**26, seconds, torch.cuda.synchronize)
    import torch.distributed as dist

    from bmscale.engine.process_group import all_reduce_rate

    ranks = min(ranks, 4)  # threads, one a rank: more of them measure the memory and not the links
    store = dist.HashStore()
    rates: list[float] = [0.0] * ranks

    def rank(index: int) -> None:
        group: Any = dist.ProcessGroupGloo(store, index, ranks, timedelta(seconds=60))
        rates[index] = all_reduce_rate(lambda tensor: group.allreduce([tensor]).wait(), torch.ones(2**22), ranks)

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(rates)
