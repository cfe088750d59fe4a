"""The charts of the report: whole, small, and free of what another chart on the page may have."""

import math
import re

import pytest

from bmscale.evaluation.charts import Line, line_chart

MANY = 20_000


def chart(values, **options) -> str:
    steps = range(1, len(values) + 1)
    return line_chart(
        "Loss", "nats", [Line("training", steps, values)], [(step, step * 7e6) for step in steps], **options
    )


def test_it_is_one_svg_with_a_title_and_text_in_the_colours_of_the_page():
    svg = chart([3.0, 2.0, 1.0])
    assert svg.startswith('<svg role="img" viewBox="')
    assert svg.rstrip().endswith("</svg>")
    assert "<title>Loss</title>" in svg
    assert re.search(r"<text [^>]*>nats</text>", svg)
    assert "var(--series-1)" in svg
    assert not re.search(r"(fill|stroke): #", svg), "a colour that does not follow the light or dark scheme"
    assert "http" not in svg
    assert "14M" in svg, "the upper axis counts target tokens"


def test_long_series_are_thinned_but_keep_their_spikes():
    values = [2.0 + math.sin(step) for step in range(MANY)]
    values[7777] = 900.0
    svg = chart(values)
    assert len(svg) < 50_000
    assert "800" in re.findall(r">(\d+)</text>", svg)


def test_small_values_keep_their_digits():
    labels = re.findall(r">([^<]*)</text>", chart([0.0005, 0.001, 0.00025]))
    assert "0.0002" in labels
    assert "0.001" in labels


ODD = {
    "none": [],
    "one gap": [math.nan],
    "among gaps": [math.nan, 1.0, math.nan],
    "zeros": [0.0, 0.0],
    "negative": [-1.0, 5.0],
    "far apart": [1e-30, 1e30],
    "huge": [3e38, 1.0],
    "many gaps": [math.nan] * MANY,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("scale", ["free", "zero", "log"])
def test_any_values_make_a_chart(name, scale):
    assert "</svg>" in chart(ODD[name], scale=scale)


def test_a_chart_without_tokens_has_no_upper_axis():
    lines = [Line("training", [1, 2], [1.0, 2.0])]
    assert "target tokens" not in line_chart("Loss", "nats", lines, [])
    chart = line_chart("Loss", "nats", lines, [(1, 16), (2, 32)], counted="texts")
    assert "texts" in chart
    assert "target tokens" not in chart
