"""The public Translator: lines of text to lines of text, with PyTorch or with CTranslate2.

What comes out for one input does not depend on what else is translated with it, but for float rounding.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from bmscale.data.clean import normalise
from bmscale.data.tokenizer import EOS, Tokenizer, language_tag
from bmscale.errors import BadInput
from bmscale.inference.alignment import Alignment
from bmscale.inference.alternatives import next_tokens
from bmscale.inference.backends import open_folder
from bmscale.inference.chunks import in_chunks, with_prefixes
from bmscale.inference.parts import split_source
from bmscale.inference.prefix import Prefix, Prefixes
from bmscale.inference.search import Backend, SearchOptions
from bmscale.inference.sentences import LANGUAGES_WITHOUT_SPACES, Document
from bmscale.inference.torch_backend import TorchBackend
from bmscale.model.folder import ModelFolder

# All that str.splitlines breaks at: a translation must stay one line.
_LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_MOST_ALTERNATIVES = 100


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
        source_language: str | None = None,
    ) -> None:
        """`model`: an encoder-decoder of bmscale.model, or a Backend.

        `max_source_tokens`: a longer line is split, at ends of sentences first (tokens, </s> counted).

        `tagged_languages` are those that a model of many can translate into (data.language_tags); the sources then
        begin with the tag of `target_language`. Raises BadInput for another language than a model's.
        """
        if max_source_tokens < 2:
            raise BadInput(f"max_source_tokens: must be at least 2 (a token and </s>); got {max_source_tokens}")
        self.backend: Backend = model if hasattr(model, "search") else TorchBackend(model)
        self.tokenizer = tokenizer
        self.source_language = source_language
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
        self.joint = _joint_of(target_language)
        self._prefixes = Prefixes(tokenizer, spaces=bool(self.joint))

    def split(self, text: str) -> list[str]:
        """A text, normalised, as the parts that are searched one by one; their translations are joined by `joint`."""
        return split_source(normalise(text), self.tokenizer, self._longest)

    @property
    def model(self) -> Any:
        """The transformers model. Raises AttributeError where there is none, with CTranslate2."""
        return self.backend.model  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | ModelFolder,
        backend: str = "auto",
        device: Any = "auto",
        compute_type: str = "auto",
        max_source_tokens: int | None = None,
    ) -> "Translator":
        """Open a model folder with PyTorch, or with CTranslate2 a folder that was exported to ctranslate2.

        `backend`: torch or ctranslate2, or auto for what the folder is of. `device`: cpu, cuda, cuda:1, or auto (None
        is the same) for a GPU where there is one. `compute_type`: auto is float32 with PyTorch, and what the matrices
        are kept in with CTranslate2; else float32, bfloat16 or float16, and with CTranslate2 one of its COMPUTE_TYPES.

        A line of more than `max_source_tokens` tokens is split. It is by default what the folder's provenance gives
        under that key (the longest source of training), else 256, and never more than the model has positions.

        Raises BadInput for a folder that is damaged or of another backend, a device that is not there, or a compute
        type that the device or backend does not have.
        """
        opened = open_folder(path, backend, device, compute_type)
        provenance = opened.provenance
        longest = max_source_tokens or provenance.get("max_source_tokens") or 256
        return cls(
            opened.backend,
            opened.tokenizer,
            max_source_tokens=min(longest, opened.max_position_embeddings),
            target_language=provenance.get("target_language"),
            tagged_languages=provenance.get("language_tags") or (),
            source_language=provenance.get("source_language"),
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
            self.backend,
            self.tokenizer,
            max_source_tokens=self.max_source_tokens,
            target_language=language,
            tagged_languages=self.tagged_languages,
            source_language=self.source_language,
        )

    @overload
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
        prefix: str | None = None,
        n_best: None = None,
        alternatives: None = None,
        batch_tokens: int | None = None,
    ) -> list[str]: ...

    @overload
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
        prefix: str | None = None,
        n_best: int | None = None,
        alternatives: int | None = None,
        batch_tokens: int | None = None,
    ) -> list[list[Hypothesis]]: ...

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
        prefix: str | None = None,
        n_best: int | None = None,
        alternatives: int | None = None,
        batch_tokens: int | None = None,
    ) -> list[str] | list[list[Hypothesis]]:
        """Translate each text; one text out for each in, in the same order, without line breaks.

        An empty text, or one of white space and control characters, gives an empty text. The options are those of
        `SearchOptions`; `batch_tokens` is a shorter name of `max_batch_tokens`.

        `prefixes` has one beginning for each text, which its translation then has to the letter (normalised as texts
        are); an empty one leaves the search free. A prefix is of whole words: what follows its last letter does not
        lengthen the word, except in a language without spaces. It may be longer than any limit but the table of
        positions that sinusoids have in CTranslate2. The prefix of a text that is split is that of its first part, and
        that of an empty text all of its translation. `prefix` is one for all texts.

        With `n_best` or `alternatives` the answer is that of `translate_n_best` or `translate_alternatives`.

        Raises BadInput for an option that cannot be used, another number of prefixes than texts, or a prefix that is
        longer than such a table.
        """
        if (prefix is not None and prefixes is not None) or (n_best is not None and alternatives is not None):
            raise BadInput("give prefix or prefixes, and n_best or alternatives; got both")
        if prefix is not None:
            if not isinstance(prefix, str):
                raise BadInput(f"prefix: must be one text for all; got {prefix!r:.80}; a list is given as prefixes")
            prefixes = [prefix] * len(texts)
        most = max_batch_tokens if batch_tokens is None else batch_tokens
        options = SearchOptions(beam_size, length_penalty, most, max_length_ratio, max_length_extra)
        if n_best is not None:
            return self.translate_n_best(texts, n_best, prefixes=prefixes, **vars(options))
        if alternatives is not None:
            return self.translate_alternatives(texts, alternatives, prefixes=prefixes, **vars(options))
        begun = self._check_texts(texts, prefixes)
        parts: list[list[str]] = [[] for _ in texts]
        sources, owners, heads = self._parts(texts, begun)
        found = self.backend.search(sources, 1, options, heads, self._prefixes.continuing_V)
        for owner, head, hypotheses in zip(owners, heads, found, strict=True):
            parts[owner].append(self._text(hypotheses[0], head))
        return [self.joint.join(filter(None, translated)) for translated in parts]

    def translate_n_best(
        self, texts: Sequence[str], n: int, *, prefixes: Sequence[str] | None = None, **search: Any
    ) -> list[list[Hypothesis]]:
        """The n best translations of each text, best first; the first is what `translate` gives.

        There are fewer than n where the search found no more that differ in their tokens (two may still be spelt the
        same), and one for a text without content. Of a text that is split, the k-th translation joins the k-th of each
        part (the last of a part that has fewer), and the scores are summed. Raises BadInput as `translate` does, and
        for an n above `beam_size`; `search` has the options of `SearchOptions`.
        """
        options = SearchOptions(**search)
        begun = self._check_texts(texts, prefixes)
        sources, owners, heads = self._parts(texts, begun)
        found = self.backend.search(sources, n, options, heads, self._prefixes.continuing_V)
        parts: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for owner, head, ids, scores in zip(
            owners, heads, found, self._search_scores(sources, found, options), strict=True
        ):
            texts_of_part = (self._text(hypothesis, head) for hypothesis in ids)
            parts[owner].append([Hypothesis(*pair) for pair in zip(texts_of_part, scores, strict=True)])
        return [self._join(of_text) for of_text in parts]

    def translate_alternatives(
        self, texts: Sequence[str], n: int, *, prefixes: Sequence[str] | None = None, **search: Any
    ) -> list[list[Hypothesis]]:
        """How else a translation may go on behind its prefix, or begin where there is none: n translations for each
        text that differ in the piece behind the prefix, best first.

        The pieces are the n most probable ones there, and behind each the search is free. There are fewer than n where
        the vocabulary has no more, and one for a text without content. Of a text that is split, the first part has
        alternatives. Raises BadInput as `translate` does.
        """
        options = SearchOptions(**search)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= _MOST_ALTERNATIVES:
            raise BadInput(f"alternatives: must be a whole number from 1 to {_MOST_ALTERNATIVES}; got {n!r}")
        begun = self._check_texts(texts, prefixes)
        sources, owners, heads = self._parts(texts, begun)
        ways = next_tokens(self.backend, sources, owners, heads, np.asarray(self._prefixes.continuing_V), n)
        rows = [row for row, tokens in enumerate(ways) for _ in tokens]
        forced = [
            heads[row] if token is None else Prefix(heads[row].text, (*heads[row].ids, token))
            for row, tokens in enumerate(ways)
            for token in tokens
        ]
        found = self.backend.search([sources[row] for row in rows], 1, options, forced, self._prefixes.continuing_V)
        by_source: list[list[list[int]]] = [[] for _ in sources]
        for row, hypotheses in zip(rows, found, strict=True):
            by_source[row].append([token for token in hypotheses[0] if token != EOS])
        scores = self._search_scores(sources, by_source, options)
        parts: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for row, owner in enumerate(owners):
            choices = [
                Hypothesis(self._text(ids, heads[row]), score)
                for ids, score in zip(by_source[row], scores[row], strict=True)
            ]
            parts[owner].append(sorted(choices, key=lambda hypothesis: -hypothesis.score))
        return [self._join(of_text) for of_text in parts]

    def translate_documents(self, texts: Sequence[str], **options: Any) -> list[str]:
        """Translate texts of several lines, sentence by sentence, in one call of `translate`, whose `options` (of the
        search) they take.

        The sentences of a line (sentences.py) are translated each by itself and joined again; line breaks, blank lines
        and the white space before a line stay as they are. Raises BadInput as `translate` does, and for `n_best` and
        `alternatives`, which are of one sentence.
        """
        for name in ("n_best", "alternatives"):
            if options.get(name) is not None:
                raise BadInput(f"{name}: is of one sentence, and a document has many; give it to translate")
        if isinstance(texts, str):
            raise BadInput("texts: must be a list of documents; got one string: put it in a list")
        documents = [Document(text, self.source_language) for text in texts]
        flat = [sentence for document in documents for sentence in document.sentences]
        translated = iter(self.translate(flat, **options))
        return [document.written([next(translated) for _ in document.sentences], self.joint) for document in documents]

    def align(self, sources: Sequence[str], targets: Sequence[str]) -> list[Alignment]:
        """Which pieces of its source each piece of a target looks at, for each pair (see `Backend.attention`).

        A target is encoded anew, so its pieces may be cut otherwise than the search had them. Nothing is split. Raises
        BadInput as `score` does.
        """
        source_ids, target_ids = self._pairs(sources, targets)
        found = self.backend.attention(source_ids, target_ids)
        return [
            Alignment(self.tokenizer.pieces(source[:-1]), self.tokenizer.pieces(target[:-1]), weights)
            for source, target, weights in zip(source_ids, target_ids, found, strict=True)
        ]

    def align_words(self, sources: Sequence[str], targets: Sequence[str]) -> list[Alignment]:
        """The same of words (`Alignment.words`), without the tag of the target language."""
        source_spaces = bool(_joint_of(self.source_language))
        return [
            found.words(source_spaces=source_spaces, target_spaces=bool(self.joint), tags=len(self._tag))
            for found in self.align(sources, targets)
        ]

    def score(self, sources: Sequence[str], targets: Sequence[str], max_batch_tokens: int = 8192) -> list[Score]:
        """How likely each target is as a translation of its source, in order; either may be empty or of any length.

        Nothing is split or cut: a pair is scored in whole. `max_batch_tokens` counts padded slots of both sides.
        Raises BadInput for unequal counts.
        """
        source_ids, target_ids = self._pairs(sources, targets)
        found = self.backend.log_probabilities(source_ids, target_ids, max_batch_tokens)
        return [Score(value, len(ids)) for value, ids in zip(found, target_ids, strict=True)]

    def _pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Ids of both sides."""
        if isinstance(sources, str) or isinstance(targets, str):
            raise BadInput("sources and targets: must be lists of sentences; got one string: put it in a list")
        if len(sources) != len(targets):
            raise BadInput(f"every source needs one target: got {len(sources)} sources and {len(targets)} targets")
        source_ids, target_ids = (
            self.tokenizer.encode_batch([normalise(text) for text in side]) for side in (sources, targets)
        )
        return [[*self._tag, *ids] for ids in source_ids], target_ids

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
            pieces = [ids] if len(ids) <= self._longest else [self._fitting(part) for part in self.split(texts[owner])]
            # A text without content stays one: a tag alone would be translated.
            sources.extend([*self._tag, *piece] if len(piece) > 1 else piece for piece in pieces)
            owners.extend([owner] * len(pieces))
            heads.extend([begun[owner], *([Prefix()] * (len(pieces) - 1))])
        return sources, owners, heads

    def _fitting(self, part: str) -> list[int]:
        """Its ids; cut where one character is spelt in more than the model takes."""
        ids = self.tokenizer.encode(part)
        return ids if len(ids) <= self._longest else [*ids[: self._longest - 1], EOS]

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
        values = iter(self.backend.log_probabilities(*sides, options.max_batch_tokens))
        return [
            [next(values) / (len(ids) + 1) ** options.length_penalty if real else 0.0 for ids in hypotheses]
            for hypotheses, real in zip(found, searched, strict=True)
        ]

    def _join(self, parts: list[list[Hypothesis]]) -> list[Hypothesis]:
        """The translations of a text from those of its parts: k-th with k-th."""
        joined = []
        for k in range(max(map(len, parts))):
            chosen = [part[min(k, len(part) - 1)] for part in parts]
            text = self.joint.join(filter(None, (hypothesis.text for hypothesis in chosen)))
            joined.append(Hypothesis(text, sum(hypothesis.score for hypothesis in chosen)))
        return joined

    def translate_stream(
        self,
        lines: Iterable[str],
        *,
        prefixes: Iterable[str] | None = None,
        chunk_lines: int = 512,
        chunk_characters: int = 1_000_000,
        paragraphs: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """Translate lines as they come, giving a translation for each in the same order, without a line end.

        Lines are taken in chunks of `chunk_lines`, or fewer once they have `chunk_characters`, and a chunk is given
        out before the next is read: memory is bounded however many lines come. `chunk_lines=1` answers each line at
        once, for a person at a terminal. With `paragraphs` each line is translated sentence by sentence
        (`translate_documents`). `options` are those of `translate`. Raises BadInput as `translate` does; a wrong number
        of `prefixes` is found only where the shorter of the two ends.
        """
        if paragraphs and prefixes is not None:
            raise BadInput("paragraphs: a prefix is of one sentence; give prefixes without paragraphs")
        for chunk in in_chunks(with_prefixes(lines, prefixes), chunk_lines, chunk_characters):
            texts, begun = zip(*chunk, strict=True)
            if paragraphs:
                found = self.translate_documents(texts, **options)
                yield from (_LINE_BREAKS.sub(" ", line).strip() for line in found)
            else:
                yield from self.translate(texts, prefixes=begun, **options)


def _joint_of(language: str | None) -> str:
    """What stands between two sentences of a language."""
    return "" if re.split("[-_]", language or "")[0].lower() in LANGUAGES_WITHOUT_SPACES else " "
