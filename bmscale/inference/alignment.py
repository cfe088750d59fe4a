"""Which tokens of a source a translation was made of, as cross-attention has it, and pictures of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmscale.errors import BadInput

PICTURES = (".png", ".svg", ".pdf")
MOST_PICTURED = 12
"""Sentences in one picture."""
_MOST_PIECES = 80  # a side: more are no picture any more
_CELL, _COLUMNS = 0.24, 2  # inches, panels side by side


@dataclass(frozen=True)
class Alignment:
    """The attention of one translation."""

    source: list[str]
    """Pieces, as SentencePiece spells them, `\u2581` before a word."""
    target: list[str]
    weights: np.ndarray
    """(T, S), from 0 to 1. What a row lacks to 1 the target token gave to the </s> of the source."""

    def best(self) -> list[int]:
        """For each target piece the index of the source piece that it looks at most."""
        return [int(place) for place in self.weights.argmax(axis=1)] if self.source else []


def check_picture(path: Path) -> None:
    """Raises BadInput where no picture can be written under the name."""
    if path.suffix.lower() not in PICTURES:
        raise BadInput(f"{path}: a picture of alignments must be named {', '.join('*' + end for end in PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: its folder does not exist; make it first")


def draw_alignments(alignments: Sequence[Alignment], path: Path) -> int:
    """Heat maps, one for each of the first MOST_PICTURED alignments that have something to show, and not too much of it
    to be seen, source pieces along the top, target pieces down the side; darker is more. Returns how many were drawn.

    Raises BadInput as `check_picture` does.
    """
    check_picture(path)
    # Here and not above: translating must go on where Matplotlib is broken, and it takes a while to load.
    from matplotlib.figure import Figure

    shown = [
        alignment for alignment in alignments if alignment.weights.size and max(alignment.weights.shape) <= _MOST_PIECES
    ][:MOST_PICTURED]
    columns = min(_COLUMNS, len(shown)) or 1
    rows = math.ceil(len(shown) / columns) or 1
    widest = max((len(alignment.source) for alignment in shown), default=4)
    tallest = max((len(alignment.target) for alignment in shown), default=2)
    size = (columns * (1.6 + _CELL * widest), rows * (1.5 + _CELL * tallest))
    figure = Figure(figsize=size, layout="constrained")
    for place, alignment in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.pcolormesh(alignment.weights, cmap="Blues", vmin=0.0, vmax=1.0, edgecolors="#dddddd", linewidth=0.4)
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.xaxis.tick_top()
        axes.set_xticks(np.arange(len(alignment.source)) + 0.5, _shown(alignment.source), rotation=90, fontsize=8)
        axes.set_yticks(np.arange(len(alignment.target)) + 0.5, _shown(alignment.target), fontsize=8)
        axes.tick_params(length=0)
    figure.savefig(path, dpi=150)
    return len(shown)


def _shown(pieces: Sequence[str]) -> list[str]:
    """Pieces as labels: a bar before a word for a mark that few fonts have, and no dollar, which begins a formula."""
    return [piece.replace("\u2581", "_").replace("$", r"\$") for piece in pieces]
