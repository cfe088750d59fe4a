"""Cleaning of training pairs: one normalisation, then rules; the first rule that hits drops the pair and is counted.

The rules are heuristics of the usual kind (Koehn et al., WMT 2018 parallel corpus filtering; OpusFilter, Aulamo et al.,
ACL 2020), set to keep what a translator could have written and to drop what nobody would have.
"""

import hashlib
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from bmscale.config import Config

RULES = (
    "empty",
    "too_long",
    "length_ratio",
    "identical",
    "wrong_script",
    "digits_mismatch",
    "urls_mismatch",
    "duplicate",
    "too_many_tokens",
)
"""Every rule in the order of its application; `prepare` applies the last two, which need more than one pair's text."""

SAMPLES = 5
SAMPLE_CHARACTERS = 200

_HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
# Unicode blocks as code points: typed as characters, an editor's NFC would change some of them.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0x24F), (0x1E00, 0x1EFF),
              (0x2C60, 0x2C7F), (0xA722, 0xA7FF), (0xFB00, 0xFB06)),
    "Cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0xA640, 0xA69F)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Armenian": ((0x530, 0x58F), (0xFB13, 0xFB17)),
    "Hebrew": ((0x590, 0x5FF), (0xFB1D, 0xFB4F)),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "Devanagari": ((0x900, 0x97F),),
    "Bengali": ((0x980, 0x9FF),),
    "Gurmukhi": ((0xA00, 0xA7F),),
    "Gujarati": ((0xA80, 0xAFF),),
    "Odia": ((0xB00, 0xB7F),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCFF),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Sinhala": ((0xD80, 0xDFF),),
    "Thai": ((0xE00, 0xE7F),),
    "Lao": ((0xE80, 0xEFF),),
    "Tibetan": ((0xF00, 0xFFF),),
    "Myanmar": ((0x1000, 0x109F),),
    "Georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF)),
    "Ethiopic": ((0x1200, 0x139F),),
    "Khmer": ((0x1780, 0x17FF),),
    "Han": _HAN,
    "Japanese": ((0x3040, 0x30FF), (0xFF66, 0xFF9F), *_HAN),
    "Korean": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF), *_HAN),
}  # fmt: skip

# Languages written in two scripts (sr, kk, uz, pa, …) are left out where neither is the rule: they are not checked.
_LANGUAGES_OF_SCRIPT = {
    "Latin": "af az br bs ca cs cy da de en eo es et eu fi fo fr fy ga gd gl ha hr hu id ig is it jv la lb lt lv mg mi "
    "ms mt nb nl nn no oc pl pt ro sk sl so sq sv sw tl tr vi xh yo zu",
    "Cyrillic": "ba be bg cv ky mk ru tg tt uk",
    "Greek": "el",
    "Armenian": "hy",
    "Hebrew": "he yi",
    "Arabic": "ar ckb fa ps ug ur",
    "Devanagari": "hi mr ne sa",
    "Bengali": "as bn",
    "Gujarati": "gu",
    "Odia": "or",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Tibetan": "bo dz",
    "Myanmar": "my",
    "Georgian": "ka",
    "Ethiopic": "am ti",
    "Khmer": "km",
    "Han": "yue zh",
    "Japanese": "ja",
    "Korean": "ko",
}
LANGUAGE_SCRIPTS = {code: script for script, codes in _LANGUAGES_OF_SCRIPT.items() for code in codes.split()}

ISO_15924 = {
    "Latn": "Latin", "Cyrl": "Cyrillic", "Grek": "Greek", "Armn": "Armenian", "Hebr": "Hebrew", "Arab": "Arabic",
    "Deva": "Devanagari", "Beng": "Bengali", "Guru": "Gurmukhi", "Gujr": "Gujarati", "Orya": "Odia", "Taml": "Tamil",
    "Telu": "Telugu", "Knda": "Kannada", "Mlym": "Malayalam", "Sinh": "Sinhala", "Thai": "Thai", "Laoo": "Lao",
    "Tibt": "Tibetan", "Mymr": "Myanmar", "Geor": "Georgian", "Ethi": "Ethiopic", "Khmr": "Khmer", "Hans": "Han",
    "Hant": "Han", "Hani": "Han", "Jpan": "Japanese", "Kore": "Korean", "Hang": "Korean",
}  # fmt: skip

# How many alphabetic characters one character of the script is worth: a Chinese text has a third of the English length.
SCRIPT_DENSITY = {"Han": 3.0, "Japanese": 2.2, "Korean": 1.8}

_FORMAT_CHARACTERS = (
    0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x2070),
    0xFEFF, *range(0xFFF9, 0xFFFC),
)  # fmt: skip


def _normalisation_table() -> dict[int, str]:
    table = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *_FORMAT_CHARACTERS), "")
    table.update(dict.fromkeys(range(0xD800, 0xE000), ""))  # lone surrogates (JSON's \ud800): not text, not UTF-8
    table.update({c: " " for c in range(sys.maxunicode + 1) if chr(c).isspace()})
    # SentencePiece writes a space as U+2581: left in the text it would come back as a space.
    table[0x2581] = " "
    return table


_NORMALISATION = _normalisation_table()


def normalise(text: str) -> str:
    """Unicode NFC, without control and zero-width characters, every run of white space one space, none at the ends.

    The zero-width joiners U+200C and U+200D stay: Persian, Indic scripts and emoji spell with them. Idempotent.
    """
    # Printable text has no control, format or space character but U+0020 (str.isprintable), and this test is in C.
    if not text.isprintable() or "\u2581" in text:
        text = text.translate(_NORMALISATION)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split()) if "  " in text else text.strip()


def _known_script(name: str) -> str:
    if name not in ("auto", "any", *SCRIPTS):
        raise ValueError(f"a script must be auto, any or one of {', '.join(SCRIPTS)}; got {name!r}")
    return name


ScriptName = Annotated[str, AfterValidator(_known_script)]


class CleaningConfig(Config):
    """Which training pairs are dropped. `false` or `null` switches a rule off. Validation pairs are never dropped."""

    empty: bool = True
    """Drop a pair with an empty side."""
    max_words: int | None = Field(default=250, gt=0)
    """Rule too_long: most words of a side, separated by spaces."""
    max_characters: int | None = Field(default=2000, gt=0)
    """Rule too_long: most characters of a side."""
    max_length_ratio: float | None = Field(default=2.5, gt=1)
    """Longest ratio of the two sides' characters, 20 added to each side so that short pairs may differ; a Chinese
    character counts as 3, a Japanese one as 2.2, a Korean one as 1.8."""
    identical: bool = True
    """Drop a pair whose sides are the same, letter by letter: mostly untranslated text. (Case counts: the German for
    `threads` is `Threads`.)"""
    max_wrong_script: float | None = Field(default=0.5, ge=0, lt=1)
    """Rule wrong_script: largest share of a side's letters outside the script of its language."""
    source_script: ScriptName = "auto"
    """Script of the source (Latin, Cyrillic, Han, …); auto goes by the language, any checks nothing."""
    target_script: ScriptName = "auto"
    """Script of the target."""
    digits_mismatch: bool = True
    """Drop a pair whose numbers are different ones; grouping, order, ordinals and 12-hour times are forgiven."""
    urls_mismatch: bool = True
    """Drop a pair where only one side has a web or mail address, or no site is on both sides."""
    duplicate: bool = True
    """Drop a pair that came before, letter by letter after normalisation."""


def language_script(language: str) -> str | None:
    """The script that a language is written in, None where it is not known or not one: `de`, `zh-Hans`, `deu_Latn`."""
    code, *subtags = re.split("[-_]", language)
    for subtag in subtags:
        if len(subtag) == 4 and subtag.isalpha():
            return ISO_15924.get(subtag.title())
    return LANGUAGE_SCRIPTS.get(code.lower())


class ScriptCheck:
    """Share of a text's letters outside one script."""

    def __init__(self, script: str) -> None:
        blocks = "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in SCRIPTS[script])
        self._inside = re.compile(f"[{blocks}]+")
        # Latin letters, punctuation and symbols up to U+024F and in the general blocks: no foreign letter among them.
        self._foreign = re.compile("[^\0-\u024f\u1e00-\u1eff\u2000-\u22ff]") if script == "Latin" else None

    def wrong_share(self, text: str) -> float:
        """0 for a text without letters."""
        if self._foreign is not None and (text.isascii() or not self._foreign.search(text)):
            return 0.0
        outside = sum(map(str.isalpha, self._inside.sub("", text)))
        return outside / max(1, sum(map(str.isalpha, text))) if outside else 0.0


# Groups of three belong to one number; the parts of a date or of a decimal are numbers of their own, in any order.
# Digits after a Latin letter are part of a name (i18n, X11), which a translation may spell out.
_NUMBER = re.compile(r"(?<![A-Za-zÀ-ɏ\d])\d+(?:[.,'’]\d{3}(?!\d))*")
_DIGITS = re.compile(r"\d+")
# Numbers up to twelve and round ones are often written out, and so are all numbers in Chinese and Japanese.
_WRITTEN_OUT = {*(str(n) for n in (*range(13), *range(20, 101, 10), 1000, 1_000_000))}
_HAN_NUMERALS = re.compile("[〇零一二三四五六七八九十百千万萬億亿两兩]")


def digits_differ(source: str, target: str) -> bool:
    """Whether the numbers of the two sides are really different ones, not the same in another spelling.

    Forgiven: order, grouping and decimal signs (1,000 / 1.000 / 1 000, 3.5 / 3,5), numbers that one side writes out,
    decades (1990s / 90er), 12-hour times (7 pm / 19), thousands in words (600 thousand / 600,000), and, in a text with
    many numbers, a few that differ.
    """
    digits = _DIGITS.findall(source), _DIGITS.findall(target)
    if digits[0] == digits[1] or sorted(digits[0]) == sorted(digits[1]):
        return False
    left, right = (Counter(map(_plain_number, _NUMBER.findall(text))) for text in (source, target))
    everything = sum(map(len, (left + right).elements()))
    left, right = left - right, right - left
    if sorted("".join(left.elements())) == sorted("".join(right.elements())):  # 10 000 is two numbers here
        return False
    _forget_variants(left, right)
    rest = [*left.elements(), *right.elements()]
    if not (left and right):
        rest = [number for number in rest if number not in _WRITTEN_OUT]
        if _HAN_NUMERALS.search(source) or _HAN_NUMERALS.search(target):
            return False
    return sum(map(len, rest)) > 0.5 * everything


def _plain_number(number: str) -> str:
    """Digits only, as ASCII, without leading zeros: 1.000 -> 1000, ٣ -> 3, 07 -> 7."""
    if number.isdigit() and number.isascii():
        return number.lstrip("0") or "0"
    return "".join(str(unicodedata.decimal(c)) for c in number if c.isdecimal()).lstrip("0") or "0"


def _forget_variants(left: Counter[str], right: Counter[str]) -> None:
    """Take out, in place, what stands on both sides in another form: a decade, an afternoon's hour, 5 million."""
    for a in list(left.elements()):
        for b in list(right.elements()):
            decade = {len(a), len(b)} == {2, 4} and (a.endswith(b) or b.endswith(a))
            afternoon = len(a) <= 2 and len(b) <= 2 and abs(int(a) - int(b)) == 12
            zeros = abs(len(a) - len(b))
            thousands = zeros > 0 and zeros % 3 == 0 and a.ljust(len(b), "0") == b.ljust(len(a), "0")
            if decade or afternoon or thousands:
                left[a] -= 1
                right[b] -= 1
                break
    for side in (left, right):
        for number in [n for n, count in side.items() if count <= 0]:
            del side[number]


_ADDRESS = re.compile(r"(?:https?://|ftp://|www\.)([^\s/?#<>\"'()]+)|[\w.+-]+@([\w-]+(?:\.[\w-]+)+)", re.IGNORECASE)


def urls_differ(source: str, target: str) -> bool:
    """Whether only one side has a web or mail address, or both have and no site in common.

    Sites are compared by the name before the ending, so that en.example.org goes with de.example.org and example.de.
    """
    left, right = _sites(source), _sites(target)
    return bool(left or right) and not left & right


def _sites(text: str) -> set[str]:
    if "://" not in text and "@" not in text and "www." not in text.lower():
        return set()
    hosts = [(host or mail).lower().split(":")[0].rstrip(".,;!") for host, mail in _ADDRESS.findall(text)]
    return {host.split(".")[-2] if "." in host else host for host in hosts}


class Cleaner:
    """The rules that look at one pair, for a language pair."""

    def __init__(self, config: CleaningConfig, source_language: str, target_language: str) -> None:
        self.config = config
        names = (
            language_script(source_language) if config.source_script == "auto" else config.source_script,
            language_script(target_language) if config.target_script == "auto" else config.target_script,
        )
        self._density = [SCRIPT_DENSITY.get(str(name), 1.0) for name in names]
        self._scripts = [ScriptCheck(name) if name in SCRIPTS else None for name in names]

    def rule(self, source: str, target: str) -> str | None:
        """The first rule that drops this pair of normalised texts, None for a good pair."""
        config = self.config
        if not (source and target):
            return "empty" if config.empty else None
        if self._too_long(source) or self._too_long(target):
            return "too_long"
        if config.max_length_ratio is not None:
            lengths = len(source) * self._density[0] + 20, len(target) * self._density[1] + 20
            if max(lengths) > config.max_length_ratio * min(lengths):
                return "length_ratio"
        if config.identical and source == target:
            return "identical"
        if config.max_wrong_script is not None:
            for text, script in zip((source, target), self._scripts, strict=True):
                if script is not None and script.wrong_share(text) > config.max_wrong_script:
                    return "wrong_script"
        if config.digits_mismatch and digits_differ(source, target):
            return "digits_mismatch"
        return "urls_mismatch" if config.urls_mismatch and urls_differ(source, target) else None

    def _too_long(self, text: str) -> bool:
        characters, words = self.config.max_characters, self.config.max_words
        return (characters is not None and len(text) > characters) or (words is not None and text.count(" ") >= words)

    def clean(self, pairs: Iterable[tuple[str, str]]) -> "CleanedPairs":
        """Normalise pairs and drop those that a rule hits."""
        kept: list[bytes] = []
        dropped = Dropped()
        for source, target in pairs:
            source, target = normalise(source), normalise(target)
            rule = self.rule(source, target)
            if rule is None:
                kept.append(f"{source}\t{target}".encode())
            else:
                dropped.add(rule, source, target)
        return CleanedPairs(kept, hash_lines(kept), dropped)


@dataclass
class Dropped:
    """How many pairs each rule dropped, and a few of them.

    The samples of a rule are those with the smallest hashes: spread over the corpus, the same for any chunking, and
    two reports merge into the report of both.
    """

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)

    def add(self, rule: str, source: str, target: str) -> None:
        self.counts[rule] += 1
        key = _hash(f"{source}\t{target}".encode("utf-8", "surrogatepass"))
        self._keep(rule, [(key, source[:SAMPLE_CHARACTERS], target[:SAMPLE_CHARACTERS])])

    def merge(self, other: "Dropped") -> None:
        self.counts.update(other.counts)
        for rule, samples in other.samples.items():
            self._keep(rule, samples)

    def _keep(self, rule: str, samples: list[tuple[int, str, str]]) -> None:
        held = self.samples.setdefault(rule, [])
        if len(held) < SAMPLES or samples[0][0] < held[-1][0]:
            held[:] = sorted({*held, *samples})[:SAMPLES]

    def report(self, rules: Sequence[str] = RULES, items: str = "pairs") -> dict[str, dict[str, Any]]:
        """`{rule: {"pairs": count, "samples": [[source, target], …]}}` for every rule, in their order."""
        return {
            rule: {items: self.counts[rule], "samples": [[s, t] for _, s, t in self.samples.get(rule, [])]}
            for rule in rules
        }


@dataclass
class CleanedPairs:
    """What `Cleaner.clean` kept: `source TAB target` in UTF-8 (normalised text holds no tab), and the lines' hashes."""

    lines: list[bytes]
    hashes: NDArray[np.uint64]
    dropped: Dropped


def _hash(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little")


def hash_lines(lines: list[bytes]) -> NDArray[np.uint64]:
    """A 64-bit hash of each line, shape (lines,)."""
    digests = b"".join([hashlib.blake2b(line, digest_size=8).digest() for line in lines])
    return np.frombuffer(digests, dtype="<u8")


class SeenHashes:
    """The 64-bit hashes met so far, 8 bytes each: sorted arrays that are merged once the newer has grown to the older.

    Two different lines of 100 million share a hash with a probability of 3e-4, and then one pair is lost.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Remember the hashes; True, shape (hashes,), where one had not been met before."""
        unique, first = np.unique(hashes, return_index=True)
        new = np.ones(len(unique), dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, unique), len(run) - 1)
            new &= run[place] != unique
        if new.any():
            self._runs.append(unique[new])
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            newer, older = self._runs.pop(), self._runs.pop()
            self._runs.append(np.sort(np.concatenate([older, newer]), kind="stable"))
        mask = np.zeros(len(hashes), dtype=bool)
        mask[first[new]] = True
        return mask
