"""What DeepSpeed is told: ZeRO stage, offload and the sizes of its buffers, as one choice and as its JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Place = Literal["none", "cpu", "nvme"]

BUCKET = 50_000_000
"""Elements of a reduction bucket, as in the shipped files."""
WIDE_BUCKET = 500_000_000
"""The same over many ranks, where each call takes long to go round: DeepSpeed's own default."""
MANY_RANKS = 64
PERSISTENT = 100_000
"""Parameters of so many elements stay whole under stage 3."""
REUSE = 1_000_000_000
"""Elements between two uses of a parameter up to which stage 3 keeps it whole."""
NVME_SUB_GROUP = 50_000_000
"""Elements that are stepped at a time where states lie on disk; DeepSpeed's own 1e9 takes 16 GB a rank for it."""


@dataclass(frozen=True)
class Zero:
    """How states are spread and where they lie."""

    stage: int
    """0 to 3; 0 keeps everything on every rank."""
    optimizer: Place = "none"
    """Where fp32 masters, moments and gradients lie; none is the accelerator."""
    parameters: Place = "none"
    """Where the pieces of the weights lie (stage 3)."""
    bucket: int = BUCKET
    """Elements that are reduced together."""
    prefetch: int = BUCKET
    """Elements that stage 3 gathers ahead."""
    reuse: int = REUSE
    """Elements between two uses up to which stage 3 keeps a parameter whole."""
    sub_group: int = 1_000_000_000
    """Elements that stage 3 steps at a time."""
    buffer: int = 100_000_000
    """Elements of each of four buffers for weights that come from disk; one must hold a rank's piece of a matrix."""
    overlap: bool = False
    """Whether reductions run beside the backward pass, in a second bucket."""
    plain: bool = False
    """Whether torch trains without DeepSpeed: one rank, stage 0."""

    @property
    def offload(self) -> Place:
        """The farthest place that anything is offloaded to."""
        return "nvme" if "nvme" in (self.optimizer, self.parameters) else self.optimizer

    def describe(self) -> str:
        """`zero3, all on disk`."""
        if self.plain:
            return "no DeepSpeed"
        if self.offload == "none":
            return f"zero{self.stage}" + (" lean" if self.stage == 3 and not self.reuse else "")
        what = "all" if self.parameters != "none" else "optimizer"
        return f"zero{self.stage}, {what} " + ("on disk" if self.offload == "nvme" else "in RAM")

    def to_json(self) -> dict[str, Any]:
        """A file of ds_configs. Where `nvme` is, the experiment says (training.offload_folder)."""
        if self.stage == 0:
            return {"zero_optimization": {"stage": 0}}
        section: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": self.bucket}
        if self.stage >= 2:
            section |= {"contiguous_gradients": True, "overlap_comm": self.overlap}
        if self.stage < 3:
            section["allgather_bucket_size"] = self.bucket
        else:
            section |= {
                "stage3_prefetch_bucket_size": self.prefetch,
                "stage3_param_persistence_threshold": PERSISTENT,
                "stage3_max_live_parameters": max(self.reuse, self.prefetch),
                "stage3_max_reuse_distance": self.reuse,
                "sub_group_size": self.sub_group,
            }
        for name, place in (("offload_optimizer", self.optimizer), ("offload_param", self.parameters)):
            if place == "cpu":
                section[name] = {"device": "cpu", "pin_memory": False}
            elif place == "nvme":
                section[name] = {"device": "nvme", "pin_memory": False, "buffer_count": 4}
                if name == "offload_param":
                    section[name] |= {"buffer_size": self.buffer, "max_in_cpu": 0}
        values: dict[str, Any] = {"zero_optimization": section}
        if self.offload == "nvme":
            values["aio"] = {"block_size": 1_048_576, "queue_depth": 16, "single_submit": False, "overlap_events": True}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Zero":
        """The choice that a file of ds_configs makes; what it leaves out is as DeepSpeed has it."""
        section = {key: value for key, value in values["zero_optimization"].items() if value != "auto"}
        places = [(section.get(f"offload_{what}") or {}).get("device", "none") for what in ("optimizer", "param")]
        return cls(
            stage=int(section["stage"]),
            optimizer=places[0],
            parameters=places[1],
            bucket=int(section.get("reduce_bucket_size", 5e8)),
            prefetch=int(section.get("stage3_prefetch_bucket_size", 5e7)),
            reuse=int(section.get("stage3_max_reuse_distance", 1e9)),
            sub_group=int(section.get("sub_group_size", 1e9)),
            buffer=int((section.get("offload_param") or {}).get("buffer_size", 1e8)),
            overlap=bool(section.get("overlap_comm", section["stage"] == 3)),
        )

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)
