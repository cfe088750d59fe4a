"""One experiment: data, model, training and evaluation in one strict model, and the paths of its run folder.

`task:` chooses the class of the experiment, and so the sections' own keys and what they are by default.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, create_model, model_validator

from bmscale.config import Config, Document, load, suggest, validate
from bmscale.data.corpus import CorpusConfig, LocalPath, OriginConfig
from bmscale.data.documents import DocumentCorpusConfig, LabelledCorpusConfig
from bmscale.data.masking import MaskingConfig
from bmscale.data.prepare import DataConfig
from bmscale.data.text_data import DocumentDataConfig, LabelledDataConfig
from bmscale.errors import BadInput
from bmscale.model.config import TransformerConfig, option_types
from bmscale.model.tasks import TASKS, Task

Positive = Annotated[int, Field(gt=0, le=2**40)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019), with decay on matrices only."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak rate; the schedule multiplies it by a factor between 0 and 1."""
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2)
    """Decay of the running mean and of the running square of the gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay a step, times the learning rate; norms, biases and embeddings have none."""

    @model_validator(mode="after")
    def _betas_are_decays(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got {self.betas}")
        return self


class ScheduleConfig(Config):
    """The learning rate as a function of the optimizer step."""

    type: Literal["inverse_sqrt", "cosine", "wsd", "constant"] = "inverse_sqrt"
    """inverse_sqrt (Vaswani 2017), cosine, wsd (warm-up, stable, decay), or constant after the warm-up."""
    warmup_steps: int = Field(1000, ge=0)
    """Steps of linear warm-up from 0."""
    cooldown_fraction: float = Field(0.2, ge=0, le=1)
    """wsd: the share of max_steps at the end over which the rate falls."""
    cooldown_shape: Literal["linear", "sqrt"] = "linear"
    """wsd: linear, or 1 - sqrt(progress) (Hägele 2024)."""
    final_ratio: float = Field(0.0, ge=0, le=1)
    """cosine and wsd: the last rate as a share of the peak."""

    @property
    def depends_on_length(self) -> bool:
        """Whether max_steps moves the rate of every step, not only the end of training."""
        return self.type in ("cosine", "wsd")


class RowOptimizerConfig(OptimizerConfig):
    """AdamW as language models are trained with it (Brown 2020)."""

    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    """Decay of the running mean and of the running square of the gradient."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay a step, times the learning rate; norms, biases and embeddings have none."""


class RowScheduleConfig(ScheduleConfig):
    """A cosine to a tenth of the peak (Hoffmann 2022) unless told otherwise."""

    type: Literal["inverse_sqrt", "cosine", "wsd", "constant"] = "cosine"
    final_ratio: float = Field(0.1, ge=0, le=1)
    """cosine and wsd: the last rate as a share of the peak."""


class LabelOptimizerConfig(OptimizerConfig):
    """AdamW as encoders are fine-tuned with it (Devlin 2019), at the rate of small ones."""

    learning_rate: float = Field(3e-4, gt=0)
    """Peak rate; the schedule multiplies it by a factor between 0 and 1."""
    betas: list[float] = Field([0.9, 0.98], min_length=2, max_length=2)
    """Decay of the running mean and of the running square of the gradient."""


class LabelScheduleConfig(ScheduleConfig):
    """A short warm-up, then a cosine to 0."""

    type: Literal["inverse_sqrt", "cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up from 0."""


class SamplingConfig(Config):
    """How often each training corpus is drawn. Give temperature or weights; an epoch keeps its number of pairs."""

    temperature: float | None = Field(None, ge=1)
    """Shares in proportion to size^(1/temperature): 1 goes by size, 5 is usual for many languages, 100 is even."""
    weights: dict[str, float] | None = None
    """Share of each corpus by its name, in any unit: `{europarl: 1, mine: 3}`."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.temperature is None) == (self.weights is None):
            given = "neither" if self.weights is None else "both"
            raise ValueError(f"exactly one of temperature and weights must be given; got {given}")
        for name, weight in (self.weights or {}).items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"weights.{name} must be above 0 and finite; got {weight}")
        return self


class SubwordSamplingConfig(Config):
    """Another segmentation of the same text every time it comes, for unigram tokenizers (Kudo 2018)."""

    alpha: float = Field(0.1, gt=0, le=1)
    """A segmentation of probability p is drawn with p^alpha: the smaller, the more it varies; 0.1 to 0.5 are usual."""


class SpikesConfig(Config):
    """Steps to drop because their loss jumps: above median + threshold robust standard deviations of the last losses.

    The deviation is 1.4826 times the median absolute deviation, and at least 0.5 % of the median.
    """

    threshold: float = Field(8.0, gt=0)
    """Robust standard deviations above the median from which a loss is a spike."""
    window: Positive = 128
    """How many of the last steps that were taken the statistics are of."""
    least: Positive = 32
    """Steps that must have been taken before any is dropped for a spike."""

    @model_validator(mode="after")
    def _window_holds_the_least(self) -> Self:
        if self.least > self.window:
            raise ValueError(f"least must be at most window, {self.window}; got {self.least}")
        return self


class TrainingConfig(Config):
    """How the model is trained: recipe, budget, resources."""

    seed: int = Field(0, ge=0)
    """Fixes initial weights, data order and dropout."""
    tokens_per_step: Positive = 4096
    """Target tokens (with </s>, without padding) that one optimizer step may hold, over all ranks. Of packed rows, the
    tokens of the rows; of a classifier, texts."""
    max_micro_batch_tokens: Positive = 4096
    """Padded slots, source and target together, of one forward pass on one rank: what memory goes by.

    A micro-batch of pairs or texts lies in memory as buckets of rows of alike length, so padding stays at a few per
    cent whatever its size. What takes a step whole is fastest.
    """
    max_steps: Positive | None = None
    """Optimizer steps to train; give this or max_epochs."""
    max_epochs: Positive | None = None
    """Passes over the data to train; give this or max_steps."""
    sampling: SamplingConfig | None = None
    """How often each training corpus is drawn; null draws every pair, document or text once an epoch."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that stay as they begin: beginnings of their names, such as model.embed or model.layers.0. They still
    take the memory of trained ones."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread over the vocabulary (Szegedy 2016)."""
    clip_norm: float | None = Field(1.0, gt=0)
    """The largest global gradient norm; null switches clipping off."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights and accumulates gradients in fp32."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep a running mean of the weights, w_ema = decay w_ema + (1 - decay) w a step, and write it as model/ema."""
    spikes: SpikesConfig | None = None
    """Drop steps whose loss jumps; null drops none but those whose loss or gradient is not finite."""
    max_skipped_steps: Positive = 20
    """So many steps dropped in a row send the run back to its last good training state."""
    max_rollbacks: int = Field(2, ge=0)
    """How often a run goes back before it counts as diverged; 0 never goes back."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    deepspeed: str | None = None
    """A DeepSpeed configuration: a name of ds_configs (zero2), a file, or `none`. Null: what the launcher names, else
    zero2 for more than one rank, else no DeepSpeed."""
    offload_folder: LocalPath | None = None
    """Where states lie that DeepSpeed offloads to `nvme`: a folder that is there, on a fast disk of each node;
    $VARIABLES are put in there. Null: nvme_path of the DeepSpeed file, else RUN/offload."""
    trackers: list[str] | None = None
    """Where metrics go besides metrics.jsonl: names that Accelerate knows, such as tensorboard, wandb, mlflow. Null is
    tensorboard where it is installed; [] is none."""
    log_every_steps: Positive = 50
    """Steps between two lines of metrics.jsonl."""
    save_every_steps: Positive = 500
    """Steps between two training states."""
    keep_states: int = Field(2, ge=2)
    """How many of the newest whole training states stay on disk; two at least, so that one may be damaged."""
    branch_steps: list[Positive] = Field(default_factory=list)
    """Steps after which a training state is saved that stays besides: where other runs begin with branch_from."""
    save_in_background: bool = False
    """Copy the state in host memory and write it while training goes on. Each rank needs memory for its share twice:
    12 bytes a parameter over the ranks, once more."""
    max_failed_saves: int = Field(5, ge=0)
    """How many saves in a row may fail, as on a full disk, before the run ends."""
    hang_minutes: float | None = Field(15.0, gt=0, allow_inf_nan=False)
    """Minutes without any rank coming forward after which the run ends and names the one that holds the others up; null
    waits for ever. The first step counts from its beginning, what comes before it (building, compiling) does not."""
    early_stopping_patience: Positive | None = None
    """Stop after so many validations without a better one; null never stops early."""

    @model_validator(mode="before")
    @classmethod
    def _explain_fp16(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("precision") == "fp16":
            raise ValueError(
                "precision must be bf16 or fp32; got fp16, in which encoder-decoders overflow: use bf16, or fp32 on "
                "accelerators without it"
            )
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.max_epochs is None):
            given = "neither" if self.max_steps is None else "both"
            raise ValueError(f"exactly one of max_steps and max_epochs must be given; got {given} (null removes one)")
        return self


class PairTrainingConfig(TrainingConfig):
    """What only sentence pairs have."""

    subword_sampling: SubwordSamplingConfig | None = None
    """Segment training text anew each time; needs data.keep_text. Null trains on the best segmentation alone."""


class RowTrainingConfig(TrainingConfig):
    """Documents packed into rows of one length."""

    sequence_length: int = Field(512, gt=1, le=2**24)
    """Tokens of a row: what the model sees at once."""
    attend_across_documents: bool = False
    """Let a token see the documents before its own in the row (GPT-3); false keeps each document to itself."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass spread over the vocabulary (Szegedy 2016)."""
    tokens_per_step: Positive = 16_384
    """Tokens of the rows of one optimizer step, over all ranks."""
    max_micro_batch_tokens: Positive = 8192
    """Tokens of the rows of one forward pass on one rank: what memory goes by."""
    optimizer: RowOptimizerConfig = RowOptimizerConfig()
    schedule: RowScheduleConfig = RowScheduleConfig()


class MaskedTrainingConfig(RowTrainingConfig):
    """Rows of which some tokens are hidden."""

    masking: MaskingConfig = MaskingConfig()


class LabelTrainingConfig(TrainingConfig):
    """Labelled texts."""

    tokens_per_step: Positive = 32
    """Texts of one optimizer step, over all ranks."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass spread over the labels (Szegedy 2016)."""
    optimizer: LabelOptimizerConfig = LabelOptimizerConfig()
    schedule: LabelScheduleConfig = LabelScheduleConfig()


class EvaluationConfig(Config):
    """Validation in the training loop."""

    every_steps: Positive = 500
    """Steps between two validations."""
    select: str = "loss"
    """The validation figure by which model/best and early stopping go."""
    keep_models: int = Field(0, ge=0)
    """How many of the newest and how many of the best validations (by `select`) keep their model, in
    model/step-NNNNNNNN, for `average`; 0 keeps model/best and model/last only."""
    max_batch_tokens: Positive = 8192
    """Padded slots of a validation batch on one rank."""
    test: Any = ()
    """Test sets of `evaluate` when it is given none."""


class TranslationEvaluationConfig(EvaluationConfig):
    """Validation in the training loop, and how text is generated for scores."""

    pairs: int = Field(200, ge=0)
    """Validation pairs that are translated for BLEU and chrF; 0 computes the loss only."""
    samples: int = Field(3, ge=0)
    """How many of these translations are shown in the log and kept in samples.jsonl."""
    select: Literal["loss", "bleu", "chrf"] = "loss"
    """The validation figure by which model/best and early stopping go."""
    beam_size: Positive = 5
    """Beams of `evaluate` and `translate`; validation in the loop is greedy."""
    length_penalty: float = 1.0
    """Exponent of the length by which a beam's log-probability is divided."""
    test: list[CorpusConfig] = Field(default_factory=list)
    """Test sets of `evaluate` when it is given none; read as they are, never cleaned."""

    @model_validator(mode="after")
    def _selection_is_measured(self) -> Self:
        if self.select != "loss" and not self.pairs:
            raise ValueError(f"select: {self.select} needs translations: evaluation.pairs must be above 0; got 0")
        return self


class LanguageModelEvaluationConfig(EvaluationConfig):
    """Validation in the training loop on packed rows, and documents scored one by one by `evaluate`."""

    select: Literal["loss"] = "loss"
    """The validation figure by which model/best and early stopping go."""
    stride: Positive | None = None
    """`evaluate`: tokens that a window moves on; null is half of training.sequence_length. The smaller, the more
    context each token has and the longer it takes."""
    test: list[DocumentCorpusConfig] = Field(default_factory=list)
    """Test sets of `evaluate` when it is given none."""


class MaskedEvaluationConfig(EvaluationConfig):
    """Validation on rows whose hidden tokens are always the same."""

    select: Literal["loss", "accuracy"] = "loss"
    """The validation figure by which model/best and early stopping go."""
    test: list[DocumentCorpusConfig] = Field(default_factory=list)
    """Test sets of `evaluate` when it is given none."""


class ClassificationEvaluationConfig(EvaluationConfig):
    """Validation on labelled texts."""

    select: Literal["loss", "accuracy", "macro_f1"] = "loss"
    """The validation figure by which model/best and early stopping go."""
    test: list[LabelledCorpusConfig] = Field(default_factory=list)
    """Test sets of `evaluate` when it is given none."""


class ModelConfig(Config):
    """The shape of the model: a preset of options, a named size, and any option of model/config.py over both."""

    task: ClassVar[Task]
    preset: str = ""
    size: str = "small"

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for key, given, known in (("preset", self.preset, self.task.presets), ("size", self.size, self.task.sizes)):
            if given not in known:
                raise ValueError(f"{key} must be one of {', '.join(known)} with task: {self.task.name}; got '{given}'")
        return self

    def build(self, vocabulary_size: int, begun: TransformerConfig | None = None, **of_data: Any) -> TransformerConfig:
        """The model's own configuration. `of_data` are options that the data decides, such as labels; `begun` is that
        of the model which the run begins from, whose shape stands for preset and size.

        Raises BadInput when the options contradict each other.
        """
        known = option_types(self.task.config)
        options = {**self.task.presets[self.preset], **self.task.sizes[self.size]}
        if begun is not None:
            options = {name: getattr(begun, name) for name in known if hasattr(begun, name)}
        given = {name: value for name, value in self if name in known and value is not None}
        if "num_attention_heads" in given:  # a size's grouping belongs to the size's own heads
            options.pop("num_key_value_heads", None)
        try:
            return self.task.configure(**{**options, **given, **of_data, "vocab_size": vocabulary_size})
        except Exception as error:  # transformers raises several kinds of its own for a value it does not take
            cause = error.__cause__ or error
            raise BadInput(f"model: {cause}") from None


def _model_section(name: str) -> Any:
    """The section of a task: the options of its model are declared once, in model/config.py; here each may be given or
    left to preset and size."""
    task = TASKS[name]
    fields: dict[str, Any] = {option: (kind | None, None) for option, kind in option_types(task.config).items()}
    section = create_model("ModelConfig", __base__=ModelConfig, preset=(str, next(iter(task.presets))), **fields)
    section.task = task
    return section


class Experiment(Config):
    """Everything that a run is made of; `run.yaml` holds it resolved. One class below for each task."""

    name: str = Field("experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run folder."""
    corpus: ClassVar[type[OriginConfig]]
    """What a test set of the task is read as."""
    task: str
    """translation, language_model, masked_lm or classification."""
    run: str | None = None
    """The run folder; null is runs/NAME."""
    init_from: LocalPath | None = None
    """A model folder whose parameters the model begins with, where name and shape are the same; its shape stands for
    model.preset and model.size. The data must be prepared with its tokenizer."""
    branch_from: LocalPath | None = None
    """A training state of another run, RUN/state/step-NNNNNNNN, that this run goes on from: with weights, moments and
    place in the data. The two may differ in length, schedule and resources only."""
    data: DataConfig | DocumentDataConfig | LabelledDataConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.init_from is not None and self.branch_from is not None:
            raise ValueError("a run begins with init_from or with branch_from; got both")
        return self

    @property
    def run_folder(self) -> "RunFolder":
        """Where this experiment writes."""
        return RunFolder(Path(self.run or f"runs/{self.name}"))


if TYPE_CHECKING:
    _TranslationModel: TypeAlias = ModelConfig
    _LanguageModel: TypeAlias = ModelConfig
    _MaskedModel: TypeAlias = ModelConfig
    _Classifier: TypeAlias = ModelConfig
else:
    _TranslationModel, _LanguageModel, _MaskedModel, _Classifier = map(_model_section, TASKS)


class TranslationExperiment(Experiment):
    """An encoder-decoder on sentence pairs."""

    corpus: ClassVar[type[OriginConfig]] = CorpusConfig
    task: Literal["translation"] = "translation"
    data: DataConfig
    model: _TranslationModel = _TranslationModel()
    training: PairTrainingConfig = PairTrainingConfig(max_steps=10_000)
    evaluation: TranslationEvaluationConfig = TranslationEvaluationConfig()


class LanguageModelExperiment(Experiment):
    """A decoder on documents: it writes text."""

    corpus: ClassVar[type[OriginConfig]] = DocumentCorpusConfig
    task: Literal["language_model"]
    data: DocumentDataConfig
    model: _LanguageModel = _LanguageModel()
    training: RowTrainingConfig = RowTrainingConfig(max_steps=10_000)
    evaluation: LanguageModelEvaluationConfig = LanguageModelEvaluationConfig()


class MaskedExperiment(Experiment):
    """An encoder on documents: it says what stands under a mask."""

    corpus: ClassVar[type[OriginConfig]] = DocumentCorpusConfig
    task: Literal["masked_lm"]
    data: DocumentDataConfig
    model: _MaskedModel = _MaskedModel()
    training: MaskedTrainingConfig = MaskedTrainingConfig(max_steps=10_000)
    evaluation: MaskedEvaluationConfig = MaskedEvaluationConfig()


class ClassificationExperiment(Experiment):
    """An encoder on labelled texts."""

    corpus: ClassVar[type[OriginConfig]] = LabelledCorpusConfig
    task: Literal["classification"]
    data: LabelledDataConfig
    model: _Classifier = _Classifier()
    training: LabelTrainingConfig = LabelTrainingConfig(max_steps=1000)
    evaluation: ClassificationEvaluationConfig = ClassificationEvaluationConfig()


EXPERIMENTS: dict[str, type[Experiment]] = {
    "translation": TranslationExperiment,
    "language_model": LanguageModelExperiment,
    "masked_lm": MaskedExperiment,
    "classification": ClassificationExperiment,
}
"""The classes by task."""


class RunFolder:
    """The paths of a run (README, "The run folder")."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.yaml"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.log = path / "log.txt"
        self.states = path / "state"
        self.models = path / "model"
        self.best = self.models / "best"
        self.last = self.models / "last"
        self.average = self.models / "average"
        self.running_mean = self.models / "ema"
        self.translations = path / "translations"
        self.results = path / "results.json"
        self.report = path / "report.html"
        self.exit = path / "exit.json"
        self.logs = path / "logs"
        self.submitted = path / "submitted"
        self.ranks = path / "ranks"


def experiment_class(document: Document) -> type[Experiment]:
    """The class that `task:` names. Raises BadInput for one that does not exist."""
    task = document.values.get("task", "translation")
    if not isinstance(task, str) or task not in EXPERIMENTS:
        nearest = suggest(task, EXPERIMENTS) if isinstance(task, str) else ""
        raise BadInput(
            f"{document.place(('task',))}: task: must be one of {', '.join(EXPERIMENTS)}; got {task!r}{nearest}"
        )
    return EXPERIMENTS[task]


def read_experiment(config: str, overrides: list[str]) -> Experiment:
    """Load, merge and check an experiment, the shape of its model included. Raises BadInput."""
    document: Document = load(config, overrides)
    if "name" not in document.values and config.endswith((".yaml", ".yml")):
        document.values["name"] = Path(config).stem
    experiment = validate(experiment_class(document), document)
    try:
        if experiment.init_from is None:
            experiment.model.build(vocabulary_size=experiment.data.tokenizer.vocabulary_size)
    except BadInput as error:
        raise BadInput(f"{document.place(('model',))}: {error}") from None
    return experiment
