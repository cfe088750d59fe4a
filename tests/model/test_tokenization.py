"""The tokenizer of a model folder gives the ids that the model was trained on."""

import json

import pytest
from transformers import AutoTokenizer

from bmscale.data.tokenizer import LosslessTokenizerConfig, Tokenizer, train_tokenizer
from bmscale.model.tokenization import tokenizer_config

TEXTS = [
    "The box is  on the table.",
    " a\n\n  b\t",
    "\u2581 a\u2581",
    "x <s> </s> <0x41> y",
    "a\0b",
    "漢 🙂 é",
    "half a character: \ud83d",
    "",
    " ",
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = LosslessTokenizerConfig(type=request.param, vocabulary_size=285)
    model = train_tokenizer(TEXTS * 30, config, lossless=True)
    (folder / "spiece.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(512, "masked_lm", "<mask>")))
    (folder / "config.json").write_text(json.dumps({"model_type": "bmscale_encoder_only"}))
    return Tokenizer(model), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_same_ids_and_text(both, text):
    ours, theirs = both
    ids = theirs(text)["input_ids"]
    assert ids == [0, *ours.encode(text)]
    if "\ud83d" not in text:  # not Unicode: SentencePiece decodes it to replacement characters
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs.mask_token_id == ours.mask_id == 4


def test_the_mask_hides_a_token_and_its_space(both):
    ours, theirs = both
    before, after = ours.encode("The box")[:-1], ours.encode(" is on.")
    for text in ("The box <mask> is on.", "The box<mask> is on."):
        assert theirs(text)["input_ids"] == [0, *before, 4, *after]
    assert theirs("<mask>  <mask>")["input_ids"] == [0, 4, *ours.encode(" ")[:-1], 4, 2]
    assert theirs.decode(theirs("The box <mask>")["input_ids"]) == "<s>The box<mask></s>"
