"""The coordinate check (Yang 2022): mean |activation| of each kind of layer in the first steps, by width or depth.

Models that differ in width only are trained for a few steps on one small batch of random tokens. In a parametrization
whose hyper-parameters transfer, no activation grows or shrinks with width: the slope of log mean |activation| against
log width is about 0, for what a layer begins with and for what training adds. The first values of logits are meant to
fade as width^-1/2 (README of the package `mup`), so what is counted of logits is how far training has raised those of
the labels over the others, in the mean.

The narrowest or shallowest model is the base of μP, so that both parametrizations begin with the same model. Against
depth, embeddings are scaled to enter at 1: where they enter at less, what the branches begin with outweighs them, and
the stream falls as depth^-1/2 until they do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bmscale.errors import BadInput
from bmscale.experiment import Experiment, OptimizerConfig
from bmscale.model.attention import CrossAttention, SelfAttention
from bmscale.model.config import MUP_BASE, TransformerConfig, option_types
from bmscale.model.init import embedding_std, initialise
from bmscale.model.layers import FeedForward, Layer, TokenEmbedding
from bmscale.model.parametrization import embedding_scale
from bmscale.model.tasks import Task
from bmscale.training.optimizer import make_optimizer

TOLERANCE = 0.05
"""The largest |slope| that counts as none."""
KINDS: dict[type[nn.Module], str] = {
    TokenEmbedding: "embeddings",
    SelfAttention: "attention",
    CrossAttention: "cross-attention",
    FeedForward: "feed-forward",
    Layer: "stream",
}
"""What is measured: outputs of these modules, residual branches before their scale; and `logits`."""
RATE = 0.064
"""The usual rate times the width of the base model: large enough to move every activation, small enough for the
narrowest model to stay near what wide ones do."""
OF_DEPTH = ("embeddings", "stream", "logits")
"""What is judged against depth. What a branch puts out is shown only: it nears its limit as 1 / depth."""
_VOCABULARY, _LABELS = 64, 4


@dataclass(frozen=True)
class Setting:
    """How models are trained for the check."""

    steps: int = 5
    """Optimizer steps; activations are measured before the first and after each."""
    seeds: int = 4
    """First values and batches over which log activations are averaged."""
    rate: float | None = None
    """The learning rate, constant; None is `RATE` over the narrowest width."""
    rows: int = 8
    """Sequences of the batch."""
    tokens: int = 16
    """Tokens of a sequence, of source and of target."""


@dataclass(frozen=True)
class Coordinates:
    """What was measured of one parametrization."""

    parametrization: str
    axis: str
    """`width` or `depth`."""
    values: list[int]
    rate: float
    activations: dict[str, list[list[float]]]
    """By kind: for each of `values` the geometric mean over seeds of mean |activation|, at each step that was
    measured."""

    def slopes(self, kind: str) -> list[float]:
        """d log |activation| / d log value at each step."""
        return [_slope(self.values, step) for step in zip(*self.activations[kind], strict=True)]

    def slope(self, kind: str) -> float:
        """The mean of the slopes over the steps: the verdict goes by it."""
        return float(np.mean(self.slopes(kind)))

    def judged(self) -> list[str]:
        """The kinds that count."""
        return [kind for kind in self.activations if self.axis == "width" or kind in OF_DEPTH]

    def failures(self) -> list[str]:
        """The kinds that count and whose |slope| is above TOLERANCE, or not a number."""
        return [kind for kind in self.judged() if not abs(self.slope(kind)) <= TOLERANCE]

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        slopes = {kind: {"mean": self.slope(kind), "steps": self.slopes(kind)} for kind in self.activations}
        return {**asdict(self), "slopes": slopes, "tolerance": TOLERANCE, "failures": self.failures()}


def check_coordinates(
    experiment: Experiment, parametrization: str, axis: str, values: Sequence[int], setting: Setting
) -> Coordinates:
    """Train the model of an experiment at several widths or depths. Raises BadInput for values it cannot have."""
    task = experiment.model.task
    shaped = wider if axis == "width" else deeper
    of_data: dict[str, Any] = {"num_labels": _LABELS} if task.name == "classification" else {}
    config = experiment.model.build(_VOCABULARY, **of_data)
    configs = shaped(task, config, parametrization, values)
    rate = RATE / configs[0].hidden_size if setting.rate is None else setting.rate
    found: dict[str, list[list[float]]] = {}
    for one in configs:
        logs = [measure(task, one, rate, setting, seed) for seed in range(setting.seeds)]
        for kind in logs[0]:
            found.setdefault(kind, []).append(np.exp(np.mean([log[kind] for log in logs], axis=0)).tolist())
    return Coordinates(parametrization, axis, list(values), rate, found)


def wider(
    task: Task, config: TransformerConfig, parametrization: str, widths: Sequence[int]
) -> list[TransformerConfig]:
    """The configuration at other widths: heads of one size, that of `config` or the narrowest width if that is less,
    and all else in proportion. Raises BadInput."""
    size, base = min(config.head_dim, *widths), {"base_hidden_size": min(widths)}
    base |= {"base_layers": config.num_hidden_layers, "base_head_dim": size}
    uneven = [width for width in widths if width % size]
    if uneven:
        raise BadInput(f"--widths: must be multiples of the head size {size}; got {uneven[0]}")
    shapes = []
    for width in widths:
        heads = width // size
        most = max(1, heads * config.num_key_value_heads // config.num_attention_heads)
        shape = {
            "hidden_size": width,
            "head_dim": size,
            "num_attention_heads": heads,
            "num_key_value_heads": next(keys for keys in range(most, 0, -1) if heads % keys == 0),
            "intermediate_size": round(width * config.intermediate_size / config.hidden_size),
        }
        shapes.append(_shaped(task, config, parametrization, shape, base))
    return shapes


def deeper(
    task: Task, config: TransformerConfig, parametrization: str, depths: Sequence[int]
) -> list[TransformerConfig]:
    """The configuration with other depths, of both stacks where there are two."""
    names = [name for name in ("num_encoder_layers", "num_decoder_layers", "num_hidden_layers") if name in _names(task)]
    entering = config.embedding_scale / (embedding_scale(config) * embedding_std(config))
    base = {"base_hidden_size": config.hidden_size, "base_layers": min(depths), "base_head_dim": config.head_dim}
    return [
        _shaped(task, config, parametrization, {**dict.fromkeys(names, depth), "embedding_scale": entering}, base)
        for depth in depths
    ]


def _names(task: Task) -> list[str]:
    return list(option_types(task.config))


def _shaped(
    task: Task, config: TransformerConfig, parametrization: str, shape: Mapping[str, Any], base: Mapping[str, int]
) -> TransformerConfig:
    options = {name: getattr(config, name) for name in _names(task)}
    options |= {"vocab_size": config.vocab_size, "num_labels": config.num_labels, "parametrization": parametrization}
    options |= base if parametrization == "mup" else dict.fromkeys(MUP_BASE, 0)
    options |= {"dropout": 0.0, "attention_dropout": 0.0, **shape}
    try:
        return task.configure(**options)
    except Exception as error:  # transformers raises several kinds of its own for a value it does not take
        raise BadInput(f"model: {error.__cause__ or error}") from None


def measure(task: Task, config: TransformerConfig, rate: float, setting: Setting, seed: int) -> dict[str, list[float]]:
    """log mean |activation| of each kind, before the first step and after each; of logits from the first step on."""
    model: Any = task.model(config)
    initialise(model, seed)
    model.train()
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=rate, weight_decay=0.0))
    inputs, labels = _batch(task, setting, seed)
    batch = {"input_ids": inputs, "shift_labels" if task.name == "language_model" else "labels": labels}
    measured: dict[str, list[float]] = {}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        measured.setdefault(KINDS[type(module)], []).append(float(states.detach().abs().mean()))

    for module in model.modules():
        if type(module) in KINDS:
            module.register_forward_hook(record)
    found: dict[str, list[float]] = {}
    first = None
    for _ in range(setting.steps + 1):
        measured.clear()
        output = model(**batch)
        for kind, means in measured.items():
            found.setdefault(kind, []).append(_log(float(np.mean(means))))
        raised = _raised(output.logits.detach(), labels)
        if first is None:
            first = raised
        else:
            found.setdefault("logits", []).append(_log(raised - first))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def _batch(task: Task, setting: Setting, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens (B, T), and random labels for each of them, or for each row where the model classifies."""
    generator = torch.Generator().manual_seed(seed)
    shape = (setting.rows, setting.tokens)
    inputs = torch.randint(4, _VOCABULARY, shape, generator=generator)
    if task.name == "classification":
        return inputs, torch.randint(_LABELS, shape[:1], generator=generator)
    return inputs, torch.randint(4, _VOCABULARY, shape, generator=generator)


def _raised(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean over labels of their logit, less the mean of all logits."""
    return float((logits.gather(-1, labels[..., None])[..., 0] - logits.mean(-1)).mean())


def _log(value: float) -> float:
    return math.log(value) if 0 < value < math.inf else math.nan


def _slope(values: Sequence[int], activations: Sequence[float]) -> float:
    logs = np.log(activations)
    if not np.isfinite(logs).all():
        return math.nan
    return float(np.polyfit(np.log(values), logs, 1)[0])


def table(found: Coordinates) -> str:
    """Slopes and activations, a line a kind, and the verdict."""
    low, high = found.values[0], found.values[-1]
    lines = [
        f"{found.parametrization}, {found.axis} {low} to {high}, rate {found.rate:g}: slope of log mean |activation| "
        f"against log {found.axis}",
        f"{'':16} {'slope':>7} {'first':>7} {'last':>7}   |activation| after the last step at {found.axis} "
        + ", ".join(map(str, found.values)),
    ]
    for kind, rows in found.activations.items():
        slopes, last = found.slopes(kind), " ".join(f"{row[-1]:8.3g}" for row in rows)
        lines.append(f"{kind:16} {found.slope(kind):+7.3f} {slopes[0]:+7.3f} {slopes[-1]:+7.3f} {last}")
    bad = found.failures()
    kinds = "every kind" if found.axis == "width" else " and ".join(found.judged())
    verdict = f"above it: {', '.join(bad)}" if bad else f"{kinds} within it"
    return "\n".join([*lines, f"|slope| at most {TOLERANCE}: {verdict}"])


def draw(found: Sequence[Coordinates], path: Path) -> None:
    """Mean |activation| after the last step against width or depth, a panel a parametrization."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, one in zip(panels, found, strict=True):
            for number, (kind, rows) in enumerate(one.activations.items()):
                last = [row[-1] for row in rows]
                axes.plot(one.values, last, label=kind, marker="osv^Dx"[number % 6], markersize=4, linewidth=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(one.values, [str(value) for value in one.values])
            axes.set_xlabel(one.axis)
            axes.set_title(one.parametrization)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("mean |activation| after the last step")
        panels[-1].legend(frameon=False, fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
