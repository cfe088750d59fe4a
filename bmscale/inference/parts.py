"""A text that is longer than the model takes, as parts that it does take: sentences, else runs of words."""

import math

from bmscale.data.tokenizer import EOS, Tokenizer
from bmscale.inference.sentences import split_everywhere


def split_source(text: str, tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Ids of the parts of a normalised text, each of at most `longest` tokens with its </s>."""
    pieces: list[list[int]] = []
    for sentence in split_everywhere(text):
        ids = tokenizer.encode(sentence)
        if len(ids) <= longest:
            pieces.append(ids)
        else:
            pieces.extend(_pack(sentence.split(" "), tokenizer, longest))
    return pieces


def _pack(words: list[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
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
    return [ids for run in runs for ids in _fit(" ".join(run), tokenizer, longest)]


def _fit(text: str, tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Ids of a text, halved for as long as it is too long: a word of thousands of characters ends here."""
    ids = tokenizer.encode(text)
    if len(ids) <= longest:
        return [ids]
    if len(text) < 2:  # one character, spelt in more bytes than the model takes
        return [[*ids[: longest - 1], EOS]]
    middle = len(text) // 2
    return [*_fit(text[:middle].strip(), tokenizer, longest), *_fit(text[middle:].strip(), tokenizer, longest)]
