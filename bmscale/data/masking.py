"""Masked language modelling: which tokens of a row are hidden, and what stands in their place.

Devlin 2019, section 3.1: of the chosen tokens 80 % become <mask>, 10 % a random token and 10 % stay; the model must say
what all of them were. Here they are chosen anew each time a row comes (dynamic masking, Liu 2019).
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bmscale.config import Config
from bmscale.data.batch import IGNORED
from bmscale.data.tokenizer import EOS, Tokenizer

Tokens = NDArray[np.int64]

_GAPS = ("<0x09>", "<0x0A>", "<0x0D>")
"""White space that a tokenizer of documents spells in bytes."""


class MaskingConfig(Config):
    """How tokens are hidden."""

    rate: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that are to be predicted; 0.15 (Devlin 2019), 0.3 to 0.5 for small models (Wettig 2023)."""
    whole_words: bool = False
    """Choose words instead of tokens, and hide all tokens of a word together."""


class Masking:
    """Hides tokens of rows; what is hidden is a pure function of the key that it is given."""

    def __init__(self, config: MaskingConfig, tokenizer: Tokenizer, mask_id: int) -> None:
        self._config, self._mask_id = config, mask_id
        size = tokenizer.vocabulary_size
        pieces = tokenizer.pieces(range(size))
        self._first_ordinary = max(mask_id, EOS) + 1  # special pieces come first
        self._size = size
        self._is_gap = np.array([piece in _GAPS for piece in pieces])
        self._begins_word = self._is_gap | np.array([piece.startswith("\u2581") for piece in pieces])

    def hide(self, tokens: Tokens, key: tuple[int, ...]) -> tuple[Tokens, Tokens]:
        """(what the model is shown, what it must say: IGNORED where nothing), both of the shape of `tokens` (L,)."""
        generator = np.random.default_rng(key)
        ordinary = tokens >= self._first_ordinary
        if self._config.whole_words:
            # A word begins at its mark, behind the end of a line or a special piece, and where the row begins.
            ends = ~ordinary | self._is_gap[tokens]
            begins = self._begins_word[tokens] | ends | np.concatenate([[True], ends[:-1]])
            word = np.cumsum(begins) - 1
            chosen = (generator.random(word[-1] + 1) < self._config.rate)[word] & ordinary
        else:
            chosen = (generator.random(len(tokens)) < self._config.rate) & ordinary
        draw = generator.random(len(tokens))
        random = generator.integers(self._first_ordinary, self._size, len(tokens))
        shown = np.where(chosen & (draw < 0.8), self._mask_id, tokens)
        shown = np.where(chosen & (draw >= 0.8) & (draw < 0.9), random, shown)
        return shown, np.where(chosen, tokens, IGNORED)
