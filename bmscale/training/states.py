"""When a run saves its training state, and when it goes back to one."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bmscale.engine import process_group
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput, BmscaleError
from bmscale.experiment import TrainingConfig
from bmscale.training import checkpoint
from bmscale.training.checkpoint import Save, SaveFailed
from bmscale.training.standing import Standing

log = logging.getLogger("bmscale")

# How far the loss on the probe may be from the one that was saved, relative. The weights that are read are the very
# ones; what is left is the order of sums. In bf16, ZeRO 1-3 compute with rounded weights and stage 0 with whole ones.
PROBE_TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2}
OTHER_DEVICE_TOLERANCE = 2e-2


class States:
    """The training states of one run, as its loop sees them. Every method is collective."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        training: TrainingConfig,
        probe: Callable[[], float],
        empty_step: Callable[[], None],
        report: Callable[[dict[str, Any]], None],
        run: str | None = None,
    ) -> None:
        """`probe` is the loss of the present weights on a fixed batch; `report` takes events for metrics.jsonl; `run`
        is the fingerprint of the run's identity."""
        self._folder, self._engine, self._training = folder, engine, training
        self._probe, self._empty_step, self._report = probe, empty_step, report
        self._run = run
        self._pending: Save | None = None
        self._pending_step = -1
        self._failures = 0
        self._retry_at: int | None = None
        self.saved_step = -1
        """The data step of the newest state, -1 before the first."""

    def is_due(self, step: int) -> bool:
        """Whether a state is to be saved after this step."""
        training = self._training
        if step % training.save_every_steps == 0 or step in training.branch_steps:
            return True
        return self._retry_at is not None and step >= self._retry_at

    def postpone(self, step: int) -> None:
        """Have a state saved after this step instead."""
        self._retry_at = step

    def save(self, standing: Standing, *, wait: bool = False) -> bool:
        """Save, in the background where that is configured and not `wait`. Returns whether nothing went wrong so far.

        Before the first step that was taken there is nothing to save: Adam has no moments yet. Raises BmscaleError
        after more failures in a row than training.max_failed_saves; until then the earlier states stay, and training
        goes on.
        """
        self._finish_pending()
        if not standing.optimizer_step or (standing.data_step == self.saved_step and not standing.finished):
            return True
        try:
            save = Save(self._folder, self._engine, standing, self._probe(), self._run)
            save.write(background=self._training.save_in_background and not wait)
        except SaveFailed as error:
            return self._failed(standing.data_step, error)
        self._pending, self._pending_step = save, standing.data_step
        return True if self._training.save_in_background and not wait else self._finish_pending()

    def poll(self) -> None:
        """Commit the state that is written in the background, once every rank has written its part."""
        if self._pending and not process_group.any_rank([not self._pending.is_written])[0]:
            self._finish_pending()

    def _finish_pending(self) -> bool:
        if self._pending is None:
            return True
        save, self._pending = self._pending, None
        try:
            saved = save.commit(self._training.keep_states, self._training.branch_steps)
        except SaveFailed as error:
            return self._failed(self._pending_step, error)
        self._failures, self._retry_at, self.saved_step = 0, None, self._pending_step
        gib = saved.bytes / 2**30
        self._report(
            {
                "step": self._pending_step,
                "event": "saved",
                "stall_seconds": round(saved.stall_seconds, 3),
                "gib": round(gib, 4),
            }
        )
        log.info("saved %s: %.2f GiB, training stood still for %.2f s", saved.path, gib, saved.stall_seconds)
        return True

    def _failed(self, step: int, error: SaveFailed) -> bool:
        self._failures += 1
        self._report({"step": step, "event": "save_failed", "message": str(error)})
        if step in self._training.branch_steps:
            raise BmscaleError(
                f"step {step}: the training state, with which a branch is to begin, could not be saved: {error}. The "
                "states before it are whole; make room or mend the file system, and the same command comes by it again"
            )
        if self._failures > self._training.max_failed_saves:
            raise BmscaleError(
                f"step {step}: the training state could not be saved {self._failures} times in a row: {error}. The "
                f"states before it are whole; make room or mend the file system, and the same command goes on from "
                f"the newest"
            )
        self._retry_at = step + max(1, self._training.save_every_steps // 10)
        log.warning(
            "step %d: the training state was not saved (%s); trying again at step %d", step, error, self._retry_at
        )
        return False

    def load(self, state: Path) -> Standing:
        """Put the engine where the state was saved, on whatever ranks and ZeRO stage it has now.

        Raises BadInput for a state of another model, BmscaleError when the loaded weights do not give the loss on the
        probe that they gave when they were saved.
        """
        reader = checkpoint.StateReader(state)
        reader.check_fits(self._engine.shapes())
        manifest = reader.manifest
        self._engine.load_state(reader, manifest.standing.optimizer_step, self._empty_step)
        if manifest.probe is not None:
            self._check_probe(state, manifest.probe, manifest.saved_by)
        self.saved_step = manifest.standing.data_step
        return manifest.standing

    def _check_probe(self, state: Path, wanted: float, saved_by: dict[str, Any]) -> None:
        found = self._probe()
        tolerance = PROBE_TOLERANCE[self._training.precision]
        if saved_by["device"] != self._engine.device_name:
            tolerance = max(tolerance, OTHER_DEVICE_TOLERANCE)
        difference = abs(found - wanted) / abs(wanted)
        if not difference <= tolerance:
            raise BmscaleError(
                f"{state}: the weights must give the loss on the probe batch that they gave when they were saved, "
                f"{wanted!r}, within {tolerance:g}; on {self._engine.describe()} they give {found!r}. The state was "
                f"saved by {saved_by['engine']}: go on with that, and report this"
            )
        log.info("probe batch: loss %.6f, %.1e from that of %s", found, difference, saved_by["engine"])

    def roll_back(self, standing: Standing, beginning: Path | None = None) -> Standing | None:
        """Load the newest whole state of earlier weights than these; None where there is none.

        A branch that has none of its own yet goes back to its `beginning`.

        The data position, and what is known of the best model, stay where they are: only the weights go back.
        """
        self._finish_pending()
        state = checkpoint.find_usable(self._folder, standing.optimizer_step, self._run)
        if state is None and beginning is not None and self._is_earlier(beginning, standing):
            state = beginning
        if state is None:
            return None
        earlier = self.load(state).with_(finished=False, trackers=standing.trackers)
        kept = ("data_step", "seconds", "best_by", "best_value", "best_step", "stale_validations", "validated_step")
        return earlier.with_(
            **{key: getattr(standing, key) for key in kept},
            rollbacks=standing.rollbacks + 1,
            skipped_in_a_row=0,
            window=standing.window,
        )

    @staticmethod
    def _is_earlier(state: Path, standing: Standing) -> bool:
        """Whether it is whole, and of earlier weights. Collective."""
        found = False
        if process_group.rank_and_world_size()[0] == 0:
            with contextlib.suppress(BadInput):  # of another version's state, or one that went meanwhile
                whole = checkpoint.is_whole(state)
                found = whole and checkpoint.read_manifest(state).standing.optimizer_step < standing.optimizer_step
        return bool(process_group.gather_objects(found)[0])
