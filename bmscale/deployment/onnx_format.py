"""Format `onnx`, experimental: an encoder-decoder as two graphs (onnx_graphs.py) that onnxruntime runs.

What a folder holds: `encoder.onnx` and `decoder.onnx`, each with its weights in a file `.data` beside it;
`config.json`, `generation_config.json`, `spiece.model` and `provenance.json` are the model folder's, the latter with
the SHA-256 of all others.

The graphs are traced of the model itself, with its scalars, in float32.
"""

import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmscale.deployment.formats import FLOAT32_TOLERANCE
from bmscale.errors import BadInput
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import CONFIG, GENERATION, PROVENANCE, ModelFolder, load_model, write_json
from bmscale.model.seal import seal
from bmscale.model.tokenization import TOKENIZER_FILE

if TYPE_CHECKING:
    from bmscale.deployment.onnx_candidate import OnnxCandidate

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxFormat:
    """`--to onnx`."""

    name = "onnx"
    library = "onnxruntime"
    tolerance: float | None = FLOAT32_TOLERANCE
    suffix = ""

    def __init__(self) -> None:
        """Raises BadInput where a package is not installed."""
        absent = [package for package in _PACKAGES if find_spec(package) is None]
        if absent:
            raise BadInput(
                f"onnx: the packages {', '.join(absent)} are not installed here; install them with pip install "
                "'bmscale[onnx]'"
            )

    def check(self, model: ModelFolder) -> None:
        """Raises BadInput, with the reason, for a model of another kind than encoder-decoders."""
        if not isinstance(model.config, EncoderDecoderConfig):
            raise BadInput(
                f"{model.path}: onnx is for encoder-decoders; got {model.config.model_type}: export it to hf"
            )

    def write(self, model: ModelFolder, target: Path) -> None:
        """Write the folder. Raises BadInput where `target` exists, and as `check` does."""
        from bmscale.deployment.onnx_graphs import write_graphs

        self.check(model)
        if target.exists():
            raise BadInput(f"{target}: exists already; give a name that is free, or remove it")
        target.mkdir(parents=True)
        try:
            loaded: Any = load_model(model)
            write_graphs(loaded, target)
            for name in (CONFIG, GENERATION, TOKENIZER_FILE):
                shutil.copyfile(model.path / name, target / name)
            write_json(target / PROVENANCE, {**model.provenance, "onnx": seal(target)})
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def open(self, target: Path) -> "OnnxCandidate":
        """Open the folder in onnxruntime, on the CPU."""
        from bmscale.deployment.onnx_candidate import OnnxCandidate

        return OnnxCandidate(target)

    def usage(self, model: ModelFolder) -> str:
        """How to load the folder, from within it."""
        return _USAGE

    def describe(self, target: Path) -> dict[str, Any]:
        """What the report says of the folder."""
        import onnx

        from bmscale.deployment.onnx_graphs import DECODER

        opset = onnx.load(str(target / DECODER), load_external_data=False).opset_import[0].version
        return {"layout": "ONNX", "opset": opset, **{package: _version(package) for package in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # such as onnxruntime-gpu, which has the module under another name
        return "unknown"


def make() -> OnnxFormat:
    """The format, which has no options."""
    return OnnxFormat()


_USAGE = """\
Experimental. With the packages onnxruntime and sentencepiece, greedily:

```python
import json, numpy, onnxruntime, sentencepiece

pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model")
encoder, decoder = (onnxruntime.InferenceSession(f"{name}.onnx") for name in ("encoder", "decoder"))
config = json.load(open("config.json"))
end, layers = config["eos_token_id"], config["num_decoder_layers"]
source = numpy.array([[*pieces.encode("A sentence."), end]])
real = numpy.ones_like(source)  # 0 where a row of a batch is padded
read = encoder.run(["source"], {"input_ids": source, "attention_mask": real})[0]
past = numpy.zeros((1, layers, 2, config["num_key_value_heads"], 0, config["head_dim"]), numpy.float32)
tokens = [config["decoder_start_token_id"]]
while len(tokens) == 1 or (tokens[-1] != end and len(tokens) < 3 * source.size + 10):
    step = {"input_ids": numpy.array([tokens[-1:]]), "attention_mask": real, "source": read, "past": past}
    logits, past = decoder.run(["logits", "present"], step)
    tokens.append(int(logits[0, -1].argmax()))
print(pieces.decode([token for token in tokens if token != end]))
```

Text is to be normalised as in training (Unicode NFC, single spaces); bmscale does that.
"""
