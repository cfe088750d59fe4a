"""metrics.jsonl and samples.jsonl, the plain log lines and the progress bar of a run."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

log = logging.getLogger("bmscale")

# Dense matrix-product peaks in bf16 without sparsity, FLOP/s, from NVIDIA's data sheets. MFU against the peak measured
# on the device itself comes from the benchmark.
PEAK_FLOPS = {"A100": 312e12, "H100": 989.4e12, "H200": 989.4e12, "B200": 2250e12}


def model_flops_utilisation(flops_per_second: float, devices: int, device_name: str) -> float | None:
    """The share of the data-sheet peak that useful model FLOPs reach, or None where no peak is known."""
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)
    return None if peak is None else round(flops_per_second / (peak * devices), 4)


class Metrics:
    """One JSON object a line, each with its step: a logged step, a validation, a sample. Only rank 0 writes."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self._path, self._enabled = path, enabled

    def resume(self, step: int) -> None:
        """Forget lines after `step`: the run died later than its last training state, and will write them again."""
        if not self._enabled or not self._path.exists():
            return
        # Not splitlines: a sentence may hold U+2028 and the like, which JSON does not escape.
        lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if _step_of(line) <= step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; a number that is not finite becomes null, which JSON can hold."""
        if self._enabled:
            clean = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in record.items()
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean, ensure_ascii=False) + "\n")


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a crash counts as after everything."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Progress:
    """A bar on a terminal, a log line every so many steps elsewhere."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.is_bar = enabled and sys.stderr.isatty()
        self._enabled = enabled
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not self.is_bar, dynamic_ncols=True)

    def step(self, loss: float) -> None:
        """One step more."""
        self._bar.update()
        if self.is_bar:
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def line(self, text: str) -> None:
        """A log line that leaves the bar whole."""
        if self._enabled:
            with self._bar.external_write_mode():
                log.info(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
