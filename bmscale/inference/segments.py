"""A text in parts that a model can take: at ends of sentences, else between words, else within one."""

import math
import re

from bmscale.data.tokenizer import Tokenizer

# Before a space, after the closing quotes and brackets of the sentence; Chinese and Japanese write no space there.
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])(?=\s)|(?<=[.!?…][\"'”’»)\]])(?=\s)"
    r"|(?<=[。！？｡।])(?![。！？｡।”’」』）)])|(?<=[。！？｡।][”’」』）)])"
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space between them."""
    return list(filter(None, map(str.strip, _SENTENCE_END.split(text))))


def segments(tokenizer: Tokenizer, text: str, longest: int) -> list[str]:
    """A text as parts of at most `longest` tokens, </s> counted; a text that fits is its only part.

    One that does not is split into its sentences, and those that are too long into runs of words of about the same
    length. One character that is spelt in more tokens stays one part.
    """
    if len(tokenizer.encode(text)) <= longest:
        return [text]
    parts: list[str] = []
    for sentence, ids in _encoded(tokenizer, sentences(text)):
        parts.extend([sentence] if len(ids) <= longest else _runs(tokenizer, sentence, longest))
    return parts


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[str, list[int]]]:
    return list(zip(texts, tokenizer.encode_batch(texts), strict=True))


def _runs(tokenizer: Tokenizer, sentence: str, longest: int) -> list[str]:
    """As few runs of words as fit, of about the same length: a last run of one word would have no context."""
    words = [(word, len(ids) - 1) for word, ids in _encoded(tokenizer, sentence.split(" "))]
    total, room = sum(length for _, length in words), longest - 1
    room = math.ceil(total / math.ceil(total / room))
    runs: list[list[str]] = [[]]
    held = 0
    for word, length in words:
        if runs[-1] and held + length > room:
            runs.append([])
            held = 0
        runs[-1].append(word)
        held += length
    return [part for run in runs for part in _halves(tokenizer, " ".join(run), longest)]


def _halves(tokenizer: Tokenizer, text: str, longest: int) -> list[str]:
    """A text, halved for as long as it is too long: a word of thousands of characters ends here."""
    if len(tokenizer.encode(text)) <= longest or len(text) < 2:
        return [text]
    middle = len(text) // 2
    return [part for half in (text[:middle], text[middle:]) for part in _halves(tokenizer, half.strip(), longest)]
