"""Packing: documents one after the other, cut into rows of one length; which rows step k trains on.

An epoch is every document once in an order of its own (or as many as a `Mixture` draws), laid end to end as one stream
of tokens. Row r is the tokens r L … (r + 1) L - 1 of the stream, for the sequence length L, and a step is the next few
rows. So no token is left out or comes twice in an epoch, there is no padding but in the epoch's last row, and a long
document goes on in the next row. As with pairs (steps.py) the rows of a step are a pure function of (document lengths,
mixture, seed, tokens_per_step, step).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bmscale.data.steps import Ids, Lengths, Mixture, Plan
from bmscale.errors import BadInput


class DocumentSource(Protocol):
    """Where the tokens of a document come from."""

    def document(self, i: int) -> NDArray[Any]:
        """The token ids of document `i`, from <s> to </s>."""
        ...


class DocumentsInMemory:
    """Documents that are no shards."""

    def __init__(self, documents: list[np.ndarray]) -> None:
        self._documents = documents
        self.lengths = np.array([len(document) for document in documents], np.int32)

    def document(self, i: int) -> np.ndarray:
        """The token ids of document `i`."""
        return self._documents[i]


@dataclass(frozen=True)
class Row:
    """One packed row and what follows it."""

    tokens: NDArray[np.int64]
    """(L,) or fewer in the last row of an epoch: the tokens of the row."""
    next_tokens: NDArray[np.int64]
    """(L,) the token that follows each of them in its document, -1 behind the last of a document."""
    segments: NDArray[np.int64]
    """(L,) from 1: which document of the row each token belongs to."""


@dataclass(frozen=True)
class _Stream:
    """The documents of an epoch, end to end."""

    order: Ids
    """(documents,)"""
    starts: Ids
    """(documents + 1,) where each begins, and the end of the stream."""

    @property
    def tokens(self) -> int:
        return int(self.starts[-1])


class RowPlan(Plan):
    """The rows of every global step.

    Raises BadInput where a step cannot hold a row, or there are no documents.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        sequence_length: int,
        seed: int,
        tokens_per_step: int,
        mixture: Mixture | None = None,
        causal: bool = True,
        shuffled: bool = True,
    ) -> None:
        """`lengths` (documents,) count <s> and </s>. A `causal` model is not given the last token of the stream, behind
        which nothing is to be predicted. Validation data is not `shuffled`."""
        super().__init__()
        if not len(lengths):
            raise BadInput("the training data must hold at least one document; got none")
        if tokens_per_step < sequence_length:
            raise BadInput(
                f"training.tokens_per_step: must hold a row of training.sequence_length, {sequence_length} tokens; got "
                f"{tokens_per_step}. Raise it, or lower training.sequence_length"
            )
        self.lengths, self.sequence_length, self.seed, self.mixture = lengths, sequence_length, seed, mixture
        self.rows_per_step = tokens_per_step // sequence_length
        self._unread, self._shuffled = (1 if causal else 0), shuffled
        self._stream = lru_cache(maxsize=1)(self._lay_out)
        self._tokens = int(lengths.sum(dtype=np.int64))

    def _lay_out(self, epoch: int) -> _Stream:
        documents: int | Ids = len(self.lengths) if self.mixture is None else self.mixture.draw(self.seed, epoch)
        order = (
            np.random.default_rng([self.seed, epoch]).permutation(documents)
            if self._shuffled
            else np.arange(len(self.lengths))
        )
        return _Stream(order, np.concatenate([[0], np.cumsum(self.lengths[order], dtype=np.int64)]))

    def rows_in_epoch(self, epoch: int) -> int:
        """Rows of an epoch, the last and shorter one included."""
        tokens = self._tokens if self.mixture is None else self._stream(epoch).tokens
        return -(-(tokens - self._unread) // self.sequence_length)

    def steps_in_epoch(self, epoch: int) -> int:
        return -(-self.rows_in_epoch(epoch) // self.rows_per_step)

    def rows(self, step: int) -> tuple[int, range]:
        """(epoch, rows of that epoch) of global step `step`, counted from 0."""
        epoch, index = self.locate(step)
        first = index * self.rows_per_step
        return epoch, range(first, min(first + self.rows_per_step, self.rows_in_epoch(epoch)))

    def _span(self, stream: _Stream, row: int) -> tuple[int, int]:
        begin = row * self.sequence_length
        return begin, min(begin + self.sequence_length, stream.tokens - self._unread)

    def read(self, source: DocumentSource, epoch: int, row: int) -> Row:
        """One row of an epoch, out of the shards."""
        stream = self._stream(epoch)
        begin, end = self._span(stream, row)
        first = int(np.searchsorted(stream.starts, begin, side="right")) - 1
        last = int(np.searchsorted(stream.starts, end, side="left"))
        tokens, following, segments = [], [], []
        for segment, index in enumerate(range(first, last), start=1):
            start, stop = int(stream.starts[index]), int(stream.starts[index + 1])
            first_token, end_token = max(begin, start) - start, min(end, stop) - start
            # A slice of the shards, one longer than the piece: a document may be of any length.
            piece = source.document(int(stream.order[index]))[first_token : end_token + 1].astype(np.int64)
            count = end_token - first_token
            tokens.append(piece[:count])
            following.append(piece[1:] if len(piece) > count else np.append(piece[1:], -1))
            segments.append(np.full(count, segment))
        return Row(np.concatenate(tokens), np.concatenate(following), np.concatenate(segments))

    def pieces(self, step: int, *, joined: bool = False) -> Ids:
        """The lengths of what attention sees at once in the rows of a step: pieces of documents, or whole rows where
        the documents of a row are `joined`."""
        epoch, rows = self.rows(step)
        stream = self._stream(epoch)
        begin, end = self._span(stream, rows.start)[0], self._span(stream, rows.stop - 1)[1]
        inside = slice(*np.searchsorted(stream.starts, [begin, begin if joined else end]))
        cuts = np.unique(
            np.concatenate([stream.starts[inside], np.array([*range(begin, end, self.sequence_length), end])])
        )
        return np.diff(cuts)

    def predicted_tokens(self, step: int) -> int:
        """Tokens that a causal model predicts in a step: all that follow another one in their document."""
        epoch, rows = self.rows(step)
        stream = self._stream(epoch)
        begin, end = self._span(stream, rows.start)[0], self._span(stream, rows.stop - 1)[1]
        begun = np.searchsorted(stream.starts, end, side="right") - np.searchsorted(stream.starts, begin, side="right")
        return end - begin - int(begun)


def split_rows(rows: range, *, rows_per_batch: int, world_size: int) -> list[list[list[int]]]:
    """Deal a step's rows out: `result[round][rank]` holds row numbers.

    Every rank gets the same number of micro-batches, of sizes that differ by one at most; some may be empty.
    """
    rounds = -(-len(rows) // (rows_per_batch * world_size))
    bounds = np.linspace(rows.start, rows.stop, rounds * world_size + 1).round().astype(int)
    batches = [list(range(begin, end)) for begin, end in pairwise(bounds.tolist())]
    return [batches[first : first + world_size] for first in range(0, len(batches), world_size)]


def token_mixture(token_counts: Sequence[int], sizes: Sequence[int], shares: Sequence[float]) -> Mixture:
    """A mixture in which `shares` are of the tokens, not of the documents, of each source.

    Documents are drawn in proportion to share / mean length: long ones less often.
    """
    weights = [
        share * size / tokens if size else 0.0 for tokens, size, share in zip(token_counts, sizes, shares, strict=True)
    ]
    mixture = Mixture.by_weight(sizes, weights)
    for number, (quota, share) in enumerate(zip(mixture.quotas, shares, strict=True), start=1):
        if share and sizes[number - 1] and not quota:
            raise BadInput(
                f"training.sampling: every source must come to a document an epoch at least; number {number}, whose "
                f"documents are long ({token_counts[number - 1] // sizes[number - 1]:,} tokens), comes to none. Raise "
                "its share, or prepare its text in shorter documents"
            )
    return mixture
