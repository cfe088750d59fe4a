"""What is trained: the shape of the model, and of the micro-batches that a rank runs."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bmscale.experiment import Experiment, LabelTrainingConfig, MaskedTrainingConfig, RowTrainingConfig
from bmscale.model.config import (
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    EncoderOnlyConfig,
    TransformerConfig,
    is_classifier,
)
from bmscale.model.flops import forward_flops, training_flops
from bmscale.model.folder import open_model_folder
from bmscale.model.sizes import count_parameters
from bmscale.planning.activations import Cost, Shape, Stack, measure

PADDED = 1.04
"""Padded lengths over the mean ones: rows of alike length lie together (data/micro_batches.py)."""
USUAL_TOKENS = 32
"""Of a sentence, where nothing is prepared that says more."""


@dataclass(frozen=True)
class Workload:
    """A model and the texts that it is trained on."""

    config: TransformerConfig
    source: int
    """Tokens of a row that an encoder reads, padding included; 0 for a model of one stack."""
    target: int
    """Tokens of a row of the decoder, or of the only stack."""
    precision: str
    """bf16 or fp32."""
    tokens_per_step: int
    """Target tokens of an optimizer step, over all ranks (texts, of a classifier)."""
    on_cpu: bool = False
    """Whether it runs on CPU, with its kernels."""
    packed: bool = False
    """Whether rows hold documents that do not see each other: a mask of T x T a row."""
    predicted: float = 1.0
    """Share of the target tokens whose logits are computed."""
    keeps_average: bool = False
    """Whether a running mean of the weights is kept."""
    least_slots: int = 0
    """What max_micro_batch_tokens must hold whatever the micro-batch: the longest row."""
    lengths_of: str = "given"
    """Where the lengths are from."""

    @classmethod
    def of(cls, experiment: Experiment, *, on_cpu: bool) -> "Workload":
        """That of an experiment; lengths of sentences are those of the prepared data, else `USUAL_TOKENS`.

        Raises BadInput where the model's options contradict each other.
        """
        training, vocabulary = experiment.training, experiment.data.tokenizer.vocabulary_size
        begun: Any = None if experiment.init_from is None else open_model_folder(experiment.init_from, task=None).config
        config = experiment.model.build(begun.vocab_size if begun else vocabulary, begun)
        data: Any = experiment.data
        if isinstance(training, RowTrainingConfig):
            source, target, least = 0, training.sequence_length, training.sequence_length
            lengths_of = "training.sequence_length"
        elif isinstance(training, LabelTrainingConfig):
            (target, _, lengths_of), source, least = _mean_lengths(experiment), 0, data.max_tokens + 1
        else:
            source, target, lengths_of = _mean_lengths(experiment)
            least = data.max_source_tokens + data.max_target_tokens
        return cls(
            *(config, source, target, training.precision, training.tokens_per_step, on_cpu),
            packed=isinstance(training, RowTrainingConfig) and not training.attend_across_documents,
            predicted=training.masking.rate if isinstance(training, MaskedTrainingConfig) else 1.0,
            keeps_average=training.ema_decay is not None,
            least_slots=least,
            lengths_of=lengths_of,
        )

    @cached_property
    def parameters(self) -> int:
        """Of the model, tied ones once."""
        return count_parameters(self.config).total

    @cached_property
    def table(self) -> int:
        """Elements of a token table or of the head."""
        return int(self.config.vocab_size * self.config.hidden_size)

    @cached_property
    def groups(self) -> tuple[int, int]:
        """Elements of the optimizer's groups, in their order (training/optimizer.py): matrices, which decay, and token
        tables. (Norms and biases count among the matrices, being few.)"""
        counted = count_parameters(self.config)
        heads = 0 if self.config.tie_word_embeddings or is_classifier(self.config) else self.table
        matrices = counted.non_embedding + heads
        return matrices, counted.total - matrices

    @cached_property
    def largest_matrix(self) -> int:
        """Elements of the largest parameter: what stage 3 must have whole at the least."""
        return max(self.table, self.block_matrix)

    @property
    def block_matrix(self) -> int:
        """Elements of the largest matrix of a block."""
        config = self.config
        return int(config.hidden_size * max(config.intermediate_size, config.num_attention_heads * config.head_dim))

    @property
    def depth(self) -> int:
        """Blocks of all stacks."""
        config = self.config
        if isinstance(config, EncoderDecoderConfig):
            return int(config.num_encoder_layers + config.num_decoder_layers)
        assert isinstance(config, DecoderOnlyConfig | EncoderOnlyConfig)
        return int(config.num_hidden_layers)

    @property
    def tokens_per_row(self) -> int:
        """What tokens_per_step counts of a row."""
        return 1 if is_classifier(self.config) else self.target

    @property
    def rows_per_step(self) -> int:
        """Rows of a global step."""
        return max(1, self.tokens_per_step // self.tokens_per_row)

    def slots(self, rows: int) -> int:
        """training.max_micro_batch_tokens for micro-batches of so many rows; the label of a text is a slot too."""
        return max(self.least_slots, rows * (self.source + self.target + is_classifier(self.config)))

    def shape(self, rows: int) -> Shape:
        """A micro-batch of so many rows."""
        return Shape(rows, self.source, self.target)

    def predictions(self, rows: int) -> float:
        """Rows of logits over the vocabulary."""
        return 0.0 if is_classifier(self.config) else rows * self.target * self.predicted

    def flops(self, rows: int) -> float:
        """Of a forward and backward pass, as model/flops.py counts."""
        return rows * float(training_flops(self.config, *self._lengths))

    def block_flops(self, rows: int) -> float:
        """Of a forward pass without the head: what activation checkpointing computes twice."""
        head = 2 * self.predictions(rows) * self.table
        return rows * float(forward_flops(self.config, *self._lengths)) - head

    @property
    def _lengths(self) -> tuple[float, float]:
        first = self.source if self.source else self.target
        second = self.target * (1.0 if self.source else self.predicted)
        return float(first), second

    @cached_property
    def _measured(self) -> Callable[[bool], list[Stack]]:
        known: dict[bool, list[Stack]] = {}

        def stacks(autocast: bool) -> list[Stack]:
            if autocast not in known:
                known[autocast] = measure(
                    self.config,
                    self.shape(1),
                    precision=self.precision,
                    autocast=autocast,
                    packed=self.packed,
                    on_cpu=self.on_cpu,
                )
            return known[autocast]

        return stacks

    def stacks(self, rows: int, *, autocast: bool) -> list[tuple[int, Cost]]:
        """(depth, cost of one block) of each stack, for a micro-batch; `autocast` over fp32 weights."""
        casts = autocast and self.precision == "bf16"
        return [(stack.depth, stack.law(self.shape(rows))) for stack in self._measured(casts)]

    def with_tokens_per_step(self, tokens: int) -> "Workload":
        """The same with another global step; what was measured of its blocks is kept."""
        other = replace(self, tokens_per_step=tokens)
        other.__dict__["_measured"] = self._measured
        return other


def _mean_lengths(experiment: Experiment) -> tuple[int, int, str]:
    """Padded tokens of the source and the target of a pair (of a text and its label), and where they are from."""
    manifest = Path(experiment.data.directory) / "manifest.json"
    try:
        split = json.loads(manifest.read_text(encoding="utf-8"))["splits"]["train"]
        pairs = split["pairs_kept"]
        source, target = (max(1, round(PADDED * split[f"{side}_tokens"] / pairs)) for side in ("source", "target"))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return USUAL_TOKENS, USUAL_TOKENS, "assumed until the data is prepared"
    return source, target, f"mean of {experiment.data.directory}, padded"
