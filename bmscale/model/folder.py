"""The model folder, which is what leaves training: written in one stream, opened only when it is whole.

    config.json  generation_config.json  tokenizer_config.json  spiece.model  provenance.json  README.md
    model.safetensors, or model-00001-of-00003.safetensors … and model.safetensors.index.json

The layout is Hugging Face's: after `import bmscale.model`, `AutoTokenizer.from_pretrained(folder)` and the Auto class
of the model's task work, `AutoModelForSeq2SeqLM.from_pretrained(folder)` for translation. generation_config.json is
there where the model writes text. Nothing in it is a pickle.
"""

import copy
import difflib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from bmscale.errors import BadInput
from bmscale.model.card import model_card
from bmscale.model.tasks import TASKS, Task, model_class, task_of
from bmscale.model.tokenization import TOKENIZER_FILE, tokenizer_config

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
PROVENANCE, WEIGHTS, INDEX, CARD = "provenance.json", "model.safetensors", "model.safetensors.index.json", "README.md"
BOS, PAD, EOS, UNK = 0, 1, 2, 3
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads", "num_key_value_heads",
    "d_model", "d_ff", "d_kv", "num_heads", "encoder_ffn_dim", "decoder_ffn_dim",
)  # fmt: skip
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_LONGEST_HEADER = 100_000_000  # bytes; the bound of the safetensors format itself

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelFolder:
    """A folder that was checked: its files are there, whole, and fit each other."""

    path: Path
    config: Any
    """The model's configuration, a transformers PreTrainedConfig."""
    provenance: dict[str, Any]
    """Where the model comes from, as given to `write_model_folder`."""
    weights: tuple[Path, ...]

    @property
    def task(self) -> Task:
        """What the model is for."""
        return task_of(self.config)

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model."""
        return self.path / TOKENIZER_FILE


# ---- writing


def write_model_folder(
    path: str | Path,
    config: PreTrainedConfig,
    tensors: Iterator[tuple[str, torch.Tensor]],
    tokenizer_model: str | Path,
    provenance: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    beam_size: int = 5,
    length_penalty: float = 1.0,
    max_shard_bytes: int = 2 * 2**30,
) -> None:
    """Write the model, replacing a folder of that name only once the new one is complete and on the disk.

    `tensors` gives names of the model's state and full tensors on any device; each is cast to `dtype`, copied at once
    (so it may be freed or reused after the next one is asked for) and at most one shard of `max_shard_bytes` is held.
    Names that are tied to each other are written once, under the name that the model class keeps.

    The task is that of `config`: where a configuration has several, its `architectures` says which
    (`Task.configure` sets it). `beam_size` and `length_penalty` are of translation.

    `provenance` goes to `provenance.json`; the model card shows its keys `source_language`, `target_language`,
    `data_hash`, `optimizer_step`, `target_tokens` and `scores` (figures, or the result of `evaluation.scores.score`).
    A figure that is not finite is written as null.

    Raises ValueError, leaving the old folder alone, when the tensors are not exactly those of `config`, and for a
    masked language model without `mask_token_id`; BadInput, likewise, as `check_target` does.
    """
    path = check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fixed names beside the folder: what a crash leaves behind is removed by the next write, not collected.
    fresh, replaced = path.parent / f".{path.name}.writing", path.parent / f".{path.name}.replaced"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        shutil.copyfile(tokenizer_model, fresh / TOKENIZER_FILE)
        _write_configs(fresh, config, dtype, beam_size, length_penalty)
        parameters = _write_weights(fresh, config, tensors, dtype, max_shard_bytes)
        record = {
            **provenance,
            "parameters": parameters,
            "dtype": str(dtype).removeprefix("torch."),
            "tokenizer_sha256": _sha256(fresh / TOKENIZER_FILE),
        }
        write_json(fresh / PROVENANCE, record)
        (fresh / CARD).write_text(model_card(path.name, record, task_of(config)), encoding="utf-8")
        # safetensors makes its files for their owner alone; the card has what the umask gives everything else.
        mode = (fresh / CARD).stat().st_mode & 0o777
        for file in fresh.iterdir():
            file.chmod(mode)
            _sync(file)
        _sync(fresh)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        ):  # mostly of no file, or the source
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if path.exists():
        _discard(replaced)
        path.rename(replaced)
    fresh.rename(path)
    _sync(path.parent)
    _discard(replaced)


def check_target(path: str | Path) -> Path:
    """Where a model folder may be written: a name that is free, or a folder with a model and nothing else.

    `.`, `..` and the like come back as the folder that they stand for. Raises BadInput for any other place.
    """
    path = Path(path)
    if path.name in ("", ".."):
        path = path.resolve()
    if (path.exists() or path.is_symlink()) and not holds_only_a_model(path):
        raise BadInput(f"{path}: exists and is no model folder, or holds more than a model; give another name")
    return path


def _discard(path: Path) -> None:
    """Remove what made way, as far as it goes: of a link the link alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write_configs(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype, beam_size: int, length_penalty: float
) -> None:
    config = copy.deepcopy(config)
    config.architectures = [model_class(config).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    task = task_of(config)
    longest = config.max_position_embeddings
    generation: dict[str, Any] = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS}
    if config.is_encoder_decoder:
        # transformers' default is 20 tokens, which would cut most sentences. A language model has no such end: beside
        # the max_new_tokens that one asks of it, a max_length would be warned of.
        generation |= {"max_length": longest, "decoder_start_token_id": EOS}
        generation |= {"num_beams": beam_size, "length_penalty": length_penalty}
    if task.writes:
        GenerationConfig(**generation).save_pretrained(folder)
    mask = _mask_piece(folder / TOKENIZER_FILE, config) if task.name == "masked_lm" else None
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(longest, task.name, mask))


def _mask_piece(tokenizer: Path, config: PreTrainedConfig) -> str:
    """The piece that hides a token."""
    if config.mask_token_id is None:
        raise ValueError("mask_token_id of a masked language model must be the id of its mask piece; got None")
    return str(sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).id_to_piece(config.mask_token_id))


def _write_weights(
    folder: Path,
    config: PreTrainedConfig,
    tensors: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> int:
    """Stream the tensors into shards and, when there are several, an index. Returns the number of parameters."""
    shapes, aliases = _expected(config)
    shard: dict[str, torch.Tensor] = {}
    shards: list[list[str]] = []
    held = total = 0

    def flush() -> None:
        try:
            save_file(shard, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        except SafetensorError as error:  # what the disk said, in a class of its own
            raise OSError(f"{folder}: the weights cannot be written: {error}") from None
        shards.append(list(shard))
        shard.clear()

    missing = dict(shapes)
    for name, tensor in tensors:
        name = aliases.get(name, name)
        if name in shapes and name not in missing:
            continue  # the same weight under its other name
        if name not in shapes or tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"tensor {name} {tuple(tensor.shape)}: the model has {shapes.get(name, 'no such tensor')}")
        del missing[name]
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * kind.itemsize
        if shard and held + size > max_shard_bytes:
            flush()
            held = 0
        # Always a copy: a gathered tensor is only valid until the generator goes on.
        shard[name] = tensor.detach().to("cpu", kind, copy=True, memory_format=torch.contiguous_format)
        held, total = held + size, total + size
    if missing:
        raise ValueError(f"{len(missing)} tensors of the model were not given: {', '.join(list(missing)[:5])}")
    flush()
    _name_shards(folder, shards, total)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _name_shards(folder: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / WEIGHTS)
        return
    where = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        where.update(dict.fromkeys(names, file))
    write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(where.items()))})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as people read it; what JSON does not have, NaN and infinities, becomes null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="replace")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(path: Path) -> None:
    """Have the disk, not only its cache, hold a file or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- opening


def holds_only_a_model(path: Path) -> bool:
    """Whether a folder has the files of a model and nothing else, so that removing it removes only a model."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    rest = {CONFIG, GENERATION, TOKENIZER_CONFIG, TOKENIZER_FILE, PROVENANCE, CARD, WEIGHTS, INDEX}
    return {CONFIG, PROVENANCE} <= names and all(name in rest or _SHARD.fullmatch(name) for name in names)


def tensor_files(folder: ModelFolder) -> dict[str, Path]:
    """The weight file of each tensor."""
    return {name: file for file in folder.weights for name in _read_header(file)}


def open_model_folder(path: str | Path, task: str | None = "translation") -> ModelFolder:
    """Check a model folder without loading its weights.

    `task` is a name of TASKS, or None for a model of any.

    Raises BadInput, naming the file and what to do, for a folder or file that is missing, damaged, cut short or does
    not fit the others, for a model of another task, and for a run folder (whose models are in RUN/model).
    """
    try:
        place = Path(path).expanduser()
    except RuntimeError:
        raise BadInput(f"{path}: no such home folder; write the path in full") from None
    try:
        return _open(place, task)
    except OSError as error:
        raise BadInput(f"{error.filename or path}: cannot be read: {error.strerror}") from None


def _open(path: Path, task: str | None) -> ModelFolder:
    _check_folder(path)
    _check_files(path, CONFIG, TOKENIZER_CONFIG, TOKENIZER_FILE, PROVENANCE)
    provenance = read_json(path / PROVENANCE)
    _check_provenance(path / PROVENANCE, provenance)
    read_json(path / TOKENIZER_CONFIG)
    weights, found = _read_weights(path)
    config = _read_config(path / CONFIG, tensors=len(found), size=sum(file.stat().st_size for file in weights))
    if _check_task(path / CONFIG, config, task).writes:
        _check_files(path, GENERATION)
        read_json(path / GENERATION)
    _check_tokenizer(path / TOKENIZER_FILE, config, provenance)
    try:
        shapes, aliases = _expected(config)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{path / CONFIG}: no model can be made of it: {reason}; copy the folder again") from None
    for name, shape in shapes.items():
        if name not in found:
            raise BadInput(f"{weights[0]}: has no tensor {name}, which {CONFIG} asks for; the two are of two models")
        if found[name] != shape:
            raise BadInput(f"{weights[0]}: tensor {name} must be {shape} by {CONFIG}; got {found[name]}")
    unknown = [name for name in found if name not in shapes and name not in aliases]
    if unknown:
        raise BadInput(f"{weights[0]}: tensor {unknown[0]} has no place in the model of {CONFIG}; they do not fit")
    return ModelFolder(path, config, provenance, weights)


def _check_files(path: Path, *names: str) -> None:
    for name in names:
        if not (path / name).is_file():
            if (path / "decoder.onnx").is_file():
                raise BadInput(
                    f"{path}: is an export to ONNX, which bmscale writes and does not read; its README.md shows a "
                    "program that does, or give the model folder that it was made of"
                )
            raise BadInput(f"{path / name}: missing; a model folder must have it: copy the whole folder again")


def load_model(
    folder: ModelFolder | str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model of any task in evaluation mode, on `device` (CPU unless given) in `dtype` (float32 unless given).

    For a process of its own: under ZeRO-3, transformers would partition the weights that it loads. Raises BadInput as
    `open_model_folder` does.
    """
    if not isinstance(folder, ModelFolder):
        folder = open_model_folder(folder, task=None)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model: PreTrainedModel = model_class(folder.config).from_pretrained(
            folder.path, dtype=dtype or torch.float32, local_files_only=True, use_safetensors=True
        )
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    return model.to(device or "cpu").eval()


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise BadInput(f"{path}: no such model folder{_nearest(path)}")
    if not path.is_dir():
        raise BadInput(f"{path}: must be a model folder; got a file{_hint(path.parent / CONFIG, path.parent)}")
    if not (path / CONFIG).exists():
        for candidate in (path / "model" / "best", path / "best", path / "model" / "last", path / "last"):
            if (candidate / CONFIG).is_file():
                raise BadInput(f"{path}: is a run folder, not a model folder; give {candidate}")
        if (path / "run.yaml").exists():
            raise BadInput(f"{path}: is the run folder of a training that has not written a model yet; train further")


def _nearest(path: Path) -> str:
    """What to look at instead of a missing folder: a name like it, or the part of the path that exists."""
    parent = path.parent
    if not parent.is_dir():
        existing = next(above for above in (*parent.parents, Path(".")) if above.is_dir())
        return f"; {existing} exists, but has no '{parent.relative_to(existing).parts[0]}'"
    if (parent / f".{path.name}.replaced" / CONFIG).exists():
        return f"; its writer was killed: the model is whole in {parent / f'.{path.name}.replaced'}: rename that"
    names = [other.name for other in parent.iterdir() if other.is_dir() and not other.name.startswith(".")]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {parent / close[0]}?"
    return f"; {parent} has {', '.join(sorted(names)[:8]) or 'no folders'}"


def _hint(file: Path, folder: Path) -> str:
    return f"; give its folder, {folder}" if file.is_file() else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a folder. Raises BadInput for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: damaged: it must be JSON ({error}); copy the folder again") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: damaged: it must hold a JSON object; copy the folder again")
    return value


def _check_provenance(path: Path, provenance: dict[str, Any]) -> None:
    """The keys that are read again; all of them may be missing, or null where there is nothing to say."""
    for key in ("source_language", "target_language", "data_hash", "tokenizer_sha256"):
        if not isinstance(provenance.get(key), str | None):
            raise BadInput(f"{path}: {key} must be a string; got {provenance[key]!r:.40}")
    tags = provenance.get("language_tags")
    if tags is not None and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise BadInput(f"{path}: language_tags must be a list of languages; got {tags!r:.40}")
    for key, least in (("max_source_tokens", 2), ("step", 0), ("optimizer_step", 0)):
        value = provenance.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise BadInput(f"{path}: {key} must be a whole number of at least {least}; got {value!r:.40}")


def _check_sizes(path: Path, values: dict[str, Any], tensors: int, size: int) -> None:
    """Refuse what cannot be the model of these weights before it is made: absurd numbers take for ever.

    A layer has at least a tensor, and no side of one is longer than the `size` of the weights in bytes.
    """
    for name, value in values.items():
        is_depth = "layers" in name
        if type(value) not in (int, float) or not (is_depth or "labels" in name or name in _SIZES):
            continue
        most = tensors if is_depth else size
        if not value <= most:
            raise BadInput(
                f"{path}: {name} {value!r:.40} does not fit the weights, which have {tensors:,} tensors in "
                f"{size:,} bytes: damaged; copy the folder again"
            )


def _read_config(path: Path, tensors: int, size: int) -> Any:
    values = read_json(path)
    model_type = values.get("model_type")
    _check_sizes(path, values, tensors, size)
    try:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # transformers has a different exception for every kind of wrong value
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise BadInput(f"{path}: cannot be used (model_type {model_type!r}): {reason}") from None
    return config


def _check_tokenizer(path: Path, config: Any, provenance: dict[str, Any]) -> None:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes() or b"\xff")
    except (RuntimeError, TypeError):
        raise BadInput(f"{path}: damaged: not a SentencePiece model; copy the folder again") from None
    pieces = processor.get_piece_size()
    if pieces != config.vocab_size:
        raise BadInput(
            f"{path}: has {pieces:,} pieces but {CONFIG} says vocab_size {config.vocab_size:,}: "
            "it is the tokenizer of another model; put the right one here"
        )
    ids = (processor.bos_id(), processor.pad_id(), processor.eos_id(), processor.unk_id())
    if ids != (BOS, PAD, EOS, UNK):
        raise BadInput(f"{path}: <s>, <pad>, </s>, <unk> must have the ids 0, 1, 2, 3; got {ids}")
    expected = provenance.get("tokenizer_sha256")
    if expected is not None and _sha256(path) != expected:
        raise BadInput(
            f"{path}: is not the tokenizer that the model was trained with (its SHA-256 differs from {PROVENANCE}): "
            "damaged or exchanged; copy the folder again"
        )


def _read_weights(folder: Path) -> tuple[tuple[Path, ...], Shapes]:
    """The weight files of a folder and the shape of every tensor in them, from their headers."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,), _read_header(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        hint = f"; {pickled.name} is a pickle, which is never loaded" if pickled else ": copy the whole folder again"
        raise BadInput(f"{folder / WEIGHTS}: missing, and so is {INDEX}{hint}")
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise BadInput(f"{index}: damaged: weight_map must name a file for each tensor; copy the folder again")
    files = {file: folder / file for file in sorted(set(where.values()))}
    found: Shapes = {}
    for file, shard in files.items():
        if not shard.is_file() or Path(file).name != file:
            raise BadInput(f"{shard}: missing, but {INDEX} names it; copy the whole folder again")
        shapes = _read_header(shard)
        lost = [name for name, place in where.items() if place == file and name not in shapes]
        if lost:
            raise BadInput(f"{shard}: has no tensor {lost[0]}, which {INDEX} places there; copy the folder again")
        found.update(shapes)
    return tuple(files.values()), found


def _read_header(path: Path) -> Shapes:
    """Tensor shapes of a safetensors file whose header and size agree, byte for byte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise BadInput(f"{path}: damaged or cut short: {size:,} bytes with no whole header; copy it again")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = 0 + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise BadInput(f"{path}: damaged: its header is not that of a safetensors file; copy it again") from None
    if 8 + length + end != size:
        raise BadInput(f"{path}: damaged or cut short: {size:,} bytes, must be {8 + length + end:,}; copy it again")
    return shapes


# ---- what the architecture says


def _check_task(path: Path, config: PreTrainedConfig, wanted: str | None) -> Task:
    """The task of a configuration, which must be the wanted one."""
    try:
        task = task_of(config)
    except ValueError as error:
        raise BadInput(f"{path}: {error} (model_type {config.model_type!r})") from None
    if wanted is not None and task.name != wanted:
        use = f"; `bmscale {task.command}` uses it" if task.command else ""
        raise BadInput(
            f"{path}: must be that of {TASKS[wanted].noun}; got {task.noun} (model_type {config.model_type!r}){use}"
        )
    return task


def _expected(config: PreTrainedConfig) -> tuple[Shapes, dict[str, str]]:
    """The shape of every stored tensor of the model, and for each tied name the one that is stored."""
    # The class itself, not from_config: under ZeRO-3 transformers would partition this model too.
    with torch.device("meta"):
        model = model_class(config)(copy.deepcopy(config))
    aliases = dict(model.all_tied_weights_keys)
    for name, kept in aliases.items():
        while kept in aliases:
            kept = aliases[kept]
        aliases[name] = kept
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in aliases}
    return shapes, aliases
