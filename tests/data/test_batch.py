"""Batches: padding, masks, the shift."""

import numpy as np
import torch

from bmscale.data.batch import IGNORED, empty_batch, make_batch, read_buckets, text_buckets
from bmscale.data.tokenizer import EOS, PAD


def test_padding_masks_and_shift():
    batch = make_batch([np.array([7, 8, EOS]), np.array([9, EOS])], [np.array([4, EOS]), np.array([5, 6, EOS])])
    assert batch.input_ids.tolist() == [[7, 8, EOS], [9, EOS, PAD]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.labels.tolist() == [[4, EOS, IGNORED], [5, 6, EOS]]
    assert batch.decoder_input_ids.tolist() == [[EOS, 4, EOS], [EOS, 5, 6]]
    assert batch.target_tokens == 5


def test_shards_of_16_bits_become_int64():
    batch = make_batch([np.array([7, EOS], np.uint16)], [np.array([60_000, EOS], np.uint16)])
    assert batch.labels.dtype == torch.int64
    assert batch.labels[0, 0] == 60_000


def test_an_empty_batch_counts_nothing():
    batch = empty_batch()
    assert batch.target_tokens == 0
    assert batch.attention_mask.all()
    assert batch.input_ids.shape == batch.labels.shape == (1, 1)


class Pairs:
    """A source and a target, or a text and its label."""

    pairs = (([7, EOS], [4, EOS]), ([8, 9, EOS], [5, 6, EOS]), ([3, EOS], [9, EOS]))

    def pair(self, i):
        return tuple(np.array(side) for side in self.pairs[i])


def test_buckets_lie_one_behind_the_other():
    batch = read_buckets(Pairs(), [[0], [1, 2]])
    assert batch.source_buckets == batch.target_buckets == ((1, 2), (2, 3))
    assert batch.input_ids.tolist() == [[7, EOS, 8, 9, EOS, 3, EOS, PAD]]
    assert batch.attention_mask.tolist() == [[True] * 7 + [False]]
    assert batch.decoder_input_ids.tolist() == [[EOS, 4, EOS, 5, 6, EOS, 9, EOS]]
    assert batch.labels.tolist() == [[4, EOS, 5, 6, EOS, 9, EOS, IGNORED]]
    assert (batch.tokens, batch.target_tokens, batch.slots) == (14, 7, 16)
    moved = batch.to(torch.device("cpu"))
    assert moved.source_buckets == batch.source_buckets
    assert torch.equal(moved.labels, batch.labels)
    assert batch.empty().target_tokens == 0
    assert read_buckets(Pairs(), []).target_tokens == 0


def test_texts_in_buckets_keep_their_labels():
    batch = text_buckets(Pairs(), [[1], [0, 2]])
    assert batch.buckets == ((1, 3), (2, 2))
    assert batch.input_ids.tolist() == [[8, 9, EOS, 7, EOS, 3, EOS]]
    assert batch.labels.tolist() == [5, 4, 9]
    assert text_buckets(Pairs(), []).target_tokens == 0
