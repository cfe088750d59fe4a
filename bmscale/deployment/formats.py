"""What a format of export is, and which ones there are. What the gate (gate.py) asks of an artefact is a Candidate."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bmscale.errors import BadInput

if TYPE_CHECKING:  # the command line reads FORMATS and must start without torch
    from bmscale.model.folder import ModelFolder

FLOAT32_TOLERANCE = 1e-4
"""How far log-probabilities of a token (nats) may lie apart where both compute in float32."""


class Candidate(Protocol):
    """An artefact that was opened again, as a user would. Nothing of the trained model may help it.

    Texts are as the model reads them: normalised, and for a model of several target languages with the tag in front
    (`<2de> A sentence.`). Encoding them is the artefact's own affair, </s> and <s> included: that is what is tested.
    What a model of another task answers stands behind the semicolons.
    """

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (source, target) the natural log-probability of every target token, </s> included, given the
        source and the target tokens before it.

        The source is empty for the other tasks; a language model: of every token of the text behind <s>, </s>
        included; a masked language model: of every token that plain_transformers.hidden_positions hides; a classifier:
        of every label, in the order of their ids.
        """

    def greedy(self, lines: Sequence[str]) -> list[str]:
        """The translation by greedy search, within the limits of `SearchOptions`; a language model: what greedy search
        adds to the text, plain_transformers.GREEDY_TOKENS tokens at most; a masked language model: the most probable
        pieces of the hidden tokens, joined by spaces; a classifier: the most probable label."""

    def translate(self, lines: Sequence[str]) -> list[str]:
        """The translation by the model's own search (beam size and length penalty of its generation_config.json),
        which is scored. Only asked of translation."""


class Format(Protocol):
    """One `--to FORMAT` with its options. A module of FORMATS has `make(**options)`, options being strings or None."""

    name: str
    library: str
    """The package that opens it, as the model card names it."""
    tolerance: float | None
    """How far log-probabilities may lie apart; None for quantised weights, whose loss is reported and not judged, and
    whose greedy outputs may differ."""
    suffix: str
    """Of the artefact's name: "" for a folder, ".argosmodel" for such a file."""

    def check(self, model: "ModelFolder") -> None:
        """Raises BadInput, naming the option and what would fit, where this model has no place in the format."""

    def write(self, model: "ModelFolder", target: Path) -> None:
        """Write the artefact of a model that passed `check` to `target`, which does not exist. It is a temporary
        place: the artefact is moved to its own only when the gate let it pass, so nothing in it may depend on that."""

    def open(self, target: Path) -> Candidate:
        """Open the artefact. Called in a process in which nothing of the export ran."""

    def usage(self, model: "ModelFolder") -> str:
        """The text below the heading "Use" of the model card, in Markdown: how to load the artefact, from within its
        folder."""

    def describe(self, target: Path) -> dict[str, Any]:
        """What the report says of the artefact besides what holds for all: layout, types of numbers, versions of
        packages."""


@dataclass(frozen=True)
class Entry:
    """A line of FORMATS."""

    module: str
    """With `make(**options) -> Format`; imported when it is asked for, since each needs packages of its own."""
    text: str
    """What the artefact is, for --help."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The options of `make`, which the command line takes as `flag_of` spells them, each with its help."""


FORMATS: Mapping[str, Entry] = {
    "hf": Entry(
        "bmscale.deployment.hugging_face",
        "a folder for plain transformers",
        {
            "layout": "hf: t5gemma, m2m_100, llama, qwen3, eurobert; remote-code takes any model; auto is the layout "
            "that fits, else remote-code (default: auto)"
        },
    ),
    "ctranslate2": Entry(
        "bmscale.deployment.ctranslate2_format",
        "a folder for the CTranslate2 engine, which bmscale translate and serve take too",
        {
            "compute_type": "ctranslate2, argos: in what matrices are kept: float32, int8, int8_float32; for GPUs "
            "float16, bfloat16, int8_float16, int8_bfloat16 (default: float32)"
        },
    ),
    "argos": Entry(
        "bmscale.deployment.argos_format",
        "an .argosmodel for Argos Translate and LibreTranslate",
        {"compute_type": "see ctranslate2"},
    ),
    "onnx": Entry("bmscale.deployment.onnx_format", "experimental: encoder and decoder step for onnxruntime"),
}
"""The formats by their names."""


def flag_of(option: str) -> str:
    """As the command line spells it."""
    return f"--{option.replace('_', '-')}"


def make_format(name: str, options: Mapping[str, str | None] | None = None) -> Format:
    """The format with its options (those that are None are left to it).

    Raises BadInput for a name that is none, or an option or value that the format does not have.
    """
    if name not in FORMATS:
        raise BadInput(f"--to: must be one of {', '.join(FORMATS)}; got {name}")
    entry = FORMATS[name]
    given = {option: value for option, value in (options or {}).items() if value is not None}
    for option in given:
        if option not in entry.options:
            names = ", ".join(map(flag_of, entry.options)) or "none"
            raise BadInput(f"{flag_of(option)}: is no option of --to {name}, which has {names}")
    made: Format = importlib.import_module(entry.module).make(**given)
    return made
