"""How a translation is searched for, whatever searches: the options, and what a backend must be able to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bmscale.errors import BadInput
from bmscale.inference.prefix import Prefix

_MOST_BEAMS = 1_000
_MOST_PENALTY = 10.0  # a length to a greater power leaves float32
_MOST_LENGTH_RATIO = 1_000.0


@dataclass(frozen=True)
class SearchOptions:
    """How a translation is searched for. Raises BadInput for a value that cannot be used."""

    beam_size: int = 5
    """Hypotheses kept, at most 1,000 and the pieces of the vocabulary; 1 is greedy search."""
    length_penalty: float = 1.0
    """A beam's log-probability is divided by its length (tokens with </s>) to this power, -10 to 10; above 0 favours
    long ones."""
    max_batch_tokens: int = 8192
    """Padded source tokens of a batch, every beam counted. A sentence that is longer is a batch of its own."""
    max_length_ratio: float = 3.0
    """A translation has at most this many tokens for each token of its source …"""
    max_length_extra: int = 10
    """… and so many more, or as many as the model has positions; at that length the search is made to end."""

    def __post_init__(self) -> None:
        for name, least in (("beam_size", 1), ("max_batch_tokens", 1), ("max_length_extra", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BadInput(f"{name}: must be a whole number of at least {least}; got {value!r}")
        if self.beam_size > _MOST_BEAMS:
            raise BadInput(f"beam_size: must be at most {_MOST_BEAMS:,}; got {self.beam_size:,}")
        ranges = (("length_penalty", -_MOST_PENALTY, _MOST_PENALTY), ("max_length_ratio", 0.0, _MOST_LENGTH_RATIO))
        for name, least_value, most_value in ranges:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least_value <= value <= most_value:  # NaN is in no range
                raise BadInput(f"{name}: must be a number from {least_value:g} to {most_value:g}; got {value!r}")

    def longest_target(self, source_length: int) -> int:
        """The most target tokens, </s> counted, for a source of so many tokens, </s> counted."""
        return int(source_length * self.max_length_ratio) + self.max_length_extra

    def limit(self, source_length: int, prefix_length: int, positions: int) -> int:
        """The same for a model of so many positions and a translation that begins with so many given tokens."""
        limit = min(self.longest_target(source_length), positions)
        # A prefix is never cut, and the search has room behind it to come to an end.
        return max(limit, prefix_length + self.max_length_extra) if prefix_length else limit


def check_search(n: int, options: SearchOptions, vocabulary_size: int) -> None:
    """Raises BadInput for more beams than pieces, or n-best lists that are longer than the beam."""
    if options.beam_size > vocabulary_size:
        raise BadInput(
            f"beam_size: must be at most {vocabulary_size:,}, the pieces of the vocabulary; got {options.beam_size:,}"
        )
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= options.beam_size:
        raise BadInput(
            f"n_best: must be a whole number from 1 to the beam size, {options.beam_size}; got {n!r}: a search keeps "
            "no more hypotheses than it has beams; ask for fewer, or raise the beam size"
        )


class Backend(Protocol):
    """An encoder-decoder that is loaded into some engine. Sources and targets are ids that end in </s>, translations
    and prefixes ids without it. What comes out for one source does not depend on the others, but for rounding."""

    name: str
    """As `--backend` has it."""

    positions: int
    """The most tokens of a translation, </s> counted."""

    def search(
        self,
        sources: Sequence[Sequence[int]],
        n: int,
        options: SearchOptions,
        prefixes: Sequence[Prefix],
        continuing: Any,
    ) -> list[list[list[int]]]:
        """At most n different translations of each source, best first, and at least one.

        There are fewer than n where the search found no more. A source of </s> alone has its prefix as its only
        translation. `continuing` is `Prefixes.continuing_V`. Raises BadInput as `check_search` does.
        """

    def next_log_probabilities(
        self, sources: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """(V,) for each source: what the model says of the token behind its prefix, in nats."""

    def log_probabilities(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int
    ) -> list[float]:
        """log P(target | source) in nats for each pair, summed over the target's tokens, </s> counted."""

    def attention(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """(T, S) for each pair: how much of its cross-attention each token of the target, </s> left out, gives to each
        token of the source, </s> left out; what a row lacks to 1 went to </s>.

        It is the mean over the heads of the layer before the last (the only one where there is but one), the one that
        Garg 2019, "Jointly Learning to Align and Translate", section 4.1, found to align best.
        """
