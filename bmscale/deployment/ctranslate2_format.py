"""A model folder as a CTranslate2 model: our own converter, against CTranslate2's specification classes.

The stock converters of CTranslate2 4.8 misread configurations of transformers 5 (rope_theta, tied heads, padding ids),
and `TransformerSpec.from_config` hides that both stacks may have rotary positions and grouped key heads; the classes
beneath it take them. Sources: `specs/transformer_spec.py` of the Python package, `src/layers/transformer.cc` and
`attention.cc` of the engine.

What a folder holds: `model.bin`, `config.json` and `shared_vocabulary.json` (`vocabulary.json` of a language model)
are CTranslate2's; `spiece.model` and `provenance.json` are the model folder's, the latter with a key `ctranslate2`,
which has the SHA-256 of all other files too.

The scalars of the configuration are moved into weights (scalars.py) but for that of embeddings, which CTranslate2 has a
place for. Sinusoids are written as a table, as long as the model has positions: ours begin at 2, CTranslate2's at 1.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bmscale.data.tokenizer import SPECIAL_PIECES, Tokenizer
from bmscale.deployment.ctranslate2_candidate import (
    LanguageModelCandidate,
    TranslationCandidate,
    never_written,
    open_candidate,
)
from bmscale.deployment.formats import FLOAT32_TOLERANCE
from bmscale.deployment.scalars import fold
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import COMPUTE_TYPES, import_ctranslate2
from bmscale.model.config import GATED, DecoderOnlyConfig, EncoderDecoderConfig, TransformerConfig
from bmscale.model.folder import GENERATION, PROVENANCE, ModelFolder, load_model, write_json
from bmscale.model.parametrization import embedding_scale
from bmscale.model.positions import positions, sinusoids
from bmscale.model.seal import seal
from bmscale.model.tokenization import TOKENIZER_FILE

_ACTIVATIONS = {"swiglu": "SWISH", "geglu": "GELUTanh", "gelu": "GELU", "relu": "RELU"}
_BOS, _, _EOS, _UNK = SPECIAL_PIECES


class CTranslate2Format:
    """`--to ctranslate2`."""

    name = "ctranslate2"
    library = "ctranslate2"
    suffix = ""

    def __init__(self, compute_type: str = "float32") -> None:
        """`compute_type` is what matrices are kept in (norms and biases stay float32 beside int8): float32, int8,
        int8_float32; float16, bfloat16, int8_float16 and int8_bfloat16 are for GPUs, a CPU computes them in float32.

        Raises BadInput for another one, and where ctranslate2 is not installed.
        """
        if compute_type not in COMPUTE_TYPES:
            raise BadInput(f"compute type: must be one of {', '.join(COMPUTE_TYPES)}; got {compute_type}")
        self._version = str(import_ctranslate2().__version__)
        self.compute_type = compute_type
        self.tolerance = FLOAT32_TOLERANCE if compute_type == "float32" else None

    def check(self, model: ModelFolder) -> None:
        """Raises BadInput, with the reason, for a model that CTranslate2 does not compute."""
        if not isinstance(model.config, EncoderDecoderConfig | DecoderOnlyConfig):
            raise BadInput(
                f"{model.path}: ctranslate2 is for models that write text, encoder-decoders and decoders; got "
                f"{model.config.model_type}: export it to hf"
            )

    def write(self, model: ModelFolder, target: Path) -> None:
        """Write the folder. Raises BadInput where `target` exists, and as `check` does."""
        self.check(model)
        if target.exists():
            raise BadInput(f"{target}: exists already; give a name that is free, or remove it")
        spec = _specification(model)
        spec.validate()
        spec.optimize(quantization=self.compute_type)
        target.mkdir(parents=True)
        try:
            spec.save(str(target))
            shutil.copyfile(model.tokenizer, target / TOKENIZER_FILE)
            record = {**self._record(model), **seal(target)}
            write_json(target / PROVENANCE, {**model.provenance, "ctranslate2": record})
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _record(self, model: ModelFolder) -> dict[str, Any]:
        """What is to be known of the model and does not stand in CTranslate2's own files."""
        config = model.config
        search = json.loads((model.path / GENERATION).read_bytes())
        return {
            "compute_type": self.compute_type,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "positions": config.positions,
            "beam_size": search.get("num_beams", 1),
            "length_penalty": search.get("length_penalty", 1.0),
        }

    def open(self, target: Path) -> "TranslationCandidate | LanguageModelCandidate":
        """Open the folder on the CPU. Raises BadInput as `open_ctranslate2_folder` does."""
        return open_candidate(target)

    def usage(self, model: ModelFolder) -> str:
        """How to load the folder, from within it."""
        if isinstance(model.config, DecoderOnlyConfig):
            tokenizer = Tokenizer.load(model.tokenizer)
            never = json.dumps([[piece] for piece in tokenizer.pieces(never_written(tokenizer))])
            return _LANGUAGE_MODEL_USAGE.replace("NEVER", never)
        return _TRANSLATION_USAGE

    def describe(self, target: Path) -> dict[str, Any]:
        """What the report says of the folder."""
        return {"layout": "CTranslate2", "compute_type": self.compute_type, "ctranslate2": self._version}


def make(**options: str) -> CTranslate2Format:
    """The format with its option `compute_type`. Raises BadInput for another value."""
    return CTranslate2Format(**options)


_TRANSLATION_USAGE = """\
With bmscale, `bmscale translate .`, or in Python `Translator.from_pretrained(".").translate(["A sentence."])`. With
the packages ctranslate2 and sentencepiece alone:

```python
import ctranslate2, sentencepiece

pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model")
translator = ctranslate2.Translator(".", device="cpu", intra_threads=1)
(result,) = translator.translate_batch([pieces.encode("A sentence.", out_type=str)])
print(pieces.decode(result.hypotheses[0]))
```

CTranslate2 puts the end of the source there itself. Text is to be normalised as in training (Unicode NFC, single
spaces); bmscale does that.
"""
_LANGUAGE_MODEL_USAGE = """\
With the packages ctranslate2 and sentencepiece:

```python
import ctranslate2, sentencepiece

pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model")
generator = ctranslate2.Generator(".", device="cpu", intra_threads=1)
prompt = ["<s>", *pieces.encode("Once upon", out_type=str)]
never = NEVER  # they are no text
options = {"sampling_topp": 0.95, "include_prompt_in_result": False, "suppress_sequences": never}
(result,) = generator.generate_batch([prompt], max_length=50, **options)
print(pieces.decode(result.sequences[0]))
```
"""


def _specification(model: ModelFolder) -> Any:
    from ctranslate2.specs import transformer_spec

    config = model.config
    pieces = Tokenizer.load(model.tokenizer).pieces(range(config.vocab_size))
    state = fold(config, load_model(model).state_dict(), embedding_factor=embedding_scale(config))
    spec: Any
    if isinstance(config, EncoderDecoderConfig):
        encoder = transformer_spec.TransformerEncoderSpec(config.num_encoder_layers, **_options(config))
        decoder = transformer_spec.TransformerDecoderSpec(
            config.num_decoder_layers,
            **_options(config),
            alignment_layer=max(0, config.num_decoder_layers - 2),  # as Backend.attention has it
            alignment_heads=0,  # the mean of all
            external_pre_post_encoder_layers=config.sandwich_norm,
        )
        _Stack(config, state, "model.encoder").fill(encoder)
        _Stack(config, state, "model.decoder").fill(decoder)
        spec = transformer_spec.TransformerSpec(encoder, decoder)
        spec.register_source_vocabulary(pieces)
        spec.register_target_vocabulary(pieces)
        spec.config.add_source_eos = True
        spec.config.decoder_start_token = _EOS
    else:
        decoder = transformer_spec.TransformerDecoderSpec(
            config.num_hidden_layers, **_options(config), with_encoder_attention=False
        )
        _Stack(config, state, "model").fill(decoder)
        spec = transformer_spec.TransformerDecoderModelSpec(decoder)
        spec.register_vocabulary(pieces)
    decoder.projection.weight = state["lm_head.weight"]
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = _BOS, _EOS, _UNK
    spec.config.layer_norm_epsilon = float(config.norm_eps)
    return spec


def _options(config: TransformerConfig) -> dict[str, Any]:
    """The options that encoder and decoder specifications share."""
    from ctranslate2.specs import common_spec

    rotary = {"rotary_dim": config.head_dim, "rotary_interleave": False, "rotary_base": float(config.rope_theta)}
    return {
        "num_heads": config.num_attention_heads,
        "num_heads_kv": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "pre_norm": True,
        "activation": common_spec.Activation[_ACTIVATIONS[config.feed_forward]],
        "ffn_glu": config.feed_forward in GATED,
        "rms_norm": config.norm == "rms_norm",
        "qk_norm": config.qk_norm,
        "pre_post_layer_norm": config.sandwich_norm,
        **(rotary if config.positions == "rope" else {}),
    }


class _Stack:
    """The weights of one stack, and where they go."""

    def __init__(self, config: TransformerConfig, state: Mapping[str, torch.Tensor], name: str) -> None:
        self._config, self._state, self._name = config, state, name

    def fill(self, spec: Any) -> None:
        """Set all of a stack's specification."""
        config = self._config
        embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
        embeddings.weight = self._state[f"{self._name}.embed.tokens.weight"]
        spec.scale_embeddings = embedding_scale(config)
        if config.positions == "sinusoid":
            place_T = positions(config.max_position_embeddings, 0, torch.device("cpu"))
            spec.position_encodings.encodings = sinusoids(place_T, config.hidden_size, torch.float32)
        elif hasattr(spec, "position_encodings"):  # the encoder's constructor makes one all the same
            del spec.position_encodings
        self._norm(spec.layer_norm, "norm")
        for number, layer in enumerate(spec.layer):
            self._layer(layer, f"layers.{number}")

    def _layer(self, spec: Any, name: str) -> None:
        own, feed_forward = spec.self_attention, spec.ffn
        reads_source = hasattr(spec, "attention")
        if self._config.sandwich_norm:
            norms = [
                (spec.input_layer_norm, "self_attention_norm"),
                (spec.post_attention_layer_norm, "self_attention_post_norm"),
                (spec.pre_feedforward_layer_norm, "feed_forward_norm"),
                (spec.post_feedforward_layer_norm, "feed_forward_post_norm"),
            ]
            if reads_source:
                norms.append((spec.external_pre_encoder_attention_layer_norm, "cross_attention_norm"))
                norms.append((spec.external_post_encoder_attention_layer_norm, "cross_attention_post_norm"))
        else:
            norms = [(own.layer_norm, "self_attention_norm"), (feed_forward.layer_norm, "feed_forward_norm")]
            norms += [(spec.attention.layer_norm, "cross_attention_norm")] if reads_source else []
        if self._config.qk_norm:
            norms += [(own.q_norm, "self_attention.q_norm"), (own.k_norm, "self_attention.k_norm")]
        for part, norm in norms:
            self._norm(part, f"{name}.{norm}")

        self._linear(own.linear[0], f"{name}.self_attention", "q_proj", "k_proj", "v_proj")
        self._linear(own.linear[1], f"{name}.self_attention", "o_proj")
        if reads_source:
            cross = spec.attention
            if self._config.qk_norm:  # the constructor gives it norms; ours has none (model/config.py)
                del cross.q_norm, cross.k_norm
            self._linear(cross.linear[0], f"{name}.cross_attention", "q_proj")
            self._linear(cross.linear[1], f"{name}.cross_attention", "k_proj", "v_proj")
            self._linear(cross.linear[2], f"{name}.cross_attention", "o_proj")
        is_gated = self._config.feed_forward in GATED
        self._linear(feed_forward.linear_0, f"{name}.feed_forward", "gate_proj" if is_gated else "up_proj")
        if is_gated:
            self._linear(feed_forward.linear_0_noact, f"{name}.feed_forward", "up_proj")
        self._linear(feed_forward.linear_1, f"{name}.feed_forward", "down_proj")

    def _norm(self, spec: Any, name: str) -> None:
        spec.gamma = self._state[f"{self._name}.{name}.weight"]
        bias = self._state.get(f"{self._name}.{name}.bias")
        if bias is not None:
            spec.beta = bias

    def _linear(self, spec: Any, name: str, *projections: str) -> None:
        """One matrix of several, and their biases where there are any."""
        names = [f"{self._name}.{name}.{projection}" for projection in projections]
        spec.weight = torch.cat([self._state[f"{part}.weight"] for part in names])
        if f"{names[0]}.bias" in self._state:
            spec.bias = torch.cat([self._state[f"{part}.bias"] for part in names])
