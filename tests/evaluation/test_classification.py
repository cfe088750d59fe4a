"""Figures of classification are those worked out by hand, and scikit-learn's where it is installed."""

import numpy as np
import pytest

from bmscale.errors import BadInput
from bmscale.evaluation.classification import MOST_CONFUSIONS, confusions, per_label, score_labels
from bmscale.evaluation.scores import format_scores

#                rightly given / given / asked: a 2/3/3, b 1/2/2, c 0/0/1, d 0/1/0
REFERENCES = ["a", "a", "a", "b", "b", "c"]
PREDICTIONS = ["a", "a", "b", "b", "d", "a"]


def test_figures_by_hand():
    scores = score_labels(REFERENCES, PREDICTIONS, n_bootstrap=0)
    assert scores["accuracy"]["score"] == pytest.approx(100 * 3 / 6)
    assert scores["macro_f1"]["score"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0 + 0) / 4)
    assert [scores["macro_f1"][key] for key in ("mean", "plus_minus", "low", "high")] == [None] * 4
    assert per_label(REFERENCES, PREDICTIONS) == {
        "a": {"precision": pytest.approx(200 / 3), "recall": pytest.approx(200 / 3), "f1": pytest.approx(200 / 3),
              "support": 3},
        "b": {"precision": 50, "recall": 50, "f1": 50, "support": 2},
        "c": {"precision": 0, "recall": 0, "f1": 0, "support": 1},
        "d": {"precision": 0, "recall": 0, "f1": 0, "support": 0},
    }  # fmt: skip


def test_confusions_come_by_how_often_they_are():
    assert confusions(["a", "b", "b", "c", "c", "a"], ["b", "a", "a", "a", "c", "a"]) == [
        {"label": "b", "predicted": "a", "texts": 2},
        {"label": "a", "predicted": "b", "texts": 1},
        {"label": "c", "predicted": "a", "texts": 1},
    ]
    assert len(confusions([f"{k}" for k in range(99)], ["x"] * 99)) == MOST_CONFUSIONS
    assert confusions(["a"], ["a"]) == []


def drawn(texts: int, labels: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(texts)
    references = generator.integers(0, labels, texts)
    wrong = generator.integers(0, labels + 1, texts)
    predictions = np.where(generator.random(texts) < 0.7, references, wrong)
    return [f"l{k}" for k in references], [f"l{k}" for k in predictions]


def test_the_interval_of_macro_f1_is_that_of_resampled_texts():
    references, predictions = drawn(80, 4)
    generator = np.random.default_rng(7)
    figures = []
    for _ in range(1000):
        chosen = generator.integers(0, 80, 80)
        one = score_labels([references[k] for k in chosen], [predictions[k] for k in chosen], n_bootstrap=0)
        figures.append(one["macro_f1"]["score"])
    found = score_labels(references, predictions)["macro_f1"]
    low, high = np.percentile(figures, [2.5, 97.5])
    # Two draws of a thousand: ends of intervals of about 9 points on either side differ by less than 1.5.
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1.5)
    assert found["mean"] == pytest.approx(np.mean(figures), abs=0.6)
    assert found["plus_minus"] == pytest.approx((found["high"] - found["low"]) / 2)
    assert found["low"] < found["score"] < found["high"]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1),
    ],
)
def test_the_interval_of_accuracy_is_the_published_one(right, total, low, high):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    for count, ends in ((right, (low, high)), (total - right, (1 - high, 1 - low))):
        found = score_labels(["a"] * total, ["a"] * count + ["b"] * (total - count), n_bootstrap=0)["accuracy"]
        assert (found["low"], found["high"]) == pytest.approx([100 * end for end in ends], abs=0.006)
        assert found["low"] <= found["score"] <= found["high"]
        assert found["mean"] == pytest.approx((found["low"] + found["high"]) / 2)
        assert found["plus_minus"] == pytest.approx((found["high"] - found["low"]) / 2)


def test_the_record_is_that_of_scores_and_repeats():
    references, predictions = drawn(200, 3)
    scores = score_labels(references, predictions)
    assert scores == score_labels(references, predictions)
    assert scores["macro_f1"]["low"] != score_labels(references, predictions, seed=1)["macro_f1"]["low"]
    assert scores["accuracy"]["segments"] == 200
    first, second = format_scores(scores).splitlines()
    assert first.startswith("accuracy")
    assert "labels:4|interval:wilson" in first
    assert second.startswith("macro-F1")
    assert "labels:4|bs:1000|seed:12345" in second


def test_all_right_and_all_wrong():
    right = score_labels(["x", "y"], ["x", "y"])["macro_f1"]
    assert (right["score"], right["low"], right["high"]) == (100, 100, 100)
    wrong = score_labels(["x"], ["y"])["macro_f1"]
    assert (wrong["score"], wrong["low"], wrong["high"]) == (0, 0, 0)


def test_what_cannot_be_scored_is_said():
    with pytest.raises(BadInput, match="got 2 predictions and 1 references"):
        score_labels(["a"], ["a", "b"])
    with pytest.raises(BadInput, match="nothing to score"):
        per_label([], [])
    with pytest.raises(BadInput, match="must be 0 or more; got -1"):
        score_labels(["a"], ["a"], n_bootstrap=-1)


@pytest.mark.filterwarnings("ignore")  # of labels without a denominator
@pytest.mark.parametrize(("texts", "labels"), [(6, 2), (50, 5), (2000, 30)])
def test_scikit_learn_finds_the_same(texts, labels):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    references, predictions = drawn(texts, labels)
    scores = score_labels(references, predictions, n_bootstrap=0)
    assert scores["accuracy"]["score"] == pytest.approx(100 * metrics.accuracy_score(references, predictions))
    assert scores["macro_f1"]["score"] == pytest.approx(
        100 * metrics.f1_score(references, predictions, average="macro")
    )
    report = metrics.classification_report(references, predictions, output_dict=True)
    for label, figures in per_label(references, predictions).items():
        theirs = report[label]
        assert [figures[key] / 100 for key in ("precision", "recall", "f1")] == pytest.approx(
            [theirs["precision"], theirs["recall"], theirs["f1-score"]]
        )
        assert figures["support"] == theirs["support"]
