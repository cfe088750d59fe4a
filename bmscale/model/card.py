"""The model card, README.md of a model folder: YAML for the Hugging Face hub, then what a person wants to
know first."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmscale.model.tasks import Task


def model_card(
    name: str,
    record: Mapping[str, Any],
    task: Task,
    *,
    header: Mapping[str, str] | None = None,
    use: str | None = None,
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """The card of the model `name` with this provenance (`folder.write_model_folder`).

    For an export: `header` replaces and adds keys of the YAML at the top, `use` stands for how a model folder is used,
    and `sections` are headings and Markdown behind it.
    """
    languages = [record[key] for key in ("source_language", "target_language") if record.get(key)]
    keys = {
        "library_name": "transformers",
        "pipeline_tag": task.pipeline,
        "tags": f"[bmscale, {task.pipeline}]",
        **({"language": json.dumps(languages)} if languages else {}),
        **(header or {}),
    }
    facts = "\n".join(f"- {key}: {value}" for key, value in _facts(record, languages, task) if value)
    body = _BODY.format(
        header="\n".join(f"{key}: {value}" for key, value in keys.items()),
        name=name,
        what=_USES[task.name][0],
        facts=facts,
        use=_use(task) if use is None else use.strip(),
    )
    return body + "".join(f"\n## {heading}\n\n{text.strip()}\n" for heading, text in sections)


def _use(task: Task) -> str:
    """How a model folder is used."""
    _, example, python = _USES[task.name]
    command = _COMMAND.format(task.command, example) if task.command else ""
    return command + _PYTHON.format(python=python.strip(), auto_class=task.auto_class)


def _facts(record: Mapping[str, Any], languages: list[str], task: Task) -> list[tuple[str, str]]:
    facts = [("languages", " → ".join(languages)), ("parameters", f"{record['parameters']:,} ({record['dtype']})")]
    if record.get("optimizer_step") is not None:
        facts.append(("optimizer steps", f"{record['optimizer_step']:,}"))
    if record.get("averaged"):
        facts.append(("average of", ", ".join(str(one["folder"]) for one in record["averaged"])))
    if record.get("target_tokens") is not None:
        facts.append((f"{task.predicts}s seen", f"{record['target_tokens']:,}"))
    if record.get("data_hash"):
        facts.append(("training data", f"`{record['data_hash']}` (hash of the prepared data)"))
    for metric, value in (record.get("scores") or {}).items():
        figure = value if isinstance(value, Mapping) else {"score": value}
        if figure["score"] is None or not math.isfinite(figure["score"]):
            continue  # nothing was measured
        signature = f" (`{figure['signature']}`)" if figure.get("signature") else ""
        facts.append((figure.get("name", metric), f"{figure['score']:.2f}{signature}"))
    return facts


_COMMAND = """One text a line, from this folder:

```sh
bmscale {} . {}
```

"""

# For each task: what the model is, what its command reads and writes, how Python uses it.
_USES = {
    "translation": (
        "A translation model",
        "< source.txt > translation.txt",
        """
batch = tokenizer(["A sentence."], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))
""",
    ),
    "language_model": (
        "A language model",
        "< prompts.txt",
        """
batch = tokenizer(["A sentence."], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**batch, max_new_tokens=50), skip_special_tokens=True))
""",
    ),
    "masked_lm": (
        "A masked language model",
        "",
        """
batch = tokenizer("The old <mask> slept.", return_tensors="pt")
hidden = batch.input_ids == tokenizer.mask_token_id
print(tokenizer.convert_ids_to_tokens(model(**batch).logits[hidden][0].topk(5).indices))
""",
    ),
    "classification": (
        "A text classifier",
        "< texts.txt > labels.txt",
        """
batch = tokenizer(["A sentence."], return_tensors="pt")
print([model.config.id2label[best] for best in model(**batch).logits.argmax(-1).tolist()])
""",
    ),
}

_PYTHON = """In Python:

```python
import bmscale.model  # registers the architecture
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = {auto_class}.from_pretrained(".")
{python}
```"""

_BODY = """---
{header}
---

# {name}

{what} trained with bmscale.

{facts}

## Use

{use}

`provenance.json` says where the model comes from.
"""
