"""A text as the ids that a model of text reads: `<s> text </s>`, and back."""

from collections.abc import Iterable, Sequence

from bmscale.data.tokenizer import BOS, EOS, Tokenizer


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """<s>, the pieces of the text, </s>."""
    return [BOS, *tokenizer.encode(text)]


def batch_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The same of each text."""
    return [[BOS, *ids] for ids in tokenizer.encode_batch(texts)]


def cut(ids: list[int], most: int) -> list[int]:
    """At most so many ids of a document: what is cut off is the end of the text, and </s> stays."""
    return ids if len(ids) <= most else [*ids[: most - 1], EOS]


def document_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids; special tokens leave nothing behind."""
    return tokenizer.decode(ids)
