"""What an export costs and brings, from the report of its gate: score, certainty, size and speed, beside the trained
model's."""

from collections.abc import Mapping
from typing import Any


def changes(report: Mapping[str, Any]) -> dict[str, float]:
    """Of the exported model against the trained one: `log_probability` (nats, of the mean over tokens) and scores as
    differences, positive where it is better; `bytes` and `sentences_per_second` as ratios."""
    gate = report["gate"]
    figures, test = gate["log_probabilities"], gate.get("test", {})
    found = {"log_probability": figures["mean_exported"] - figures["mean_trained"]}
    found |= {name: metric["systems"][1]["difference"] for name, metric in test.get("metrics", {}).items()}
    found["bytes"] = report["artefact"]["bytes"] / report["model"]["bytes"]
    if test:
        speeds = test["sentences_per_second"]
        found["sentences_per_second"] = speeds["exported"] / speeds["trained"]
    return found


def comparison_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """For a table: what is compared, trained, exported, and how they differ."""
    gate, change = report["gate"], changes(report)
    figures, test = gate["log_probabilities"], gate.get("test", {})
    rows = []
    for name, metric in test.get("metrics", {}).items():
        trained, exported = metric["systems"]
        p_value = exported["p_values"]["bootstrap"]
        differ = "identical" if exported["identical"] else f"{change[name]:+.2f} (p = {p_value:.3f})"
        rows.append((metric["name"], f"{trained['score']:.2f}", f"{exported['score']:.2f}", differ))
    means = (f"{figures['mean_trained']:.4f}", f"{figures['mean_exported']:.4f}")
    rows.append(("mean log-probability, nats", *means, f"{change['log_probability']:+.4f}"))
    if test:
        speeds = test["sentences_per_second"]
        ratio = f"× {change['sentences_per_second']:.2f}"
        rows.append(("sentences/s, on this CPU", f"{speeds['trained']:.1f}", f"{speeds['exported']:.1f}", ratio))
    sizes = (f"{report['model']['bytes']:,}", f"{report['artefact']['bytes']:,}")
    rows.append(("bytes", *sizes, f"× {change['bytes']:.2f}"))
    return rows
