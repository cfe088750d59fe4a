"""Rotary tables and sinusoids against their definitions."""

import math

import torch

from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.positions import find_positions, positions, rotate, rotation, sinusoids


def test_rotation_is_a_rotation_by_position_times_frequency():
    config = EncoderDecoderConfig(hidden_size=12, num_attention_heads=2, rope_theta=100.0)
    tables = rotation(config, positions(4, 3, torch.device("cpu")), torch.float32)
    x = torch.randn(2, 4, 2, 6)
    turned = rotate(x, tables)
    for t in range(4):
        for k in range(3):
            angle = (3 + t) * 100.0 ** (-2 * k / 6)
            pair = torch.complex(x[:, t, :, k], x[:, t, :, k + 3]) * complex(math.cos(angle), math.sin(angle))
            torch.testing.assert_close(turned[:, t, :, k], pair.real, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(turned[:, t, :, k + 3], pair.imag, atol=1e-6, rtol=1e-5)


def test_scores_depend_on_distance_only():
    config = EncoderDecoderConfig(hidden_size=16, num_attention_heads=1)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64).unbind()

    def score(i: int, j: int) -> float:
        turned = [
            rotate(x, rotation(config, torch.tensor([float(at)]), torch.float64)) for x, at in ((query, i), (key, j))
        ]
        return float((turned[0] * turned[1]).sum())

    assert abs(score(7, 3) - score(104, 100)) < 1e-4
    assert abs(score(7, 3) - score(8, 3)) > 1e-3


def test_tables_do_not_lose_far_positions_in_bf16():
    config = EncoderDecoderConfig(hidden_size=64, num_attention_heads=1)
    cos, _ = rotation(config, positions(1, 1001, torch.device("cpu")), torch.bfloat16)
    assert abs(float(cos[0, 0, 0, 0]) - math.cos(1001)) < 0.01


def test_sinusoids_are_fairseqs():
    table = sinusoids(positions(3, 0, torch.device("cpu")), 8, torch.float32)
    for t in range(3):
        for k in range(4):
            angle = (t + 2) * 10_000 ** (-k / 3)
            assert abs(float(table[t, k]) - math.sin(angle)) < 1e-5
            assert abs(float(table[t, k + 4]) - math.cos(angle)) < 1e-5


def test_positions_of_rows():
    x = torch.zeros(2, 4, 8)
    assert find_positions(x).tolist() == [0, 1, 2, 3]
    assert find_positions(x, start=3).tolist() == [3, 4, 5, 6]
    assert find_positions(x, position_ids=torch.tensor([[5, 6, 7, 9]])).tolist() == [[5, 6, 7, 9]]
    segments = torch.tensor([[1, 1, 2, 0], [2, 3, 3, 3]])
    assert find_positions(x, segment_ids=segments).tolist() == [[0, 1, 0, 0], [0, 0, 1, 2]]
    left = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])  # two earlier tokens lie in a cache
    assert find_positions(x, attention_mask=left, start=2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]


def test_tables_of_rows_are_those_of_each_row():
    config = EncoderDecoderConfig(hidden_size=12, num_attention_heads=2)
    rows = torch.tensor([[0.0, 1, 2, 0], [0, 0, 1, 2]])
    for table in range(2):
        both = rotation(config, rows, torch.float32)[table]
        assert both.shape == (2, 4, 1, 6)
        for row in range(2):
            assert torch.equal(both[row : row + 1], rotation(config, rows[row], torch.float32)[table])
    both = sinusoids(rows, 8, torch.float32)
    assert torch.equal(both[1], sinusoids(rows[1], 8, torch.float32))
