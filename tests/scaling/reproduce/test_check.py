"""Tolerances: what is within, what is outside, and how both are shown."""

import json

import pytest

from bmscale.scaling.reproduce.check import Check, Reproduction, absolute, at_most, between, relative


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (relative("x", 200.0, 200.19, 1e-3), relative("x", 200.0, 200.21, 1e-3)),
        (relative("x", -200.0, -200.19, 1e-3), relative("x", -200.0, -199.79, 1e-3)),
        (absolute("x", 0.5, 0.4921, 0.008), absolute("x", 0.5, 0.5081, 0.008)),
        (at_most("x", "1", 0.9, 1.0), at_most("x", "1", 1.1, 1.0)),
        (between("x", "", 0.22, 0.22, 0.29), between("x", "", 0.2199, 0.22, 0.29)),
        (absolute("x", 0.5, 0.5, 0.008), absolute("x", 0.5, float("nan"), 0.008)),
    ],
)
def test_a_figure_is_within_its_tolerance_or_not(inside: Check, outside: Check):
    assert inside.passed
    assert not outside.passed


def test_one_figure_outside_is_enough_and_is_shown():
    good, bad = absolute("good", 0.5, 0.5, 0.01), at_most("bad", "0.1", float("nan"), 0.1)
    found = Reproduction("paper", "Someone 2024", (good, bad), lambda figure: None, ("a note",))
    assert not found.passed
    assert Reproduction("paper", "Someone 2024", (good,), lambda figure: None).passed
    _, _, first, second, note = found.table().splitlines()
    assert first.split() == ["good", "0.5", "0.5000", "±", "0.01", "ok"]
    assert second.split()[-1] == "OUTSIDE"
    assert note == "  a note"
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [check["passed"] for check in said["checks"]] == [True, False]
    assert said["checks"][1]["ours"] is None
