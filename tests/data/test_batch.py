"""Batches: padding, masks, the shift."""

import numpy as np
import torch

from bmscale.data.batch import IGNORED, empty_batch, make_batch
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
