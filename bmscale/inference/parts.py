"""A text that is longer than the model takes, as parts that it does take: sentences, else runs of words."""

import math

from bmscale.data.tokenizer import Tokenizer
from bmscale.inference.sentences import split_everywhere


def split_source(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """The parts of a normalised text, each of at most `longest` tokens with its </s>; one that fits is its only part.

    One character that is spelt in more tokens stays one part.
    """
    if len(tokenizer.encode(text)) <= longest:
        return [text]
    parts: list[str] = []
    for sentence in split_everywhere(text):
        if len(tokenizer.encode(sentence)) <= longest:
            parts.append(sentence)
        else:
            parts.extend(_pack(sentence.split(" "), tokenizer, longest))
    return parts


def _pack(words: list[str], tokenizer: Tokenizer, longest: int) -> list[str]:
    """As few runs of words as fit, of about the same length: a last run of one word would have no context."""
    lengths = [len(ids) - 1 for ids in tokenizer.encode_batch(words)]
    room = longest - 1
    room = math.ceil(sum(lengths) / math.ceil(sum(lengths) / room))
    runs: list[list[str]] = [[]]
    held = 0
    for word, length in zip(words, lengths, strict=True):
        if runs[-1] and held + length > room:
            runs.append([])
            held = 0
        runs[-1].append(word)
        held += length
    return [part for run in runs for part in _fit(" ".join(run), tokenizer, longest)]


def _fit(text: str, tokenizer: Tokenizer, longest: int) -> list[str]:
    """A text, halved for as long as it is too long: a word of thousands of characters ends here."""
    if len(tokenizer.encode(text)) <= longest or len(text) < 2:
        return [text]
    middle = len(text) // 2
    return [*_fit(text[:middle].strip(), tokenizer, longest), *_fit(text[middle:].strip(), tokenizer, longest)]
