import pytest

from bmscale.benchmark.figures import Figures, middle, paired_ratios


def test_speed_is_of_target_tokens_or_of_the_own_unit_or_of_times():
    assert Figures(seconds=2.0, target_tokens=10, source_tokens=30).speed == 5
    assert Figures(seconds=2.0, work=3.0, unit="GiB").speed == 1.5
    assert Figures(seconds=4.0).speed == 0.25


def test_shares():
    figures = Figures(
        seconds=2.0, target_tokens=10, source_tokens=30, slots=50, flops=8e9, peak_flops=1e10, waited_seconds=0.5
    )
    assert figures.padding == pytest.approx(0.2)
    assert figures.mfu == pytest.approx(0.4)
    assert figures.datasheet_mfu is None
    assert figures.waiting == 0.25
    assert figures.as_dict()["mfu"] == figures.mfu


def test_medians_and_ratios_in_turns():
    assert middle([3.0, None, 1.0, 2.0]) == 2
    assert middle([None]) is None
    fast = [Figures(seconds=1.0, target_tokens=tokens) for tokens in (10, 30)]
    slow = [Figures(seconds=1.0, target_tokens=tokens) for tokens in (5, 10, 99)]
    assert paired_ratios(fast, slow) == [2, 3]
