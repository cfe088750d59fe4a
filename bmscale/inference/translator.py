"""Translation with a trained model: token ids to token ids, and lines of text to lines of text.

`translate_ids` works on a live module, so that the training loop can call it; `Translator` opens a model folder. Both
promise that what comes out for one input does not depend on what else is translated with it, but for float rounding.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bmscale.data.clean import normalise
from bmscale.data.tokenizer import BOS, EOS, PAD, Tokenizer
from bmscale.errors import BadInput
from bmscale.model.folder import ModelFolder, load_model, open_model_folder

_LANGUAGES_WITHOUT_SPACES = {"zh", "ja", "th", "lo", "km", "my", "bo"}
# Before a space, after the closing quotes and brackets of the sentence; Chinese and Japanese write no space there.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’»)\]])(?=\s)"
    r"|(?<=[。！？｡।])(?![。！？｡।”’」』）)])|(?<=[。！？｡।][”’」』）)])"
)
# All that str.splitlines breaks at: a translation must stay one line.
_LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


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


class _EndAtLimit(LogitsProcessor):
    """Lets a row take nothing but </s> once it has its own most tokens.

    A limit of the batch would make a translation depend on the longest source beside it. The score of </s> stays the
    model's, so that a hypothesis which had to be ended is not preferred for it.
    """

    def __init__(self, limits_R: torch.Tensor) -> None:
        self.limits_R = limits_R

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # input_ids begins with the decoder start, so its length is the number of the token to come.
        ended_R = input_ids.shape[1] >= self.limits_R
        forced_RV = torch.full_like(scores, -torch.inf)
        forced_RV[:, EOS] = scores[:, EOS]
        return torch.where(ended_R[:, None], forced_RV, scores)  # type: ignore[return-value]


def translate_ids(
    model: Any, sources: Sequence[Sequence[int]], options: SearchOptions | None = None, *, synced: bool = False
) -> list[list[int]]:
    """Translate sources, each a list of ids that ends in </s>, into lists of ids without special tokens at the ends.

    `model` is a transformers encoder-decoder, on any device; its training mode is restored. The order is kept. An
    empty source, or one of </s> alone, gives an empty list. Raises BadInput for more beams than pieces.

    `synced=True` is for a model whose weights are partitioned over ranks (ZeRO-3), where each forward is a collective:
    all ranks call this together, with different sources, and make the same number of forwards; a rank with fewer
    batches goes along on a batch of one </s>.
    """
    options = options or SearchOptions()
    if options.beam_size > model.config.vocab_size:
        raise BadInput(
            f"beam_size: must be at most {model.config.vocab_size:,}, the pieces of the vocabulary; "
            f"got {options.beam_size:,}"
        )
    synced = synced and torch.distributed.is_available() and torch.distributed.is_initialized()
    results: list[list[int]] = [[] for _ in sources]
    wanted = [index for index, source in enumerate(sources) if any(token != EOS for token in source)]
    batches = _batches(wanted, sources, options)
    rounds = _most_of_all_ranks(len(batches), model.device) if synced else len(batches)
    training = model.training
    model.eval()
    try:
        for number in range(rounds):
            rows = batches[number] if number < len(batches) else []
            given = [sources[row] for row in rows] or [[EOS]]
            for row, ids in zip(rows, _search(model, given, options, synced)[: len(rows)], strict=True):
                results[row] = ids
    finally:
        model.train(training)
    return results


def _batches(wanted: list[int], sources: Sequence[Sequence[int]], options: SearchOptions) -> list[list[int]]:
    """Indices of sources grouped by length, longest first: too large a batch fails at once, not after an hour."""
    batches: list[list[int]] = []
    for index in sorted(wanted, key=lambda index: -len(sources[index])):
        # The first of a batch is its longest, and so its width.
        width = len(sources[batches[-1][0]]) if batches else 0
        if not batches or (len(batches[-1]) + 1) * width * options.beam_size > options.max_batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _most_of_all_ranks(count: int, device: torch.device) -> int:
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def _search(model: Any, sources: list[Sequence[int]], options: SearchOptions, synced: bool) -> list[list[int]]:
    """One batch through `generate`, which ends for every row at its own limit."""
    width = max(map(len, sources))
    source_BS = torch.full((len(sources), width), PAD)
    real_BS = torch.zeros_like(source_BS)
    for row, source in enumerate(sources):
        source_BS[row, : len(source)] = torch.tensor(source)
        real_BS[row, : len(source)] = 1
    limits = [min(options.longest_target(len(s)), model.config.max_position_embeddings) for s in sources]
    limits_R = torch.tensor(limits, device=model.device).repeat_interleave(options.beam_size)
    config = GenerationConfig(
        num_beams=options.beam_size,
        length_penalty=options.length_penalty if options.beam_size > 1 else None,
        do_sample=False,
        max_length=max(limits) + 1,  # the decoder start counts
        decoder_start_token_id=EOS,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    # no_grad, not inference_mode: under ZeRO-3 gathered weights would stay inference tensors in training.
    with torch.no_grad():
        target_BT = model.generate(
            input_ids=source_BS.to(model.device),
            attention_mask=real_BS.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_EndAtLimit(limits_R)]),
            synced_gpus=synced,
        )
    return [_between_specials(row) for row in target_BT.tolist()]


def _between_specials(row: list[int]) -> list[int]:
    """The ids after the decoder start and before the first </s>."""
    ids = row[1:]
    return ids[: ids.index(EOS)] if EOS in ids else ids


class Translator:
    """A model folder as a function from texts to texts.

    Any text is fine: empty, with control characters or half a surrogate pair, or far longer than the model takes.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, *, max_source_tokens: int = 256, target_language: str | None = None
    ) -> None:
        """`max_source_tokens`: a longer line is split, at ends of sentences first (tokens, </s> counted)."""
        if max_source_tokens < 2:
            raise BadInput(f"max_source_tokens: must be at least 2 (a token and </s>); got {max_source_tokens}")
        self.model = model
        self.tokenizer = tokenizer
        self.max_source_tokens = max_source_tokens
        language = re.split("[-_]", target_language or "")[0].lower()
        self._joint = "" if language in _LANGUAGES_WITHOUT_SPACES else " "

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | ModelFolder,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_source_tokens: int | None = None,
    ) -> "Translator":
        """Open a model folder; `device` is a GPU where there is one, `dtype` float32 unless given.

        A line of more than `max_source_tokens` tokens is split. It is by default what the folder's provenance gives
        under that key (the longest source of training), else 256, and never more than the model has positions.

        Raises BadInput for a folder that is damaged or a device that is not there.
        """
        place = _device(device)
        if not isinstance(folder, ModelFolder):
            folder = open_model_folder(folder)
        tokenizer = Tokenizer.load(folder.tokenizer)
        model = load_model(folder, place, dtype)
        longest = max_source_tokens or folder.provenance.get("max_source_tokens") or 256
        return cls(
            model,
            tokenizer,
            max_source_tokens=min(longest, folder.config.max_position_embeddings),
            target_language=folder.provenance.get("target_language"),
        )

    def translate(
        self,
        texts: Sequence[str],
        beam_size: int = 5,
        length_penalty: float = 1.0,
        max_batch_tokens: int = 8192,
        max_length_ratio: float = 3.0,
        max_length_extra: int = 10,
    ) -> list[str]:
        """Translate each text; one text out for each in, in the same order, without line breaks.

        An empty text, or one of white space and control characters, gives an empty text. The options are those of
        `SearchOptions`. Raises BadInput for an option that cannot be used.
        """
        if isinstance(texts, str):
            raise BadInput("texts: must be a list of sentences; got one string: put it in a list")
        options = SearchOptions(beam_size, length_penalty, max_batch_tokens, max_length_ratio, max_length_extra)
        sources: list[list[int]] = []
        owners: list[int] = []
        for owner, ids in enumerate(self.tokenizer.encode_batch([normalise(text) for text in texts])):
            pieces = [ids] if len(ids) <= self.max_source_tokens else self._split(normalise(texts[owner]))
            sources.extend(pieces)
            owners.extend([owner] * len(pieces))
        parts: list[list[str]] = [[] for _ in texts]
        for owner, target in zip(owners, translate_ids(self.model, sources, options), strict=True):
            parts[owner].append(_LINE_BREAKS.sub(" ", self.tokenizer.decode(target)).strip())
        return [self._joint.join(filter(None, translated)) for translated in parts]

    def translate_stream(
        self, lines: Iterable[str], *, chunk_lines: int = 512, chunk_characters: int = 1_000_000, **options: Any
    ) -> Iterator[str]:
        """Translate lines as they come, giving a translation for each in the same order, without a line end.

        Lines are taken in chunks of `chunk_lines`, or fewer once they have `chunk_characters`, and a chunk is given
        out before the next is read: memory is bounded however many lines come. `chunk_lines=1` answers each line at
        once, for a person at a terminal. `options` are those of `translate`.
        """
        if chunk_lines < 1 or chunk_characters < 1:
            raise BadInput(f"chunk_lines, chunk_characters: must be at least 1; got {chunk_lines}, {chunk_characters}")
        chunk: list[str] = []
        held = 0
        for line in lines:
            chunk.append(line)
            held += len(line)
            if len(chunk) >= chunk_lines or held >= chunk_characters:
                yield from self.translate(chunk, **options)
                chunk, held = [], 0
        if chunk:
            yield from self.translate(chunk, **options)

    def _split(self, text: str) -> list[list[int]]:
        """A text that is too long as ids of its sentences, those that are too long again as runs of words."""
        pieces: list[list[int]] = []
        for sentence in filter(None, map(str.strip, _SENTENCE_END.split(text))):
            ids = self.tokenizer.encode(sentence)
            if len(ids) <= self.max_source_tokens:
                pieces.append(ids)
            else:
                pieces.extend(self._pack(sentence.split(" ")))
        return pieces

    def _pack(self, words: list[str]) -> list[list[int]]:
        """As few runs of words as fit, of about the same length: a last run of one word would have no context."""
        lengths = [len(ids) - 1 for ids in self.tokenizer.encode_batch(words)]
        room = self.max_source_tokens - 1
        room = math.ceil(sum(lengths) / math.ceil(sum(lengths) / room))
        runs: list[list[str]] = [[]]
        held = 0
        for word, length in zip(words, lengths, strict=True):
            if runs[-1] and held + length > room:
                runs.append([])
                held = 0
            runs[-1].append(word)
            held += length
        return [ids for run in runs for ids in self._fit(" ".join(run))]

    def _fit(self, text: str) -> list[list[int]]:
        """Ids of a text, halved for as long as it is too long: a word of thousands of characters ends here."""
        ids = self.tokenizer.encode(text)
        if len(ids) <= self.max_source_tokens:
            return [ids]
        if len(text) < 2:  # one character, spelt in more bytes than the model takes
            return [[*ids[: self.max_source_tokens - 1], EOS]]
        middle = len(text) // 2
        return [*self._fit(text[:middle].strip()), *self._fit(text[middle:].strip())]


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device: '{device}' cannot be used here: {str(error).splitlines()[0]}") from None
    if chosen.type == "meta":
        raise BadInput("device: 'meta' cannot be used here: it holds no values; give cpu or cuda")
    return chosen
