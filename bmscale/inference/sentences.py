"""Where sentences end, by rules: no model, no download, any language.

`split_sentences` is for paragraphs that are translated sentence by sentence, and rather leaves two sentences together
than cuts one: a full stop behind an abbreviation, an initial or a number with a small letter after it ends nothing.
`split_everywhere` is for what is too long to be translated in one piece, and cuts at whatever looks like an end.
"""

import re
from collections.abc import Sequence

LANGUAGES_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo"})

# Before a space, after the closing quotes and brackets of the sentence; Chinese and Japanese write no space there.
_STOPS = r"[.!?…؟۔।॥]"
_CLOSING = "[\"'”’»›)\\]]"
_END = re.compile(
    rf"(?<={_STOPS})(?=\s)|(?<={_STOPS}{_CLOSING})(?=\s)|(?<={_STOPS}{_CLOSING}{_CLOSING})(?=\s)|(?<={_STOPS}\s»)(?=\s)"
    r"|(?<=[。！？｡])(?![。！？｡”’」』）)])|(?<=[。！？｡][”’」』）)])(?![。！？｡”’」』）)])"
)
_CLOSED_LATER = ("»", "”", "’", ")", "]")  # « Où ? » dit-il.
_ANY_END = re.compile(
    r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’»)\]])(?=\s)"
    r"|(?<=[。！？｡।])(?![。！？｡।”’」』）)])|(?<=[。！？｡।][”’」』）)])"
)
_LINE_BREAK = re.compile("(\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])")
_LAST_WORD = re.compile(r"([^\s(\[{\"'“”„«‚‘’]+)\.$")
_OPENING = "\"'“”„«‚‘’‹([{¿¡—–- "

# Words that a full stop belongs to, in small letters and without their own last stop. Some of them end sentences now
# and then (etc., usw.), which then stay with the next one.
_ABBREVIATIONS = """
en mr mrs ms dr prof st mt jr sr rev gen col capt lt sgt hon gov sen rep pres vs cf viz approx dept est figs eqs nos
   vols pp eds al i.e e.g a.m p.m u.s u.k u.n ph.d b.c a.d inc ltd co corp bros feb aug sept oct nov dec ave blvd rd
de z.b d.h u.a o.ä u.ä i.d.r s.o s.u v.a z.t z.zt v.chr n.chr bzw ca evtl ggf inkl exkl mind str tel vgl usw dgl abb
   anm bd bsp dipl ing hr fr hrsg jh kap mio mrd sog tab zit zzgl abt allg bes geb gest jhd
fr m mm mme mmes mlle mlles p.ex c.-à-d env av j.-c chap éd
es sr sra srta sres dra ud uds ee.uu p.ej núm pág págs
it sig sigg dott dr.ssa ecc pag pagg
nl dhr mevr mw bijv d.w.z enz o.a t.o.v m.b.t
sv bl.a d.v.s m.fl m.m osv t.ex dvs f.eks kl
pl np tj tzn tzw mgr inż ul godz tys mln mld
cs tzv např atd apod č
ru г гг т.е т.д т.п и.т.д др см стр ул проф акад руб тыс млн млрд
"""
_WORDS_WITH_STOPS = frozenset(_ABBREVIATIONS.split())
# Abbreviations before a number, words of their own elsewhere.
_BEFORE_NUMBERS = frozenset(re.findall(r"\w+", "no nr art fig eq vol ch sec ed p s abs jan mar apr jun jul sep"))
# "am 3. Mai", "Karel IV. z Boží milosti": a number with a full stop is an ordinal in these.
_WITH_ORDINALS = frozenset(re.findall(r"\w+", "de cs sk pl da no nb nn fi et lv hu hr sr bs sl is tr"))
_ROMAN = re.compile(r"[IVXLC]{1,6}")


def split_sentences(paragraph: str, language: str | None = None) -> list[str]:
    """The sentences of a paragraph in their order, without the space between them; none for white space alone.

    `language` is a code such as `de` or `de_AT`; where it is given, numbers with a full stop are ordinals in the
    languages that write them so.
    """
    ordinals = language is not None and re.split("[-_]", language)[0].lower() in _WITH_ORDINALS
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(paragraph):
        if _is_end(paragraph[start : end.start()], paragraph[end.start() :].lstrip(), ordinals):
            sentences.append(paragraph[start : end.start()])
            start = end.start()
    sentences.append(paragraph[start:])
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


class Document:
    """A text of several lines as its sentences, which can be put back into its lines."""

    def __init__(self, text: str, language: str | None = None) -> None:
        """`language` is that of `split_sentences`."""
        self._parts = _LINE_BREAK.split(text)  # every second one is a break
        self._found = [split_sentences(part, language) for part in self._parts]
        self.sentences = [sentence for found in self._found for sentence in found]
        """All of them, in their order."""

    def written(self, sentences: Sequence[str], joint: str = " ") -> str:
        """The document with other sentences in the place of its own, those of a line joined by `joint`. Line breaks,
        blank lines and the white space before a line stay as they are."""
        rest = iter(sentences)
        lines = []
        for part, found in zip(self._parts, self._found, strict=True):
            whole = joint.join(filter(None, [next(rest) for _ in found]))
            lines.append(part[: len(part) - len(part.lstrip())] + whole if found else part)
        return "".join(lines)


def split_everywhere(text: str) -> list[str]:
    """The same at every full stop, question or exclamation mark with a space behind it."""
    return [stripped for part in _ANY_END.split(text) if (stripped := part.strip())]


def _is_end(before: str, after: str, ordinals: bool) -> bool:
    """Whether a sentence ends between the two, at a place that looks like it."""
    begins = after.lstrip(_OPENING)
    if begins[:1].islower() or after[:1] in _CLOSED_LATER:
        return False
    word = _LAST_WORD.search(before)
    if word is None:  # no full stop, or one behind which a bracket or a quotation closes
        return True
    last = word[1]
    if last.lower() in _WORDS_WITH_STOPS or (last.lower() in _BEFORE_NUMBERS and begins[:1].isdigit()):
        return False
    if (len(last) == 1 and last.isalpha() and last.isupper()) or re.fullmatch(r"(\w\.)+\w", last):  # J. S. Bach
        return False
    # A year ends a sentence more often than it is an ordinal.
    return not (ordinals and ((last.isdigit() and len(last) <= 2) or _ROMAN.fullmatch(last)))
