"""What the gate asks of an ONNX artefact: its graphs (onnx_graphs.py) in onnxruntime, and the tokenizer beside them.

Greedy and beam search are transformers' `generate`, as the trained model's own: what it calls is the graphs alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from bmscale.data.batch import make_batch
from bmscale.data.tokenizer import Tokenizer
from bmscale.deployment.onnx_graphs import DECODER, ENCODER
from bmscale.inference.translator import Translator
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.folder import CONFIG, GENERATION, PROVENANCE, read_json
from bmscale.model.seal import check_files
from bmscale.model.tokenization import TOKENIZER_FILE

_ROWS = 16  # of a batch


class OnnxCandidate:
    """An encoder-decoder (formats.Candidate)."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInput for a folder whose files are not those that were exported."""
        check_files(folder, read_json(folder / PROVENANCE).get("onnx"))
        self._model = OnnxModel(folder)
        self._tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
        # Texts come with their tag, if there is one, and none is so long that it is split.
        self._translator = Translator(self._model, self._tokenizer, max_source_tokens=1_000_000)
        search = json.loads((folder / GENERATION).read_bytes())
        self._search = {"beam_size": search.get("num_beams", 1), "length_penalty": search.get("length_penalty", 1.0)}

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Of every token of each target, </s> included. A target is read in two halves, the second over the keys and
        values of the first, so that a fault in either way of the decoder shows."""
        found: list[list[float]] = []
        for start in range(0, len(pairs), _ROWS):
            sides = list(zip(*pairs[start : start + _ROWS], strict=True))
            sources, targets = (self._tokenizer.encode_batch(list(side)) for side in sides)
            batch = make_batch([np.array(ids) for ids in sources], [np.array(ids) for ids in targets])
            real_BS = batch.attention_mask.long()
            source, past = self._model.read(batch.input_ids, real_BS), self._model.nothing(len(sources))
            middle = batch.decoder_input_ids.shape[1] // 2
            halves = []
            for input_ids in (batch.decoder_input_ids[:, :middle], batch.decoder_input_ids[:, middle:]):
                if input_ids.shape[1]:
                    logits_BTV, past = self._model.step(input_ids, real_BS, source, past)
                    halves.append(logits_BTV)
            log_p_BTV = torch.cat(halves, dim=1).log_softmax(-1)
            for row_TV, ids in zip(log_p_BTV, targets, strict=True):
                found.append(row_TV[: len(ids)].gather(1, torch.tensor(ids)[:, None])[:, 0].tolist())
        return found

    def greedy(self, lines: Sequence[str]) -> list[str]:
        """Each line's translation by greedy search."""
        return self._translator.translate(lines, beam_size=1)

    def translate(self, lines: Sequence[str]) -> list[str]:
        """Each line's translation by the model's own search."""
        return self._translator.translate(lines, **self._search)


class OnnxModel(PreTrainedModel, GenerationMixin):
    """The two graphs as what `generate` of transformers takes for a model. It has no weights of its own."""

    config: EncoderDecoderConfig
    main_input_name = "input_ids"

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        super().__init__(EncoderDecoderConfig(**json.loads((folder / CONFIG).read_bytes())))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # as many as the trained model has
        options.log_severity_level = 3  # errors
        self.encoder_graph, self.decoder_graph = (
            onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )

    @property
    def device(self) -> torch.device:
        """Where its tensors are: on the CPU."""
        return torch.device("cpu")

    def read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the encoder's graph makes of sources (B, S)."""
        return _run(self.encoder_graph, input_ids=input_ids, attention_mask=attention_mask)[0]

    def nothing(self, rows: int) -> torch.Tensor:
        """The past of a target that has not begun."""
        config = self.config
        return torch.zeros(rows, config.num_decoder_layers, 2, config.num_key_value_heads, 0, config.head_dim)

    def step(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, source: torch.Tensor, past: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and the next past, of the decoder's graph."""
        logits, present = _run(
            self.decoder_graph, input_ids=input_ids, attention_mask=attention_mask, source=source, past=past
        )
        return logits, present

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """What `generate` runs on the source."""
        return _Encoder(self)

    def forward(
        self,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        encoder_outputs: BaseModelOutput,
        past_key_values: EncoderDecoderCache,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """One step of a search: the tokens (B, T) that are new, over the cache that `generate` reorders."""
        cache = past_key_values.self_attention_cache
        before = cache.get_seq_length()
        past = self.nothing(len(decoder_input_ids))
        if before:
            past = torch.stack([torch.stack([part.keys, part.values], dim=1) for part in cache.layers], dim=1)
        source = encoder_outputs.last_hidden_state
        logits, present = self.step(decoder_input_ids, attention_mask, source, past)
        for layer, pair in enumerate(present[..., before:, :].unbind(1)):
            cache.update(*pair.unbind(1), layer)
        return Seq2SeqLMOutput(logits=logits, past_key_values=past_key_values)


class _Encoder(nn.Module):
    """The encoder's graph as `generate` calls an encoder: `last_hidden_state` is what it repeats for each beam."""

    main_input_name = "input_ids"

    def __init__(self, model: OnnxModel) -> None:
        super().__init__()
        self._read = model.read

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self._read(input_ids, attention_mask))


def _run(session: Any, **inputs: torch.Tensor) -> list[torch.Tensor]:
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]
