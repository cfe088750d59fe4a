"""Which engine opens a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmscale.data.tokenizer import Tokenizer
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_backend import CTranslate2Backend
from bmscale.inference.ctranslate2_folder import LANGUAGE_MODEL, is_ctranslate2_folder, open_ctranslate2_folder
from bmscale.inference.ctranslate2_language_model import CTranslate2LanguageModel
from bmscale.inference.search import Backend
from bmscale.inference.torch_backend import TorchBackend, find_device, find_dtype
from bmscale.inference.torch_language_model import TorchLanguageModel
from bmscale.model.folder import ModelFolder, load_model, open_model_folder

BACKENDS = ("auto", "torch", "ctranslate2")


@dataclass(frozen=True)
class OpenedFolder:
    """A model that is loaded, and what belongs to it."""

    backend: Backend
    tokenizer: Tokenizer
    provenance: dict[str, Any]
    max_position_embeddings: int


def open_folder(
    path: str | Path | ModelFolder, backend: str = "auto", device: Any = "auto", compute_type: str = "auto"
) -> OpenedFolder:
    """Load a model folder with PyTorch, or a folder of `bmscale export --to ctranslate2` with CTranslate2.

    The arguments are those of `Translator.from_pretrained`, which says what is raised.
    """
    if _is_exported(path, backend):
        exported = open_ctranslate2_folder(path)  # type: ignore[arg-type]
        engine: Backend = CTranslate2Backend(exported, "auto" if device is None else str(device), compute_type)
        return OpenedFolder(engine, exported.tokenizer, exported.provenance, exported.max_position_embeddings)
    place = find_device(None if device == "auto" else device)
    folder = path if isinstance(path, ModelFolder) else open_model_folder(path)
    tokenizer = Tokenizer.load(folder.tokenizer)
    engine = TorchBackend.from_pretrained(folder, place, compute_type)
    return OpenedFolder(engine, tokenizer, folder.provenance, folder.config.max_position_embeddings)


def open_language_model(
    path: str | Path | ModelFolder, backend: str = "auto", device: Any = "auto", compute_type: str = "auto"
) -> tuple[CTranslate2LanguageModel | TorchLanguageModel, Tokenizer]:
    """The same for a decoder that writes on from prompts."""
    if _is_exported(path, backend):
        exported = open_ctranslate2_folder(path, LANGUAGE_MODEL)  # type: ignore[arg-type]
        place = "auto" if device is None else str(device)
        return CTranslate2LanguageModel(exported, place, compute_type), exported.tokenizer
    where, dtype = find_device(None if device == "auto" else device), find_dtype(compute_type)
    folder = path if isinstance(path, ModelFolder) else open_model_folder(path, "language_model")
    return TorchLanguageModel(load_model(folder, where, dtype)), Tokenizer.load(folder.tokenizer)


def _is_exported(path: str | Path | ModelFolder, backend: str) -> bool:
    """Whether CTranslate2 is to open a folder. Raises BadInput for a backend that cannot."""
    if backend not in BACKENDS:
        raise BadInput(f"backend: must be one of {', '.join(BACKENDS)}; got {backend}")
    is_exported = not isinstance(path, ModelFolder) and is_ctranslate2_folder(path)
    if backend == "torch" and is_exported:
        raise BadInput(f"{path}: is a CTranslate2 folder, which backend torch cannot open; leave backend at auto")
    if backend == "ctranslate2" and not is_exported:
        given = path.path if isinstance(path, ModelFolder) else path
        raise BadInput(
            f"{given}: is no CTranslate2 folder; make one with bmscale export {given} --to ctranslate2, and give that"
        )
    return is_exported
