"""A study: one YAML that says which models are trained on how much, and the experiments that it stands for.

```yaml
name: mine
base: base.yaml                     # an experiment or a preset; and over it, as in an experiment file:
experiment: {training: {tokens_per_step: 4096}}
sizes:
  - {width: 32, layers: 1, learning_rate: 4.0e-3}
  - {width: 64, layers: [2, 2]}     # encoder, decoder
flops: [1e11, 1e12]                 # each size is trained on what each budget buys
holdouts: [{size: w64-l2, budget: 1e13}]
```

One run of a size and seed, its trunk, goes at a constant rate; each budget is a branch of it that cools down
(`training/branch.py`). A cell is one budget of one size and seed; `Study.trunks` lists them.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from bmscale.config import PRESETS, Config, Document, load, preset_names, read_overrides, read_yaml, suggest, validate
from bmscale.errors import BadInput
from bmscale.experiment import Experiment, Positive, RunFolder, experiment_class
from bmscale.model.config import TransformerConfig
from bmscale.model.flops import training_flops
from bmscale.model.sizes import count_parameters
from bmscale.scaling.lengths import Texts, measure

STUDIES = PRESETS / "studies"
TASKS = ("translation", "language_model")
LEAST_STEPS = 10
"""Of a cell: below, warm-up and cooldown are all there is."""
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**32)]
Budget: TypeAlias = Annotated[float, Field(gt=0, le=1e30)]


class SizeConfig(Config):
    """One model of the ladder."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What cells call it; by default wWIDTH-lLAYERS."""
    width: Positive
    """Of the residual stream; a multiple of head_dim."""
    layers: Positive | list[Positive]
    """Blocks of each stack, or [encoder, decoder]."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate where it is not the study's."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Further options of the model."""

    @property
    def label(self) -> str:
        """The name, given or made."""
        layers = self.layers if isinstance(self.layers, list) else [self.layers]
        return self.name or f"w{self.width}-l{'x'.join(map(str, layers))}"


class CellConfig(Config):
    """A size and a budget by name; the budget need not be one of the grid."""

    size: str
    budget: Budget
    """In the unit of the study: FLOP or target tokens."""
    seeds: list[Seed] = Field(default_factory=list)
    """Of `repeats`: seeds besides the study's."""


class StudyConfig(Config):
    """The content of a study's YAML file."""

    name: str = Field("study", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the study's folder, studies/NAME."""
    base: str | None = None
    """The experiment that all runs are made of: a YAML file beside this one, or the name of a preset."""
    experiment: dict[str, Any] = Field(default_factory=dict)
    """Its keys over the base's. data.directory is FOLDER/data where it is not given."""
    head_dim: Positive = 16
    """Width of a head at all sizes: wider models have more heads."""
    feed_forward_ratio: float = Field(4.0, gt=0)
    """Width of the feed-forward layer over that of the model."""
    sizes: list[SizeConfig] = Field(min_length=1)
    flops: list[Budget] | None = Field(None, min_length=1)
    """Budgets in FLOP, forward and backward with attention and head, as model/flops.py counts. Give this or tokens."""
    tokens: list[Budget] | None = Field(None, min_length=1)
    """Budgets in target tokens."""
    tokens_per_parameter: list[float] | None = Field(None, min_length=2, max_length=2)
    """The least and the most target tokens a parameter (all counted) that the grid has; null trains every pair of size
    and budget."""
    seed: Seed = 0
    """Of weights and data order."""
    repeats: list[CellConfig] = Field(default_factory=list)
    """Cells that are trained with other seeds too."""
    holdouts: list[CellConfig] = Field(default_factory=list)
    """Cells that are trained only when asked for: what a forecast is made of before."""
    from_scratch: list[CellConfig] = Field(default_factory=list)
    """Cells that are also trained without a trunk, for comparison."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the sizes that have none of their own; null is the experiment's."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Steps of warm-up as a share of those of the size's smallest budget; all its budgets share them."""
    cooldown_fraction: float = Field(0.2, gt=0, lt=1)
    """The share of a run's steps over which its rate falls to 0, as 1 - sqrt(progress)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.flops is None) == (self.tokens is None):
            given = "both" if self.flops else "neither"
            raise ValueError(f"exactly one of flops and tokens must be given; got {given}")
        if self.warmup_fraction + self.cooldown_fraction > 1:
            raise ValueError("warmup_fraction and cooldown_fraction must be at most 1 together")
        window = self.tokens_per_parameter
        if window is not None and not 0 <= window[0] < window[1]:
            raise ValueError(f"tokens_per_parameter must be the least and the most, in this order; got {window}")
        labels = [size.label for size in self.sizes]
        if len(set(labels)) < len(labels):
            raise ValueError(f"sizes must have different names; got {', '.join(labels)}")
        for kind in ("repeats", "holdouts", "from_scratch"):
            for cell in getattr(self, kind):
                if cell.size not in labels:
                    raise ValueError(f"{kind}: size must be one of {', '.join(labels)}; got '{cell.size}'")
                if bool(cell.seeds) != (kind == "repeats"):
                    raise ValueError(f"{kind}: seeds belong to repeats, where they must be given; got {cell.seeds}")
        return self


@dataclass(frozen=True)
class Cell:
    """One budget of one size and seed."""

    size: str
    budget: float
    seed: int
    kind: str
    """grid, repeat, holdout or from_scratch."""
    steps: int
    branch_step: int
    """Steps at the constant rate before the cooldown."""
    flops: float
    """Of all its steps."""

    @property
    def name(self) -> str:
        """Of its run folder: SIZE-BUDGET-sSEED."""
        end = "-scratch" if self.kind == "from_scratch" else ""
        return f"{self.size}-{budget_label(self.budget)}-s{self.seed}{end}"


@dataclass(frozen=True)
class Trunk:
    """The run of a size and seed at a constant rate, and the cells that branch off it, the shortest first."""

    size: str
    seed: int
    warmup_steps: int
    flops_per_step: float
    cells: list[Cell] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.size}-s{self.seed}-trunk"

    @property
    def branches(self) -> list[Cell]:
        """The cells that begin with a state of this run."""
        return [cell for cell in self.cells if cell.kind != "from_scratch"]


class Study:
    """The runs of a study. Raises BadInput for what does not make experiments."""

    def __init__(self, config: StudyConfig, base: Document, folder: Path | None = None) -> None:
        self.config, self._base = config, base
        self.folder = folder or Path("studies") / config.name
        self.sizes = {size.label: size for size in config.sizes}
        if self._task not in TASKS:
            raise BadInput(f"task: must be one of {', '.join(TASKS)} for a study; got {self._task}")

    @property
    def _task(self) -> str:
        return str(self._document({}).values.get("task", TASKS[0]))

    @property
    def table(self) -> Path:
        """A line a cell of the grid and its repeats that is done."""
        return self.folder / "table.jsonl"

    def run_folder(self, name: str) -> RunFolder:
        """Of a trunk or a cell."""
        return RunFolder(self.folder / "runs" / name)

    @cached_property
    def plain(self) -> Experiment:
        """The experiment of the first size as it stands, for what all have in common: data, step, precision."""
        return self._experiment(self.config.sizes[0].label, "plain", {"max_steps": LEAST_STEPS})

    @cached_property
    def trunks(self) -> list[Trunk]:
        """All runs, hold-outs included, the smallest model first. Needs the lengths of the data."""
        trunks: dict[tuple[str, int], Trunk] = {}
        for cell in self._cells():
            trunk = trunks.get((cell.size, cell.seed))
            if trunk is None:
                warmup = max(1, round(self.config.warmup_fraction * self._fewest_steps(cell.size)))
                trunk = Trunk(cell.size, cell.seed, warmup, self.flops_per_step(cell.size))
                trunks[cell.size, cell.seed] = trunk
            if trunk.warmup_steps > cell.branch_step:
                raise BadInput(f"{cell.name}: has {cell.steps} steps, too few for {trunk.warmup_steps} of warm-up")
            trunk.cells.append(cell)
        for trunk in trunks.values():
            trunk.cells.sort(key=lambda cell: (cell.steps, cell.kind))
        return sorted(trunks.values(), key=lambda trunk: (trunk.flops_per_step, trunk.size, trunk.seed))

    def _cells(self) -> list[Cell]:
        config = self.config
        grid = config.flops or config.tokens or []
        cells = [
            self._cell(size, budget, config.seed, "grid")
            for size in self.sizes
            for budget in grid
            if self._is_inside(size, budget)
        ]
        if not cells:
            raise BadInput("tokens_per_parameter: leaves no cell of the grid")
        for repeat in config.repeats:
            cells += [self._cell(repeat.size, repeat.budget, seed, "repeat") for seed in repeat.seeds]
        cells += [self._cell(cell.size, cell.budget, config.seed, "holdout") for cell in config.holdouts]
        cells += [self._cell(cell.size, cell.budget, config.seed, "from_scratch") for cell in config.from_scratch]
        names = [cell.name for cell in cells]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise BadInput(f"{twice}: is in the study twice; take it out of repeats, holdouts or the grid")
        return cells

    def _is_inside(self, size: str, budget: float) -> bool:
        window = self.config.tokens_per_parameter
        if window is None:
            return True
        ratio = self._steps(size, budget) * self.tokens_per_step / count_parameters(self.shape(size)).total
        return window[0] <= ratio <= window[1]

    def _cell(self, size: str, budget: float, seed: int, kind: str) -> Cell:
        steps = self._steps(size, budget)
        if steps < LEAST_STEPS:
            raise BadInput(
                f"{size} with budget {budget:g}: must have at least {LEAST_STEPS} steps, it has {steps}. Raise the "
                "budget, lower training.tokens_per_step, or leave the cell out by tokens_per_parameter"
            )
        cooldown = max(1, round(self.config.cooldown_fraction * steps))  # as training/schedule.py has it
        return Cell(size, budget, seed, kind, steps, steps - cooldown, steps * self.flops_per_step(size))

    def _steps(self, size: str, budget: float) -> int:
        if self.config.tokens is not None:
            return round(budget / self.tokens_per_step)
        return round(budget / self.flops_per_step(size))

    def _fewest_steps(self, size: str) -> int:
        grid = self.config.flops or self.config.tokens or []
        inside = [budget for budget in grid if self._is_inside(size, budget)] or [min(grid)]
        return min(self._steps(size, budget) for budget in inside)

    # -- what a step costs -------------------------------------------------------------------------------------------

    @cached_property
    def _texts(self) -> Texts:
        return measure(self.plain)

    @property
    def tokens_per_step(self) -> float:
        """Tokens of a step that are learnt from, on average."""
        return self._texts.tokens_per_step

    def shape(self, size: str) -> TransformerConfig:
        """The model of a size."""
        experiment = self._experiment(size, "shape", {"max_steps": LEAST_STEPS})
        return experiment.model.build(experiment.data.tokenizer.vocabulary_size)

    def flops_per_step(self, size: str) -> float:
        """Of an average step, forward and backward, attention and head included."""
        texts = self._texts
        flops = training_flops(self.shape(size), texts.first, texts.targets)
        read = np.sum(texts.first if texts.targets is None else texts.targets)
        return float(np.sum(flops) / read) * texts.read_per_step

    # -- experiments -------------------------------------------------------------------------------------------------

    def trunk_experiment(self, trunk: Trunk, steps: int) -> Experiment:
        """The trunk to the branch after `steps`, with the states of all branches before."""
        branches = sorted({cell.branch_step for cell in trunk.branches if cell.branch_step <= steps})
        training = {"max_steps": steps, "branch_steps": branches, "schedule": {"type": "constant"}}
        return self._run(trunk, trunk.name, training)

    def cell_experiment(self, trunk: Trunk, cell: Cell) -> Experiment:
        """A branch of the trunk, or the same run from scratch."""
        schedule = {
            "type": "wsd",
            "cooldown_fraction": self.config.cooldown_fraction,
            "cooldown_shape": "sqrt",
            "final_ratio": 0.0,
        }
        branch = None
        if cell.kind != "from_scratch":
            branch = str(self.run_folder(trunk.name).states / f"step-{cell.branch_step:08d}")
        return self._run(trunk, cell.name, {"max_steps": cell.steps, "schedule": schedule}, branch)

    def _run(self, trunk: Trunk, name: str, training: dict[str, Any], branch: str | None = None) -> Experiment:
        size = self.sizes[trunk.size]
        rate = size.learning_rate or self.config.learning_rate
        training["schedule"]["warmup_steps"] = trunk.warmup_steps
        training |= {"seed": trunk.seed} | ({"optimizer": {"learning_rate": rate}} if rate else {})
        run = {"run": str(self.run_folder(name).path)} | ({"branch_from": branch} if branch else {})
        return self._experiment(trunk.size, name, training, run)

    def _experiment(
        self, size: str, name: str, training: dict[str, Any], run: dict[str, Any] | None = None
    ) -> Experiment:
        """Validated once more as a whole: what a size's options make of the base."""
        own = self.sizes[size]
        layers = own.layers if isinstance(own.layers, list) else [own.layers] * 2
        if len(layers) != 2:
            raise BadInput(f"{size}: layers must be one number, or two for encoder and decoder; got {own.layers}")
        stacks = {"num_encoder_layers": layers[0], "num_decoder_layers": layers[1]}
        if self._task != TASKS[0]:
            stacks = {"num_hidden_layers": layers[0]}
        if own.width % self.config.head_dim:
            raise BadInput(f"{size}: width must be a multiple of head_dim, {self.config.head_dim}; got {own.width}")
        heads = own.width // self.config.head_dim
        model = {
            "hidden_size": own.width,
            "num_attention_heads": heads,
            "head_dim": self.config.head_dim,
            "intermediate_size": round(self.config.feed_forward_ratio * own.width),
            **stacks,
            **own.model,
        }
        # At the end only: what a cell is judged by is its last loss.
        evaluation = {"every_steps": training["max_steps"]}
        values = {"name": name, "model": model, "training": training, "evaluation": evaluation, **(run or {})}
        document = self._document(values)
        return validate(experiment_class(document), document)

    def resolved_experiment(self) -> dict[str, Any]:
        """The base and what the study has over it."""
        return self._document({}).values

    def _document(self, values: dict[str, Any]) -> Document:
        data = Document({"data": {"directory": str(self.folder / "data")}})
        layers = [data, self._base, Document(self.config.experiment), Document(values)]
        document = Document()
        for layer in layers:
            document = document.layer(layer)
        return document


def budget_label(budget: float) -> str:
    """A budget as names have it: 3e12, 2.5e11."""
    exponent = math.floor(math.log10(budget) + 1e-9)
    return f"{budget / 10**exponent:.4g}e{exponent}"


def read_study(config: str, overrides: list[str], folder: str | None = None) -> Study:
    """A study by its file, or by the name of one that comes with the package. Raises BadInput."""
    if folder == "":
        raise BadInput("--folder: must name where the study is; got an empty name")
    names, path = preset_names(STUDIES), Path(config)
    if not path.is_file():
        if config not in names:
            known = ", ".join(names)
            raise BadInput(f"STUDY: must be a YAML file or one of {known}; got '{config}'{suggest(config, names)}")
        path = STUDIES / f"{config}.yaml"
    document = read_yaml(path).layer(read_overrides(overrides))
    if "name" not in document.values:
        document.values["name"] = path.stem
    study = validate(StudyConfig, document)
    base = Document({}, {(): str(path)})
    if study.base is not None:
        beside = path.parent / study.base
        base = load(str(beside) if beside.is_file() else study.base)
    for key in ("init_from", "branch_from"):
        if (value := study.experiment.get(key, base.values.get(key))) is not None:
            place = document.place(("experiment", key)) if key in study.experiment else base.place((key,))
            raise BadInput(
                f"{place}: {key}: must not be given for a study, which trains every size from scratch; got '{value}'. "
                f"Take it out, or put {key}: null under the study's experiment"
            )
    try:
        return Study(study, base, Path(folder) if folder else None)
    except BadInput as error:
        raise BadInput(f"{document.place(('experiment',))}: {error}") from None
