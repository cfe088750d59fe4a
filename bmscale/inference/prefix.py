"""Forced prefixes: the first pieces of a translation are given, and the search is free behind them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor

from bmscale.data.clean import normalise
from bmscale.data.tokenizer import BOS, PAD, Tokenizer

_SPACE = "\u2581"  # what SentencePiece writes for the space before a word


@dataclass(frozen=True)
class Prefix:
    """The beginning that one translation must have."""

    text: str = ""
    """As it stands in the translation; empty leaves the search free."""
    ids: tuple[int, ...] = ()
    """Its pieces, without </s>."""
    ends_a_word: bool = False
    """Its last word is whole: no piece may follow that would make it a longer one."""


class Prefixes:
    """Texts as prefixes for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, *, spaces: bool = True) -> None:
        """`spaces` is False for a language that writes none, where a piece says nothing of where words end."""
        self._tokenizer, self._spaces = tokenizer, spaces
        pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
        # Bytes spell what the vocabulary lacks, which may be a letter.
        self.continuing_V = torch.tensor([_in_a_word(piece[0]) or piece.startswith("<0x") for piece in pieces])
        self.continuing_V[[BOS, PAD]] = True  # they leave nothing in the text, and what follows would go on
        """(V,) bool: True for a piece that goes on with the word before it."""

    def make(self, text: str) -> Prefix:
        """The prefix of a text, which is normalised as texts of training are."""
        text = normalise(text)
        if not text:
            return Prefix()
        return Prefix(text, tuple(self._tokenizer.encode(text)[:-1]), self._spaces and _in_a_word(text[-1]))

    def text_of(self, ids: Sequence[int], prefix: Prefix) -> str:
        """The text of a translation that begins with a prefix: the prefix to the letter, then what was found.

        A character that the tokenizer does not know is lost in its ids, and is not in the text of the prefix.
        """
        text, forced = self._tokenizer.decode(ids), self._tokenizer.decode(prefix.ids)
        if text.startswith(forced):
            return prefix.text + text[len(forced) :]
        rest = ids[len(prefix.ids) :]
        opens = rest and self._tokenizer.pieces(rest[:1])[0].startswith(_SPACE)
        return prefix.text + (" " if opens else "") + self._tokenizer.decode(rest)


def _in_a_word(character: str) -> bool:
    """A letter, a digit, or a mark on one: vowel signs of Indic scripts are marks."""
    return unicodedata.category(character)[0] in "LMN"


class ForcePrefixes(LogitsProcessor):
    """Lets each of R rows take nothing but the next piece of its prefix, for as long as there is one.

    The scores of forced pieces stay the model's. While all beams of a sentence are forced they are copies of one
    another; all but the first begin so far down (transformers gives them -1e9) that the first free step drops them.
    """

    def __init__(self, prefixes: Sequence[Prefix], continuing_V: torch.Tensor, device: torch.device) -> None:
        """`prefixes`: one a row. `continuing_V`: see `Prefixes`."""
        longest = max(len(prefix.ids) for prefix in prefixes)
        forced = [[*prefix.ids, *([-1] * (longest - len(prefix.ids)))] for prefix in prefixes]
        self.forced_RT = torch.tensor(forced, dtype=torch.long, device=device).reshape(len(prefixes), longest)
        ends = [len(prefix.ids) if prefix.ends_a_word else -1 for prefix in prefixes]
        self.ends_R = torch.tensor(ends, device=device)
        self.continuing_V = continuing_V.to(device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = input_ids.shape[1] - 1  # input_ids begins with the decoder start
        longest = self.forced_RT.shape[1]
        if step > longest:
            return scores
        closing_R = self.ends_R == step
        result_RV = scores.masked_fill(closing_R[:, None] & self.continuing_V, -torch.inf)
        if step < longest:
            token_R = self.forced_RT[:, step]
            index_R1 = token_R.clamp(min=0)[:, None]
            only_RV = torch.full_like(scores, -torch.inf).scatter(1, index_R1, scores.gather(1, index_R1))
            result_RV = torch.where((token_R >= 0)[:, None], only_RV, result_RV)
        return result_RV  # type: ignore[return-value]
