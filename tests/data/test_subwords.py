"""Sampled segmentations: the same text, a pure function of (seed, step, pair), never over the limits."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bmscale.data.batch import read_batch
from bmscale.data.shards import PairShards, ShardWriter
from bmscale.data.subwords import SampledPairs
from bmscale.data.tokenizer import EOS, Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.data.toy import toy_pairs

SENTENCES = [source for source, _ in toy_pairs("train", 300, 0)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(SENTENCES, TokenizerConfig(vocabulary_size=200)))


@pytest.fixture(scope="module")
def shards(tokenizer, tmp_path_factory) -> PairShards:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, tokenizer.vocabulary_size, keep_text=True) as writer:
        for first in range(0, 300, 50):
            sentences = SENTENCES[first : first + 50]
            ids = tokenizer.encode_batch(sentences)
            lengths = np.array([len(row) for row in ids], dtype=np.int32)
            tokens = np.concatenate([np.array(row + row) for row in ids])
            writer.add_batch(tokens, lengths, lengths, [f"{s}\t{s}\n".encode() for s in sentences])
    return PairShards.open(folder)


def test_texts_are_kept_in_order(shards):
    assert shards.has_texts
    assert [shards.text(i)[0] for i in range(300)] == SENTENCES
    assert [shards.text(i)[1] for i in (0, 149, 299)] == [SENTENCES[i] for i in (0, 149, 299)]


def test_a_segmentation_is_of_the_same_text(tokenizer, shards):
    sampled = SampledPairs(shards, tokenizer, 0.3, (1, 7), (1000, 1000))
    different = 0
    for i in range(0, 300, 20):
        for side, kept in zip(sampled.pair(i), shards.pair(i), strict=True):
            assert tokenizer.decode(side) == SENTENCES[i]
            assert side[-1] == EOS
            different += not np.array_equal(side, kept)
    assert different > 20


def test_it_depends_on_seed_step_and_pair_only(tokenizer, shards):
    def sample(seed, step, order):
        source = SampledPairs(shards, tokenizer, 0.3, (seed, step), (1000, 1000))
        return {i: source.pair(i)[0].tolist() for i in order}

    forward, backward = sample(1, 7, range(20)), sample(1, 7, reversed(range(20)))
    assert forward == backward
    assert sample(1, 8, range(20)) != forward
    assert sample(2, 7, range(20)) != forward


def test_limits_hold_and_nothing_is_cut(tokenizer, shards):
    longest = int(shards.source_lengths.max())
    limits = (longest, longest)
    sampled = SampledPairs(shards, tokenizer, 0.05, (3, 3), limits)
    batch = read_batch(sampled, range(100))
    assert batch.labels.shape[1] <= longest
    assert [tokenizer.decode(row[row >= 0]) for row in batch.labels] == SENTENCES[:100]


def test_better_segmentations_come_more_often(tokenizer, shards):
    """With alpha 1 the shares are the model's own probabilities of the segmentations."""
    text = SENTENCES[0]
    generator = np.random.default_rng(0)
    drawn = [tuple(tokenizer.sample(text, 1.0, generator)) for _ in range(400)]
    best = tuple(tokenizer.encode(text))
    flat = [tuple(tokenizer.sample(text, 0.01, generator)) for _ in range(400)]
    assert drawn.count(best) > 5 * flat.count(best)
    assert max(set(drawn), key=drawn.count) == best
    assert tokenizer.sample("", 0.1, generator) == [EOS]


def test_it_is_the_same_in_every_process(tokenizer):
    """Pinned: a change here changes runs that are to be reproduced, and ranks must agree."""
    program = (
        "import sys, numpy, json\nfrom bmscale.data.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer(bytes.fromhex(sys.stdin.read()))\n"
        f"print(json.dumps(tokenizer.sample({SENTENCES[1]!r}, 0.1, numpy.random.default_rng([1, 2, 3]))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], input=tokenizer.model.hex(), capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == tokenizer.sample(SENTENCES[1], 0.1, np.random.default_rng([1, 2, 3]))


def test_unigram_and_bpe_are_told_apart(tokenizer):
    assert tokenizer.is_unigram
    assert not Tokenizer(train_tokenizer(SENTENCES, TokenizerConfig(type="bpe", vocabulary_size=400))).is_unigram
