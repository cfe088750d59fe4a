"""A request of LibreTranslate's /translate as units of work, and their results as its answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bmscale.deployment.serving.batching import Unit
from bmscale.deployment.serving.languages import Detection, Detector
from bmscale.deployment.serving.limits import Limits, Refused
from bmscale.deployment.serving.markup import markup_of, split_markup, text_of
from bmscale.deployment.serving.models import Models, Translated, TranslationModel
from bmscale.inference.alignment import Alignment

_LINE_END = re.compile("(\r\n|\n|\r)")
_LEAST_WEIGHT = 0.05  # less is no link


@dataclass(frozen=True)
class TranslationRequest:
    """What was asked for, checked."""

    texts: list[str]
    is_list: bool
    source: str
    """The code of a language, or auto."""
    target: str
    is_html: bool
    alternatives: int
    alignments: bool = False

    @classmethod
    def of(cls, fields: dict[str, Any], limits: Limits) -> "TranslationRequest":
        """Raises Refused with 400 for fields that are missing, of a wrong kind, or too large."""
        texts, is_list = texts_of(fields, limits)
        source, target = (_code(fields, name) for name in ("source", "target"))
        form = fields.get("format") or "text"
        if form not in ("text", "html"):
            raise Refused(400, f"{str(form)[:40]} format is not supported")
        alternatives, alignments = _alternatives(fields, limits), _flag(fields, "alignments")
        return cls(texts, is_list, source, target, form == "html", alternatives, alignments)


def texts_of(fields: dict[str, Any], limits: Limits) -> tuple[list[str], bool]:
    """The texts of the field q, and whether it is a list. Raises Refused with 400."""
    q = fields.get("q")
    if not q:
        raise Refused(400, "Invalid request: missing q parameter")
    texts = q if isinstance(q, list) else [q]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(400, "Invalid request: q must be a string or a list of strings")
    if len(texts) > limits.max_texts:
        raise Refused(400, f"Invalid request: request ({len(texts)}) exceeds text limit ({limits.max_texts})")
    characters = sum(map(len, texts))
    if characters > limits.max_characters:
        raise Refused(400, f"Invalid request: request ({characters}) exceeds text limit ({limits.max_characters})")
    return texts, isinstance(q, list)


def _code(fields: dict[str, Any], name: str) -> str:
    code = fields.get(name)
    if not code:
        raise Refused(400, f"Invalid request: missing {name} parameter")
    if not isinstance(code, str):
        raise Refused(400, f"Invalid request: {name} must be the code of a language")
    return code


def _alternatives(fields: dict[str, Any], limits: Limits) -> int:
    given = fields.get("alternatives") or 0
    if isinstance(given, str) and re.fullmatch("[0-9]{1,6}", given):
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= limits.max_alternatives:
        raise Refused(400, f"Invalid request: alternatives must be a whole number from 0 to {limits.max_alternatives}")
    return given


def _flag(fields: dict[str, Any], name: str) -> bool:
    given = fields.get(name)
    if given in (None, "", "false"):
        return False
    if not isinstance(given, bool) and given != "true":
        raise Refused(400, f"Invalid request: {name} must be true or false")
    return bool(given)


def links_of(alignment: Alignment | None) -> dict[str, Any] | None:
    """An alignment as an answer has it: words of both sides, and [target, source, weight] of each pair whose weight is
    not small. So it grows with the text, and not with its square. None stays None."""
    if alignment is None:
        return None
    places = np.argwhere(alignment.weights >= _LEAST_WEIGHT).tolist()
    links = [[row, column, round(float(alignment.weights[row, column]), 3)] for row, column in places]
    return {"source": alignment.source, "target": alignment.target, "links": links}


@dataclass(frozen=True)
class _Parts:
    """Where the translations of some units stand, and what is between them."""

    units: range
    joint: str

    def text(self, results: Sequence[Translated], rank: int) -> str:
        """Those of a rank, or the last that a unit has; empty ones leave nothing behind."""
        found = (results[unit].texts for unit in self.units)
        return self.joint.join(filter(None, (texts[min(rank, len(texts) - 1)] for texts in found)))


@dataclass
class _Layout:
    """A text as strings that stay and places where translations come."""

    is_html: bool
    pieces: list[str | _Parts] = field(default_factory=list)

    def text(self, results: Sequence[Translated], rank: int) -> str:
        """The text with the translations of a rank."""
        return "".join(
            piece if isinstance(piece, str) else self._escaped(piece.text(results, rank)) for piece in self.pieces
        )

    def texts(self, results: Sequence[Translated], n: int) -> list[str]:
        """At most n texts that differ, best first."""
        return list(dict.fromkeys(self.text(results, rank) for rank in range(n)))

    def alignments(self, results: Sequence[Translated]) -> list[dict[str, Any] | None]:
        """Of each part of the text that was translated by itself, in order."""
        parts = (piece for piece in self.pieces if isinstance(piece, _Parts))
        return [links_of(results[unit].alignment) for part in parts for unit in part.units]

    def _escaped(self, text: str) -> str:
        return markup_of(text) if self.is_html else text


@dataclass
class _Share:
    """What one model has to do of a request."""

    model: TranslationModel
    parts: list[str] = field(default_factory=list)
    layouts: list[tuple[int, _Layout]] = field(default_factory=list)


class TranslationPlan:
    """The work of a request: what each model has to do, and how the answer is put together of it.

    Raises Refused with 400 for languages that no model has.
    """

    def __init__(self, request: TranslationRequest, models: Models, detector: Detector) -> None:
        self.request = request
        self._n = request.alternatives + 1
        self.detected: list[Detection] = []
        if request.source == "auto":
            if not detector.works:
                raise Refused(400, "auto is not supported: the server has no language detector; give the source")
            self.detected = [detector.detect(text)[0] for text in request.texts]
        self._shares: dict[str, _Share] = {}
        for number, text in enumerate(request.texts):
            source = self.detected[number].language if self.detected else request.source
            model = _model(models, source, request.target)
            share = self._shares.setdefault(model.name, _Share(model))
            share.layouts.append((number, self._lay_out(text, share)))

    @property
    def work(self) -> list[tuple[TranslationModel, list[Unit]]]:
        """Units for the queue of each model."""
        aligned = self.request.alignments
        return [
            (share.model, share.model.units(share.parts, self.request.target, self._n, aligned=aligned))
            for share in self._shares.values()
        ]

    def _lay_out(self, text: str, share: _Share) -> _Layout:
        layout = _Layout(self.request.is_html)
        if self.request.is_html:
            for is_text, piece in split_markup(text):
                if is_text:
                    self._add(text_of(piece), share, layout)
                else:
                    layout.pieces.append(piece)
        else:
            # Every line is a text of its own, and line ends stay as they are.
            for number, piece in enumerate(_LINE_END.split(text)):
                if number % 2:
                    layout.pieces.append(piece)
                else:
                    self._add(piece, share, layout)
        return layout

    def _add(self, text: str, share: _Share, layout: _Layout) -> None:
        """The units of one line, or one stretch of HTML; white space at its ends stays."""
        before, core, after = _edges(text)
        parts = share.model.split(core) if core else []
        units = range(len(share.parts), len(share.parts) + len(parts))
        share.parts.extend(parts)
        layout.pieces += [before, _Parts(units, share.model.joint(self.request.target)), after]

    def answer(self, results: Sequence[Sequence[Translated]]) -> dict[str, Any]:
        """LibreTranslate's answer, from the results of each entry of `work`; with alignments where they were asked for,
        which LibreTranslate does not have."""
        found: list[list[str]] = [[] for _ in self.request.texts]
        alignments: list[list[dict[str, Any] | None]] = [[] for _ in self.request.texts]
        for share, of_share in zip(self._shares.values(), results, strict=True):
            for number, layout in share.layouts:
                found[number] = layout.texts(of_share, self._n)
                if self.request.alignments:
                    alignments[number] = layout.alignments(of_share)
        best, rest = [texts[0] for texts in found], [texts[1:] for texts in found]
        languages = [{"confidence": one.confidence, "language": one.language} for one in self.detected]
        is_list = self.request.is_list
        answer: dict[str, Any] = {"translatedText": best if is_list else best[0]}
        if languages:
            answer["detectedLanguage"] = languages if is_list else languages[0]
        if self.request.alternatives:
            answer["alternatives"] = rest if is_list else rest[0]
        if self.request.alignments:
            answer["alignments"] = alignments if is_list else alignments[0]
        return answer


def _edges(text: str) -> tuple[str, str, str]:
    core = text.strip()
    if not core:
        return text, "", ""
    start = text.index(core)
    return text[:start], core, text[start + len(core) :]


def _model(models: Models, source: str, target: str) -> TranslationModel:
    model = models.pairs.get((source, target))
    if model is not None:
        return model
    for code, known in ((source, models.sources), (target, sorted({target for _, target in models.pairs}))):
        if code not in known:
            raise Refused(400, f"{code[:40]} is not supported; there are: {', '.join(known)}")
    raise Refused(400, f"{target} is not available as a target language from {source}")
