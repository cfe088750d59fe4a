"""Writing on with PyTorch: token ids to token ids, through `generate` of transformers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from bmscale.data.tokenizer import BOS, EOS, PAD
from bmscale.inference.sampling import SamplingOptions


class TorchLanguageModel:
    """A transformers decoder as a language model (generator.py)."""

    name = "torch"

    def __init__(self, model: Any) -> None:
        """`model`: one of bmscale.model, on any device, in evaluation mode."""
        self.model = model
        self.positions = int(model.config.max_position_embeddings)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: Sequence[int],
        limits: Sequence[int],
        options: SamplingOptions,
        never: Sequence[int],
        out: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """See `LanguageModel`."""
        width = max(map(len, prompts))
        input_BT = torch.full((len(prompts), width), PAD)
        real_BT = torch.zeros_like(input_BT)
        for row, prompt in enumerate(prompts):
            input_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            real_BT[row, width - len(prompt) :] = 1
        most = max(limits)
        config = GenerationConfig(
            do_sample=False, max_length=width + most, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD
        )
        with torch.inference_mode():
            output_BT = self.model.generate(
                input_ids=input_BT.to(self.model.device),
                attention_mask=real_BT.to(self.model.device),
                generation_config=config,
                logits_processor=options.processors(prompts, samples, most, never),
                streamer=None if out is None else _Tokens(out),
            )
        written = [row[:limit] for row, limit in zip(output_BT[:, width:].tolist(), limits, strict=True)]
        return [row[: row.index(EOS) + 1] if EOS in row else row for row in written]


class _Tokens(BaseStreamer):
    """Takes tokens from `generate` and gives them on, but for the prompt, which comes first."""

    def __init__(self, out: Callable[[int], None]) -> None:
        self._out, self._prompt_came = out, False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_came:
            for token in value.reshape(-1).tolist():
                self._out(token)
        self._prompt_came = True

    def end(self) -> None:
        pass
