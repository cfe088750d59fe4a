"""Cases that measure a rival system: a script of peers/ in the rival's own environment, on the same sentence pairs.

Systems that batch by tokens get the same `tokens_per_step`; those that batch by sentences get as many pairs as hold so
many target tokens on average. The scripts import nothing of ours, since the rivals' dependencies contradict them.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmscale.benchmark import process
from bmscale.benchmark.figures import Figures
from bmscale.benchmark.setting import LEARNING_RATE, Setting
from bmscale.benchmark.shape import shape
from bmscale.benchmark.training_case import check_precision
from bmscale.data.workers import cores
from bmscale.errors import BadInput, BmscaleError
from bmscale.model.tasks import TASKS

SCRIPTS = {
    "hf-marian": "hf_trainer",
    "hf-marian-grouped": "hf_trainer",
    "hf-t5": "hf_trainer",
    "hf-t5-grouped": "hf_trainer",
    "joeynmt": "joeynmt",
    "eole": "eole",
    "torch": "torch_transformer",
}
"""The script of each system that trains."""

ENVIRONMENTS = {"hf_trainer": "hf", "joeynmt": "joeynmt", "eole": "eole", "torch_transformer": "torch"}
"""The name under which `--peer NAME=INTERPRETER` gives a script its interpreter."""

OWN = ("hf", "torch")
"""Those that our own environment can run."""


def parse_peers(given: Sequence[str]) -> dict[str, str]:
    """`NAME=PYTHON` of the command line. Raises BadInput."""
    known = [*ENVIRONMENTS.values(), "ctranslate2"]
    peers = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or name not in known:
            raise BadInput(f"--peer: must be NAME=PYTHON, NAME being one of {', '.join(known)}; got '{text}'")
        if shutil.which(path) is None:
            raise BadInput(f"--peer {name}: must be an interpreter that can be run; got '{path}'")
        peers[name] = path
    return peers


def interpreter(setting: Setting, environment: str) -> str:
    """The interpreter of a rival. Raises BadInput where none was given."""
    if environment in setting.peers:
        return setting.peers[environment]
    if environment in OWN:
        return sys.executable
    raise BadInput(
        f"--peer: {environment} must be measured by an interpreter of its own environment; got none. Give "
        f"--peer {environment}=/path/to/environment/bin/python (README, Performance)"
    )


def train(setting: Setting, name: str, system: str, shape_name: str, precision: str) -> Figures:
    """A rival's own training loop. Raises BadInput, and BmscaleError with the rival's last words."""
    check_precision(precision)
    script = SCRIPTS[system]
    command = [interpreter(setting, ENVIRONMENTS[script]), str(Path(__file__).parent / "peers" / f"{script}.py")]
    source, target = setting.texts()
    question = {
        "system": system,
        "source": str(source),
        "target": str(target),
        "tokenizer": str(setting.prepared / "spiece.model"),
        **dimensions(setting, shape_name),
        "precision": precision,
        "threads": cores(),
        "tokens_per_step": setting.tokens_per_step,
        "sentences_per_step": max(1, round(setting.tokens_per_step / setting.mean_target_tokens)),
        "warmup_steps": setting.warmup_steps,
        "steps": setting.steps,
        "max_seconds": setting.max_seconds,
        "learning_rate": LEARNING_RATE,
        "seed": 0,
        "work": str(setting.folder / "peers" / name.replace("/", "-")),
        "device": setting.device,
    }
    Path(question["work"]).mkdir(parents=True, exist_ok=True)
    answer = process.ask(command, question, cores(), setting.log(name), 2 * setting.max_seconds)
    if answer["precision"] != precision:
        raise BmscaleError(f"{name}: {system} computed in {answer['precision']} here; measure it as that")
    losses = answer["losses"]
    return Figures(
        seconds=answer["seconds"],
        steps=answer["steps"],
        target_tokens=answer["target_tokens"],
        source_tokens=answer["source_tokens"],
        slots=answer["slots"],
        memory_gib=answer["peak_memory_gib"],
        losses=(losses[0], losses[-1]) if losses else None,
        parameters=answer["parameters"],
        versions=answer["versions"],
    )


def dimensions(setting: Setting, shape_name: str) -> dict[str, Any]:
    """A shape in words that every system has. Raises BadInput."""
    chosen = shape(shape_name)
    model = chosen["model"]
    if chosen["task"] != "translation" or model["preset"] != "vanilla":
        raise BadInput(f"shape: rivals have Vaswani's block only (tiny, d256, base, big); got '{shape_name}'")
    size = TASKS["translation"].sizes[model["size"]]
    return {
        "vocabulary_size": setting.data()["tokenizer"]["vocabulary_size"],
        "hidden_size": size["hidden_size"],
        "heads": size["num_attention_heads"],
        "encoder_layers": size["num_encoder_layers"],
        "decoder_layers": size["num_decoder_layers"],
        "feed_forward_size": 4 * size["hidden_size"],
        "dropout": model["dropout"],
    }
