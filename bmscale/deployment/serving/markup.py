"""HTML as text that is translated and markup that is kept to the letter."""

import html
import re
from collections.abc import Iterator

# Elements whose content is no prose: it is kept as it stands.
_KEPT = {"script", "style", "code", "pre", "textarea", "kbd", "samp", "var", "noscript", "template", "svg", "math"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_NAME = re.compile(r"</?([a-zA-Z][^\s/>]*)")
_QUOTES_AND_END = re.compile("[\"'>]")
_NOT_TRANSLATED = re.compile(
    r"\btranslate\s*=\s*[\"']?no\b|\bclass\s*=\s*(?:\"[^\"]*\bnotranslate\b|'[^']*\bnotranslate\b)"
)


def split_markup(document: str) -> list[tuple[bool, str]]:
    """The document in pieces, each with whether it is text to translate; joined they are the document.

    Tags, comments and what stands in elements like <script> or with translate="no" are markup. A tag or comment that
    never ends is, to the end of the document. One pass, whatever comes in.
    """
    pieces: list[tuple[bool, str]] = []
    kept: list[str] = []  # open elements from the first that is not translated
    for is_text, piece in _pieces(document):
        name_match = None if is_text else _NAME.match(piece)
        if name_match:
            _step_in_or_out(kept, name_match[1].lower(), piece)
        pieces.append((is_text and not kept and bool(piece.strip()), piece))
    return pieces


def _step_in_or_out(kept: list[str], name: str, tag: str) -> None:
    if tag.startswith("</"):
        if kept and kept[-1] == name:
            kept.pop()
        return
    if name in _VOID or tag.endswith("/>"):
        return
    # Only elements of the outermost one's name count: they nest, and others may be left open.
    if (not kept and (name in _KEPT or _NOT_TRANSLATED.search(tag))) or (kept and name == kept[0]):
        kept.append(name)


def _pieces(document: str) -> Iterator[tuple[bool, str]]:
    """(Whether it is text, the piece) by HTML's rules of what opens a tag, in one pass."""
    position = text_from = 0
    while (opening := document.find("<", position)) >= 0:
        end = _end_of_markup(document, opening)
        if end is None:
            position = opening + 1
            continue
        if opening > text_from:
            yield True, document[text_from:opening]
        yield False, document[opening:end]
        name = _NAME.match(document, opening)
        position = text_from = end
        if name and name[1].lower() in ("script", "style", "textarea") and document[opening + 1] != "/":
            # What looks like a tag in there is none, but for the closing one.
            closing = re.compile(f"</{name[1]}", re.IGNORECASE).search(document, end)
            position = closing.start() if closing else len(document)
            if position > end:
                yield False, document[end:position]
            text_from = position
    if text_from < len(document):
        yield True, document[text_from:]


def _end_of_markup(document: str, opening: int) -> int | None:
    """Where the markup that begins with this < ends; None where the < is text."""
    if document.startswith("<!--", opening):
        end = document.find("-->", opening + 4)
        return len(document) if end < 0 else end + 3
    following = document[opening + 1 : opening + 3]
    if following[:1] in ("!", "?"):
        end = document.find(">", opening)
        return len(document) if end < 0 else end + 1
    if not re.match(r"/?[a-zA-Z]", following):
        return None
    position = opening + 1
    while mark := _QUOTES_AND_END.search(document, position):
        if mark[0] == ">":
            return mark.end()
        closing = document.find(mark[0], mark.end())
        if closing < 0:
            break
        position = closing + 1
    return len(document)


def text_of(piece: str) -> str:
    """The text that a piece of HTML stands for: `&amp;` is one character."""
    return html.unescape(piece)


def markup_of(text: str) -> str:
    """A translation as HTML text: whatever it holds, it opens no tag."""
    return html.escape(text, quote=False)
