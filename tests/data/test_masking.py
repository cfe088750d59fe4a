import numpy as np
import pytest

from bmscale.data.batch import IGNORED
from bmscale.data.masking import Masking, MaskingConfig
from bmscale.data.tokenizer import BOS, EOS, MASK, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.data.toy import toy_pairs


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    sentences = [english for english, _ in toy_pairs("train", 400, 0)]
    return Tokenizer(train_tokenizer(sentences, TokenizerConfig(vocabulary_size=500), lossless=True))


@pytest.fixture(scope="module")
def row(tokenizer) -> np.ndarray:
    """Documents one after the other, some with two lines."""
    sentences = [english for english, _ in toy_pairs("valid", 600, 0)]
    texts = [f"{one}\n{other}" for one, other in zip(sentences[::2], sentences[1::2], strict=True)]
    return np.concatenate([[BOS, *tokenizer.encode(text)] for text in texts])


def test_the_shares_are_those_of_the_paper(tokenizer, row):
    shown, labels = Masking(MaskingConfig(rate=0.2), tokenizer, MASK).hide(row, (1, 2, 3))
    chosen = labels != IGNORED
    assert np.array_equal(labels[chosen], row[chosen])
    assert np.array_equal(shown[~chosen], row[~chosen])
    assert chosen.mean() == pytest.approx(0.2, abs=0.02)
    assert (shown[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[chosen] == row[chosen]).mean() == pytest.approx(0.1, abs=0.03)
    random = shown[chosen & (shown != MASK) & (shown != row)]
    assert len(set(random.tolist())) > 50
    assert random.min() > MASK
    special = np.isin(row, (BOS, EOS))
    assert special.any()
    assert not chosen[special].any()


def test_what_is_hidden_depends_on_the_key_alone(tokenizer, row):
    masking = Masking(MaskingConfig(), tokenizer, MASK)
    one, again, other = (masking.hide(row, key)[0] for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_words_are_hidden_whole(tokenizer, row):
    _, labels = Masking(MaskingConfig(rate=0.3, whole_words=True), tokenizer, MASK).hide(row, (0,))
    pieces = tokenizer.pieces(row)
    words: list[list[int]] = []
    open_word = False
    for place, piece in enumerate(pieces):
        gap = piece in ("<s>", "</s>", "<0x0A>")
        if gap or piece.startswith("\u2581") or not open_word:
            words.append([])
        words[-1].append(place)
        open_word = not gap
    assert any(len(word) > 1 for word in words)
    for word in words:
        assert len(set((labels[word] != IGNORED).tolist())) == 1, [pieces[place] for place in word]
    assert (labels != IGNORED).mean() == pytest.approx(0.3, abs=0.04)
