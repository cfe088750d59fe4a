"""What a model is for, and what follows from it: class, configuration, presets and sizes.

A task is read off a configuration by its `architectures`, as transformers writes them into config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from bmscale.model.config import (
    DECODER_PRESETS,
    ENCODER_PRESETS,
    PRESETS,
    DecoderOnlyConfig,
    EncoderDecoderConfig,
    EncoderOnlyConfig,
    TransformerConfig,
)
from bmscale.model.decoder_only import DecoderOnlyForCausalLM
from bmscale.model.encoder_decoder import EncoderDecoderForConditionalGeneration
from bmscale.model.encoder_only import EncoderOnlyForMaskedLM, EncoderOnlyForSequenceClassification
from bmscale.model.sizes import DECODER_SIZES, ENCODER_SIZES, SIZES


@dataclass(frozen=True)
class Task:
    """One `task:` of an experiment."""

    name: str
    noun: str
    """What a person calls such a model, with its article."""
    config: type[TransformerConfig]
    model: type[PreTrainedModel]
    presets: Mapping[str, Mapping[str, Any]]
    """Named sets of options; the first is the usual one."""
    sizes: Mapping[str, Mapping[str, int]]
    classes: Mapping[type[PreTrainedConfig], Any]
    """transformers' table of this task: configuration to model class, of every architecture that it knows."""
    auto_class: str
    pipeline: str
    """The task as the Hugging Face hub names it."""
    command: str | None
    """The command that uses such a model; None where there is none."""
    predicts: str
    """What one prediction is, of which losses are means; in the singular."""
    writes: bool
    """Whether the model generates text."""

    def configure(self, **options: Any) -> TransformerConfig:
        """The configuration of a model for this task; `options` are the configuration's own.

        Raises what transformers raises for options that contradict each other, the reason as its cause.
        """
        return self.config(architectures=[self.model.__name__], **options)


TASKS = {
    task.name: task
    for task in (
        Task(
            "translation",
            "an encoder-decoder",
            EncoderDecoderConfig,
            EncoderDecoderForConditionalGeneration,
            PRESETS,
            SIZES,
            MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
            "AutoModelForSeq2SeqLM",
            "translation",
            "translate",
            "target token",
            writes=True,
        ),
        Task(
            "language_model",
            "a language model",
            DecoderOnlyConfig,
            DecoderOnlyForCausalLM,
            DECODER_PRESETS,
            DECODER_SIZES,
            MODEL_FOR_CAUSAL_LM_MAPPING,
            "AutoModelForCausalLM",
            "text-generation",
            "generate",
            "token",
            writes=True,
        ),
        Task(
            "masked_lm",
            "a masked language model",
            EncoderOnlyConfig,
            EncoderOnlyForMaskedLM,
            ENCODER_PRESETS,
            ENCODER_SIZES,
            MODEL_FOR_MASKED_LM_MAPPING,
            "AutoModelForMaskedLM",
            "fill-mask",
            None,
            "masked token",
            writes=False,
        ),
        Task(
            "classification",
            "a classifier",
            EncoderOnlyConfig,
            EncoderOnlyForSequenceClassification,
            ENCODER_PRESETS,
            ENCODER_SIZES,
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            "AutoModelForSequenceClassification",
            "text-classification",
            "predict",
            "text",
            writes=False,
        ),
    )
}
"""The tasks by name."""


def task_of(config: PreTrainedConfig) -> Task:
    """The task of a configuration's model: that of the class it names, else the first that knows such a
    configuration. Raises ValueError where no task does."""
    candidates = [task for task in TASKS.values() if type(config) in task.classes]
    if not candidates:
        raise ValueError(f"no task has a model of configuration {type(config).__name__}")
    named = (config.architectures or [None])[0]
    exact = [task for task in candidates if task.classes[type(config)].__name__ == named]
    return (exact or candidates)[0]


def model_class(config: PreTrainedConfig) -> Any:
    """The class of a configuration's model. Raises ValueError where it has none of a task."""
    return task_of(config).classes[type(config)]
