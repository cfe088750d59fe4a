"""A text has the same ids alone, in a batch and in shards; one that is cut keeps its marks."""

import numpy as np
import pytest

from bmscale.data.framing import batch_ids, cut, document_ids, document_text
from bmscale.data.text_data import encode_texts
from bmscale.data.tokenizer import BOS, EOS, LosslessTokenizerConfig, Tokenizer, train_tokenizer

TEXTS = ["the old fisherman rowed across the lake", "", " a\n\n b", "half: \ud83d", "x </s> y"]


@pytest.mark.parametrize("most", [None, 10])
def test_training_and_prediction_read_the_same(tmp_path, most):
    config = LosslessTokenizerConfig(vocabulary_size=280)
    (tmp_path / "spiece.model").write_bytes(train_tokenizer(TEXTS[:1] * 30, config, lossless=True))
    tokenizer = Tokenizer.load(tmp_path / "spiece.model")
    whole = [document_ids(tokenizer, text) for text in TEXTS]
    assert batch_ids(tokenizer, TEXTS) == whole
    assert all((ids[0], ids[-1]) == (BOS, EOS) for ids in whole)
    assert [document_text(tokenizer, ids) for ids in whole] == TEXTS
    lines = [f'["{text.encode("unicode_escape").decode()}"]\n'.encode() for text in TEXTS]
    stored = encode_texts(tmp_path / "spiece.model", tokenizer.sha256, most, None, lines)
    read = whole if most is None else [cut(ids, most) for ids in whole]
    assert [ids.tolist() for ids in np.split(stored.tokens, np.cumsum(stored.lengths)[:-1])] == read
    assert stored.cut == (0 if most is None else sum(len(ids) > most for ids in whole))


def test_what_is_cut_keeps_its_marks():
    assert cut([BOS, 7, 8, 9, EOS], 4) == [BOS, 7, 8, EOS]
    assert cut([BOS, 7, 8, EOS], 4) == [BOS, 7, 8, EOS]
