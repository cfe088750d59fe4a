"""Format `hf`: a folder that plain transformers loads, without bmscale.

A model whose options a layout of transformers has becomes one of it (layouts.py). Any other keeps its shape and takes
the files of bmscale/model along as remote code, which transformers runs with `trust_remote_code=True`.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from bmscale.deployment import plain_tokenizer, plain_transformers
from bmscale.deployment.formats import FLOAT32_TOLERANCE
from bmscale.deployment.layouts import Layout, layouts_of
from bmscale.deployment.scalars import fold
from bmscale.errors import BadInput, BmscaleError
from bmscale.model import encoder_decoder
from bmscale.model.config import DecoderOnlyConfig, EncoderDecoderConfig
from bmscale.model.folder import (
    CONFIG,
    GENERATION,
    PROVENANCE,
    TOKENIZER_CONFIG,
    WEIGHTS,
    ModelFolder,
    load_model,
    write_json,
)
from bmscale.model.tokenization import TOKENIZER_FILE, BmscaleTokenizer

REMOTE_CODE = "remote-code"
_CODE = Path(encoder_decoder.__file__).parent
_PACKAGE = "bmscale.model."


def make(layout: str = "auto") -> "HuggingFace":
    """The format. `layout` is auto, a layout's name, or remote-code."""
    return HuggingFace(layout)


class HuggingFace:
    """See the module, and `formats.Format`."""

    name = "hf"
    library = "transformers"
    tolerance: float | None = FLOAT32_TOLERANCE
    suffix = ""

    def __init__(self, layout: str) -> None:
        self.layout = layout

    def check(self, model: ModelFolder) -> None:
        self.layout_of(model)

    def layout_of(self, model: ModelFolder) -> Layout | None:
        """The layout that the model is written in; None for remote code.

        Raises BadInput for a layout that was asked for and does not fit, or that there is not.
        """
        layouts = layouts_of(model.config)
        names = [layout.name for layout in layouts]
        if self.layout not in ("auto", REMOTE_CODE, *names):
            raise BadInput(
                f"--layout: must be auto, {REMOTE_CODE} or, for {model.task.noun}, {' or '.join(names)}; "
                f"got {self.layout}"
            )
        if self.layout == REMOTE_CODE:
            return None
        of_tokenizer = plain_tokenizer.misfits(model)
        for layout in layouts:
            misfits = [*layout.misfits(model.config), *of_tokenizer]
            if self.layout == layout.name and misfits:
                raise BadInput(
                    f"{model.path}: has no place in layout {layout.name}: {'; '.join(misfits)}. --layout {REMOTE_CODE} "
                    "takes any model, with the code that it needs"
                )
            if self.layout in ("auto", layout.name) and not misfits:
                return layout
        return None

    def write(self, model: ModelFolder, target: Path) -> None:
        layout = self.layout_of(model)
        target.mkdir()
        if layout is None:
            write_remote_code(model, target)
        else:
            write_layout(model, layout, target)
        shutil.copyfile(model.path / PROVENANCE, target / PROVENANCE)

    def open(self, target: Path) -> "PlainTransformers":
        return PlainTransformers(target)

    def usage(self, model: ModelFolder) -> str:
        trust = ", trust_remote_code=True" if self.layout_of(model) is None else ""
        task = model.task
        return _USAGE.format(auto_class=task.auto_class, trust=trust, rest=_EXAMPLES[task.name].strip())

    def describe(self, target: Path) -> dict[str, Any]:
        config = json.loads((target / CONFIG).read_bytes())
        return {
            "layout": REMOTE_CODE if "auto_map" in config else config["model_type"],
            "architecture": config["architectures"][0],
            "tokenizer": json.loads((target / TOKENIZER_CONFIG).read_bytes())["tokenizer_class"],
            "dtype": config.get("dtype", "float32"),
            "transformers": transformers.__version__,
        }


# ---- writing


def write_layout(model: ModelFolder, layout: Layout, target: Path) -> None:
    """The model as one of transformers' own. The weights are held once, in float32."""
    config = layout.configure(model.config)
    ours: Any = load_model(model)
    state = layout.state(fold(model.config, ours.state_dict(), layout.embedding_factor(model.config)))
    with torch.device("meta"):
        theirs: PreTrainedModel = getattr(transformers, config.architectures[0])(config)
    expected = set(theirs.state_dict())
    aliases = dict(theirs.all_tied_weights_keys)
    stored: dict[str, torch.Tensor] = {}
    for name in expected:
        source = aliases.get(name, name)
        # M2M100's table for everything has no counterpart of its own among ours.
        tensor = state[name if name in state else "model.encoder.embed_tokens.weight"]
        if source == name:
            # A copy: what two of ours share may be two of theirs.
            stored[name] = tensor.detach().clone().contiguous()
    lost = [name for name in state if name not in expected]
    if lost:
        raise ValueError(f"{layout.name} has no place for {lost[0]}")
    theirs.config.dtype = torch.float32
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        theirs.save_pretrained(target, state_dict=stored)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    if (model.path / GENERATION).is_file():
        generation = json.loads((model.path / GENERATION).read_bytes())
        write_json(target / GENERATION, {**generation, **_never(model)})
    plain_tokenizer.write(model, target)


def write_remote_code(model: ModelFolder, target: Path) -> None:
    """The folder as it is, with the code that its classes are made of."""
    for file in model.path.iterdir():
        if file.name in (GENERATION, TOKENIZER_FILE) or file.name.startswith(Path(WEIGHTS).stem):
            shutil.copyfile(file, target / file.name)
    if (target / GENERATION).is_file():
        generation = json.loads((target / GENERATION).read_bytes())
        write_json(target / GENERATION, {**generation, **_never(model)})
    config = json.loads((model.path / CONFIG).read_bytes())
    tokenizer = json.loads((model.path / TOKENIZER_CONFIG).read_bytes())
    module = _module_of(model.config)
    base = {"encoder_decoder": "EncoderDecoder", "decoder_only": "DecoderOnly", "encoder_only": "EncoderOnly"}[module]
    config["auto_map"] = {
        "AutoConfig": f"config.{base}Config",
        "AutoModel": f"{module}.{base}Model",
        model.task.auto_class: f"{module}.{model.task.model.__name__}",
    }
    tokenizer["auto_map"] = {"AutoTokenizer": [f"tokenization.{BmscaleTokenizer.__name__}", None]}
    write_json(target / CONFIG, config)
    write_json(target / TOKENIZER_CONFIG, tokenizer)
    for name in code_files(("config", "tokenization", module)):
        source = (_CODE / f"{name}.py").read_text(encoding="utf-8")
        (target / f"{name}.py").write_text(standing_alone(source), encoding="utf-8")


def standing_alone(source: str) -> str:
    """The source of a module of bmscale/model with imports from beside itself, in the one form that transformers
    follows: `from .name import`."""
    source = source.replace(f"from {_PACKAGE}", "from .")
    return re.sub(
        r"^from bmscale\.model import (\w+)$", r"from . import \1\nfrom .\1 import __name__ as _\1", source, flags=re.M
    )


def code_files(wanted: Sequence[str]) -> list[str]:
    """Modules of bmscale/model that these import, directly or not, and themselves. Raises ValueError for one that
    needs more of bmscale than that."""
    found: list[str] = []
    rest = list(wanted)
    while rest:
        name = rest.pop()
        if name in found:
            continue
        found.append(name)
        for node in ast.walk(ast.parse((_CODE / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(_PACKAGE):
                rest.append(str(node.module).removeprefix(_PACKAGE))
            elif isinstance(node, ast.ImportFrom) and f"{node.module}." == _PACKAGE and len(node.names) == 1:
                rest.append(node.names[0].name)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                if any(one.split(".")[0] == "bmscale" for one in names):
                    raise ValueError(f"bmscale/model/{name}.py cannot stand alone: it imports {names[0]}")
    return sorted(found)


def _module_of(config: Any) -> str:
    if isinstance(config, EncoderDecoderConfig):
        return "encoder_decoder"
    return "decoder_only" if isinstance(config, DecoderOnlyConfig) else "encoder_only"


def _never(model: ModelFolder) -> dict[str, Any]:
    """Pieces that `bmscale generate` does not write either."""
    never = plain_tokenizer.never_written(model) if model.task.name == "language_model" else []
    return {"suppress_tokens": never} if never else {}


# ---- opening


class PlainTransformers:
    """A Candidate: the folder in a process that has transformers and not bmscale (plain_transformers.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # -P: the script's own folder is no place to import from.
        self._process = subprocess.Popen(
            [sys.executable, "-P", plain_transformers.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> "PlainTransformers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def ask(self, what: str, texts: Sequence[Any]) -> Any:
        """The answer to one question. Raises BmscaleError, with what the other side raised."""
        question = {"folder": str(self.folder.absolute()), "ask": what, "texts": list(texts)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            said = json.loads(self._process.stdout.readline() or "{}")
        except BrokenPipeError:
            said = {}
        if "answer" not in said:
            reason = said.get("error") or f"its process ended with code {self._process.wait()}"
            raise BmscaleError(f"{self.folder}: plain transformers cannot use it: {reason}")
        return said["answer"]

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        return list(self.ask("log_probabilities", pairs))

    def greedy(self, lines: Sequence[str]) -> list[str]:
        return list(self.ask("greedy", lines))

    def translate(self, lines: Sequence[str]) -> list[str]:
        return list(self.ask("translate", lines))


# ---- what the model card says

_USAGE = """
With transformers alone, from this folder:

```python
from transformers import {auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("."{trust})
model = {auto_class}.from_pretrained("."{trust})
{rest}
```
"""

_EXAMPLES = {
    "translation": """
batch = tokenizer(["A sentence."], return_tensors="pt")
print(tokenizer.decode(model.generate(**batch)[0], skip_special_tokens=True))
""",
    "language_model": """
batch = tokenizer(["A sentence"], return_tensors="pt")
print(tokenizer.decode(model.generate(**batch, max_new_tokens=50)[0], skip_special_tokens=True))
""",
    "masked_lm": """
batch = tokenizer("The old <mask> slept.", return_tensors="pt")
hidden = batch.input_ids == tokenizer.mask_token_id
print(tokenizer.convert_ids_to_tokens(model(**batch).logits[hidden][0].topk(5).indices))
""",
    "classification": """
batch = tokenizer(["A sentence."], return_tensors="pt")
print([model.config.id2label[best] for best in model(**batch).logits.argmax(-1).tolist()])
""",
}
