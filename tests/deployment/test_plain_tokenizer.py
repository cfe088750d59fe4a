"""`tokenizer.json` gives the ids of SentencePiece, and the text back, also for texts that look like something else."""

import pytest
import sentencepiece

from bmscale.data.documents import toy_documents
from bmscale.data.tokenizer import EOS, Tokenizer, language_tag
from bmscale.data.toy import toy_pairs
from bmscale.deployment.plain_tokenizer import has_bytes, make_json

ODD = [
    "", "a", " a", "a  b ", "<s>", "x</s>y", "<pad><mask> hello", "<0x41>", "\n\n  def f(x):\n\treturn 1", "😀 ж ½™",
    "  ", "<2de> Hello you.", "a<b", "Straße über Öl", "日本語 text",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["bpe", "lossless", "lossless-bpe"])
def test_ids_and_texts_are_those_of_sentencepiece(kind, spieces):
    ours = Tokenizer.load(spieces[kind])
    theirs = make_json(sentencepiece.SentencePieceProcessor(model_file=str(spieces[kind])), "bos_eos")
    theirs.encode_special_tokens = True
    real = (
        list(toy_documents("valid", 20)) if ours.is_lossless else [s for pair in toy_pairs("valid", 50) for s in pair]
    )
    for text in [*real, *ODD]:
        ids = ours.encode(text)
        assert theirs.encode(text).ids == [0, *ids], repr(text)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)


def test_a_tag_in_front_is_encoded_as_in_training(spieces):
    """Training puts the ids of the tag before those of the text; an artefact is given one text."""
    tokenizer = Tokenizer.load(spieces["unigram"])
    assert not has_bytes(sentencepiece.SentencePieceProcessor(model_file=str(spieces["unigram"])))
    for source, _ in toy_pairs("valid", 30):
        tag = tokenizer.encode(language_tag("de"))
        assert tag[-1] == EOS
        assert tokenizer.encode(f"{language_tag('de')} {source}") == [*tag[:-1], *tokenizer.encode(source)]
