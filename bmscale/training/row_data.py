"""Documents in packed rows, to train a language model or a masked one on."""

from typing import Any

import numpy as np

from bmscale.data.batch import Batch, RowBatch, causal_batch, masked_batch
from bmscale.data.masking import Masking
from bmscale.data.rows import Row, RowPlan, split_rows, token_mixture
from bmscale.data.shards import DocumentShards
from bmscale.data.steps import Mixture
from bmscale.engine.engine import Engine
from bmscale.errors import BadInput
from bmscale.evaluation.row_validation import RowValidator
from bmscale.experiment import Experiment, LanguageModelExperiment, MaskedExperiment
from bmscale.model.config import TransformerConfig
from bmscale.model.flops import training_flops
from bmscale.training.step_data import StepData, TrainingData, make_mixture

PROBE_ROWS = 4


class RowData(TrainingData):
    """Rows of `task: language_model`."""

    kind = "documents"
    causal = True
    experiment: LanguageModelExperiment | MaskedExperiment

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.train, self.valid = (DocumentShards.open(self.folder / split) for split in ("train", "valid"))
        length = self.experiment.training.sequence_length
        self._valid_rows = RowPlan(
            self.valid.lengths,
            sequence_length=length,
            seed=0,
            tokens_per_step=length,
            causal=self.causal,
            shuffled=False,
        )

    def provenance(self) -> dict[str, Any]:
        return {"sequence_length": self.experiment.training.sequence_length}

    def plan(self) -> RowPlan:
        training = self.experiment.training
        return RowPlan(
            self.train.lengths,
            sequence_length=training.sequence_length,
            seed=training.seed,
            tokens_per_step=training.tokens_per_step,
            mixture=self._mixture(),
            causal=self.causal,
        )

    def _mixture(self) -> Mixture | None:
        """The shares that the experiment gives are of the tokens."""
        sampling = self.experiment.training.sampling
        if sampling is None:
            return None
        sources = self.manifest["splits"]["train"]["sources"]
        sizes, tokens = [source["documents_kept"] for source in sources], [source["tokens"] for source in sources]
        shares = make_mixture(sampling, [source["name"] for source in sources], tokens).shares
        return token_mixture(tokens, sizes, shares)

    def check(self, config: TransformerConfig) -> None:
        training = self.experiment.training
        length = training.sequence_length
        for key, given in (
            ("model.max_position_embeddings", config.max_position_embeddings),
            ("training.max_micro_batch_tokens", training.max_micro_batch_tokens),
        ):
            if length > given:
                raise BadInput(
                    f"{key}: must hold a row of training.sequence_length, {length} tokens; got {given}. Raise it, or "
                    "lower training.sequence_length"
                )

    def describe(self) -> str:
        return f"{len(self.train):,} documents, {int(self.train.lengths.sum(dtype=np.int64)):,} tokens an epoch"

    def read_step(self, plan: RowPlan, step: int, config: TransformerConfig, rank: int, world_size: int) -> StepData:
        training = self.experiment.training
        epoch, rows = plan.rows(step)
        rows_per_batch = training.max_micro_batch_tokens // training.sequence_length
        rounds = split_rows(rows, rows_per_batch=rows_per_batch, world_size=world_size)
        pieces = plan.pieces(step, joined=training.attend_across_documents)
        targets = self._targets(plan, step, pieces)
        return StepData(
            batches=[self._read(plan, epoch, ranks[rank], rows.start, (training.seed, epoch)) for ranks in rounds],
            target_tokens=int(targets.sum()) if not self.causal else plan.predicted_tokens(step),
            tokens=int(pieces.sum()),
            slots=len(rows) * training.sequence_length,
            flops=float(np.sum(training_flops(config, pieces, targets))),
        )

    def _targets(self, plan: RowPlan, step: int, pieces: np.ndarray) -> np.ndarray:
        """Of how many tokens of each piece the logits are computed."""
        return pieces

    def _read(self, plan: RowPlan, epoch: int, rows: list[int], instead: int, key: tuple[int, int]) -> Batch:
        """The batch of these rows; one with nothing to predict, of the row `instead`, when there are none."""
        source = self.valid if plan is self._valid_rows else self.train
        read = [plan.read(source, epoch, row) for row in rows or [instead]]
        batch = self._batch(read, [(*key, row) for row in rows or [instead]])
        if self.experiment.training.attend_across_documents:
            batch = batch.joined()
        return batch if rows else batch.empty()

    def _batch(self, rows: list[Row], keys: list[tuple[int, ...]]) -> RowBatch:
        return causal_batch(rows)

    def _read_valid(self, rows: list[int]) -> Batch:
        return self._read(self._valid_rows, 0, rows, 0, (0, 0))

    def probe(self) -> Batch:
        most = max(1, self.experiment.training.max_micro_batch_tokens // self.experiment.training.sequence_length)
        return self._read_valid(list(range(min(PROBE_ROWS, most, self._valid_rows.rows_in_epoch(0)))))

    def validator(self, engine: Engine) -> RowValidator:
        rows = self._valid_rows.rows_in_epoch(0)
        most = max(1, self.experiment.evaluation.max_batch_tokens // self.experiment.training.sequence_length)
        text_bytes = int(self.valid.text_bytes.sum()) if self.causal else None
        return RowValidator(engine, self._read_valid, rows, most, text_bytes)


class MaskedRowData(RowData):
    """Rows of `task: masked_lm`: the same tokens are hidden whatever the ranks, others in each epoch."""

    causal = False
    counted_together = True
    experiment: MaskedExperiment

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        mask_id = self.tokenizer.mask_id
        if mask_id is None:
            raise BadInput(
                f"{self.folder / 'spiece.model'}: the tokenizer of a masked language model must have the piece <mask>; "
                "it has none. Leave data.tokenizer.path out, or give a tokenizer that `bmscale prepare` made for "
                "documents"
            )
        self._masking, self._mask_id = Masking(self.experiment.training.masking, self.tokenizer, mask_id), mask_id

    def model_options(self) -> dict[str, Any]:
        return {"mask_token_id": self._mask_id}

    def _batch(self, rows: list[Row], keys: list[tuple[int, ...]]) -> RowBatch:
        return masked_batch(rows, [self._masking.hide(row.tokens, key) for row, key in zip(rows, keys, strict=True)])

    def _targets(self, plan: RowPlan, step: int, pieces: np.ndarray) -> np.ndarray:
        return np.maximum(1, np.round(pieces * self.experiment.training.masking.rate)).astype(np.int64)
