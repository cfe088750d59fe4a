"""Translation with a trained model: token ids to token ids, and lines of text to lines of text.

`translate_ids` works on a live module, so that the training loop can call it; `Translator` opens a model folder. Both
promise that what comes out for one input does not depend on what else is translated with it, but for float rounding.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bmscale.data.clean import normalise
from bmscale.data.tokenizer import BOS, EOS, PAD, Tokenizer, language_tag
from bmscale.errors import BadInput
from bmscale.inference.likelihood import log_probabilities
from bmscale.inference.prefix import ForcePrefixes, Prefix, Prefixes
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

    The best of `n_best_ids` for each source, which has the rest of the contract.
    """
    return [found[0] for found in n_best_ids(model, sources, 1, options, synced=synced)]


def n_best_ids(
    model: Any,
    sources: Sequence[Sequence[int]],
    n: int,
    options: SearchOptions | None = None,
    *,
    prefixes: Sequence[Prefix] | None = None,
    continuing_V: torch.Tensor | None = None,
    synced: bool = False,
) -> list[list[list[int]]]:
    """At most n different translations of each source, best first, and at least one.

    `model` is a transformers encoder-decoder, on any device; its training mode is restored. A source is a list of ids
    that ends in </s>, a translation one without special tokens at the ends. The order is kept. There are fewer than n
    where the search found no more. An empty source, or one of </s> alone, has its prefix as its only translation, by
    default an empty list. `prefixes`, one a source, come with `continuing_V` of `Prefixes`. Raises BadInput for more
    beams than pieces, or an n that is larger than the beam.

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
    _check_n(n, options)
    synced = synced and torch.distributed.is_available() and torch.distributed.is_initialized()
    begun = prefixes or [Prefix()] * len(sources)
    results = [[list(prefix.ids)] for prefix in begun]
    wanted = [index for index, source in enumerate(sources) if any(token != EOS for token in source)]
    batches = _batches(wanted, sources, options)
    rounds = _most_of_all_ranks(len(batches), model.device) if synced else len(batches)
    training = model.training
    model.eval()
    try:
        for number in range(rounds):
            rows = batches[number] if number < len(batches) else []
            given = [sources[row] for row in rows] or [[EOS]]
            heads = [begun[row] for row in rows] or [Prefix()]
            forced = None
            if continuing_V is not None and any(head.ids for head in heads):
                beams = [head for head in heads for _ in range(options.beam_size)]
                forced = ForcePrefixes(beams, continuing_V, model.device)
            found = _search(model, given, [len(head.ids) for head in heads], options, n, forced, synced)
            for row, hypotheses in zip(rows, found[: len(rows)], strict=True):
                results[row] = hypotheses
    finally:
        model.train(training)
    return results


def _check_n(n: int, options: SearchOptions) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= options.beam_size:
        raise BadInput(
            f"n_best: must be a whole number from 1 to the beam size, {options.beam_size}; got {n!r}: a search keeps "
            "no more hypotheses than it has beams; ask for fewer, or raise the beam size"
        )


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


def _search(
    model: Any,
    sources: list[Sequence[int]],
    forced_lengths: list[int],
    options: SearchOptions,
    n: int,
    forced: ForcePrefixes | None,
    synced: bool,
) -> list[list[list[int]]]:
    """One batch through `generate`, which ends for every row at its own limit."""
    width = max(map(len, sources))
    source_BS = torch.full((len(sources), width), PAD)
    real_BS = torch.zeros_like(source_BS)
    for row, source in enumerate(sources):
        source_BS[row, : len(source)] = torch.tensor(source)
        real_BS[row, : len(source)] = 1
    limits = [min(options.longest_target(len(s)), model.config.max_position_embeddings) for s in sources]
    # A prefix is never cut, and the search has room behind it to come to an end.
    limits = [
        max(limit, length + options.max_length_extra) if length else limit
        for limit, length in zip(limits, forced_lengths, strict=True)
    ]
    limits_R = torch.tensor(limits, device=model.device).repeat_interleave(options.beam_size)
    config = GenerationConfig(
        num_beams=options.beam_size,
        num_return_sequences=n,
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
            logits_processor=LogitsProcessorList([*([forced] if forced else []), _EndAtLimit(limits_R)]),
            synced_gpus=synced,
        )
    rows = [row[1:] for row in target_BT.tolist()]
    return [_hypotheses(rows[start : start + n]) for start in range(0, len(rows), n)]


def _hypotheses(rows: list[list[int]]) -> list[list[int]]:
    """The ids before the first </s> of each row, each once, in their order.

    A search that had fewer ways than beams to go fills up with rows that never ended, or with copies.
    """
    ended = [tuple(row[: row.index(EOS)]) for row in rows if EOS in row]
    return [list(ids) for ids in dict.fromkeys(ended)] or [rows[0]]


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a text, and how likely the search holds it to be."""

    text: str
    score: float
    """Log-probability (nats) divided by length ** length_penalty, the length in tokens with </s>: what the search
    ranks by. Of a text that was split, the sum over its parts; 0 for a text without content."""


@dataclass(frozen=True)
class Score:
    """What a model says of a pair that is given."""

    log_probability: float
    """log P(target | source) in nats, summed over the tokens."""
    tokens: int
    """Tokens of the target, </s> counted."""


class Translator:
    """A model folder as a function from texts to texts.

    Any text is fine: empty, with control characters or half a surrogate pair, or far longer than the model takes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        max_source_tokens: int = 256,
        target_language: str | None = None,
        tagged_languages: Sequence[str] = (),
    ) -> None:
        """`max_source_tokens`: a longer line is split, at ends of sentences first (tokens, </s> counted).

        `tagged_languages` are those that a model of many can translate into (data.language_tags); the sources then
        begin with the tag of `target_language`. Raises BadInput for another language than a model's.
        """
        if max_source_tokens < 2:
            raise BadInput(f"max_source_tokens: must be at least 2 (a token and </s>); got {max_source_tokens}")
        self.model = model
        self.tokenizer = tokenizer
        self.target_language, self.tagged_languages = target_language, tuple(tagged_languages)
        self._tag: list[int] = []
        if self.tagged_languages:
            if target_language not in self.tagged_languages:
                raise BadInput(
                    f"target language: must be one of {', '.join(self.tagged_languages)}, which the model was trained "
                    f"to translate into; got {target_language}"
                )
            self._tag = tokenizer.encode(language_tag(str(target_language)))[:-1]
        self.max_source_tokens = max_source_tokens
        self._longest = max(2, max_source_tokens - len(self._tag))
        language = re.split("[-_]", target_language or "")[0].lower()
        self._joint = "" if language in _LANGUAGES_WITHOUT_SPACES else " "
        self._prefixes = Prefixes(tokenizer, spaces=bool(self._joint))

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
        place = find_device(device)
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
            tagged_languages=folder.provenance.get("language_tags") or (),
        )

    def into(self, language: str | None) -> "Translator":
        """The same model, translating into `language`; the Translator itself where that is None or no change.

        Raises BadInput for a language that the model was not trained to translate into.
        """
        if language in (None, self.target_language):
            return self
        if not self.tagged_languages:
            raise BadInput(
                f"target language: the model translates into {self.target_language or 'one language'} alone; got "
                f"{language}. Models of several are trained with data.language_tags"
            )
        return Translator(
            self.model,
            self.tokenizer,
            max_source_tokens=self.max_source_tokens,
            target_language=language,
            tagged_languages=self.tagged_languages,
        )

    def translate(
        self,
        texts: Sequence[str],
        beam_size: int = 5,
        length_penalty: float = 1.0,
        max_batch_tokens: int = 8192,
        max_length_ratio: float = 3.0,
        max_length_extra: int = 10,
        *,
        prefixes: Sequence[str] | None = None,
    ) -> list[str]:
        """Translate each text; one text out for each in, in the same order, without line breaks.

        An empty text, or one of white space and control characters, gives an empty text. The options are those of
        `SearchOptions`.

        `prefixes` has one beginning for each text, which its translation then has to the letter (normalised as texts
        are); an empty one leaves the search free. A prefix is of whole words: what follows its last letter does not
        lengthen the word, except in a language without spaces. It may be longer than any limit. The prefix of a text
        that is split is that of its first part, and that of an empty text all of its translation.

        Raises BadInput for an option that cannot be used, or another number of prefixes than texts.
        """
        options = SearchOptions(beam_size, length_penalty, max_batch_tokens, max_length_ratio, max_length_extra)
        begun = self._check_texts(texts, prefixes)
        parts: list[list[str]] = [[] for _ in texts]
        sources, owners, heads = self._parts(texts, begun)
        found = n_best_ids(self.model, sources, 1, options, prefixes=heads, continuing_V=self._prefixes.continuing_V)
        for owner, head, hypotheses in zip(owners, heads, found, strict=True):
            parts[owner].append(self._text(hypotheses[0], head))
        return [self._joint.join(filter(None, translated)) for translated in parts]

    def translate_n_best(
        self,
        texts: Sequence[str],
        n: int,
        beam_size: int = 5,
        length_penalty: float = 1.0,
        max_batch_tokens: int = 8192,
        max_length_ratio: float = 3.0,
        max_length_extra: int = 10,
        *,
        prefixes: Sequence[str] | None = None,
    ) -> list[list[Hypothesis]]:
        """The n best translations of each text, best first; the first is what `translate` gives.

        There are fewer than n where the search found no more that differ in their tokens (two may still be spelt the
        same), and one for a text without content. Of a text that is split, the k-th translation joins the k-th of each
        part (the last of a part that has fewer), and the scores are summed. Raises BadInput as `translate` does, and
        for an n above `beam_size`.
        """
        options = SearchOptions(beam_size, length_penalty, max_batch_tokens, max_length_ratio, max_length_extra)
        begun = self._check_texts(texts, prefixes)
        sources, owners, heads = self._parts(texts, begun)
        found = n_best_ids(self.model, sources, n, options, prefixes=heads, continuing_V=self._prefixes.continuing_V)
        parts: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for owner, head, ids, scores in zip(
            owners, heads, found, self._search_scores(sources, found, options), strict=True
        ):
            texts_of_part = (self._text(hypothesis, head) for hypothesis in ids)
            parts[owner].append([Hypothesis(*pair) for pair in zip(texts_of_part, scores, strict=True)])
        return [self._join(of_text) for of_text in parts]

    def score(self, sources: Sequence[str], targets: Sequence[str], max_batch_tokens: int = 8192) -> list[Score]:
        """How likely each target is as a translation of its source, in order; either may be empty or of any length.

        Nothing is split or cut: a pair is scored in whole. `max_batch_tokens` counts padded slots of both sides.
        Raises BadInput for unequal counts.
        """
        if isinstance(sources, str) or isinstance(targets, str):
            raise BadInput("sources and targets: must be lists of sentences; got one string: put it in a list")
        if len(sources) != len(targets):
            raise BadInput(f"every source needs one target: got {len(sources)} sources and {len(targets)} targets")
        source_ids, target_ids = (
            self.tokenizer.encode_batch([normalise(text) for text in side]) for side in (sources, targets)
        )
        source_ids = [[*self._tag, *ids] for ids in source_ids]
        found = log_probabilities(self.model, source_ids, target_ids, max_batch_tokens)
        return [Score(value, len(ids)) for value, ids in zip(found, target_ids, strict=True)]

    def _check_texts(self, texts: Sequence[str], prefixes: Sequence[str] | None) -> list[Prefix]:
        """The prefix of each text. Raises BadInput for what is no list, or not of the same length."""
        for name, given in (("texts", texts), ("prefixes", prefixes)):
            if isinstance(given, str):
                raise BadInput(f"{name}: must be a list of sentences; got one string: put it in a list")
        if prefixes is not None and len(prefixes) != len(texts):
            raise BadInput(
                f"prefixes: must be as many as the texts, {len(texts)}; got {len(prefixes)}: give an empty one where "
                "the search is to be free"
            )
        return [self._prefixes.make(prefix) for prefix in prefixes or [""] * len(texts)]

    def _parts(self, texts: Sequence[str], begun: Sequence[Prefix]) -> tuple[list[list[int]], list[int], list[Prefix]]:
        """What is searched: sources, for each the number of its text, and its prefix."""
        sources: list[list[int]] = []
        owners: list[int] = []
        heads: list[Prefix] = []
        for owner, ids in enumerate(self.tokenizer.encode_batch([normalise(text) for text in texts])):
            pieces = [ids] if len(ids) <= self._longest else self._split(normalise(texts[owner]))
            # A text without content stays one: a tag alone would be translated.
            sources.extend([*self._tag, *piece] if len(piece) > 1 else piece for piece in pieces)
            owners.extend([owner] * len(pieces))
            heads.extend([begun[owner], *([Prefix()] * (len(pieces) - 1))])
        return sources, owners, heads

    def _text(self, ids: list[int], prefix: Prefix) -> str:
        text = self._prefixes.text_of(ids, prefix) if prefix.ids else self.tokenizer.decode(ids)
        return _LINE_BREAKS.sub(" ", text).strip()

    def _search_scores(
        self, sources: list[list[int]], found: list[list[list[int]]], options: SearchOptions
    ) -> list[list[float]]:
        """The score of each hypothesis, by the one way in which pairs are scored.

        `generate` would give its own only with the distributions of every step kept: gigabytes for a full batch.
        """
        searched = [any(token != EOS for token in source) for source in sources]
        pairs = [
            (source, [*ids, EOS])
            for source, hypotheses, real in zip(sources, found, searched, strict=True)
            for ids in hypotheses
            if real
        ]
        sides = [source for source, _ in pairs], [target for _, target in pairs]
        values = iter(log_probabilities(self.model, *sides, max_batch_tokens=options.max_batch_tokens))
        return [
            [next(values) / (len(ids) + 1) ** options.length_penalty if real else 0.0 for ids in hypotheses]
            for hypotheses, real in zip(found, searched, strict=True)
        ]

    def _join(self, parts: list[list[Hypothesis]]) -> list[Hypothesis]:
        """The translations of a text from those of its parts: k-th with k-th."""
        joined = []
        for k in range(max(map(len, parts))):
            chosen = [part[min(k, len(part) - 1)] for part in parts]
            text = self._joint.join(filter(None, (hypothesis.text for hypothesis in chosen)))
            joined.append(Hypothesis(text, sum(hypothesis.score for hypothesis in chosen)))
        return joined

    def translate_stream(
        self,
        lines: Iterable[str],
        *,
        prefixes: Iterable[str] | None = None,
        chunk_lines: int = 512,
        chunk_characters: int = 1_000_000,
        **options: Any,
    ) -> Iterator[str]:
        """Translate lines as they come, giving a translation for each in the same order, without a line end.

        Lines are taken in chunks of `chunk_lines`, or fewer once they have `chunk_characters`, and a chunk is given
        out before the next is read: memory is bounded however many lines come. `chunk_lines=1` answers each line at
        once, for a person at a terminal. `options` are those of `translate`. Raises BadInput as `translate` does; a
        wrong number of `prefixes` is found only where the shorter of the two ends.
        """
        for chunk in in_chunks(with_prefixes(lines, prefixes), chunk_lines, chunk_characters):
            texts, begun = zip(*chunk, strict=True)
            yield from self.translate(texts, prefixes=begun, **options)

    def _split(self, text: str) -> list[list[int]]:
        """A text that is too long as ids of its sentences, those that are too long again as runs of words."""
        pieces: list[list[int]] = []
        for sentence in filter(None, map(str.strip, _SENTENCE_END.split(text))):
            ids = self.tokenizer.encode(sentence)
            if len(ids) <= self._longest:
                pieces.append(ids)
            else:
                pieces.extend(self._pack(sentence.split(" ")))
        return pieces

    def _pack(self, words: list[str]) -> list[list[int]]:
        """As few runs of words as fit, of about the same length: a last run of one word would have no context."""
        lengths = [len(ids) - 1 for ids in self.tokenizer.encode_batch(words)]
        room = self._longest - 1
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
        if len(ids) <= self._longest:
            return [ids]
        if len(text) < 2:  # one character, spelt in more bytes than the model takes
            return [[*ids[: self._longest - 1], EOS]]
        middle = len(text) // 2
        return [*self._fit(text[:middle].strip()), *self._fit(text[middle:].strip())]


def with_prefixes(lines: Iterable[str], prefixes: Iterable[str] | None) -> Iterator[tuple[str, str]]:
    """Each line with its prefix, by default empty. Raises BadInput where one of the two ends before the other."""
    if prefixes is None:
        yield from ((line, "") for line in lines)
        return
    for number, (line, prefix) in enumerate(itertools.zip_longest(lines, prefixes)):
        if line is None or prefix is None:
            few, many = ("sentences", "prefixes") if line is None else ("prefixes", "sentences")
            raise BadInput(
                f"prefixes: must be as many lines as the sentences; the {few} end after line {number}, and there are "
                f"more {many}: give an empty line where the search is to be free"
            )
        yield line, prefix


def in_chunks(
    rows: Iterable[tuple[str, str]], chunk_lines: int, chunk_characters: int
) -> Iterator[list[tuple[str, str]]]:
    """Rows in lists of `chunk_lines`, or fewer once they hold `chunk_characters`. Raises BadInput for less than 1."""
    if chunk_lines < 1 or chunk_characters < 1:
        raise BadInput(f"chunk_lines, chunk_characters: must be at least 1; got {chunk_lines}, {chunk_characters}")
    chunk: list[tuple[str, str]] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += sum(map(len, row))
        if len(chunk) >= chunk_lines or held >= chunk_characters:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def find_device(device: str | torch.device | None) -> torch.device:
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
