"""Masks: none where the kernel is causal by itself, block-diagonal where rows are packed."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from bmscale.model import DecoderOnlyConfig
from bmscale.model.masks import bidirectional_mask, causal_mask, find_segments

X = torch.zeros(2, 5, 8)
ONE_EACH = torch.tensor([[1, 1, 1, 1, 1], [3, 3, 3, 0, 0]])
PACKED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 2, 2, 0]])


def config_for(attention="sdpa"):
    config = DecoderOnlyConfig(hidden_size=8, num_attention_heads=1)
    config._attn_implementation = attention
    return config


def test_one_document_a_row_leaves_causality_to_the_kernel():
    for segments in (None, ONE_EACH):
        assert causal_mask(config_for(), X, None, segments, None) is None
    assert bidirectional_mask(config_for(), X, None, None) is None
    assert bidirectional_mask(config_for(), X, None, torch.ones(2, 5)) is None


def test_an_encoder_does_not_see_padding():
    mask = bidirectional_mask(config_for(), X, None, ONE_EACH)
    assert mask is not None
    assert mask[1, 0].tolist() == [[True, True, True, False, False]] * 5
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    mask = bidirectional_mask(config_for(), X, real, ONE_EACH)
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True, True, True, True, False], [True, True, True, False, False]]


@pytest.mark.parametrize("is_causal", [True, False])
def test_packed_rows_are_block_diagonal(is_causal):
    def make(attention) -> Any:
        config = config_for(attention)
        return causal_mask(config, X, None, PACKED, None) if is_causal else bidirectional_mask(config, X, None, PACKED)

    mask = make("sdpa")
    assert mask.shape == (2, 1, 5, 5)
    assert mask.dtype == torch.bool
    for row in range(2):
        for q in range(5):
            for k in range(5):
                sees = bool(PACKED[row, q] == PACKED[row, k]) and (k <= q or not is_causal)
                assert bool(mask[row, 0, q, k]) == sees
    added = make("eager")
    assert torch.equal(added == 0, mask)
    assert (added[~mask] < -1e30).all()


def test_a_mask_of_padding_adds_to_the_documents():
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    for mask in (bidirectional_mask(config_for(), X, real, PACKED), causal_mask(config_for(), X, real, PACKED, None)):
        assert mask is not None
        assert not mask[1, 0, :, 0].any()
        assert mask[1, 0, 1, 1]


@pytest.mark.parametrize("is_causal", [True, False])
def test_flash_attention_takes_no_packed_rows(is_causal):
    config = config_for("flash_attention_2")
    with pytest.raises(ValueError, match="segment_ids need attn_implementation sdpa, eager or flex_attention"):
        causal_mask(config, X, None, PACKED, None) if is_causal else bidirectional_mask(config, X, None, PACKED)


def test_documents_are_found_where_positions_start_anew():
    position = torch.tensor([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]])
    segments = find_segments(None, position, None, None)
    assert segments is not None
    assert segments.tolist() == [[1, 1, 1, 2, 3], [1, 1, 1, 1, 1]]
    assert find_segments(None, position[1:], None, None) is None
    # With a mask or a cache positions jump for another reason: padding on the left, or tokens before.
    assert find_segments(None, position, torch.ones(2, 5), None) is None
    assert find_segments(None, position, None, DynamicCache()) is None
    assert find_segments(PACKED, position, torch.ones(2, 5), None) is PACKED
    with pytest.raises(ValueError, match="must not be given with past_key_values"):
        find_segments(PACKED, None, None, DynamicCache())
