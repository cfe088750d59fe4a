"""The command line in this process: a process of its own would spend most of a test on importing torch. And models
that both backends have."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bmscale.cli import main
from bmscale.data.batch import make_batch
from bmscale.data.tokenizer import EOS, TokenizerConfig, train_tokenizer
from bmscale.deployment.formats import make_format
from bmscale.inference.translator import Translator
from bmscale.model import EncoderDecoderConfig, EncoderDecoderForConditionalGeneration
from bmscale.model.folder import open_model_folder, write_model_folder

Run = Callable[..., "Output"]


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """`run("predict", folder, stdin="a line\\n")`: what the command printed; `code` is what it must return."""
    log = logging.getLogger("bmscale")
    for name in ("handlers", "propagate", "level"):  # which the command line sets
        monkeypatch.setattr(log, name, getattr(log, name))

    def run_command(*arguments: object, stdin: str = "", code: int = 0) -> Output:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        returned = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert returned == code, captured.err
        return Output(captured.out, captured.err)

    return run_command


TEXT = """the old fisherman rowed across the quiet lake before sunrise. nobody knew where the letters came from.
she counted seventeen boats near the broken bridge. my neighbour keeps bees, hens and one stubborn goat.
bring warm clothes, since the mountain huts are cold at night. we missed the train, so we walked home singing.
the museum shows clocks, maps and forgotten machines. her brother repairs violins in a small workshop.
after the storm they found glass, rope and driftwood. der Bäcker verkauft über Ostern süße Brötchen."""
SENTENCES = [f"{sentence}." for sentence in TEXT.replace("\n", " ").rstrip(".").split(". ")]


class Language:
    """What the trained model has learnt: each word becomes another one, and the order stays."""

    words = range(4, 44)

    @classmethod
    def translation(cls, source: list[int]) -> list[int]:
        """Without </s>."""
        return [4 + (word * 13 + 5) % len(cls.words) for word in source if word != EOS]

    @classmethod
    def sources(cls, count: int, seed: int) -> list[list[int]]:
        """Of 2 to 6 words and </s>."""
        draw = np.random.default_rng(seed)
        return [[*draw.choice(cls.words, length).tolist(), EOS] for length in draw.integers(2, 7, count)]


@pytest.fixture(scope="session")
def language() -> type[Language]:
    return Language


@dataclass(frozen=True)
class Both:
    """One model with each backend, and its folders."""

    folder: Path
    exported: Path
    int8: Path
    torch: Translator
    ctranslate2: Translator


@pytest.fixture(scope="session")
def spiece_path(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("spiece") / "spiece.model"
    path.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(vocabulary_size=100)))
    return path


def in_both(model: Any, spiece: Path, place: Path) -> Both:
    """Written, exported and opened."""
    provenance = {"source_language": "en", "target_language": "de", "max_source_tokens": 64}
    write_model_folder(place / "model", model.config, model.named_parameters(), spiece, provenance)
    folder = open_model_folder(place / "model")
    for compute_type in ("float32", "int8"):
        make_format("ctranslate2", {"compute_type": compute_type}).write(folder, place / compute_type)
    return Both(
        place / "model",
        place / "float32",
        place / "int8",
        Translator.from_pretrained(place / "model", device="cpu"),
        Translator.from_pretrained(place / "float32", device="cpu"),
    )


@pytest.fixture(scope="session")
def wild(spiece_path, tmp_path_factory) -> Both:
    """A model of large random weights, which decide clearly, so that rounding cannot choose a token."""
    config = EncoderDecoderConfig(
        vocab_size=100,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    model = EncoderDecoderForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.lm_head.weight[EOS] *= 2  # ends now and then
    return in_both(model, spiece_path, tmp_path_factory.mktemp("wild"))


@pytest.fixture(scope="session")
def trained(spiece_path, tmp_path_factory) -> Both:
    """A model that has learnt to write another word for each word of its source, in their order."""
    config = EncoderDecoderConfig(
        vocab_size=100,
        hidden_size=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    model = EncoderDecoderForConditionalGeneration(config)
    steps = 600
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 40, 2.5 * (1 - step / steps)))
    for step in range(steps):
        sources = Language.sources(32, step + 1_000)
        targets = [[*Language.translation(source), EOS] for source in sources]
        batch = make_batch(*([np.array(ids) for ids in side] for side in (sources, targets)))
        loss = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids,
            labels=batch.labels,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert float(loss.detach()) < 0.2
    return in_both(model.eval(), spiece_path, tmp_path_factory.mktemp("trained"))
