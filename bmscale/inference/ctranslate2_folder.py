"""The folder of a CTranslate2 model that `bmscale export --to ctranslate2` wrote: opened only when it is whole.

    model.bin  config.json  shared_vocabulary.json (vocabulary.json of a decoder)  spiece.model  provenance.json

Nothing in it is a pickle: `model.bin` is CTranslate2's own format, and its first bytes are looked at before the engine
reads it.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmscale.data.tokenizer import Tokenizer
from bmscale.data.workers import cores
from bmscale.errors import BadInput
from bmscale.model.folder import read_json
from bmscale.model.seal import check_files

MODEL, CONFIG, TOKENIZER_FILE, PROVENANCE = "model.bin", "config.json", "spiece.model", "provenance.json"
COMPUTE_TYPES = (
    "float32", "int8", "int8_float32", "float16", "bfloat16", "int8_float16", "int8_bfloat16",
)  # fmt: skip
"""In what a model can be kept and computed; the names are CTranslate2's."""
_MOST_WORKERS = 1024  # the engine aborts where threads cannot be had
TRANSLATOR, LANGUAGE_MODEL = "TransformerSpec", "TransformerDecoderSpec"


@dataclass(frozen=True)
class CTranslate2Folder:
    """A folder that was checked."""

    path: Path
    kind: str
    """TRANSLATOR or LANGUAGE_MODEL."""
    provenance: dict[str, Any]
    """That of the model folder it was made of."""
    tokenizer: Tokenizer
    max_position_embeddings: int
    has_position_table: bool
    """Sinusoids end at `max_position_embeddings`; rotary positions have no end."""
    compute_type: str
    """In what the matrices are kept."""


def import_ctranslate2() -> Any:
    """The package. Raises BadInput where it is not installed."""
    try:
        import ctranslate2
    except ImportError:
        raise BadInput(
            "ctranslate2: the package is not installed here; install it with pip install 'bmscale[ctranslate2]'"
        ) from None
    return ctranslate2


def is_ctranslate2_folder(path: str | Path) -> bool:
    """Whether a folder is CTranslate2's, rather than one of transformers: by the names of its files alone."""
    path = Path(path).expanduser()
    return (path / MODEL).is_file() and not (path / "tokenizer_config.json").exists()


def open_ctranslate2_folder(path: str | Path, kind: str = TRANSLATOR) -> CTranslate2Folder:
    """Check a folder without loading its weights: every byte of it, by the SHA-256 that the export has kept.

    Raises BadInput, naming the file and what to do, for one that is missing, damaged, of another kind of model, or not
    written by bmscale.
    """
    path = Path(path).expanduser()
    try:
        for name in (MODEL, CONFIG, TOKENIZER_FILE, PROVENANCE):
            if not (path / name).is_file():
                raise BadInput(
                    f"{path / name}: missing; a CTranslate2 folder must have it: write it with bmscale export --to "
                    "ctranslate2, or copy it again as a whole"
                )
        provenance, config = read_json(path / PROVENANCE), read_json(path / CONFIG)
        found = kind_of(path)
    except OSError as error:
        raise BadInput(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    if found != kind:
        use = {TRANSLATOR: "; `bmscale translate` uses it", LANGUAGE_MODEL: "; `bmscale generate` uses it"}.get(
            found, ""
        )
        raise BadInput(f"{path / MODEL}: must be a {kind}; got a {found}{use}")
    record = provenance.get("ctranslate2")
    places = record.get("max_position_embeddings") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(places, int) or places < 2:
        raise BadInput(f"{path / PROVENANCE}: the key ctranslate2 must say what the model is; export the model again")
    if kind == TRANSLATOR and config.get("add_source_eos") is not True:
        raise BadInput(f"{path / CONFIG}: add_source_eos must be true, as bmscale writes it; export the model again")
    tokenizer = Tokenizer.load(path / TOKENIZER_FILE)
    expected = provenance.get("tokenizer_sha256")
    if (expected is not None and tokenizer.sha256 != expected) or tokenizer.vocabulary_size != record.get("vocab_size"):
        raise BadInput(
            f"{path / TOKENIZER_FILE}: is not the tokenizer that the model was trained with: damaged or exchanged; "
            "copy the folder again"
        )
    check_files(path, record)
    has_table, kept = record.get("positions") == "sinusoid", str(record.get("compute_type"))
    return CTranslate2Folder(path, found, provenance, tokenizer, places, has_table, kept)


def kind_of(folder: Path) -> str:
    """TRANSLATOR, LANGUAGE_MODEL or another name of a specification: it stands in the head of `model.bin`, a version
    and then a string with its length. Raises BadInput for another file, and OSError."""
    path = folder / MODEL
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) == 64:
        version, length = struct.unpack_from("<IH", head)
        name = head[6 : 6 + length].rstrip(b"\0")
        if version <= 6 and 1 < length < 48 and name.isalnum():
            return name.decode("ascii")
    raise BadInput(f"{path}: damaged, or no CTranslate2 model: its first bytes are not those of one; copy it again")


def open_engine(folder: CTranslate2Folder, device: str = "auto", compute_type: str = "auto") -> Any:
    """CTranslate2's Translator or Generator of a folder.

    `device`: cpu, cuda, cuda:1, or auto for a GPU where there is one. `compute_type`: one of COMPUTE_TYPES, or auto for
    what the matrices are kept in, as far as the device can.

    On a CPU as many workers as OMP_NUM_THREADS says (as there are cores, without it), of one thread each: two threads
    that share a product of int8 wait for each other far longer than they work (two cores, width 256, one sentence: 8
    a second with two threads, 100 with one), and in float32 workers are as fast. `batch_tokens` gives each its
    share of a call; the memory of their activations adds up.

    Raises BadInput where ctranslate2 is not installed, or the device or compute type cannot be had.
    """
    package = import_ctranslate2()
    kind, _, index = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or not (index.isdecimal() or not index) or (index and kind != "cuda"):
        raise BadInput(f"device: must be auto, cpu, cuda, or cuda:1 and so on, for CTranslate2; got {device}")
    if compute_type not in ("auto", *COMPUTE_TYPES):
        raise BadInput(f"compute type: must be auto or one of {', '.join(COMPUTE_TYPES)}; got {compute_type}")
    wanted = "default" if compute_type == "auto" else compute_type
    engine = package.Translator if folder.kind == TRANSLATOR else package.Generator
    if kind == "auto":
        kind = "cuda" if package.get_cuda_device_count() else "cpu"
    threads = {"inter_threads": _workers(), "intra_threads": 1} if kind == "cpu" else {}
    try:
        return engine(str(folder.path), kind, device_index=int(index or 0), compute_type=wanted, **threads)
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"{folder.path}: CTranslate2 cannot use it on {device}: {error}") from None


def _workers() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(int(given), _MOST_WORKERS) if given.isdecimal() and int(given) else cores()


def batch_tokens(engine: Any, lengths: Sequence[int], most: int) -> int:
    """How many padded tokens a batch of rows of these lengths may have: `most`, or less where that leaves a worker of
    the engine without rows. The engine counts the pieces that it is given, of a pair those of the source."""
    longest, total = max(lengths, default=0), sum(lengths)
    return max(1, min(most, max(longest, -(-total // workers_of(engine)))))


def workers_of(engine: Any) -> int:
    """How many batches a Translator or Generator computes at the same time."""
    count: int = engine.num_translators if hasattr(engine, "num_translators") else engine.num_generators
    return count
