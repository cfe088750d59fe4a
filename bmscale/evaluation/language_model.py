"""How well a language model predicts text: each document by itself, in windows, with every token scored once.

Windows are those of the lm-eval harness (`get_rolling_token_windows`): the first scores all that it holds, each later
one the next `stride` tokens behind context that fills it up, the last one included. A small stride gives a token more
of the context that it would have in use, at the price of reading text several times (Baevski and Auli 2019, section
6.1; Hugging Face, "Perplexity of fixed-length models"). With `stride` = `window` every token is read once, and
the sum is the harness' `loglikelihood_rolling`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bmscale.data.tokenizer import PAD
from bmscale.errors import BadInput
from bmscale.model.loss import IGNORED

_POOLED_BATCHES = 32  # windows of so many batches are held to find those of alike length


@dataclass(frozen=True)
class LanguageModelScore:
    """What a model needs to tell a text; bits a byte can be compared between models of different tokenizers."""

    nll_sum: float
    """Negative log-likelihood of all scored tokens, in nats."""
    tokens: int
    """How many those are: all of a document but its <s>."""
    text_bytes: int
    """UTF-8 bytes of the text that they spell."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), a token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Of the text, </s> paid for but not counted as text."""
        return self.nll_sum / math.log(2) / self.text_bytes


@dataclass(frozen=True)
class Continuation:
    """What a model says of a continuation that is given."""

    log_likelihood: float
    """log P(continuation | context) in nats, summed over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the most probable one."""


@dataclass(frozen=True)
class _Window:
    ids: np.ndarray
    """Tokens from the first of the context to the last that is scored."""
    scored: int
    """How many of them, the last ones, are scored."""

    @property
    def slots(self) -> int:
        return len(self.ids) - 1


def evaluate_language_model(
    model: Any,
    documents: Iterable[np.ndarray],
    text_bytes: int,
    *,
    window: int,
    stride: int,
    max_batch_tokens: int = 8192,
) -> LanguageModelScore:
    """Score documents, each the ids of `<s> text </s>`, that spell `text_bytes` bytes together.

    `model` is a bmscale language model on any device, in evaluation mode. It reads at most `window` tokens at a time,
    and behind the first window scores the next `stride` of them, each with at least window - stride + 1 tokens before
    it. A batch holds at most `max_batch_tokens` padded tokens; a longer window is alone in its own. Documents are read
    as they are needed, so an iterator may give more than memory holds.

    Raises BadInput for a number that cannot be used, and where there is no token to score.
    """
    for name, value, most in (("window", window, None), ("stride", stride, window), ("text_bytes", text_bytes, None)):
        if value < 1 or (most is not None and value > most):
            upper = "" if most is None else f" and at most the window, {most:,}"
            raise BadInput(f"{name}: must be at least 1{upper}; got {value:,}")
    nll, tokens = 0.0, 0
    windows = (part for document in documents for part in _windows(document, window, stride))
    with torch.no_grad():
        for batch in _batches_of_alike(windows, max_batch_tokens):
            input_BT, label_BT = _rows(batch, model.device)
            sums = model(input_ids=input_BT, shift_labels=label_BT, return_loss_sums=True)
            nll += float(sums.nll)
            tokens += sum(part.scored for part in batch)
    if not tokens:
        raise BadInput("documents: there is nothing to score; give at least one document of <s> and another token")
    return LanguageModelScore(nll, tokens, text_bytes)


def continuation_likelihoods(
    model: Any,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    window: int | None = None,
    max_batch_tokens: int = 8192,
) -> list[Continuation]:
    """How likely each continuation is behind its context, in order: the `loglikelihood` of the lm-eval harness.

    Both are ids; a context has at least one (<s> where there is no other), a continuation may have none. Context that
    does not fit into `window` tokens (by default the model's positions) is cut from its beginning; a continuation is
    never cut. Raises BadInput for unequal counts or a context without a token.
    """
    if len(contexts) != len(continuations):
        raise BadInput(f"every continuation needs one context: got {len(contexts)} and {len(continuations)}")
    if not all(len(context) for context in contexts):
        raise BadInput("contexts: must have at least one token each; give <s> where there is no other")
    window = window or int(model.config.max_position_embeddings)
    parts = []
    for context, continuation in zip(contexts, continuations, strict=True):
        ids = np.array([*context, *continuation], dtype=np.int64)
        parts.append(_Window(ids[-max(window, len(continuation)) - 1 :], len(continuation)))
    results = [Continuation(0.0, True)] * len(parts)
    order = sorted((row for row, part in enumerate(parts) if part.scored), key=lambda row: -parts[row].slots)
    with torch.no_grad():
        for rows in _batches([parts[row] for row in order], max_batch_tokens):
            input_BT, label_BT = _rows(rows, model.device)
            states_BTD = model.model(input_ids=input_BT, use_cache=False).last_hidden_state
            for place, row in enumerate(order[: len(rows)]):
                # Row by row through the head, which never holds all logits of what it is given.
                sums = model.lm_head(states_BTD[place, None], label_BT[place, None])
                results[row] = Continuation(-float(sums.nll), int(sums.correct) == parts[row].scored)
            del order[: len(rows)]
    return results


def _windows(document: np.ndarray, window: int, stride: int) -> Iterator[_Window]:
    """The windows of one document; together they score all but its first token, each once."""
    last, end = len(document) - 1, 0
    while end < last:
        scored = min(last - end, stride if end else window)
        end += scored
        yield _Window(np.asarray(document[max(0, end - window) : end + 1]), scored)


def _batches_of_alike(windows: Iterable[_Window], max_batch_tokens: int) -> Iterator[list[_Window]]:
    pool: list[_Window] = []
    held = 0
    for part in windows:
        pool.append(part)
        held += part.slots
        if held >= _POOLED_BATCHES * max_batch_tokens:
            yield from _batches(pool, max_batch_tokens)
            pool, held = [], 0
    yield from _batches(pool, max_batch_tokens)


def _batches(windows: Sequence[_Window], max_batch_tokens: int) -> Iterator[list[_Window]]:
    """The windows, longest first, in runs; the first of each is its longest, and so its width."""
    batch: list[_Window] = []
    for part in sorted(windows, key=lambda part: -part.slots):
        if batch and (len(batch) + 1) * batch[0].slots > max_batch_tokens:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def _rows(batch: Sequence[_Window], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Input (B, T) and what each slot must predict (B, T), padded on the right, where causality hides it."""
    shape = (len(batch), max(part.slots for part in batch))
    input_BT, label_BT = np.full(shape, PAD, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    for row, part in enumerate(batch):
        input_BT[row, : part.slots] = part.ids[:-1]
        label_BT[row, part.slots - part.scored : part.slots] = part.ids[len(part.ids) - part.scored :]
    return torch.from_numpy(input_BT).to(device), torch.from_numpy(label_BT).to(device)
