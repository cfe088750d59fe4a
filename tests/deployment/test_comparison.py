"""What an export costs and brings, as figures and as a table."""

import copy
from typing import Any

import pytest

from bmscale.deployment.comparison import changes, comparison_rows

REPORT: dict[str, Any] = {
    "model": {"bytes": 4_000},
    "artefact": {"bytes": 1_000},
    "gate": {
        "log_probabilities": {"mean_trained": -0.20, "mean_exported": -0.25},
        "test": {
            "metrics": {
                "bleu": {
                    "name": "BLEU",
                    "systems": [
                        {"score": 30.0},
                        {"score": 29.5, "difference": -0.5, "identical": False, "p_values": {"bootstrap": 0.04}},
                    ],
                }
            },
            "sentences_per_second": {"trained": 20.0, "exported": 90.0},
        },
    },
}


def test_losses_are_negative_and_ratios_are_of_the_trained_model():
    assert changes(REPORT) == pytest.approx(
        {"log_probability": -0.05, "bleu": -0.5, "bytes": 0.25, "sentences_per_second": 4.5}
    )
    assert comparison_rows(REPORT) == [
        ("BLEU", "30.00", "29.50", "-0.50 (p = 0.040)"),
        ("mean log-probability, nats", "-0.2000", "-0.2500", "-0.0500"),
        ("sentences/s, on this CPU", "20.0", "90.0", "× 4.50"),
        ("bytes", "4,000", "1,000", "× 0.25"),
    ]


def test_a_model_of_another_task_has_no_translations():
    report = copy.deepcopy(REPORT)
    report["gate"]["test"]["metrics"]["bleu"]["systems"][1] |= {"identical": True, "difference": 0.0}
    assert comparison_rows(report)[0][3] == "identical"
    del report["gate"]["test"]
    assert set(changes(report)) == {"log_probability", "bytes"}
    assert [row[0] for row in comparison_rows(report)] == ["mean log-probability, nats", "bytes"]
