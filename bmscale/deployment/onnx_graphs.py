"""An encoder-decoder as two ONNX graphs: the source read once, and a step of the decoder over what was read.

`encoder.onnx`: input_ids (B, S), attention_mask (B, S; 1 is a token, 0 padding) -> source (B, L, 2, G, S, K), the keys
and values that the cross-attention of each of L decoder layers needs of the source.

`decoder.onnx`: input_ids (B, T), attention_mask and source as before, past (B, L, 2, G, P, K) -> logits (B, T, V) and
present (B, L, 2, G, P + T, K), which is the next step's past. P may be 0, so that the same graph begins, goes on token
by token, and reads a whole target at once. The batch is the first axis of everything: a beam search picks rows of it.

B, S, T and P are free. Other shape letters: bmscale/model/transformer.py. What a row has behind its end does no harm:
the order hides it from what lies before.

Both are traced by `torch.onnx.export`, of the two modules below. transformers has exporters too (`OnnxExporter`), for
its own models: they change from version to version (5.17 has `export` where 5.23 has `export_program`), and
`export_for_generation` splits a model by rules for multimodal ones, with a step of the decoder that is fixed to one
token (5.23).
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, EncoderDecoderCache

from bmscale.data.tokenizer import EOS
from bmscale.model.encoder_decoder import EncoderDecoderForConditionalGeneration
from bmscale.model.positions import positions

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


class ReadSource(nn.Module):
    """`encoder.onnx`."""

    def __init__(self, model: EncoderDecoderForConditionalGeneration) -> None:
        super().__init__()
        self.config, self.encoder = model.config, model.model.encoder
        layers: Any = model.model.decoder.layers
        self.attentions = nn.ModuleList(layer.cross_attention for layer in layers)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """See the module."""
        x_BSD = self.encoder(input_ids, attention_mask).last_hidden_state
        attentions: Any = self.attentions
        pairs = [
            tuple(attention.heads(part(x_BSD)).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
            for attention in attentions
        ]
        return {"source": _joined(pairs)}


class TakeStep(nn.Module):
    """`decoder.onnx`."""

    def __init__(self, model: EncoderDecoderForConditionalGeneration) -> None:
        super().__init__()
        self.config, self.decoder, self.lm_head = model.config, model.model.decoder, model.lm_head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, source: torch.Tensor, past: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """See the module."""
        own, cross = DynamicCache(config=self.config), DynamicCache(config=self.config)
        cache = EncoderDecoderCache(own, cross)
        for layer in range(self.config.num_decoder_layers):
            own.update(past[:, layer, 0], past[:, layer, 1], layer)
            cross.update(source[:, layer, 0], source[:, layer, 1], layer)
            cache.is_updated[layer] = True
        before, length = past.shape[4], input_ids.shape[1]
        position_T = positions(length, before, input_ids.device)
        seen_TP = positions(before + length, 0, input_ids.device) <= position_T[:, None]
        real_BTS = attention_mask.bool()[:, None, :].expand(-1, length, -1)
        states_BTD = self.decoder.run(
            self.decoder.embed(input_ids), position_T, seen_TP[None, None], cache, source, real_BTS[:, None]
        )
        pairs = [(layer.keys, layer.values) for layer in own.layers]
        return {"logits": self.lm_head(states_BTD), "present": _joined(pairs)}


def _joined(pairs: Any) -> torch.Tensor:
    """Keys and values (B, G, S, K) of each layer as (B, L, 2, G, S, K)."""
    return torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1)


def write_graphs(model: EncoderDecoderForConditionalGeneration, folder: Path) -> None:
    """Write both graphs of a model in evaluation mode, each with its weights beside it (`.data`), into a folder."""
    config = model.config
    # Of 0, 1 and equal lengths torch.export would take an axis for fixed.
    rows, width, length, before = 3, 7, 4, 5

    def ids(places: int) -> torch.Tensor:
        return torch.full((rows, places), EOS)

    def cache(places: int) -> torch.Tensor:
        return torch.zeros(rows, config.num_decoder_layers, 2, config.num_key_value_heads, places, config.head_dim)

    batch, sources, targets, past = Dim("batch"), Dim("source"), Dim("target"), Dim("past")
    free: dict[str, Any] = {"input_ids": {0: batch, 1: sources}, "attention_mask": {0: batch, 1: sources}}
    inputs = {"input_ids": ids(width), "attention_mask": ids(width)}
    _write(ReadSource(model), inputs, free, ["source"], folder / ENCODER)
    free |= {"input_ids": {0: batch, 1: targets}, "source": {0: batch, 4: sources}, "past": {0: batch, 4: past}}
    inputs |= {"input_ids": ids(length), "source": cache(width), "past": cache(before)}
    _write(TakeStep(model), inputs, free, ["logits", "present"], folder / DECODER)


def _write(
    module: nn.Module, inputs: dict[str, torch.Tensor], free: dict[str, Any], outputs: list[str], path: Path
) -> None:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            dynamic_shapes=free,
            input_names=list(inputs),
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of torch and onnxscript about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
