"""Which tokens of a source a translation was made of, as cross-attention has it, and pictures of that."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bmscale.errors import BadInput

PICTURES = (".png", ".svg", ".pdf")
MOST_PICTURED = 12
"""Sentences in one picture."""
_MOST_PIECES = 80  # a side: more are no picture any more
_SPACE, _BYTE = "\u2581", re.compile("<0x([0-9A-F]{2})>")
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

    def words(self, *, source_spaces: bool = True, target_spaces: bool = True, tags: int = 0) -> "Alignment":
        """The same of words, spelt as in the text: of a target word the mean over its pieces, of a source word the sum.

        Punctuation stands apart. In a language that is written without spaces a word is a piece, and in any the bytes
        of a character stay together. The first `tags` pieces of the source are left out.
        """
        sources = _words(self.source[tags:], spaces=source_spaces)
        targets = _words(self.target, spaces=target_spaces)
        if not sources or not targets:
            weights_TS = np.zeros((len(targets), len(sources)))
        else:
            by_source = np.add.reduceat(self.weights[:, tags:], [word.start for word in sources], axis=1)
            sizes = np.array([[len(word)] for word in targets])
            weights_TS = np.add.reduceat(by_source, [word.start for word in targets], axis=0) / sizes
        spelt_source, spelt_target = self.source[tags:], self.target
        return Alignment(
            [_spelt(spelt_source[word.start : word.stop]) for word in sources],
            [_spelt(spelt_target[word.start : word.stop]) for word in targets],
            weights_TS,
        )


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


def _words(pieces: Sequence[str], *, spaces: bool) -> list[range]:
    """Which pieces make up each word."""
    starts: list[int] = []
    for place, piece in enumerate(pieces):
        before = pieces[place - 1] if place else ""
        apart = piece.startswith(_SPACE) or _is_mark(piece) or _is_mark(before) or not spaces
        inside = before == _SPACE or (_BYTE.fullmatch(piece) and _BYTE.fullmatch(before))
        if not place or (apart and not inside):
            starts.append(place)
    return [range(start, stop) for start, stop in pairwise([*starts, len(pieces)])]


def _is_mark(piece: str) -> bool:
    """Whether it is of punctuation and symbols alone, but for those that stand inside words."""
    letters = piece.lstrip(_SPACE)
    return bool(letters) and all(unicodedata.category(letter)[0] in "PS" and letter not in "'’-" for letter in letters)


def _spelt(pieces: Sequence[str]) -> str:
    """The text of pieces, without the spaces around it."""
    spelt = b"".join(
        bytes([int(byte[1], 16)]) if (byte := _BYTE.fullmatch(piece)) else piece.encode() for piece in pieces
    )
    return spelt.decode(errors="replace").replace(_SPACE, " ").strip()
