"""The tokenizer that `AutoTokenizer` opens from a model folder: SentencePiece itself, id for id, on raw `spiece.model`.

transformers would otherwise convert the model to its own "fast" format, which is not exact for every model; here the
ids come from the SentencePiece library in every case, so they are those that the model was trained on.
"""

from typing import Any

from transformers import AutoTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from bmscale.model.config import EncoderDecoderConfig

TOKENIZER_FILE = "spiece.model"


class BmscaleTokenizer(SentencePieceBackend):
    """Text to ids with </s> at the end, and back. `text_target=` gives labels of the same form.

    Nothing in a text is a special token: the characters "</s>" are encoded as characters, as SentencePiece does, so
    a sentence cannot end a batch row early.
    """

    vocab_files_names = {"vocab_file": TOKENIZER_FILE}  # noqa: RUF012 - the name and form that transformers reads
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        fixed = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("special_tokens_pattern", "eos")
        super().__init__(vocab_file=vocab_file, **{**kwargs, **fixed})

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # By id: as strings, the pieces of an unknown word are its own characters, which could look like a piece.
        return [self.sp_model.id_to_piece(i) for i in self.sp_model.encode(text)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces; unlike the base class it puts spelt-out bytes (<0xC3>) together again.

        Special tokens are shown as they are: `skip_special_tokens=True` takes them out before.
        """
        special = set(self.all_special_tokens)
        text = ""
        ordinary: list[str] = []
        for token in tokens:
            if token in special:
                text += self.sp_model.decode(ordinary) + token
                ordinary = []
            else:
                ordinary.append(token)
        return text + str(self.sp_model.decode(ordinary))


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; `max_length` is in tokens, </s> counted."""
    return {
        "tokenizer_class": BmscaleTokenizer.__name__,
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "split_special_tokens": True,
        "special_tokens_pattern": "eos",
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_max_length": max_length,
    }


AutoTokenizer.register(EncoderDecoderConfig, tokenizer_class=BmscaleTokenizer, exist_ok=True)
