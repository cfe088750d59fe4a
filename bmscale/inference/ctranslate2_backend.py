"""Translation with CTranslate2: token ids to token ids, through the engine's own batches, cache and beam search.

Where it differs from PyTorch's: a translation that reaches its limit is cut there, whereas PyTorch's search is made to
end; and a prefix of whole words is kept from being lengthened by leaving out the hypotheses that do, whereas PyTorch's
search never makes them. Greedy search is the same in both.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmscale.data.tokenizer import EOS
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import (
    CTranslate2Folder,
    batch_tokens,
    open_ctranslate2_folder,
    open_engine,
)
from bmscale.inference.prefix import Prefix
from bmscale.inference.search import SearchOptions, check_search

_LENGTH_CLASS = 16  # tokens
_MOST_SLOTS = 8192  # of a batch of forced tokens, both sides together


class CTranslate2Backend:
    """An encoder-decoder in a CTranslate2 folder as a backend (search.py)."""

    name = "ctranslate2"

    def __init__(self, folder: CTranslate2Folder, device: str = "auto", compute_type: str = "auto") -> None:
        """Raises BadInput as `open_engine` does."""
        self.translator = open_engine(folder, device, compute_type)
        self._pieces = folder.tokenizer.pieces(range(folder.tokenizer.vocabulary_size))
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}
        self.positions = folder.max_position_embeddings
        self._longest = folder.max_position_embeddings if folder.has_position_table else None

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str = "auto", compute_type: str = "auto"
    ) -> "CTranslate2Backend":
        """Open a folder. Raises BadInput as `open_ctranslate2_folder` does."""
        return cls(open_ctranslate2_folder(path), device, compute_type)

    def search(
        self,
        sources: Sequence[Sequence[int]],
        n: int,
        options: SearchOptions,
        prefixes: Sequence[Prefix],
        continuing: Any,
    ) -> list[list[list[int]]]:
        """See `Backend`. Raises BadInput for a source or prefix that is longer than a table of sinusoids."""
        check_search(n, options, len(self._pieces))
        results = [[list(prefix.ids)] for prefix in prefixes]
        wanted = [row for row, source in enumerate(sources) if any(token != EOS for token in source)]
        self._check_lengths([sources[row] for row in wanted])

        def limit(row: int) -> int:
            return options.limit(len(sources[row]), len(prefixes[row].ids), self.positions)

        def rough_limit(row: int) -> int:
            """That of its class of lengths: one limit for many rows makes large batches, and is the row's own."""
            length = -(-len(sources[row]) // _LENGTH_CLASS) * _LENGTH_CLASS
            return options.limit(length, 0, self.positions)

        free = [row for row in wanted if not prefixes[row].ids]
        too_long = []
        for most, rows in _grouped(free, rough_limit):
            for row, found in zip(rows, self._search(rows, sources, most, n, options), strict=True):
                results[row] = found
                if max(map(len, found)) >= limit(row):
                    too_long.append(row)
        for most, rows in _grouped(too_long, limit):
            for row, found in zip(rows, self._search(rows, sources, most, n, options), strict=True):
                results[row] = found
        begun = [row for row in wanted if prefixes[row].ids]
        for (most, _), rows in _grouped(begun, lambda row: (limit(row), len(prefixes[row].ids))):
            for row, found in zip(
                rows, self._search_begun(rows, sources, most, n, options, prefixes, continuing), strict=True
            ):
                results[row] = found
        return results

    def _search(
        self,
        rows: Sequence[int],
        sources: Sequence[Sequence[int]],
        limit: int,
        n: int,
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[list[int]]]:
        """Translations of the rows, of less than `limit` tokens; `prefixes`, one a row, are of one length."""
        if limit == 1:  # there is room for </s> alone
            return [[[]] for _ in rows]
        if prefixes:
            self._check_lengths([[*prefix, EOS] for prefix in prefixes])
        if self._longest is not None:  # the room behind a prefix ends with the table
            limit = min(limit, self._longest)
        most = max(1, options.max_batch_tokens // options.beam_size)
        tokens = [self._tokens(sources[row]) for row in rows]
        found = self.translator.translate_batch(
            tokens,
            None if prefixes is None else [self._tokens(prefix) for prefix in prefixes],
            **self._batches_of(tokens, most),
            beam_size=options.beam_size,
            num_hypotheses=n,
            length_penalty=options.length_penalty,
            # By default the engine stops once as many translations are complete as there are beams, though one that
            # goes on may be better; transformers looks whether it can. With twice as many they find the same.
            patience=2.0,
            max_decoding_length=limit - 1,
            min_decoding_length=0,  # 1 would forbid </s> at first, and the score of everything else would change
        )
        return [_once(map(self._numbers, result.hypotheses)) for result in found]

    def _search_begun(
        self,
        rows: Sequence[int],
        sources: Sequence[Sequence[int]],
        limit: int,
        n: int,
        options: SearchOptions,
        prefixes: Sequence[Prefix],
        continuing: Any,
    ) -> list[list[list[int]]]:
        """The same behind prefixes of one length, none of which may become a longer word."""
        length = len(prefixes[rows[0]].ids)
        heads = [prefixes[row].ids for row in rows]
        found = self._search(rows, sources, limit, options.beam_size, options, heads)
        results = []
        for row, hypotheses in zip(rows, found, strict=True):
            if prefixes[row].ends_a_word:
                hypotheses = [ids for ids in hypotheses if len(ids) == length or not continuing[ids[length]]]
            if not hypotheses:  # every way lengthens the word: take the best token that does not
                (next_V,) = self.next_log_probabilities([sources[row]], [prefixes[row].ids])
                token = int(np.where(np.asarray(continuing), -np.inf, next_V).argmax())
                head = [*prefixes[row].ids, token]
                ends = token == EOS or len(head) >= limit
                hypotheses = [list(prefixes[row].ids)]
                if not ends:
                    (hypotheses,) = self._search([row], sources, limit, n, options, [head])
            results.append(hypotheses[:n])
        return results

    def next_log_probabilities(
        self, sources: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """See `Backend`."""
        self._check_lengths([*sources, *([*prefix, EOS] for prefix in prefixes)])
        found: list[np.ndarray] = [np.zeros(0)] * len(sources)
        for length, rows in _batches(range(len(sources)), sources, [len(prefix) for prefix in prefixes]):
            tokens = [self._tokens(sources[row]) for row in rows]
            answers = self.translator.translate_batch(
                tokens,
                [self._tokens(prefixes[row]) for row in rows],
                **self._batches_of(tokens, _MOST_SLOTS),
                beam_size=1,
                max_decoding_length=length + 1,
                min_decoding_length=0,
                return_logits_vocab=True,
            )
            for row, answer in zip(rows, answers, strict=True):
                logits_V = np.array(answer.logits[0][length], dtype=np.float64)
                found[row] = logits_V - np.logaddexp.reduce(logits_V)
        return found

    def log_probabilities(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int = 8192
    ) -> list[float]:
        """See `Backend`. Raises BadInput for a side that is longer than a table of sinusoids."""
        return [sum(values) for values in self.token_log_probabilities(sources, targets, max_batch_tokens)]

    def token_log_probabilities(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_batch_tokens: int = 8192
    ) -> list[list[float]]:
        """The same token by token, </s> included."""
        self._check_lengths([*sources, *targets])
        tokens = [self._tokens(source) for source in sources]
        found = self.translator.score_batch(
            tokens, [self._tokens(target) for target in targets], **self._batches_of(tokens, max_batch_tokens)
        )
        return [list(result.log_probs) for result in found]

    def attention(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """See `Backend`."""
        self._check_lengths([*sources, *targets])
        found = [np.zeros((len(target) - 1, len(source) - 1)) for source, target in zip(sources, targets, strict=True)]
        wanted = [row for row, matrix in enumerate(found) if matrix.size]
        for length, rows in _batches(wanted, sources, [len(target) - 1 for target in targets]):
            tokens = [self._tokens(sources[row]) for row in rows]
            answers = self.translator.translate_batch(
                tokens,
                [self._tokens(targets[row]) for row in rows],
                **self._batches_of(tokens, _MOST_SLOTS),
                beam_size=1,
                max_decoding_length=length,  # nothing behind the target
                min_decoding_length=0,
                return_attention=True,
            )
            for row, answer in zip(rows, answers, strict=True):
                height, width = found[row].shape
                found[row] = np.array(answer.attention[0])[:height, :width]
        return found

    def _tokens(self, ids: Sequence[int]) -> list[str]:
        """Pieces of ids, without the </s> at their end, which the engine puts there itself."""
        return [self._pieces[number] for number in (ids[:-1] if ids and ids[-1] == EOS else ids)]

    def _batches_of(self, tokens: Sequence[Sequence[str]], most: int) -> dict[str, Any]:
        """How a call goes to the workers of the engine; no source is cut."""
        size = batch_tokens(self.translator, [len(row) for row in tokens], most)
        return {"max_batch_size": size, "batch_type": "tokens", "max_input_length": 0}

    def _numbers(self, tokens: Sequence[str]) -> list[int]:
        return [self._ids[token] for token in tokens]

    def _check_lengths(self, sides: Iterable[Sequence[int]]) -> None:
        for ids in sides:
            if self._longest is not None and len(ids) > self._longest:
                raise BadInput(
                    f"text: must have at most {self._longest:,} tokens, </s> counted, where the model's table of "
                    f"positions ends in CTranslate2; got {len(ids):,}: shorten it, or use the torch backend"
                )


def _once(hypotheses: Iterable[list[int]]) -> list[list[int]]:
    return [list(ids) for ids in dict.fromkeys(map(tuple, hypotheses))]


def _grouped(rows: Iterable[int], key: Callable[[int], Any]) -> Iterable[tuple[Any, list[int]]]:
    """Rows with the same key, each key once."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups.items()


def _batches(
    rows: Iterable[int], sources: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Rows whose forced tokens are equally many, which `lengths` counts, in batches of a bounded number of slots of
    both sides: of each step the engine keeps all logits, or the attention of every source token."""
    for length, alike in _grouped(rows, lengths.__getitem__):
        alike.sort(key=lambda row: len(sources[row]), reverse=True)
        while alike:
            most = max(1, _MOST_SLOTS // (len(sources[alike[0]]) + length + 1))
            yield length, alike[:most]
            alike = alike[most:]
