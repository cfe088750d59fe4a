"""Quality of a classifier: accuracy and macro-F1 with intervals, precision and recall of each label, confusions."""

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from bmscale.errors import BadInput
from bmscale.evaluation.scores import DEFAULT_SEED

MOST_CONFUSIONS = 20
"""How many are kept; 150 labels can be confused in 22,350 ways."""


def score_labels(
    references: Sequence[str], predictions: Sequence[str], *, n_bootstrap: int = 1000, seed: int = DEFAULT_SEED
) -> dict[str, dict[str, Any]]:
    """Accuracy and macro-F1 of N predicted labels against N right ones, in percent, as `scores.score` returns scores.

    Macro-F1 is the plain mean of F1 over the labels that occur in references or predictions, as scikit-learn takes
    it: a label that is nowhere does not count, one that is only predicted counts 0.

    `low` and `high` bound an interval of 95 %, `plus_minus` is half its width. That of accuracy is the score interval
    (Wilson 1927), because a bootstrap of texts that are all right says ± 0 however few they are; `mean` is its middle.
    That of macro-F1 is the percentile bootstrap's (Efron 1979): the central part of `n_bootstrap` resamples of the
    texts, `mean` is their mean; in a resample, macro-F1 is over the labels that occur there. All four are None when
    `n_bootstrap` is 0 or 1. The same seed gives the same interval.

    Returns under `accuracy` and `macro_f1` the keys `name`, `score`, `signature`, `mean`, `plus_minus`, `low`, `high`,
    `segments` and `note` (None), ready for `results.json` and `scores.format_scores`.

    Raises BadInput for unequal counts, nothing to score, or a negative count or seed.
    """
    _check(references, predictions, n_bootstrap, seed)
    labels, pairs_K2, counts_K = _confusion(references, predictions)
    total = len(references)
    right = int(counts_K[pairs_K2[:, 0] == pairs_K2[:, 1]].sum())
    macro_f1 = partial(_macro_f1, pairs_K2=pairs_K2, labels=len(labels))
    signature = f"labels:{len(labels)}"
    interval: dict[str, Any] = dict.fromkeys(("mean", "plus_minus", "low", "high"))
    if n_bootstrap > 1:
        # Resampling texts with replacement is drawing how often each pair of labels occurs.
        draws_RK = np.random.default_rng(seed).multinomial(total, counts_K / total, size=n_bootstrap)
        samples_R = macro_f1(draws_RK)
        signature += f"|bs:{n_bootstrap}|seed:{seed}"
        interval = _interval(samples_R.mean(), *np.percentile(samples_R, [2.5, 97.5]))
    rest = {"segments": total, "note": None}
    return {
        "accuracy": {
            "name": "accuracy",
            "score": 100 * right / total,
            "signature": f"labels:{len(labels)}|interval:wilson",
            **_wilson(right, total),
            **rest,
        },
        "macro_f1": {
            "name": "macro-F1",
            "score": float(macro_f1(counts_K[None])[0]),
            "signature": signature,
            **interval,
            **rest,
        },
    }


def per_label(references: Sequence[str], predictions: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Precision, recall and F1 in percent, and `support` (how many references have it), of each label that occurs.

    What has no denominator is 0, as in scikit-learn. Labels are sorted. Raises BadInput as `score_labels` does.
    """
    _check(references, predictions, 0, 0)
    labels, pairs_K2, counts_K = _confusion(references, predictions)
    right, given, asked = (part[0] for part in _sums(counts_K[None], pairs_K2, len(labels)))
    return {
        label: {
            "precision": float(100 * right[k] / max(given[k], 1)),
            "recall": float(100 * right[k] / max(asked[k], 1)),
            "f1": float(200 * right[k] / (given[k] + asked[k])),
            "support": int(asked[k]),
        }
        for k, label in enumerate(labels)
    }


def confusions(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, str | int]]:
    """Which labels were taken for which others, and for how many texts: the most frequent `MOST_CONFUSIONS`."""
    wrong = Counter(pair for pair in zip(references, predictions, strict=True) if pair[0] != pair[1])
    first = sorted(wrong.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_CONFUSIONS]
    return [{"label": label, "predicted": predicted, "texts": texts} for (label, predicted), texts in first]


def _confusion(references: Sequence[str], predictions: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The L labels that occur, the K different pairs (reference, prediction) of them (K, 2), and how often each is."""
    labels = sorted({*references, *predictions})
    number = {label: k for k, label in enumerate(labels)}
    pairs = [(number[one], number[other]) for one, other in zip(references, predictions, strict=True)]
    pairs_K2, counts_K = np.unique(np.array(pairs), axis=0, return_counts=True)
    return labels, pairs_K2, counts_K


def _sums(counts_RK: np.ndarray, pairs_K2: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each label in R samples (R, L): how often it was rightly given, given at all, and asked for."""
    agree_K = pairs_K2[:, 0] == pairs_K2[:, 1]
    return (
        _grouped(counts_RK[:, agree_K], pairs_K2[agree_K, 0], labels),
        _grouped(counts_RK, pairs_K2[:, 1], labels),
        _grouped(counts_RK, pairs_K2[:, 0], labels),
    )


def _grouped(counts_RK: np.ndarray, group_K: np.ndarray, groups: int) -> np.ndarray:
    """Sums of columns (R, groups): the work grows with K, however many groups there are."""
    sums_GR = np.zeros((groups, len(counts_RK)), dtype=np.int64)
    np.add.at(sums_GR, group_K, counts_RK.T)
    return sums_GR.T


def _macro_f1(counts_RK: np.ndarray, pairs_K2: np.ndarray, labels: int) -> np.ndarray:
    """Macro-F1 (R,) of R samples, in percent."""
    right_RL, given_RL, asked_RL = _sums(counts_RK, pairs_K2, labels)
    occurs_RL = (given_RL + asked_RL) > 0
    f1_RL = 2 * right_RL / np.maximum(given_RL + asked_RL, 1)
    return np.asarray(100 * f1_RL.sum(axis=1) / occurs_RL.sum(axis=1))


def _wilson(right: int, total: int) -> dict[str, float]:
    """The score interval of a share (Wilson 1927, "Probable inference"), in percent."""
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z**2 / 2) / (total + z**2)
    half = z / (total + z**2) * math.sqrt(right * (total - right) / total + z**2 / 4)
    share = right / total  # which the interval always holds; rounding must not leave it outside
    return _interval(100 * middle, 100 * min(share, middle - half), 100 * max(share, middle + half))


def _interval(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": float(mean), "plus_minus": float(high - low) / 2, "low": float(low), "high": float(high)}


def _check(references: Sequence[str], predictions: Sequence[str], n_bootstrap: int, seed: int) -> None:
    if len(references) != len(predictions):
        raise BadInput(
            f"every prediction needs one reference: got {len(predictions)} predictions and {len(references)} references"
        )
    if not references:
        raise BadInput("references: there is nothing to score; give at least one label")
    if n_bootstrap < 0 or seed < 0:
        raise BadInput(f"n_bootstrap and seed must be 0 or more; got {n_bootstrap} and {seed}")
