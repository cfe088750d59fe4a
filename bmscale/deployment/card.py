"""The model card of an export, README.md in the form of the Hugging Face hub: where the model comes from, what it
is worth, how it was compared with the trained model, and what is not known."""

from collections.abc import Mapping
from typing import Any

from bmscale.deployment.comparison import comparison_rows
from bmscale.deployment.formats import Format
from bmscale.model.card import model_card
from bmscale.model.folder import ModelFolder


def export_card(
    name: str, model: ModelFolder, made: Format, report: Mapping[str, Any], licence: str | None = None
) -> str:
    """The card of the artefact `name`; `licence` is an identifier of the hub, such as apache-2.0 or cc-by-4.0."""
    tags = ", ".join(["bmscale", model.task.pipeline, made.name])
    sections = [
        ("Training data", _training_data(model.provenance)),
        ("Comparison with the trained model", _comparison(report)),
        ("Limits", _limits(model)),
        ("Licence", _licence(licence)),
    ]
    header = {"library_name": made.library, "tags": f"[{tags}]", "license": licence or "unknown"}
    return model_card(name, model.provenance, model.task, header=header, use=made.usage(model), sections=sections)


def _training_data(provenance: Mapping[str, Any]) -> str:
    facts = [
        ("experiment", provenance.get("experiment")),
        ("hash of the prepared data", provenance.get("data_hash")),
        ("began with", provenance.get("init_from")),
        ("longest source, in tokens", provenance.get("max_source_tokens")),
        ("SHA-256 of the tokenizer", provenance.get("tokenizer_sha256")),
    ]
    lines = "\n".join(f"- {key}: `{value}`" for key, value in facts if value is not None)
    return f"{lines or 'Nothing is recorded.'}\n\nName the corpora here: the hash only says whether two are the same."


def _comparison(report: Mapping[str, Any]) -> str:
    gate = report["gate"]
    figures, greedy, texts = gate["log_probabilities"], gate["greedy"], gate["texts"]
    lines = [
        f"On {texts['name']} (SHA-256 of what was read `{texts['sha256'][:16]}…`), in a process of its own:",
        "",
        f"- log-probabilities of {figures['tokens']:,} tokens lie at most {figures['max_difference']:.2g} nats apart",
        f"- {greedy['texts'] - greedy['different']} of {greedy['texts']} greedy outputs are the same",
    ]
    test = gate.get("test", {})
    on = f"{test['sentences']:,} sentences, beam {test['search']['beam_size']}" if test else ""
    lines += ["", f"| {on} | trained | exported | difference (p of a paired bootstrap) |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in comparison_rows(report)]
    lines += ["", *(f"- `{metric['signatures']['bootstrap']}`" for metric in test.get("metrics", {}).values())]
    return "\n".join([*lines, "", "`export.json` has every figure, and the SHA-256 of each file."])


def _limits(model: ModelFolder) -> str:
    lines = [
        "Scores hold for text like that of the test set; nothing was measured beyond it.",
        f"It has {model.config.max_position_embeddings:,} positions.",
    ]
    if model.task.name == "translation":
        tags = model.provenance.get("language_tags")
        lines.append(
            "It reads sentences: longer text is split before (`bmscale translate` does so). Text is expected as "
            "bmscale normalises it: Unicode NFC, single spaces, no control characters."
        )
        if tags:
            lines.append(
                f"A source begins with the tag of its target language: {', '.join(f'`<2{t}>`' for t in tags)}."
            )
    return "\n".join(f"- {line}" for line in lines)


def _licence(licence: str | None) -> str:
    if licence:
        return f"`{licence}`, as given to `bmscale export --licence`. The corpora may ask for more."
    return "Not stated. Give one to `bmscale export --licence`, or write it here and at the top of this file."
