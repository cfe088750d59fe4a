"""The corpus of scaling studies: always the same, Zipfian, and of the entropy that it says."""

import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from bmscale.data import synthetic
from bmscale.data.corpus import CorpusConfig, read_pairs
from bmscale.data.prepare import DataConfig, prepare
from bmscale.data.shards import PairShards
from bmscale.data.synthetic import Language, irreducible_loss, irreducible_loss_of, synthetic_pairs
from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput


def test_pairs_stay_as_they_are():
    """Losses of studies are compared over years: another text must not come without a word."""
    assert list(synthetic_pairs("train", 2)) == [
        ("ga nar ku tin ren nal tal ha ve ra no zen", "de der ji pon zor no pun ker mor sor por min"),
        ("jer gin jo ra no zen mun bin kal lir kon ben", "tir ter gen sor por jo tan pi gur dal jor sor"),
    ]


def test_a_pair_depends_on_seed_split_and_number_alone():
    pairs = list(synthetic_pairs("train", 5000, seed=3))
    assert list(islice(synthetic_pairs("train", 10_000, seed=3), 5000)) == pairs
    alone = Language(3).draw("train", 4321, 1)
    spelled = [synthetic.SPELLINGS[number] for number in alone.targets[0, : alone.lengths[0]]]
    assert " ".join(spelled) == pairs[4321][1]
    others = [list(synthetic_pairs("valid", 5000, seed=3)), list(synthetic_pairs("train", 5000, seed=4))]
    for other in others:
        assert len(set(pairs) & set(other)) < 0.1 * len(pairs)


def test_words_are_zipfian_with_more_types_than_any_text_shows():
    assert synthetic.TYPES >= 50_000
    even = np.random.default_rng(0).random(400_000)
    ranks = synthetic.ranks(even)
    for rank in (1, 10, 100, 1000, 10_000, 100_000):
        share = (1 + rank / synthetic.OFFSET) ** -synthetic.TAIL
        assert (ranks >= rank).mean() == pytest.approx(share, abs=4 * math.sqrt(share / len(even)))
    assert len(np.unique(ranks)) > 20_000
    numbers = np.arange(1 << 18, dtype=np.uint64) * np.uint64(synthetic.TYPES >> 18)
    assert len(np.unique(Language(0)._scrambled(numbers))) == len(numbers)  # no two words are spelt alike


def test_the_loss_of_the_truth_is_the_entropy():
    found = irreducible_loss_of("valid", 60_000)
    right, wrong = 1 - synthetic.NOISE, synthetic.NOISE / 256
    # By its own words: the mass of the noise, and of that the even share that falls on the right one.
    entropy = -(right + wrong) * math.log(right + wrong) - 255 * wrong * math.log(wrong)
    assert synthetic.syllable_entropy() == pytest.approx(entropy, rel=1e-12)
    assert irreducible_loss() == pytest.approx(entropy * 13.5 / 14.5, rel=1e-12)
    assert found["expected"] == pytest.approx(irreducible_loss(), rel=1e-3)
    spread = math.sqrt(right * synthetic.NOISE) * math.log(right / wrong) / math.sqrt(found["target_tokens"])
    assert abs(found["drawn"] - found["expected"]) < 4 * spread


def test_what_texts_show_has_that_entropy():
    """Counted in the texts: an ending given its word and the kind of the target before, a stem given its word."""
    language, counts = Language(0), Counter[tuple[str, int | None, str]]()
    kinds = {spelling: int(language._class[number]) for number, spelling in enumerate(synthetic.SPELLINGS)}
    for source, target in synthetic_pairs("train", 40_000):
        words, targets = source.split(), target.split()
        for at in range(0, len(words), 3):
            word = " ".join(words[at : at + 3])
            kind = kinds[targets[at - 1]] if at else 0
            counts[word, None, targets[at]] += 1
            counts[word, kind, targets[at + 2]] += 1
    contexts: dict[tuple[object, ...], Counter[str]] = {}
    for (*context, syllable), count in counts.items():
        contexts.setdefault(tuple(context), Counter())[syllable] += count
    frequent = [found for found in contexts.values() if found.total() > 2000]
    assert len(frequent) > 20
    total = sum(found.total() for found in frequent)
    modal = sum(found.most_common(1)[0][1] for found in frequent)
    share = 1 - synthetic.NOISE + synthetic.NOISE / 256
    assert modal / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))
    others = sum((Counter(dict(found.most_common()[1:])) for found in frequent), Counter())
    assert len(others) == 256  # noise is even over all of them
    even = others.total() / 256
    assert max(others.values()) < even + 6 * math.sqrt(even)


def test_a_token_is_a_syllable(tmp_path):
    config = DataConfig.model_validate(
        {
            "directory": str(tmp_path / "data"),
            "source_language": "sx",
            "target_language": "sy",
            "train": {"synthetic": "train", "pairs": 3000},
            "valid": {"synthetic": "valid", "pairs": 200, "seed": 0},
            "cleaning": {"duplicate": False},
            "tokenizer": {"type": "word", "vocabulary_size": 260},
        }
    )
    manifest = prepare(config, workers=1)
    assert manifest["splits"]["train"]["pairs_kept"] == 3000
    assert [manifest["splits"][split]["unk_rate"] for split in ("train", "valid")] == [0.0, 0.0]
    assert manifest["splits"]["valid"]["sources"][0]["irreducible_loss"] == irreducible_loss_of("valid", 200)
    tokenizer = Tokenizer.load(tmp_path / "data/spiece.model")
    assert tokenizer.vocabulary_size == 4 + 256
    assert not tokenizer.is_unigram
    shards, texts = PairShards.open(tmp_path / "data/train"), list(synthetic_pairs("train", 3000))
    for index in (0, 1, 2999):
        for ids, text in zip(shards.pair(index), texts[index], strict=True):
            assert tokenizer.pieces(ids[:-1]) == [f"\u2581{syllable}" for syllable in text.split()]
            assert tokenizer.decode(ids.tolist()) == text
    assert prepare(config, workers=1)["data_hash"] == manifest["data_hash"]  # up to date
    assert json.loads((tmp_path / "data/manifest.json").read_text())["data_hash"] == manifest["data_hash"]


def test_it_is_named_as_the_toy_corpus_is():
    corpus = CorpusConfig.model_validate({"synthetic": "valid", "pairs": 20_000_000})
    assert (corpus.place, corpus.short_name) == ("synthetic:valid", "synthetic-valid")
    assert next(read_pairs(corpus, "sx", "sy")) == next(synthetic_pairs("valid", 1))
    with pytest.raises(ValueError, match="toy corpus must be at most 10,000,000"):
        CorpusConfig.model_validate({"toy": "train", "pairs": 20_000_000})
    with pytest.raises(ValueError, match="exactly one of"):
        CorpusConfig.model_validate({"toy": "train", "synthetic": "train"})


def test_words_cannot_be_sampled(tmp_path):
    """Subword sampling asks for segmentations, of which a word tokenizer has one."""
    from bmscale.data.tokenizer import TokenizerConfig, train_tokenizer

    letters = " ".join("abcdefghijkl")
    tokenizer = Tokenizer(train_tokenizer([letters], TokenizerConfig(type="word", vocabulary_size=16)))
    assert not tokenizer.is_unigram
    assert len(tokenizer.encode(letters)) == 12 + 1
    with pytest.raises(BadInput, match="supports at most 16 pieces, got 17"):
        train_tokenizer([letters], TokenizerConfig(type="word", vocabulary_size=17))


def test_the_loss_of_syllables_is_not_that_of_other_pieces(tmp_path):
    values = {
        "directory": str(tmp_path / "data"),
        "source_language": "sx",
        "target_language": "sy",
        "train": {"synthetic": "train", "pairs": 500},
        "valid": {"synthetic": "valid", "pairs": 50},
        "cleaning": {"duplicate": False},
        "tokenizer": {"type": "bpe", "vocabulary_size": 300},
    }
    manifest = prepare(DataConfig.model_validate(values), workers=1)
    assert all("irreducible_loss" not in manifest["splits"][split]["sources"][0] for split in ("train", "valid"))
