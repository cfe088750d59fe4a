"""Writing on with CTranslate2: token ids to token ids, the same tokens as PyTorch draws, but for float rounding.

The engine's own sampling cannot keep what a seed promises: its generators belong to its threads, and `set_random_seed`
does not reach one that has drawn before. So tokens are drawn here, with numbers of their own (sampling.py), from the
logits that the engine returns. It is asked for several tokens at once, its most probable ones, and their logits; as
long as the tokens that are drawn are those, they count, and the engine goes on behind the first that is another: the
verification of Leviathan 2023, "Fast Inference from Transformers via Speculative Decoding", with greedy search as the
draft. Plain greedy search is the engine's own, in one call.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bmscale.data.tokenizer import EOS
from bmscale.inference.ctranslate2_folder import CTranslate2Folder, open_engine, workers_of
from bmscale.inference.sampling import SamplingOptions

_FIRST_DRAFT, _LONGEST_DRAFT = 4, 32  # tokens
_STREAMED_DRAFT = 8  # a reader sees so many come at once
_MOST_LOGITS = 2**25  # float32 numbers of one call
# Rows of one call may differ by so many tokens: what a row is longer than the shortest is read token by token.
_SPREAD = 8


class CTranslate2LanguageModel:
    """A decoder in a CTranslate2 folder as a language model (generator.py)."""

    name = "ctranslate2"

    def __init__(self, folder: CTranslate2Folder, device: str = "auto", compute_type: str = "auto") -> None:
        """Raises BadInput as `open_engine` does."""
        self.engine = open_engine(folder, device, compute_type)
        self.positions = folder.max_position_embeddings
        self._pieces = folder.tokenizer.pieces(range(folder.tokenizer.vocabulary_size))

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        limits: Sequence[int],
        options: SamplingOptions,
        never: Sequence[int],
        out: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """See `LanguageModel`."""
        rows = [
            _Row(prompt, sample, limit, options, never)
            for prompt, sample, limit in zip(prompts, samples, limits, strict=True)
        ]
        is_plain = options.temperature == 0 and options.repetition_penalty == 1 and out is None
        longest = _STREAMED_DRAFT if out is not None else _LONGEST_DRAFT
        while waiting := [row for row in rows if not row.is_done]:
            for batch in _batches(waiting):
                if is_plain:
                    self._finish(batch, never)
                else:
                    self._advance(batch, longest, never, out)
        return [row.written for row in rows]

    def _finish(self, batch: Sequence["_Row"], never: Sequence[int]) -> None:
        """The engine's greedy search up to the limit of each row, or to where the longest has no more positions."""
        most = min(max(row.room for row in batch), self._positions_left(batch))
        for row, (tokens, _) in zip(batch, self._drafts(batch, most, never, with_logits=False), strict=True):
            has_ended = len(tokens) < min(most, row.room)
            row.written += [*tokens, EOS] if has_ended else tokens[: row.room]
            row.is_done = has_ended or row.room < 1

    def _advance(
        self, batch: Sequence["_Row"], longest: int, never: Sequence[int], out: Callable[[int], None] | None
    ) -> None:
        """At least one token more for each row."""
        wanted = -(-sum(row.draft for row in batch) // len(batch))  # one reckless row does not slow all others down
        in_memory = max(1, _MOST_LOGITS // (len(self._pieces) * len(batch)) - _SPREAD)
        most = min(wanted, longest, in_memory, max(row.room for row in batch), self._positions_left(batch))
        for row, (tokens, logits) in zip(batch, self._drafts(batch, most, never), strict=True):
            accepted = row.take([*tokens, EOS], logits)
            row.draft = min(2 * accepted, longest) if accepted >= most else accepted
            for token in row.written[len(row.written) - accepted :]:
                if out is not None:
                    out(token)

    def _positions_left(self, batch: Sequence["_Row"]) -> int:
        """A table of sinusoids ends with the positions."""
        return self.positions - max(row.length for row in batch)

    def _drafts(
        self, batch: Sequence["_Row"], most: int, never: Sequence[int], *, with_logits: bool = True
    ) -> list[tuple[list[int], list[np.ndarray]]]:
        """The most probable tokens behind each row, at most so many and without </s>, and the (V,) logits that each
        was chosen by, those of </s> too where it comes. Each worker of the engine has its share of the rows."""
        texts = [[*row.prompt, *row.written] for row in batch]
        share = -(-len(texts) // workers_of(self.engine))
        parts = [texts[first : first + share] for first in range(0, len(texts), share)]
        asked = [
            self.engine.generate_batch(
                [[self._pieces[token] for token in text] for text in part],
                max_length=most,
                min_length=0,
                include_prompt_in_result=False,
                suppress_sequences=[[self._pieces[token]] for token in never],
                return_logits_vocab=with_logits,
                asynchronous=True,
            )
            for part in parts
        ]
        drafts = []
        for part, answers in zip(parts, asked, strict=True):
            shortest = min(map(len, part))
            for text, answer in zip(part, answers, strict=True):
                found = answer.result()
                # A text beyond the shortest is gone through step by step, and these steps have logits too.
                logits = found.logits[0][len(text) - shortest :] if with_logits else []
                drafts.append((list(found.sequences_ids[0]), [np.array(step_V) for step_V in logits]))
        return drafts


class _Row:
    """A text that is being written."""

    def __init__(
        self, prompt: Sequence[int], sample: int, limit: int, options: SamplingOptions, never: Sequence[int]
    ) -> None:
        self.prompt, self._limit = list(prompt), limit
        self.written: list[int] = []
        self.is_done = limit < 1
        self.draft = _FIRST_DRAFT
        self._processors = options.processors([self.prompt], [sample], max(limit, 1), never)

    @property
    def length(self) -> int:
        """Tokens that the engine has to read."""
        return len(self.prompt) + len(self.written)

    @property
    def room(self) -> int:
        """Tokens that may still come, </s> counted."""
        return self._limit - len(self.written)

    def take(self, draft: Sequence[int], logits: Sequence[np.ndarray]) -> int:
        """Draw tokens, by logits of one step after the other, until one is not the draft's. Returns how many."""
        before = len(self.written)
        for expected, logits_V in zip(draft, logits, strict=False):
            ids_1T = torch.tensor([[*self.prompt, *self.written]])
            scores_1V = torch.from_numpy(logits_V.astype(np.float32, copy=False))[None]
            token = int(self._processors(ids_1T, scores_1V)[0].argmax())
            self.written.append(token)
            self.is_done = token == EOS or self.room < 1
            if self.is_done or token != expected:
                break
        return len(self.written) - before


def _batches(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows of about one length.

    Those of <s> alone are by themselves: beside one, CTranslate2 4.8 gives the others' prompts back with their texts.
    """
    batches: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: row.length):
        shortest = batches[-1][0].length if batches else 0
        if row.length > shortest + (_SPREAD if shortest > 1 else 0):
            batches.append([])
        batches[-1].append(row)
    return batches
