"""A request of OpenAI's /v1/completions as units of work, and their results as its answer."""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from bmscale.deployment.serving.batching import Unit
from bmscale.deployment.serving.limits import Limits, Refused
from bmscale.deployment.serving.models import LanguageModel, Models
from bmscale.errors import BadInput
from bmscale.inference.generator import Generation
from bmscale.inference.sampling import SamplingOptions

_MOST_CHOICES = 16
_MOST_STOPS = 4
_DEFAULT_NEW_TOKENS = 16  # OpenAI's
# What OpenAI has and bmscale does not; a value that changes nothing is fine.
_UNSUPPORTED = {
    "best_of": (None, 1), "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
    "logprobs": (None, 0), "suffix": (None, ""),
}  # fmt: skip


@dataclass(frozen=True)
class CompletionRequest:
    """What was asked for, checked."""

    model: LanguageModel
    prompts: list[str]
    prompt_tokens: list[int]
    options: SamplingOptions
    seeded: bool
    n: int
    stops: list[str]
    echo: bool
    stream: bool
    usage_in_stream: bool

    @classmethod
    def of(cls, fields: dict[str, Any], models: Models, limits: Limits) -> "CompletionRequest":
        """Raises Refused: 404 for a model that is not there, 400 for everything else."""
        for name, harmless in _UNSUPPORTED.items():
            if fields.get(name) not in harmless:
                raise Refused(400, f"{name} is not supported")
        model = models.language_models.get(str(fields.get("model")))
        if model is None:
            names = ", ".join(models.language_models) or "none"
            if fields.get("model") is None:
                raise Refused(400, f"model: must be given; there are: {names}")
            raise Refused(404, f"the model {str(fields.get('model'))[:80]!r} does not exist; there are: {names}")
        prompts = _strings(fields, "prompt", [""], limits.max_texts)
        if sum(map(len, prompts)) > limits.max_characters:
            raise Refused(400, f"prompt: must have at most {limits.max_characters} characters")
        tokens = [model.prompt_tokens(prompt) for prompt in prompts]
        if max(tokens) >= model.positions:
            raise Refused(
                400, f"prompt: must have at most {model.positions - 1} tokens, <s> counted; got {max(tokens)}"
            )
        n = _whole(fields, "n", 1, 1, _MOST_CHOICES)
        stream = _flag(fields, "stream")
        if stream and (n > 1 or len(prompts) > 1):
            raise Refused(400, "stream: must be of one prompt and n 1")
        stops = [stop for stop in _strings(fields, "stop", [], _MOST_STOPS) if stop]
        stream_options = fields.get("stream_options") or {}
        usage = isinstance(stream_options, dict) and stream_options.get("include_usage") is True
        options, seeded = _sampling(fields, limits)
        return cls(model, prompts, tokens, options, seeded, n, stops, _flag(fields, "echo"), stream, usage)

    def units(self) -> list[list[Unit]]:
        """Work for the queue, of each prompt."""
        return [
            self.model.units(prompt, tokens, self.options, self.n, seeded=self.seeded)
            for prompt, tokens in zip(self.prompts, self.prompt_tokens, strict=True)
        ]

    def answer(self, results: list[list[Generation]]) -> dict[str, Any]:
        """OpenAI's answer from n continuations of each prompt."""
        choices: list[dict[str, Any]] = []
        for prompt, found in zip(self.prompts, results, strict=True):
            for generation in found:
                text, was_cut = cut_at(generation.text, self.stops)
                reason = "stop" if was_cut or generation.ended else "length"
                whole = prompt + text if self.echo else text
                choices.append({"text": whole, "index": len(choices), "logprobs": None, "finish_reason": reason})
        written = sum(generation.tokens for found in results for generation in found)
        return {**self.head(), "choices": choices, "usage": self.usage(written)}

    def head(self) -> dict[str, Any]:
        """What every answer and every part of one begins with."""
        name = f"cmpl-{uuid.uuid4().hex}"
        return {"id": name, "object": "text_completion", "created": int(time.time()), "model": self.model.name}

    def usage(self, written: int) -> dict[str, int]:
        """Tokens read and written."""
        read = sum(self.prompt_tokens)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _sampling(fields: dict[str, Any], limits: Limits) -> tuple[SamplingOptions, bool]:
    new_tokens = _whole(fields, "max_tokens", _DEFAULT_NEW_TOKENS, 1, limits.max_new_tokens)
    seed = fields.get("seed")
    given = {name: value for name in ("temperature", "top_p") if (value := fields.get(name)) is not None}
    try:
        options = SamplingOptions(
            max_new_tokens=new_tokens, seed=0 if seed is None else seed, **{"top_p": 1.0, **given}
        )
    except BadInput as error:
        raise Refused(400, str(error)) from None
    return options, seed is not None


def _whole(fields: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(400, f"{name}: must be a whole number from {least} to {most}")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool | None):
        raise Refused(400, f"{name}: must be true or false")
    return bool(value)


def _strings(fields: dict[str, Any], name: str, default: list[str], most: int) -> list[str]:
    value = fields.get(name)
    if value is None:
        return default
    strings = value if isinstance(value, list) else [value]
    if not strings or len(strings) > most or not all(isinstance(one, str) for one in strings):
        raise Refused(400, f"{name}: must be a string or a list of 1 to {most} strings; ids of tokens are not taken")
    return strings


def cut_at(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the first of the stops, and whether there was one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
