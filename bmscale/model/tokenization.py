"""The tokenizer that `AutoTokenizer` opens from a model folder: SentencePiece itself, id for id, on raw `spiece.model`.

transformers would otherwise convert the model to its own "fast" format, which is not exact for every model; here the
ids come from the SentencePiece library in every case, so they are those that the model was trained on.
"""

import re
from typing import Any

from transformers import AutoTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from bmscale.model.config import DecoderOnlyConfig, EncoderDecoderConfig, EncoderOnlyConfig

TOKENIZER_FILE = "spiece.model"


class BmscaleTokenizer(SentencePieceBackend):
    """Text to ids and back. `text_target=` gives labels of the same form.

    Around a text stands what its model was trained with: </s> behind it for translation, <s> before it for a language
    model, both for an encoder (`special_tokens_pattern` of tokenizer_config.json).

    Nothing in a text is a special token: the characters "</s>" are encoded as characters, as SentencePiece does, so
    a sentence cannot end a batch row early. The one exception is `mask_token`, which only a masked language model has:
    it hides a token there, and with it the space before it, because a piece that begins a word begins with its space.
    """

    vocab_files_names = {"vocab_file": TOKENIZER_FILE}  # noqa: RUF012 - the name and form that transformers reads
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        fixed = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("special_tokens_pattern", "eos")
        super().__init__(vocab_file=vocab_file, **{**kwargs, **fixed})

        # As bmscale.data.tokenizer does: where a text is to come back as it was, a mark that SentencePiece itself would
        # take for a space, and half characters, are spelt in bytes.
        spells_bytes = all(self.sp_model.is_byte(self.sp_model.piece_to_id(f"<0x{byte:02X}>")) for byte in range(256))
        as_it_is = "".join(map(self.sp_model.id_to_piece, self.sp_model.encode("a  b "))) == "a\u2581\u2581b\u2581"
        apart = [f" ?{re.escape(self.mask_token)}"] if self.mask_token else []
        apart += ["[\u2581\ud800-\udfff]"] if spells_bytes and as_it_is else []
        self._apart = re.compile(f"({'|'.join(apart) or '(?!)'})")

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # By id: as strings, the pieces of an unknown word are its own characters, which could look like a piece.
        pieces: list[str] = []
        for i, part in enumerate(self._apart.split(text)):
            if i % 2 and self.mask_token and part.endswith(self.mask_token):
                pieces.append(self.mask_token)
            elif i % 2:
                pieces += [f"<0x{byte:02X}>" for byte in part.encode("utf-8", "surrogatepass")]
            else:
                pieces += map(self.sp_model.id_to_piece, self.sp_model.encode(part))
        return pieces

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


_FRAMES = {"translation": "eos", "language_model": "bos", "masked_lm": "bos_eos", "classification": "bos_eos"}
"""What is put around a text, in transformers' words. A prompt has no end: the language model writes on from it."""


def tokenizer_config(max_length: int, task: str = "translation", mask_token: str | None = None) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; `max_length` is in tokens, special ones counted. `mask_token` is the
    piece that hides a token from a masked language model."""
    return {
        "tokenizer_class": BmscaleTokenizer.__name__,
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        **({} if mask_token is None else {"mask_token": mask_token}),
        "split_special_tokens": True,
        "special_tokens_pattern": _FRAMES[task],
        "clean_up_tokenization_spaces": False,
        # A text is written on from its end, so a shorter prompt is padded before its beginning.
        "padding_side": "left" if task == "language_model" else "right",
        "model_max_length": max_length,
    }


for _config in (EncoderDecoderConfig, DecoderOnlyConfig, EncoderOnlyConfig):
    AutoTokenizer.register(_config, tokenizer_class=BmscaleTokenizer, exist_ok=True)
