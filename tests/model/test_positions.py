"""Rotary tables and sinusoids against their definitions."""

import math

import torch

from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.positions import positions, rotate, rotation, sinusoids


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
