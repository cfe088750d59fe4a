"""The average of several models: parameters averaged in fp32, one tensor at a time.

Averaging the last checkpoints of one training is worth some tenths of BLEU (Vaswani 2017, section 6.1). Models of
different trainings have nothing in common to average, but for those that went on from the same weights.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bmscale.errors import BadInput
from bmscale.model.folder import (
    GENERATION,
    ModelFolder,
    check_target,
    open_model_folder,
    tensor_files,
    write_model_folder,
)

# What a configuration says of the libraries and of training; everything else makes another function of the weights.
_NOT_THE_FUNCTION = ("transformers_version", "dtype", "_name_or_path", "dropout", "attention_dropout")
# What is true of one model and not of an average.
_OF_ONE_MODEL = ("step", "optimizer_step", "target_tokens", "validation", "scores", "kept_by", "averaged")


def average_models(folders: Sequence[str | Path], out: str | Path) -> list[dict[str, Any]]:
    """Write the average of model folders to `out`, replacing a model folder of that name.

    Every parameter is the mean in fp32, and so stored. Two tensors are held at a time, and the shard of `out` that is
    written. Provenance keeps what all folders agree in, and `averaged` lists them; beam size and length penalty are
    the first folder's. Returns that list: folder and step of each.

    Raises BadInput for fewer than two folders, one that is given twice or damaged, folders of different architecture,
    shape or tokenizer, and an `out` that is one of them or holds anything but a model.
    """
    if len(folders) < 2:
        raise BadInput(f"average: must have at least two model folders; got {len(folders)}")
    models = [open_model_folder(folder, task=None) for folder in folders]
    out = Path(out)
    _check_out(out, models)
    for other in models[1:]:
        _check_alike(models[0], other)
    averaged = [{"folder": model.path.name, "step": model.provenance.get("step")} for model in models]
    generation = json.loads((models[0].path / GENERATION).read_bytes()) if models[0].task.writes else {}
    write_model_folder(
        out,
        models[0].config,
        _averages(models),
        models[0].tokenizer,
        {**_common([model.provenance for model in models]), "averaged": averaged},
        beam_size=generation.get("num_beams") or 1,
        length_penalty=1.0 if generation.get("length_penalty") is None else generation["length_penalty"],
    )
    return averaged


def _check_out(out: Path, models: Sequence[ModelFolder]) -> None:
    seen: dict[Path, Path] = {}
    for model in models:
        place = model.path.resolve()
        if place in seen:
            raise BadInput(f"{model.path}: must be given once; it is {seen[place]} again")
        seen[place] = model.path
    if out.resolve() in seen:
        raise BadInput(f"{out}: must not be one of the folders that are averaged; give another name")
    check_target(out)


def _check_alike(first: ModelFolder, other: ModelFolder) -> None:
    """Raises BadInput, naming what differs, for models that compute different functions of their weights."""
    one, two = first.config.to_dict(), other.config.to_dict()
    for key in dict.fromkeys(["model_type", *one, *two]):
        if key not in _NOT_THE_FUNCTION and one.get(key) != two.get(key):
            raise BadInput(
                f"{other.path}: must have the architecture and shape of {first.path} to be averaged with it; {key} is "
                f"{two.get(key)!r}, there {one.get(key)!r}"
            )
    if first.tokenizer.read_bytes() != other.tokenizer.read_bytes():
        raise BadInput(
            f"{other.tokenizer}: must be the tokenizer of {first.path} to be averaged with it; the two are different, "
            "so the same parameter stands for different pieces"
        )


def _averages(models: Sequence[ModelFolder]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and mean of each tensor."""
    where = [tensor_files(model) for model in models]
    # A name that only some have is that of a tied weight, which is stored under its other name too.
    for name in filter(lambda name: all(name in files for files in where), where[0]):
        total = _read(where[0][name], name)
        if not total.is_floating_point():
            yield name, total
            continue
        total = total.float()
        for files in where[1:]:
            total += _read(files[name], name)
        yield name, total.div_(len(models))


def _read(file: Path, name: str) -> torch.Tensor:
    """A copy of one tensor. The file is opened for it alone: what is mapped would add up over many models."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor.clone()
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: cannot be read ({error}); copy the folder again") from None


def _common(provenances: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What holds for all of them. A text is split by the shortest length that any of them was trained on."""
    first = provenances[0]
    same = {
        key: value
        for key, value in first.items()
        if key not in _OF_ONE_MODEL and all(other.get(key) == value for other in provenances)
    }
    lengths = [other["max_source_tokens"] for other in provenances if other.get("max_source_tokens")]
    return {**same, **({"max_source_tokens": min(lengths)} if lengths else {})}
