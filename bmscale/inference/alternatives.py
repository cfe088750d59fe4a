"""How else a translation may go on: the most probable tokens behind a prefix."""

from collections.abc import Sequence

import numpy as np

from bmscale.data.tokenizer import BOS, EOS, PAD, UNK
from bmscale.inference.prefix import Prefix
from bmscale.inference.search import Backend


def next_tokens(
    backend: Backend,
    sources: Sequence[Sequence[int]],
    owners: Sequence[int],
    heads: Sequence[Prefix],
    continuing_V: np.ndarray,
    n: int,
) -> list[list[int | None]]:
    """The n tokens that may stand behind each source's prefix, best first, or None alone for a free search.

    Sources of one owner are the parts of one text, side by side; the first has alternatives, if it has content.
    `continuing_V` tells the pieces that would lengthen the last word of a prefix.
    """
    is_first = [not row or owners[row - 1] != owner for row, owner in enumerate(owners)]
    asked = [row for row, first in enumerate(is_first) if first and any(token != EOS for token in sources[row])]
    said = backend.next_log_probabilities([sources[row] for row in asked], [heads[row].ids for row in asked])
    ways: list[list[int | None]] = [[None] for _ in sources]
    for row, found_V in zip(asked, said, strict=True):
        value_V = found_V.copy()
        value_V[[BOS, PAD, UNK]] = -np.inf
        if heads[row].ends_a_word:
            value_V[continuing_V] = -np.inf
        if not heads[row].ids:
            value_V[EOS] = -np.inf  # an empty text is no other way to say it
        best = np.argsort(-value_V, kind="stable")[:n]
        tokens: list[int | None] = [int(token) for token in best if np.isfinite(value_V[token])]
        ways[row] = tokens or [None]
    return ways
