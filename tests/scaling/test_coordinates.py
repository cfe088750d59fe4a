"""The coordinate check: μP passes it from width 32 to 512 and over depth, the standard parametrization does not."""

import math

import pytest

from bmscale.errors import BadInput
from bmscale.experiment import read_experiment
from bmscale.scaling.coordinates import TOLERANCE, Coordinates, Setting, check_coordinates, deeper, table, wider

WIDTHS, DEPTHS = [32, 64, 128, 256, 512], [4, 8, 16]
SETTING = Setting(seeds=2)
PRESETS = {
    "translation": "toy",
    "language_model": "toy-text",
    "masked_lm": "toy-masked",
    "classification": "toy-labels",
}


def experiment(task="translation", *overrides):
    shallow = () if task == "translation" else ("model.num_hidden_layers=2",)
    return read_experiment(PRESETS[task], [*shallow, *overrides])


@pytest.mark.parametrize("task", PRESETS)
def test_no_activation_of_mup_follows_width(task):
    found = check_coordinates(experiment(task), "mup", "width", WIDTHS, SETTING)
    assert ("cross-attention" in found.activations) == (task == "translation")
    assert {"embeddings", "attention", "feed-forward", "stream", "logits"} <= set(found.activations)
    assert not found.failures(), table(found)
    # Not only in the mean: what training adds does not follow width either.
    assert max(abs(found.slopes(kind)[-1]) for kind in found.activations) <= TOLERANCE


@pytest.mark.parametrize("task", ["translation", "language_model"])
def test_activations_of_the_standard_parametrization_do(task):
    found = check_coordinates(experiment(task), "standard", "width", WIDTHS, SETTING)
    assert set(found.failures()) == set(found.activations), table(found)
    assert found.slope("embeddings") == pytest.approx(-0.5, abs=0.05)
    assert min(found.slopes(kind)[-1] for kind in found.activations if kind != "embeddings") > 5 * TOLERANCE


def test_the_stream_follows_depth_in_the_standard_parametrization_only():
    mup, standard = (
        check_coordinates(experiment(), parametrization, "depth", DEPTHS, SETTING)
        for parametrization in ("mup", "standard")
    )
    assert not mup.failures(), table(mup)
    assert {"stream", "logits"} <= set(standard.failures()), table(standard)
    assert mup.activations["embeddings"][0][0] == pytest.approx(math.sqrt(2 / math.pi), rel=0.1)  # a normal of std 1


def test_shapes_keep_the_size_and_the_grouping_of_heads():
    model = experiment("translation", "model.num_attention_heads=4", "model.num_key_value_heads=2").model
    shapes = wider(model.task, model.build(64), "mup", [64, 96, 256])
    assert [(one.num_attention_heads, one.num_key_value_heads) for one in shapes] == [(2, 1), (3, 1), (8, 4)]
    assert {one.head_dim for one in shapes} == {32}
    assert {one.base_hidden_size for one in shapes} == {64}
    assert [one.intermediate_size for one in shapes] == [192, 288, 768]
    deep = deeper(model.task, model.build(64), "standard", [3, 9])
    assert [(one.num_encoder_layers, one.num_decoder_layers, one.hidden_size) for one in deep] == [
        (3, 3, 128),
        (9, 9, 128),
    ]


def test_widths_that_no_head_divides_are_refused():
    model = experiment().model
    with pytest.raises(BadInput, match=r"--widths: must be multiples of the head size 32; got 48"):
        wider(model.task, model.build(64), "mup", [32, 48])
    with pytest.raises(BadInput, match=r"model: head_dim must be even"):
        wider(model.task, model.build(64), "mup", [3, 6])


def test_a_slope_is_that_of_a_power_law_and_no_number_fails():
    found = Coordinates("mup", "width", [2, 4, 8], 0.1, {"stream": [[1.0, 2.0], [2.0, 2.0], [4.0, 2.0]]})
    assert found.slopes("stream") == [pytest.approx(1), pytest.approx(0)]
    assert found.slope("stream") == pytest.approx(0.5)
    assert found.failures() == ["stream"]
    broken = Coordinates("mup", "width", [2, 4], 0.1, {"stream": [[1.0], [math.nan]]})
    assert broken.failures() == ["stream"]
