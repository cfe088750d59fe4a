"""How the next token is chosen, so that a text depends on its prompt and seed and not on what else is written with it.

transformers draws the tokens of all rows of a batch from one generator, so a text would change with its company. Here
each row has numbers of its own, drawn beforehand, and a token is found by inverting the distribution at one of them
(`DrawTokens`), which for `generate` is greedy search.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bmscale.errors import BadInput


@dataclass(frozen=True)
class SamplingOptions:
    """How a text is written on. Raises BadInput for a value that cannot be used."""

    max_new_tokens: int = 100
    """A text ends after so many tokens at the latest, or where the model has no more positions."""
    temperature: float = 1.0
    """Logits are divided by it, 0.01 to 100; 0 always takes the most probable token."""
    top_k: int = 0
    """Draw from so many most probable tokens only (Fan 2018); 0 draws from all."""
    top_p: float = 0.95
    """Draw from the most probable tokens that have this share of the probability together (nucleus sampling, Holtzman
    2020); 1 draws from all."""
    repetition_penalty: float = 1.0
    """Logits of tokens that stand in prompt or text already are divided by it where positive, else multiplied (Keskar
    2019), 0.1 to 10; 1 changes nothing."""
    seed: int = 0
    """The same seed gives the same text."""

    def __post_init__(self) -> None:
        wholes = (("max_new_tokens", 1, 1_000_000), ("top_k", 0, 1_000_000), ("seed", 0, 2**63 - 1))
        for name, low, high in wholes:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise BadInput(f"{name}: must be a whole number from {low} to {high:,}; got {value!r}")
        ranges = (("temperature", 0.01, 100.0), ("top_p", 0.001, 1.0), ("repetition_penalty", 0.1, 10.0))
        for name, least, most in ranges:
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            may_be_zero = name == "temperature"
            if not number or not (least <= value <= most or (may_be_zero and value == 0)):  # NaN is in no range
                also = "0 or " if may_be_zero else ""
                raise BadInput(f"{name}: must be {also}a number from {least:g} to {most:g}; got {value!r}")

    def processors(
        self, prompts: Sequence[Sequence[int]], samples: Sequence[int], most: int, never: Sequence[int]
    ) -> LogitsProcessorList:
        """What makes `generate`, searching greedily, draw one text of at most `most` tokens for each prompt (ids).

        `samples` tells rows of the same prompt apart; the tokens `never` are not chosen.
        """
        processors: list[LogitsProcessor] = [SuppressTokensLogitsProcessor(list(never))]
        if self.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature > 0:
            processors.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k > 0:
                processors.append(TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(float(self.top_p)))
            rows = [self._numbers(*row, most) for row in zip(prompts, samples, strict=True)]
            processors.append(DrawTokens(torch.stack(rows), max(map(len, prompts))))
        return LogitsProcessorList(processors)

    def _numbers(self, prompt: Sequence[int], sample: int, most: int) -> torch.Tensor:
        """A number from 0 to 1 for each new token, each of which depends on seed, prompt, sample and place alone."""
        key = hashlib.sha256(repr((self.seed, sample, list(prompt))).encode()).digest()
        # The CPU's generator, so that the numbers are the same on every device.
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        return torch.rand(most, generator=generator, dtype=torch.float64)


class DrawTokens(LogitsProcessor):
    """Leaves each of R rows one token, drawn from the softmax of its scores with a number of its own."""

    def __init__(self, numbers_RN: torch.Tensor, prompt_width: int) -> None:
        """`numbers_RN`: uniform in [0, 1), one for each of N new tokens behind `prompt_width` slots."""
        self.numbers_RN, self.prompt_width = numbers_RN, prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        number_R = self.numbers_RN[:, input_ids.shape[1] - self.prompt_width]
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # Apple's GPUs have no fp64
        upto_RV = scores.to(wide).softmax(dim=-1).cumsum(dim=-1)
        level_R1 = number_R.to(scores.device, wide)[:, None] * upto_RV[:, -1:]
        token_R1 = (upto_RV > level_R1).int().argmax(dim=-1, keepdim=True)  # the first of those that are above
        return torch.full_like(scores, -torch.inf).scatter(1, token_R1, 0.0)  # type: ignore[return-value]
