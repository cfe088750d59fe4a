"""Spikes of the loss: which steps to drop, by statistics that a spike cannot move."""

import math
from collections.abc import Sequence
from statistics import median

from bmscale.experiment import SpikesConfig

MAD_TO_DEVIATION = 1.4826
"""The median absolute deviation of normal values times this is their standard deviation (Rousseeuw and Croux 1993)."""

FLOOR = 0.005
"""The least standard deviation, as a share of the median: a loss that hardly moves makes no spike of its noise."""


class SpikeDetector:
    """Says of a loss whether it is a spike over the last accepted ones.

    The standard deviation is that of the median absolute deviation, as in Hampel's filter. A spike is above the median;
    a loss that falls is none. What is refused never enters the window, so that no bad value changes the next verdict.
    """

    def __init__(self, config: SpikesConfig, values: Sequence[float] = ()) -> None:
        self.config = config
        self.values: list[float] = list(values)[-config.window :]
        """The accepted losses (nats a target token), oldest first: all that a training state has to hold."""

    def is_spike(self, loss: float) -> bool:
        """Whether a step of this loss is to be dropped; always where it is not finite."""
        if not math.isfinite(loss):
            return True
        if len(self.values) < self.config.least:
            return False
        centre = median(self.values)
        deviation = MAD_TO_DEVIATION * median(abs(value - centre) for value in self.values)
        return loss - centre > self.config.threshold * max(deviation, FLOOR * abs(centre))

    def accept(self, loss: float) -> None:
        """Take in the loss of a step that was taken; a bad one stays out."""
        if not self.is_spike(loss):
            self.values = [*self.values, loss][-self.config.window :]
