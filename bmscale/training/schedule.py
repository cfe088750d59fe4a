"""The learning rate as a pure function of the optimizer step: nothing to save, nothing to step twice."""

import math

from bmscale.experiment import ScheduleConfig


def rate_factor(step: int, config: ScheduleConfig, max_steps: int) -> float:
    """What the peak rate is multiplied by in optimizer step `step` (counted from 0) of `max_steps`.

    - warm-up: (step + 1) / warmup_steps, so that the first step already learns;
    - inverse_sqrt: sqrt(warmup_steps / (step + 1)), Vaswani et al. 2017, section 5.3, scaled to a peak of 1;
    - cosine: half a cosine from 1 to final_ratio (Loshchilov and Hutter 2017);
    - wsd: 1, then down to final_ratio over the last cooldown_fraction of max_steps (Hägele et al. 2024).
    """
    done = step + 1
    if done < config.warmup_steps:
        return done / config.warmup_steps
    if config.type == "inverse_sqrt":
        return math.sqrt(max(config.warmup_steps, 1) / done)
    if config.type == "cosine":
        progress = min(1.0, (done - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
        return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.type == "wsd":
        cooldown = max(1, round(config.cooldown_fraction * max_steps))
        # Steps of cooldown behind this one; the last step still moves, at 1/cooldown above the end.
        progress = min(1.0, max(0.0, (done - (max_steps - cooldown) - 1) / cooldown))
        shape = progress if config.cooldown_shape == "linear" else math.sqrt(progress)
        return config.final_ratio + (1 - config.final_ratio) * (1 - shape)
    return 1.0
