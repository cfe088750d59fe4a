"""A model folder as a CTranslate2 model: our own converter, against CTranslate2's specification classes.

The stock converters of CTranslate2 4.8 misread configurations of transformers 5 (rope_theta, tied heads, padding ids),
and `TransformerSpec.from_config` hides that both stacks may have rotary positions and grouped key heads; the classes
beneath it take them. Sources: `specs/transformer_spec.py` of the Python package, `src/layers/transformer.cc` and
`attention.cc` of the engine.

What a folder holds: `model.bin`, `config.json` and `shared_vocabulary.json` (`vocabulary.json` of a language model) are
CTranslate2's; `spiece.model` and `provenance.json` are those of the model folder, the latter with the key `ctranslate2`.

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
from bmscale.errors import BadInput
from bmscale.inference.ctranslate2_folder import COMPUTE_TYPES, import_ctranslate2
from bmscale.model.config import GATED, DecoderOnlyConfig, EncoderDecoderConfig, TransformerConfig
from bmscale.model.folder import PROVENANCE, ModelFolder, load_model, open_model_folder
from bmscale.model.positions import positions, sinusoids
from bmscale.model.tokenization import TOKENIZER_FILE

_ACTIVATIONS = {"swiglu": "SWISH", "geglu": "GELUTanh", "gelu": "GELU", "relu": "RELU"}
_BOS, _, _EOS, _UNK = SPECIAL_PIECES


def write(source: Path, target: Path, *, compute_type: str = "float32") -> None:
    """Write the CTranslate2 model of a model folder (an encoder-decoder or a decoder) into the new folder `target`.

    `compute_type` is what matrices are kept in (norms and biases are float32 beside int8): float32, int8,
    int8_float32; float16, bfloat16, int8_float16 and int8_bfloat16 are for GPUs, and a CPU computes in float32 with
    them.

    Raises BadInput where ctranslate2 is not installed, `target` exists, or CTranslate2 cannot hold the model.
    """
    import_ctranslate2()
    if compute_type not in COMPUTE_TYPES:
        raise BadInput(f"compute type: must be one of {', '.join(COMPUTE_TYPES)}; got {compute_type}")
    if target.exists():
        raise BadInput(f"{target}: exists already; give a name that is free, or remove it")
    folder = open_model_folder(source, task=None)
    check_options(folder.config)
    model = load_model(folder)
    spec = _specification(model, folder)
    spec.validate()
    spec.optimize(quantization=compute_type)
    target.mkdir(parents=True)
    try:
        spec.save(str(target))
        shutil.copyfile(folder.tokenizer, target / TOKENIZER_FILE)
        record = {**folder.provenance, "ctranslate2": _record(folder.config, compute_type)}
        (target / PROVENANCE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def check_options(config: TransformerConfig) -> None:
    """Raises BadInput, with the reason, for a model that CTranslate2 does not compute as we do."""
    if not isinstance(config, EncoderDecoderConfig | DecoderOnlyConfig):
        raise BadInput(
            f"ctranslate2: holds encoder-decoders and decoders, which write text; got {config.model_type}: export an "
            "encoder to hf"
        )
    if config.qk_norm and config.bias:
        pass  # nothing: the norm comes behind the bias in both


def _record(config: Any, compute_type: str) -> dict[str, Any]:
    """What the engine needs to know of the model and does not have in its own files."""
    return {
        "compute_type": compute_type,
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "positions": config.positions,
    }


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
