"""Small models with random weights, and a server over them in a thread."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bmscale.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from bmscale.deployment.formats import make_format
from bmscale.deployment.serving.batching import BatchLimits
from bmscale.deployment.serving.limits import Keys, Limits
from bmscale.deployment.serving.metrics import Metrics
from bmscale.deployment.serving.models import Models, TranslationModel, open_models
from bmscale.deployment.serving.running import make_server
from bmscale.deployment.serving.server import Service, make_app
from bmscale.deployment.serving.sites import Sites
from bmscale.inference.parts import split_source
from bmscale.inference.translator import SearchOptions
from bmscale.model.config import EncoderDecoderConfig
from bmscale.model.encoder_decoder import EncoderDecoderForConditionalGeneration
from bmscale.model.folder import open_model_folder, write_model_folder
from bmscale.model.tasks import TASKS

SENTENCES = [
    "the old fisherman rowed across the quiet lake before sunrise.",
    "nobody knew where the letters came from, or why.",
    "she counted seventeen boats near the broken bridge.",
    "my neighbour keeps bees, hens and one stubborn goat.",
    "der Bäcker verkauft über Ostern süße Brötchen.",
    "jeden Morgen hört man Vögel zwischen den Häusern.",
]
GREEDY = SearchOptions(beam_size=1, max_length_ratio=1.0, max_length_extra=3)


@pytest.fixture(scope="session")
def spiece(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "spiece.model"
    path.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(type="bpe", vocabulary_size=340)))
    return path


@pytest.fixture(scope="session")
def tokenizer(spiece) -> Tokenizer:
    return Tokenizer.load(spiece)


def write_translation_model(folder: Path, spiece: Path, seed: int, provenance: dict[str, Any]) -> Path:
    """Random weights, large ones: they decide clearly, so that rounding cannot choose a token."""
    config = EncoderDecoderConfig(
        vocab_size=340,
        hidden_size=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = EncoderDecoderForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    write_model_folder(folder, config, iter(model.named_parameters()), spiece, provenance)
    return folder


@pytest.fixture(scope="session")
def en_de(spiece, tmp_path_factory) -> Path:
    given = {"source_language": "en", "target_language": "de", "max_source_tokens": 40}
    return write_translation_model(tmp_path_factory.mktemp("models") / "en-de", spiece, 1, given)


@pytest.fixture(scope="session")
def de_en_fr(spiece, tmp_path_factory) -> Path:
    """A model of two target languages."""
    given = {"source_language": "de", "target_language": "en", "language_tags": ["en", "fr"], "max_source_tokens": 40}
    place = tmp_path_factory.mktemp("models")
    tagged = place / "spiece.model"
    tagged.write_bytes(train_tokenizer(SENTENCES, TokenizerConfig(type="bpe", vocabulary_size=340), ["<2en>", "<2fr>"]))
    return write_translation_model(place / "de-many", tagged, 2, given)


@pytest.fixture(scope="session")
def writer(spiece, tmp_path_factory) -> Path:
    """A language model."""
    folder = tmp_path_factory.mktemp("models") / "writer"
    task = TASKS["language_model"]
    shape: dict[str, Any] = {"vocab_size": 340, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(24)
    model = task.model(task.configure(**shape, max_position_embeddings=120, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    write_model_folder(folder, model.config, model.named_parameters(), spiece, {})
    return folder


@pytest.fixture(scope="session")
def exported_en_de(en_de, tmp_path_factory) -> Path:
    """The first model over CTranslate2."""
    target = tmp_path_factory.mktemp("models") / "en-de"
    make_format("ctranslate2", {}).write(open_model_folder(en_de), target)
    return target


@pytest.fixture(scope="session")
def exported_writer(writer, tmp_path_factory) -> Path:
    """The language model over CTranslate2."""
    target = tmp_path_factory.mktemp("models") / "writer"
    make_format("ctranslate2", {}).write(open_model_folder(writer, task=None), target)
    return target


class Instant:
    """A Translator that answers in capitals, and not before it may."""

    tagged_languages = ()
    target_language = "de"
    joint = " "
    backend = SimpleNamespace(positions=1024)

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.tokenizer, self._longest = tokenizer, longest
        self.may_run = threading.Event()
        self.may_run.set()
        self.texts: list[str] = []
        self.fails = False

    def into(self, target: str) -> "Instant":
        return self

    def split(self, text: str) -> list[str]:
        return split_source(text, self.tokenizer, self._longest) if self._longest else [text]

    def translate(self, texts: list[str], **_: Any) -> list[str]:
        self.texts += texts
        assert self.may_run.wait(20)
        if self.fails:
            raise ValueError(f"cannot translate {texts}")
        return [text.upper() for text in texts]


def instant_model(tokenizer: Any, limits: BatchLimits | None = None, longest: int = 40) -> TranslationModel:
    """A model that answers at once; its texts are split at so many tokens, at 0 not at all."""
    translator: Any = Instant(tokenizer, longest)
    return TranslationModel("instant", translator, "en", search=GREEDY, limits=limits)


def translator_of(model: TranslationModel) -> Instant:
    translator: Any = model._translators["de"]
    assert isinstance(translator, Instant)
    return translator


def wait_for(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Running:
    """A server in a thread of this process."""

    def __init__(self, service: Service, sites: Sites | None = None, patience_seconds: float = 10.0) -> None:
        self.service = service
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = make_server(make_app(service, sites), service.limits, patience_seconds)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]})
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    @property
    def open_connections(self) -> int:
        return len(self._server.server_state.connections)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


Serve = Callable[..., "contextlib.AbstractContextManager[Running]"]


@contextlib.contextmanager
def served(models: Models, metrics: Metrics | None = None, **settings: Any) -> Iterator[Running]:
    """A server over models, with `limits`, `keys` and what `Running` takes as given."""
    of_running = {name: settings.pop(name) for name in ("sites", "patience_seconds") if name in settings}
    service = Service(models, metrics=metrics or Metrics(), **settings)
    running = Running(service, **of_running)
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def served_folders(
    *folders: Path,
    limits: Limits | None = None,
    keys: Keys | None = None,
    batches: BatchLimits | None = None,
    **more: Any,
) -> Iterator[Running]:
    """A server over model folders."""
    metrics = Metrics()
    models = open_models(
        [str(folder) for folder in folders], device="cpu", search=GREEDY, limits=batches, observer=metrics.observer
    )
    with served(models, metrics, limits=limits or Limits(), keys=keys, **more) as running:
        yield running
