"""A model folder as a CTranslate2 model: our own converter, against CTranslate2's specification classes.

The stock converters of CTranslate2 4.8 misread configurations of transformers 5 (rope_theta, tied heads, padding ids),
and `TransformerSpec.from_config` hides that both stacks may have rotary positions and grouped key heads; the classes
beneath it take them. Sources: `specs/transformer_spec.py` of the Python package, `src/layers/transformer.cc` and
`attention.cc` of the engine.

What a folder holds: `model.bin`, `config.json` and `shared_vocabulary.json` (`vocabulary.json` of a language model)
are CTranslate2's; `spiece.model` and `provenance.json` are the model folder's, the latter with a key `ctranslate2`.

| option            | what becomes of it                                                                     |
|-------------------|----------------------------------------------------------------------------------------|
| embedding_scale   | with sqrt(D) one number, by which CTranslate2 multiplies embeddings                     |
| attention_scale   | multiplied into the query matrix, or into the norm of queries                           |
| residual_scale    | multiplied into the last matrix of each branch, or into its post-norm                   |
| logit_scale       | multiplied into the decoder's last norm, which nothing but the head reads: exact also   |
|                   | where the head is tied to the embeddings                                                |
| sinusoids         | a table, as long as the model has positions: fairseq's begin at 2, CTranslate2's at 1   |
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bmscale.data.tokenizer import SPECIAL_PIECES, Tokenizer
from bmscale.deployment.ctranslate2_candidate import LanguageModelCandidate, TranslationCandidate, open_candidate
from bmscale.deployment.formats import FLOAT32_TOLERANCE
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import COMPUTE_TYPES, import_ctranslate2
from bmscale.model.config import GATED, DecoderOnlyConfig, EncoderDecoderConfig, TransformerConfig
from bmscale.model.folder import GENERATION, PROVENANCE, ModelFolder, load_model
from bmscale.model.positions import positions, sinusoids
from bmscale.model.tokenization import TOKENIZER_FILE

_ACTIVATIONS = {"swiglu": "SWISH", "geglu": "GELUTanh", "gelu": "GELU", "relu": "RELU"}
_BOS, _, _EOS, _UNK = SPECIAL_PIECES


class CTranslate2Format:
    """`--to ctranslate2`."""

    name = "ctranslate2"
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
        spec = _specification(load_model(model), model)
        spec.validate()
        spec.optimize(quantization=self.compute_type)
        target.mkdir(parents=True)
        try:
            spec.save(str(target))
            shutil.copyfile(model.tokenizer, target / TOKENIZER_FILE)
            record = {**model.provenance, "ctranslate2": self._record(model)}
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (target / PROVENANCE).write_text(text, encoding="utf-8", errors="replace")
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
            return _LANGUAGE_MODEL_USAGE
        return _TRANSLATION_USAGE

    def describe(self, target: Path) -> dict[str, Any]:
        """What the report says of the folder."""
        return {"layout": "CTranslate2", "compute_type": self.compute_type, "ctranslate2": self._version}


def make(**options: str) -> CTranslate2Format:
    """The format with its option `compute_type`. Raises BadInput for another option, or value."""
    unknown = sorted(set(options) - {"compute_type"})
    if unknown:
        raise BadInput(f"--to ctranslate2: has the option compute_type alone; got {', '.join(unknown)}")
    return CTranslate2Format(**options)


_TRANSLATION_USAGE = """\
With bmscale, `bmscale translate .`, or in Python `Translator.from_pretrained(".").translate(["A sentence."])`. With
the packages ctranslate2 and sentencepiece alone:

```python
import ctranslate2, sentencepiece

pieces = sentencepiece.SentencePieceProcessor(model_file="spiece.model")
translator = ctranslate2.Translator(".", device="cpu")
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
generator = ctranslate2.Generator(".", device="cpu")
prompt = ["<s>", *pieces.encode("Once upon", out_type=str)]
(result,) = generator.generate_batch([prompt], max_length=50, sampling_topp=0.95, include_prompt_in_result=False)
print(pieces.decode(result.sequences[0]))
```
"""


def _specification(model: Any, folder: ModelFolder) -> Any:
    from ctranslate2.specs import transformer_spec

    config = folder.config
    pieces = Tokenizer.load(folder.tokenizer).pieces(range(config.vocab_size))
    spec: Any
    if isinstance(config, EncoderDecoderConfig):
        encoder = transformer_spec.TransformerEncoderSpec(config.num_encoder_layers, **_options(config))
        decoder = transformer_spec.TransformerDecoderSpec(
            config.num_decoder_layers,
            **_options(config),
            # The layer before the last aligns best (Garg 2019, section 4.1); of all its heads, the mean.
            alignment_layer=max(0, config.num_decoder_layers - 2),
            alignment_heads=0,
            external_pre_post_encoder_layers=config.sandwich_norm,
        )
        _set_stack(encoder, model.model.encoder, config)
        _set_stack(decoder, model.model.decoder, config)
        spec = transformer_spec.TransformerSpec(encoder, decoder)
        spec.register_source_vocabulary(pieces)
        spec.register_target_vocabulary(pieces)
        spec.config.add_source_eos = True
        spec.config.decoder_start_token = _EOS
    else:
        decoder = transformer_spec.TransformerDecoderSpec(
            config.num_hidden_layers, **_options(config), with_encoder_attention=False
        )
        _set_stack(decoder, model.model, config)
        spec = transformer_spec.TransformerDecoderModelSpec(decoder)
        spec.register_vocabulary(pieces)
    _set_head(decoder, model, config)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = _BOS, _EOS, _UNK
    spec.config.layer_norm_epsilon = float(config.norm_eps)
    return spec


def _options(config: TransformerConfig) -> dict[str, Any]:
    """The options that encoder and decoder specifications share."""
    from ctranslate2.specs import common_spec

    rotary = {"rotary_dim": config.head_dim, "rotary_interleave": False, "rotary_base": float(config.rope_theta)}
    return {
        "num_heads": config.num_attention_heads,
        # Without it CTranslate2 takes query, key and value for three of the same width.
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


def _set_stack(spec: Any, stack: Any, config: TransformerConfig) -> None:
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    embeddings.weight = stack.embed.tokens.weight
    spec.scale_embeddings = float(stack.embed.scale)
    if config.positions == "rope":
        if hasattr(spec, "position_encodings"):  # the encoder's constructor makes one all the same
            del spec.position_encodings
    else:
        place_T = positions(config.max_position_embeddings, 0, torch.device("cpu"))
        spec.position_encodings.encodings = sinusoids(place_T, config.hidden_size, torch.float32)
    _set_norm(spec.layer_norm, stack.norm)
    for part, layer in zip(spec.layer, stack.layers, strict=True):
        _set_layer(part, layer, config)


def _set_layer(spec: Any, layer: Any, config: TransformerConfig) -> None:
    own, feed_forward, scale = spec.self_attention, spec.ffn, float(layer.residual_scale)
    branch = 1.0 if config.sandwich_norm else scale
    if config.sandwich_norm:
        _set_norm(spec.input_layer_norm, layer.self_attention_norm)
        _set_norm(spec.post_attention_layer_norm, layer.self_attention_post_norm, scale)
        _set_norm(spec.pre_feedforward_layer_norm, layer.feed_forward_norm)
        _set_norm(spec.post_feedforward_layer_norm, layer.feed_forward_post_norm, scale)
    else:
        _set_norm(own.layer_norm, layer.self_attention_norm)
        _set_norm(feed_forward.layer_norm, layer.feed_forward_norm)

    attention, query = layer.self_attention, float(config.attention_scale)
    if config.qk_norm:  # whose weight is the last to multiply a query
        _set_norm(own.q_norm, attention.q_norm, query)
        _set_norm(own.k_norm, attention.k_norm)
        query = 1.0
    _set_linear(own.linear[0], (attention.q_proj, query), (attention.k_proj, 1.0), (attention.v_proj, 1.0))
    _set_linear(own.linear[1], (attention.o_proj, branch))
    if layer.reads_source:
        _set_cross_attention(spec, layer, config)

    if config.feed_forward in GATED:
        _set_linear(feed_forward.linear_0, (layer.feed_forward.gate_proj, 1.0))
        _set_linear(feed_forward.linear_0_noact, (layer.feed_forward.up_proj, 1.0))
    else:
        _set_linear(feed_forward.linear_0, (layer.feed_forward.up_proj, 1.0))
    _set_linear(feed_forward.linear_1, (layer.feed_forward.down_proj, branch))


def _set_cross_attention(spec: Any, layer: Any, config: TransformerConfig) -> None:
    scale = float(layer.residual_scale)
    cross, attention = spec.attention, layer.cross_attention
    if config.sandwich_norm:
        _set_norm(spec.external_pre_encoder_attention_layer_norm, layer.cross_attention_norm)
        _set_norm(spec.external_post_encoder_attention_layer_norm, layer.cross_attention_post_norm, scale)
    else:
        _set_norm(cross.layer_norm, layer.cross_attention_norm)
    if config.qk_norm:  # the specification's constructor gives it norms; ours has none, see model/config.py
        del cross.q_norm, cross.k_norm
    _set_linear(cross.linear[0], (attention.q_proj, float(config.attention_scale)))
    _set_linear(cross.linear[1], (attention.k_proj, 1.0), (attention.v_proj, 1.0))
    _set_linear(cross.linear[2], (attention.o_proj, 1.0 if config.sandwich_norm else scale))


def _set_head(decoder: Any, model: Any, config: TransformerConfig) -> None:
    decoder.projection.weight = model.lm_head.weight
    if config.logit_scale != 1.0:
        stack = model.model.decoder if isinstance(config, EncoderDecoderConfig) else model.model
        _set_norm(decoder.layer_norm, stack.norm, float(config.logit_scale))


def _set_norm(spec: Any, norm: Any, scale: float = 1.0) -> None:
    spec.gamma = _times(norm.weight, scale)
    if getattr(norm, "bias", None) is not None:
        spec.beta = _times(norm.bias, scale)


def _set_linear(spec: Any, *parts: tuple[nn.Linear, float]) -> None:
    """One matrix of several, each multiplied by its number; biases as well."""
    spec.weight = torch.cat([_times(linear.weight, scale) for linear, scale in parts])
    if parts[0][0].bias is not None:
        spec.bias = torch.cat([_times(linear.bias, scale) for linear, scale in parts])


def _times(tensor: torch.Tensor, scale: float) -> torch.Tensor:
    return tensor.detach() if scale == 1.0 else tensor.detach() * scale
