"""HTML as text that is translated and markup that is kept to the letter.

The rules are those of the HTML standard's tokenizer (https://html.spec.whatwg.org/multipage/parsing.html), section
13.2.5, by which browsers read. html.parser of Python has neither these rules in all versions that bmscale runs on
(`<!-->`, elements of raw text), nor the places of attributes, nor linear time.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Elements whose content is no prose: it is kept as it stands.
_KEPT = {
    "script", "style", "code", "pre", "textarea", "kbd", "samp", "var", "noscript", "template", "svg", "math", "iframe",
    "xmp", "noembed", "noframes", "plaintext",
}  # fmt: skip
# What looks like a tag in these is none, but for their own end tag; <plaintext> has not even that.
_RAW = {"script", "style", "textarea", "title", "iframe", "xmp", "noembed", "noframes", "plaintext"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Elsewhere <x/> opens an element.
_MAY_CLOSE_THEMSELVES = {"svg", "math"}

_TAG_NAME = re.compile(r"</?([a-zA-Z][^\s/>]*)", re.ASCII)
_NUMBER = re.compile(r"&#(\d+)", re.ASCII)
_COMMENT_END = re.compile("--!?>")
# A name may begin with =, and white space and slashes stand between attributes.
_ATTRIBUTE_NAME = re.compile(r"[\s/]*(=?[^\s/>=]*)\s*", re.ASCII)
_VALUE = re.compile(r"""=\s*(?:"([^"]*)"|'([^']*)'|(?=["'])|([^\s>]*))""", re.ASCII)


@dataclass(frozen=True)
class _Tag:
    """A start or end tag."""

    name: str
    """In small letters."""
    attributes: dict[str, str]
    """By names in small letters; of two of a name the first counts."""
    ends: bool
    closes_itself: bool

    @property
    def is_kept(self) -> bool:
        """Whether what stands in its element is not translated."""
        not_translated = self.attributes.get("translate", "").lower() == "no"
        return self.name in _KEPT or not_translated or "notranslate" in self.attributes.get("class", "").split()


def split_markup(document: str) -> list[tuple[bool, str]]:
    """The document in pieces, each with whether it is text to translate; joined they are the document.

    Tags, comments and what stands in elements like <script> or with translate="no" are markup. A tag or comment that
    never ends is, to the end of the document. One pass, whatever comes in.
    """
    pieces: list[tuple[bool, str]] = []
    kept: list[str] = []  # open elements from the first that is not translated
    for tag, piece, is_text in _pieces(document):
        if tag is not None:
            _step_in_or_out(kept, tag)
        pieces.append((is_text and not kept and bool(piece.strip()), piece))
    return pieces


def _step_in_or_out(kept: list[str], tag: _Tag) -> None:
    if tag.ends:
        if kept and kept[-1] == tag.name:
            kept.pop()
        return
    if tag.name in _VOID or (tag.closes_itself and tag.name in _MAY_CLOSE_THEMSELVES):
        return
    # Only elements of the outermost one's name count: they nest, and others may be left open.
    if (not kept and tag.is_kept) or (kept and tag.name == kept[0]):
        kept.append(tag.name)


def _pieces(document: str) -> Iterator[tuple[_Tag | None, str, bool]]:
    """(Its tag where it is one, the piece, whether it is text), in one pass."""
    position = text_from = 0
    while (opening := document.find("<", position)) >= 0:
        tag, end = _markup(document, opening)
        if end == opening:
            position = opening + 1
            continue
        if opening > text_from:
            yield None, document[text_from:opening], True
        yield tag, document[opening:end], False
        position = text_from = end
        if tag is not None and not tag.ends and tag.name in _RAW:
            position = _end_of_raw(document, end, tag.name)
            if position > end:
                yield None, document[end:position], True
            text_from = position
    if text_from < len(document):
        yield None, document[text_from:], True


def _end_of_raw(document: str, position: int, name: str) -> int:
    if name == "plaintext":
        return len(document)
    found = re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE | re.ASCII).search(document, position)
    return found.start() if found else len(document)


def _markup(document: str, opening: int) -> tuple[_Tag | None, int]:
    """The tag that begins with this <, and where the markup ends; where the < is text it ends there."""
    if document.startswith("<!--", opening):
        return None, _end_of_comment(document, opening + 4)
    following = document[opening + 1 : opening + 3]
    if following[:1] in ("!", "?") or (following[:1] == "/" and not re.match(r"/([a-zA-Z]|\Z)", following)):
        end = document.find(">", opening)  # a declaration, or a comment by mistake
        return None, len(document) if end < 0 else end + 1
    named = _TAG_NAME.match(document, opening)
    return (None, opening) if named is None else _tag(document, named)


def _end_of_comment(document: str, begin: int) -> int:
    for short in (">", "->"):
        if document.startswith(short, begin):
            return begin + len(short)
    found = _COMMENT_END.search(document, begin)
    return found.end() if found else len(document)


def _tag(document: str, named: re.Match[str]) -> tuple[_Tag | None, int]:
    """A tag, and where it ends; None where it never does."""
    attributes: dict[str, str] = {}
    position = named.end()
    while (attribute := _ATTRIBUTE_NAME.match(document, position)) and attribute.end() < len(document):
        name, position = attribute[1].lower(), attribute.end()
        value = _VALUE.match(document, position)
        if value is not None:
            if value.lastindex is None:  # a quote that is never closed
                break
            position = value.end()
        if name:
            attributes.setdefault(name, "" if value is None else text_of(value[value.lastindex or 0]))
        if document.startswith(">", position):
            closes_itself = document[position - 1] == "/" and (value is None or value.lastindex != 3)
            return _Tag(named[1].lower(), attributes, named[0][1] == "/", closes_itself), position + 1
    return None, len(document)


def text_of(piece: str) -> str:
    """The text that a piece of HTML stands for: `&amp;` is one character."""
    return html.unescape(_NUMBER.sub(_short, piece))


def _short(number: re.Match[str]) -> str:
    """A character's number without its leading zeros, or that of no character: Python reads no thousands of digits."""
    digits = number[1].lstrip("0") or "0"
    return f"&#{digits if len(digits) < 8 else 1114112}"


def markup_of(text: str) -> str:
    """A translation as HTML text: whatever it holds, it opens no tag."""
    return html.escape(text, quote=False)
