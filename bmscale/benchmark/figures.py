"""What one measurement of a case found, and how several are told together."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figures:
    """One measurement of one case. None stands for what does not apply or is not known."""

    seconds: float
    """Wall time of what was timed."""
    steps: int | None = None
    """Optimizer steps in that time."""
    target_tokens: int | None = None
    """Real target tokens, </s> counted and padding not; of a decoder, tokens with something to predict."""
    source_tokens: int | None = None
    """Real source tokens."""
    slots: int | None = None
    """Source and target tokens with padding."""
    flops: float | None = None
    """Useful operations by model/flops.py, padding and recomputation not counted."""
    peak_flops: float | None = None
    """What matrix products reach on the same ranks and threads, measured in the same run (FLOP/s)."""
    datasheet_flops: float | None = None
    """The data sheet's peak of the devices (FLOP/s)."""
    waited_seconds: float | None = None
    """Seconds in which training waited for data."""
    memory_gib: float | None = None
    """Peak memory of the largest rank: of the accelerator where there is one, else of the process."""
    losses: tuple[float, float] | None = None
    """Nats a target token around the beginning and around the end of what was timed: of single steps in `step`, means
    over the warm-up and the last logged line in `train`, over ten updates of a rival's."""
    work: float | None = None
    """What else was done, in the case's own unit."""
    unit: str = ""
    """That unit."""
    parameters: int | None = None
    """Of the model."""
    versions: dict[str, str] = field(default_factory=dict)
    """What the case ran on."""

    @property
    def speed(self) -> float:
        """What is compared: target tokens a second, or the case's own unit a second, or times a second."""
        done = self.target_tokens if self.target_tokens is not None else self.work
        return (1 if done is None else done) / self.seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOP/s over the measured peak."""
        return _ratio(self.flops, self.peak_flops, self.seconds)

    @property
    def datasheet_mfu(self) -> float | None:
        """Model FLOP/s over the data sheet's peak."""
        return _ratio(self.flops, self.datasheet_flops, self.seconds)

    @property
    def padding(self) -> float | None:
        """The share of slots that hold padding."""
        if self.slots is None or self.target_tokens is None:
            return None
        return 1 - (self.target_tokens + (self.source_tokens or 0)) / self.slots

    @property
    def waiting(self) -> float | None:
        """The share of time spent waiting for data."""
        return None if self.waited_seconds is None else self.waited_seconds / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Every figure, the derived ones too."""
        derived = {name: getattr(self, name) for name in ("speed", "mfu", "datasheet_mfu", "padding", "waiting")}
        return asdict(self) | derived


def _ratio(flops: float | None, peak: float | None, seconds: float) -> float | None:
    return None if flops is None or peak is None else flops / seconds / peak


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what is there; None of nothing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def paired_ratios(one: Sequence[Figures], other: Sequence[Figures]) -> list[float]:
    """How many times as fast `one` was as `other`, repeat by repeat: noise that lasts touches both."""
    return [mine.speed / theirs.speed for mine, theirs in zip(one, other, strict=False)]
