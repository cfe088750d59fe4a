"""Tokenizer: special ids, round trips, the same bytes for the same text, clear refusals."""

import io
import os
import pickle
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bmscale.data.clean import normalise
from bmscale.data.tokenizer import LosslessTokenizerConfig, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput

ALPHABET = "abdefghiklmnoprstuwäöüß.,!½™ﬁ"


def sentences(count=400, seed=0):
    draw = random.Random(seed)
    words = ["".join(draw.choices(ALPHABET, k=draw.randint(2, 8))) for _ in range(150)]
    return [normalise(" ".join(draw.choices(words, k=draw.randint(3, 12)))) for _ in range(count)]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    size = 120 if request.param == "unigram" else 400
    return Tokenizer(train_tokenizer(sentences(), TokenizerConfig(type=request.param, vocabulary_size=size)))


def test_special_ids_and_size(tokenizer):
    assert tokenizer.pieces(range(4)) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.vocabulary_size in (120, 400)


@settings(max_examples=60)
@given(text=st.text(ALPHABET + " \u00a0").map(lambda text: text.replace("ü", "u\u0308")))
def test_normalised_text_round_trips(tokenizer, text):
    text = normalise(text)
    ids = tokenizer.encode(text)
    assert ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[:-1])
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "a"])[0] == ids


def test_text_that_looks_like_a_special_piece_is_text(tokenizer):
    assert not {0, 1, 2} & set(tokenizer.encode("<s> </s> <pad>")[:-1])


def test_characters_never_seen():
    unigram = Tokenizer(train_tokenizer(sentences(), TokenizerConfig(vocabulary_size=120)))
    bpe = Tokenizer(train_tokenizer(sentences(), TokenizerConfig(type="bpe", vocabulary_size=400)))
    assert 3 in unigram.encode("ab 漢")
    assert 3 not in bpe.encode("ab 漢")
    assert bpe.decode(bpe.encode("ab 漢 🙂")) == "ab 漢 🙂"


def test_padding_leaves_nothing(tokenizer):
    text = sentences()[0]
    assert tokenizer.decode([0, *tokenizer.encode(text), 1, 1]) == text
    assert tokenizer.encode("") == [2]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_deterministic(kind):
    config = TokenizerConfig(type=kind, vocabulary_size={"unigram": 150, "bpe": 360}[kind])
    first, second = train_tokenizer(sentences(), config), train_tokenizer(iter(sentences()), config)
    assert first == second
    assert train_tokenizer(sentences(seed=1), config) != first


def test_training_is_silent(capfd):
    train_tokenizer(sentences(), TokenizerConfig(vocabulary_size=120))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_largest_possible_vocabulary_is_named_and_works(kind):
    with pytest.raises(
        BadInput, match=r"data\.tokenizer\.vocabulary_size: .*at most [\d,]+ pieces, got 50,000"
    ) as caught:
        train_tokenizer(sentences(), TokenizerConfig(type=kind, vocabulary_size=50_000))
    most = int(str(caught.value).split("at most ")[1].split()[0].replace(",", ""))
    model = train_tokenizer(sentences(), TokenizerConfig(type=kind, vocabulary_size=most))
    assert Tokenizer(model).vocabulary_size == most


def test_a_vocabulary_below_the_alphabet_is_refused():
    with pytest.raises(BadInput, match=r"vocabulary_size: must be at least \d+, .*got 20"):
        train_tokenizer(sentences(), TokenizerConfig(vocabulary_size=20))


def test_long_lines_are_not_skipped():
    rare = "z" * 5000  # longer than SentencePiece's default limit, and the only place of its letter
    tokenizer = Tokenizer(train_tokenizer([*sentences(), rare], TokenizerConfig(vocabulary_size=120)))
    assert 3 not in tokenizer.encode("z")


def test_load_and_pickle(tmp_path, tokenizer):
    path = tmp_path / "spiece.model"
    path.write_bytes(tokenizer.model)
    loaded = Tokenizer.load(path)
    copy = pickle.loads(pickle.dumps(loaded))
    assert loaded.sha256 == copy.sha256 == tokenizer.sha256
    assert copy.encode("dab") == tokenizer.encode("dab")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"not a model at all"])
def test_a_damaged_file_is_refused(tmp_path, tokenizer, damage):
    path = tmp_path / "spiece.model"
    path.write_bytes(damage(tokenizer.model))
    with pytest.raises(BadInput, match=r"spiece\.model: not a SentencePiece model, or a damaged one"):
        Tokenizer.load(path)
    with pytest.raises(BadInput, match="cannot be read"):
        Tokenizer.load(tmp_path / "none.model")


def test_a_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "spiece.model")
    with pytest.raises(BadInput, match=r"spiece\.model: the tokenizer must be a regular file"):
        Tokenizer.load(tmp_path / "spiece.model")


def test_an_absurd_vocabulary_is_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        TokenizerConfig(vocabulary_size=10**12)


def test_other_special_ids_are_refused():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, vocab_size=120, minloglevel=2
    )
    with pytest.raises(BadInput, match=r"t5: the first four pieces must be <s>, <pad>, </s>, <unk>"):
        Tokenizer(model.getvalue(), "t5")


NASTY = [
    "",
    " ",
    "   a  b   ",
    "\u2581",
    " \u2581a \u2581\u2581 b\u2581",
    "a\0b\0",
    "\n\n \t\r\r\n x\u2028\x85\x0c",
    "<s></s><pad><unk><mask><0x41> <2de> \u2047 \ufffd",
    "\ufeffBOM \ufb01 \u00bd \u2122 e\u0301 \u00e9",
    "漢字 🙂 👩\u200d👩\u200d👧 \U0010ffff \ud83d \udc80\u2581 \ude00\ud83d",
    "def f(x):\n    if x:\n        return  x\n",
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def lossless(request):
    texts = [*sentences(), *NASTY, "a<mask>a <0x41>a <s>a </s>a", "\tx" * 50, "x    y\n" * 50]
    config = LosslessTokenizerConfig(type=request.param, vocabulary_size=420)
    return Tokenizer(train_tokenizer(texts, config, lossless=True))


def test_a_lossless_tokenizer_has_bytes_and_a_mask(lossless, tokenizer):
    assert lossless.pieces([*range(6), 260]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<0x00>", "<0xFF>"]
    assert (lossless.mask_id, lossless.is_lossless) == (4, True)
    assert (tokenizer.mask_id, tokenizer.is_lossless) == (None, False)
    lossless.require(mask=True)
    with pytest.raises(BadInput, match="must give every text back, with all 256 byte pieces"):
        tokenizer.require()


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_nasty_texts_come_back(lossless, text):
    ids = lossless.encode(text)
    assert ids[-1] == 2
    assert not set(range(5)) & set(ids[:-1])
    assert lossless.decode(ids) == text
    assert lossless.decode([0, *ids, 1]) == text
    assert lossless.encode_batch(["a b", text])[1] == ids


def test_random_texts_and_bytes_come_back(lossless):
    draw = random.Random(5)
    pool = [*ALPHABET, *"   \n\t\r\0\u2581<>/sx01A", "<s>", "</s>", "<mask>", "<0x41>", "漢", "🙂", "\ud800", "\udfff"]
    for _ in range(1500):
        text = "".join(draw.choices(pool, k=draw.randint(0, 40)))
        assert lossless.decode(lossless.encode(text)) == text
        text = "".join(chr(draw.randrange(0x110000)) for _ in range(draw.randint(0, 9)))
        assert lossless.decode(lossless.encode(text)) == text
        data = draw.randbytes(draw.randint(0, 30)) + draw.choice(["", "é▁", "a b"]).encode()
        ids = lossless.encode_bytes(data)
        assert lossless.decode_bytes(ids) == data
        assert not set(range(5)) & set(ids)


def test_bytes_are_written_token_by_token(lossless):
    text = "Straße 漢 🙂\u2581 x"
    ids = lossless.encode(text)
    assert b"".join(lossless.decode_bytes([i]) for i in ids).decode() == text
    assert lossless.decode(lossless.encode("a\U0010fffe")[:-2]) == "a\ufffd"


def test_frequent_text_that_looks_like_a_special_piece_can_be_trained_on():
    texts = [*sentences(), *["<0x41> <s> <mask> <unk> </s>", "x<0x41>x"] * 200]
    config = LosslessTokenizerConfig(vocabulary_size=420, character_coverage=1.0)
    tokenizer = Tokenizer(train_tokenizer(texts, config, lossless=True))
    assert tokenizer.decode(tokenizer.encode(texts[-1])) == texts[-1]
    assert tokenizer.mask_id == 4


def test_a_lossless_tokenizer_is_trained_on_long_documents_and_line_ends():
    document = "\n".join(sentences(9000)) + "\t\u2047\u2581"
    assert len(document.encode()) > 1 << 18
    tokenizer = Tokenizer(train_tokenizer([document], LosslessTokenizerConfig(vocabulary_size=420), lossless=True))
    assert max(map(len, tokenizer.pieces(range(420)))) > 2
    assert not any(set(piece) & set("\n\t") for piece in tokenizer.pieces(range(420)))


def test_a_tokenizer_without_a_mask_is_named(lossless, monkeypatch):
    without = pickle.loads(pickle.dumps(Tokenizer(lossless.model, "mine.model")))
    monkeypatch.setattr(Tokenizer, "mask_id", None)
    without.require()
    with pytest.raises(BadInput, match=r"mine\.model: .* must have the control symbol <mask>"):
        without.require(mask=True)
