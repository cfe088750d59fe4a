"""Text written on by a language model: prompts in, continuations out."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bmscale.data.framing import document_ids, document_text
from bmscale.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from bmscale.errors import BadInput
from bmscale.inference.backends import open_language_model
from bmscale.inference.sampling import SamplingOptions
from bmscale.inference.torch_language_model import TorchLanguageModel
from bmscale.model.folder import ModelFolder

_MOST_SAMPLES = 10_000
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Generation:
    """What was written behind one prompt."""

    text: str
    """The continuation; it begins with a space where a new word does."""
    tokens: int
    """Its tokens, </s> not counted."""
    ended: bool
    """Whether the model ended it with </s>, and not the most tokens that it may have."""


class LanguageModel(Protocol):
    """A decoder that is loaded into some engine."""

    name: str
    """As `--backend` has it."""
    positions: int
    """The most tokens of a prompt and what is written behind it, <s> counted."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        limits: Sequence[int],
        options: SamplingOptions,
        never: Sequence[int],
        out: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """What is written behind each prompt (ids with <s>), at most so many tokens each; </s> is the last of a text
        that ended. The tokens `never` are not chosen, and `samples` tells rows of one prompt apart.

        What comes out for one row does not depend on the others, but for rounding. `out` is given each token of the
        only row, </s> too, as soon as it is sure; what it raises ends the writing.
        """


class Generator:
    """A language model folder as a function from prompts to texts. Any prompt is fine, also an empty one.

    A text depends on its prompt, the options and which sample it is, and not on what else is asked at the same time,
    but for float rounding.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        """`model`: a decoder of bmscale.model, or a LanguageModel."""
        self.backend: LanguageModel = model if hasattr(model, "write") else TorchLanguageModel(model)
        self.tokenizer = tokenizer
        pieces = tokenizer.pieces(range(tokenizer.vocabulary_size))
        self._never = [BOS, PAD, UNK, *(number for number, piece in enumerate(pieces) if piece == "<mask>")]

    @property
    def model(self) -> Any:
        """The transformers model. Raises AttributeError where there is none, with CTranslate2."""
        return self.backend.model  # type: ignore[attr-defined]

    @property
    def positions(self) -> int:
        """The most tokens of a prompt and what is written behind it, <s> counted."""
        return self.backend.positions

    @classmethod
    def from_pretrained(
        cls, path: str | Path | ModelFolder, backend: str = "auto", device: Any = "auto", compute_type: str = "auto"
    ) -> "Generator":
        """Open a model folder with PyTorch, or with CTranslate2 a folder that was exported to ctranslate2.

        The arguments are those of `Translator.from_pretrained`. Raises BadInput for a folder that is damaged, of
        another task or of another backend, a device that is not there, or a compute type that the device or backend
        does not have.
        """
        return cls(*open_language_model(path, backend, device, compute_type))

    def generate(
        self,
        prompts: Sequence[str],
        options: SamplingOptions | None = None,
        *,
        samples: int = 1,
        max_batch_tokens: int = 16384,
    ) -> list[list[Generation]]:
        """So many `samples` of a continuation for each prompt, in order.

        A batch holds at most `max_batch_tokens` slots of prompts and what may be written behind them.

        Raises BadInput for a prompt of more tokens than the model has positions, less one to write in, and for several
        samples of greedy search, which are all the same.
        """
        options = options or SamplingOptions()
        check_samples(samples, options)
        if isinstance(prompts, str):
            raise BadInput("prompts: must be a list of texts; got one string: put it in a list")
        ids = [self._prompt_ids(prompt, number) for number, prompt in enumerate(prompts, start=1)]
        rows = [(prompt, sample) for prompt in ids for sample in range(samples)]
        found: dict[int, Generation] = {}
        for batch in self._batches(rows, options, max_batch_tokens):
            found.update(zip(batch, self._write([rows[row] for row in batch], options), strict=True))
        return [[found[number * samples + sample] for sample in range(samples)] for number in range(len(ids))]

    def stream(
        self,
        prompt: str,
        options: SamplingOptions | None = None,
        *,
        out: Callable[[str], None],
        sample: int = 0,
        watch: Callable[[], None] | None = None,
    ) -> Generation:
        """One continuation; the prompt and then the text go to `out` part by part, as soon as characters are whole.

        `watch` is called for each token, whether or not it adds to the text; what it or `out` raises ends the writing.

        The text is that of this sample of `generate`. Raises BadInput as `generate` does, before anything is given out.
        """
        ids = self._prompt_ids(prompt)
        out(prompt)
        parts = _Parts(lambda written: self._text(ids, written), out)

        def add(token: int) -> None:
            if watch is not None:
                watch()
            parts.add(token)

        (result,) = self._write([(ids, sample)], options or SamplingOptions(), add)
        parts.finish(result.text)
        return result

    def stream_lines(
        self,
        prompts: Iterable[str],
        options: SamplingOptions | None = None,
        *,
        samples: int = 1,
        chunk_prompts: int = 64,
    ) -> Iterator[tuple[str, list[Generation]]]:
        """Prompts as they come, each with its continuations; at most `chunk_prompts` are held. Raises BadInput as
        `generate` does."""
        check_samples(samples, options or SamplingOptions())  # a mistake shows before the first prompt comes
        rest = iter(prompts)
        while chunk := list(itertools.islice(rest, chunk_prompts)):
            yield from zip(chunk, self.generate(chunk, options, samples=samples), strict=True)

    def _prompt_ids(self, prompt: str, number: int = 1) -> list[int]:
        ids = document_ids(self.tokenizer, prompt)[:-1]
        most = self.positions - 1
        if len(ids) > most:
            raise BadInput(
                f"prompt {number}: must have at most {most:,} tokens, <s> counted, so that the model's "
                f"{most + 1:,} positions leave one to write in; got {len(ids):,}: {prompt[:40]!r} …; shorten it"
            )
        return ids

    def _limit(self, prompt: Sequence[int], options: SamplingOptions) -> int:
        """The most tokens behind a prompt."""
        return min(options.max_new_tokens, self.positions - len(prompt))

    def _batches(
        self, rows: Sequence[tuple[list[int], int]], options: SamplingOptions, max_batch_tokens: int
    ) -> list[list[int]]:
        """Indices of rows grouped by length, longest first: too large a batch fails at once."""
        batches: list[list[int]] = []
        width = 0
        for row in sorted(range(len(rows)), key=lambda row: -len(rows[row][0])):
            prompt = rows[row][0]
            width = max(width, len(prompt) + self._limit(prompt, options))
            if not batches or (len(batches[-1]) + 1) * width > max_batch_tokens:
                batches.append([])
                width = len(prompt) + self._limit(prompt, options)
            batches[-1].append(row)
        return batches

    def _write(
        self,
        rows: Sequence[tuple[list[int], int]],
        options: SamplingOptions,
        out: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """One batch of prompts and sample numbers."""
        prompts, samples = [prompt for prompt, _ in rows], [sample for _, sample in rows]
        limits = [self._limit(prompt, options) for prompt in prompts]
        written = self.backend.write(prompts, samples, limits, options, self._never, out)
        return [self._generation(prompt, ids) for prompt, ids in zip(prompts, written, strict=True)]

    def _generation(self, prompt: list[int], written: list[int]) -> Generation:
        ended = EOS in written
        written = written[: written.index(EOS)] if ended else written
        return Generation(self._text(prompt, written), len(written), ended)

    def _text(self, prompt: list[int], written: list[int]) -> str:
        """What the tokens add to the text of the prompt: decoded alone they would lose a space before them."""
        before = document_text(self.tokenizer, prompt)
        whole = document_text(self.tokenizer, [*prompt, *written])
        return whole[len(before) :] if whole.startswith(before) else document_text(self.tokenizer, written)


class _Parts:
    """Takes tokens as they are written and gives out the text that is sure.

    A character that the vocabulary lacks is spelt in up to four tokens of a byte each; until the last of them is there,
    decoding gives U+FFFD at the end, which is held back.
    """

    def __init__(self, text_of: Callable[[list[int]], str], out: Callable[[str], None]) -> None:
        self._text_of, self._out = text_of, out
        self._ids: list[int] = []
        self._given = 0

    def add(self, token: int) -> None:
        """One token more."""
        if token != EOS:
            self._ids.append(token)
            self.finish(self._text_of(self._ids).rstrip(_REPLACEMENT))

    def finish(self, text: str) -> None:
        """Give out what of the text was not given yet."""
        if len(text) > self._given:
            self._out(text[self._given :])
            self._given = len(text)


def check_samples(samples: int, options: SamplingOptions) -> None:
    """Raises BadInput for a number of samples that cannot be drawn."""
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= _MOST_SAMPLES:
        raise BadInput(f"samples: must be a whole number from 1 to {_MOST_SAMPLES:,}; got {samples!r}")
    if samples > 1 and options.temperature == 0:
        raise BadInput(f"samples: must be 1 with temperature 0, which always writes the same; got {samples}")
