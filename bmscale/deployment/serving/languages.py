"""What languages are called, and which one a text is in."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_NAMES_LIST = """
=
af=Afrikaans am=Amharic ar=Arabic az=Azerbaijani be=Belarusian bg=Bulgarian bn=Bengali bs=Bosnian ca=Catalan
cs=Czech cy=Welsh da=Danish de=German el=Greek en=English eo=Esperanto es=Spanish et=Estonian eu=Basque
fa=Persian fi=Finnish fr=French ga=Irish gl=Galician gu=Gujarati ha=Hausa he=Hebrew hi=Hindi hr=Croatian
hu=Hungarian hy=Armenian id=Indonesian ig=Igbo is=Icelandic it=Italian ja=Japanese ka=Georgian kk=Kazakh
km=Khmer kn=Kannada ko=Korean ky=Kyrgyz lb=Luxembourgish lo=Lao lt=Lithuanian lv=Latvian mk=Macedonian
ml=Malayalam mn=Mongolian mr=Marathi ms=Malay mt=Maltese my=Burmese nb=Norwegian ne=Nepali nl=Dutch
nn=Nynorsk no=Norwegian pa=Punjabi pl=Polish ps=Pashto pt=Portuguese ro=Romanian ru=Russian si=Sinhala
sk=Slovak sl=Slovenian so=Somali sq=Albanian sr=Serbian sv=Swedish sw=Swahili ta=Tamil te=Telugu tg=Tajik
th=Thai tl=Tagalog tr=Turkish tt=Tatar uk=Ukrainian ur=Urdu uz=Uzbek vi=Vietnamese xh=Xhosa yo=Yoruba
zh=Chinese zu=Zulu
"""
_NAMES = dict(pair.split("=") for pair in _NAMES_LIST.split())
# A language shows in the first lines; the detector reads byte by byte in Python.
_READ_CHARACTERS = 2_000


def name_of(code: str) -> str:
    """The English name of a language, else its code; `zh-Hans` is Chinese (Hans)."""
    base, _, rest = code.replace("_", "-").partition("-")
    name = _NAMES.get(base.lower())
    return code if name is None else f"{name} ({rest})" if rest else name


@dataclass(frozen=True)
class Detection:
    """A language that a text may be in."""

    language: str
    confidence: float
    """0 to 100."""


class Detector:
    """Which of the languages that can be translated a text is in; py3langid decides between several."""

    def __init__(self, languages: Iterable[str]) -> None:
        self._codes = list(dict.fromkeys(languages))
        self._bases = {code.replace("_", "-").split("-")[0].lower(): code for code in reversed(self._codes)}
        self._identifier: Any = None
        if len(self._codes) > 1 and importlib.util.find_spec("py3langid"):
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
            known = set(self._identifier.labels)
            self._identifier.set_languages([base for base in self._bases if base in known] or None)

    @property
    def works(self) -> bool:
        """Whether there is an answer: one language only, or a detector."""
        return len(self._codes) == 1 or self._identifier is not None

    def detect(self, text: str) -> list[Detection]:
        """Languages by probability, the best first; at least one where `works`. With one language it is that."""
        if len(self._codes) == 1:
            return [Detection(self._codes[0], 100.0)]
        if self._identifier is None:
            return []
        ranked = self._identifier.rank(text[:_READ_CHARACTERS])
        found = [(self._bases[base], float(share)) for base, share in ranked if base in self._bases]
        return [Detection(code, round(100 * share, 1)) for code, share in found] or [Detection(self._codes[0], 0.0)]
