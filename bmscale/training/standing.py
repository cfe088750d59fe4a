"""Where a run stands: all that a training state holds besides its tensors."""

from typing import Any

from pydantic import Field

from bmscale.config import Config


class WindowSums(Config):
    """Sums over the steps since the last logged one, so that a resumed run logs the very line it would have logged."""

    seconds: float = 0.0
    steps: int = 0
    skipped: int = 0
    target_tokens: int = 0
    """Target tokens of all steps."""
    trained_tokens: int = 0
    """Target tokens of the steps that were not skipped."""
    tokens: int = 0
    """Source and target tokens of all steps."""
    slots: int = 0
    """The same with padding."""
    waited_seconds: float = 0.0
    """Of the seconds, those in which rank 0 waited for data."""
    flops: float = 0.0
    loss: float = 0.0
    """Smoothed loss times target tokens, over the steps that were not skipped (nats)."""
    nll: float = 0.0
    grad_norm: float = 0.0


class Standing(Config):
    """Everything but the tensors. Plain data: written as JSON, whose floats come back as the very same numbers."""

    optimizer_step: int = 0
    """Steps that changed the weights; the schedule follows it."""
    data_step: int = 0
    """Global steps of data consumed; larger than optimizer_step after skipped steps and rollbacks."""
    target_tokens: int = 0
    """Target tokens trained on."""
    seconds: float = 0.0
    """Wall time spent training, all starts together."""
    validated_step: int = -1
    """The data step of the last validation."""
    best_by: str = ""
    """The figure by which the best was chosen: loss, bleu or chrf."""
    best_value: float | None = None
    """Best validation figure so far, None before the first validation."""
    best_step: int = 0
    stale_validations: int = 0
    """Validations since the best one."""
    window: WindowSums = WindowSums()
    """What the next logged line is made of so far."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last one that was taken."""
    rollbacks: int = 0
    """How often the run went back to an earlier state."""
    recent_losses: list[float] = Field(default_factory=list)
    """The losses by which the next one is judged, where training.spikes is set."""
    trackers: dict[str, str] = Field(default_factory=dict)
    """Which run of a tracker this one is, by the tracker's name, where it has such an identifier."""
    finished: bool = False
    """The run went to its end and wrote model/last."""

    def after_step(self, tokens: int, *, skipped: bool) -> "Standing":
        """The standing one global step later."""
        return self.with_(
            optimizer_step=self.optimizer_step + (not skipped),
            data_step=self.data_step + 1,
            target_tokens=self.target_tokens + (0 if skipped else tokens),
            skipped_in_a_row=self.skipped_in_a_row + 1 if skipped else 0,
        )

    def with_(self, **changes: Any) -> "Standing":
        """A copy with these values."""
        return self.model_copy(update=changes)
