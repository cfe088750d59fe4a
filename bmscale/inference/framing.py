"""A text as the ids that a model of text reads: `<s> text </s>`, and back."""

from collections.abc import Iterable

from bmscale.data.tokenizer import BOS, Tokenizer


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """<s>, the pieces of the text, </s>."""
    return [BOS, *tokenizer.encode(text)]


def document_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids; special tokens leave nothing behind."""
    return tokenizer.decode(ids)
