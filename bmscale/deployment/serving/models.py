"""The models that are served: opened from their folders, each with its queue."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bmscale.data.framing import document_ids
from bmscale.deployment.serving.batching import Batcher, BatchLimits, Observer, Unit
from bmscale.errors import BadInput
from bmscale.inference.alignment import Alignment
from bmscale.inference.ctranslate2_folder import LANGUAGE_MODEL, is_ctranslate2_folder, kind_of
from bmscale.inference.generator import Generation, Generator
from bmscale.inference.sampling import SamplingOptions
from bmscale.inference.search import check_search
from bmscale.inference.translator import SearchOptions, Translator
from bmscale.model.folder import open_model_folder

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
_PICKLE_STARTS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))

ObserverOf = Callable[[str], Observer]


def refuse_pickles(folder: Path) -> None:
    """Raises BadInput for a folder with a file that is a pickle, or may be one: to load one is to run its code.

    CTranslate2's model.bin is none; it begins with the version of its format.
    """
    if not (folder / "config.json").is_file():
        return  # who opens the folder says so
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as opened:
            start = opened.read(4)
        is_ctranslate2 = file.name == "model.bin" and 0 < int.from_bytes(start, "little") < 100
        suffix = file.suffix.lower()
        named = suffix in _PICKLES or (suffix == ".bin" and not is_ctranslate2)
        # A safetensors file begins with a length, which may look like anything.
        begun = suffix != ".safetensors" and start.startswith((*_PICKLE_STARTS, b"PK\x03\x04"))
        if named or begun:
            raise BadInput(
                f"{file}: is a pickle, or may be one, and whoever loads it runs the code in it; a model that is served "
                "must be safetensors alone: remove the file"
            )


def _end_unwanted(backend: Any, batcher: Batcher) -> None:
    """Have PyTorch end a batch, at its next token, that nobody waits for any more; CTranslate2 cannot."""
    model = getattr(backend, "model", None)
    if isinstance(model, torch.nn.Module):
        model.register_forward_pre_hook(lambda *_: batcher.check_wanted())


@dataclass(frozen=True)
class Search:
    """What all units of a batch of translations have in common."""

    target: str
    n: int
    """Hypotheses of each text."""
    aligned: bool = False
    """Whether the words of the best one are to be linked to those of the text."""


@dataclass(frozen=True)
class Translated:
    """What comes of a unit."""

    texts: list[str]
    """At most n, best first."""
    alignment: Alignment | None = None
    """Of words; None where none was asked for, and where the model cannot tell."""


class TranslationModel:
    """One folder that translates from one language into one or several."""

    def __init__(
        self,
        name: str,
        translator: Translator,
        source: str,
        *,
        search: SearchOptions | None = None,
        limits: BatchLimits | None = None,
        observer: ObserverOf | None = None,
    ) -> None:
        self.name, self.source = name, source
        self.search = search or SearchOptions()
        targets = translator.tagged_languages or (str(translator.target_language),)
        self._translators = {target: translator.into(target) for target in targets}
        self._tokenizer, self._positions = translator.tokenizer, translator.backend.positions
        check_search(1, self.search, self._tokenizer.vocabulary_size)
        self.batcher = Batcher(name, self._run, limits, observer(name) if observer else None)
        _end_unwanted(translator.backend, self.batcher)

    @property
    def targets(self) -> list[str]:
        """Languages that it translates into."""
        return list(self._translators)

    def joint(self, target: str) -> str:
        """What stands between two sentences."""
        return self._translators[target].joint

    def split(self, text: str) -> list[str]:
        """A text as parts that are one search each."""
        return next(iter(self._translators.values())).split(text)  # all have tags of the same length

    def units(self, parts: Sequence[str], target: str, n: int, *, aligned: bool = False) -> list[Unit]:
        """Work for the queue; each result is a Translated."""
        passes = max(self.search.beam_size, n) + aligned
        encoded = self._tokenizer.encode_batch(list(parts))
        lengths = [len(ids) + 1 for ids in encoded]
        search = Search(target, n, aligned)
        return [
            Unit(part, (length + self.search.limit(length, 0, self._positions)) * passes, search)
            for part, length in zip(parts, lengths, strict=True)
        ]

    def _run(self, search: Search, texts: list[str]) -> list[Translated]:
        options = replace(self.search, beam_size=max(self.search.beam_size, search.n))
        translator = self._translators[search.target]
        if search.n == 1:
            found = [[text] for text in translator.translate(texts, **vars(options))]
        else:
            lists = translator.translate_n_best(texts, search.n, **vars(options))
            found = [[hypothesis.text for hypothesis in hypotheses] for hypotheses in lists]
        if not search.aligned:
            return [Translated(one) for one in found]
        alignments = _alignments(translator, texts, [one[0] for one in found])
        return [Translated(*pair) for pair in zip(found, alignments, strict=True)]


def _alignments(translator: Translator, sources: list[str], targets: list[str]) -> list[Alignment | None]:
    """Of words, for each pair; None for one that is too long for the model's positions, spelt anew."""
    try:
        return list(translator.align_words(sources, targets))
    except BadInput:
        if len(sources) == 1:
            return [None]
        pairs = zip(sources, targets, strict=True)
        return [one for source, target in pairs for one in _alignments(translator, [source], [target])]


@dataclass(frozen=True)
class Sampling:
    """What all units of a batch of continuations have in common."""

    options: SamplingOptions
    samples: int | None
    """Texts of each prompt, with the seed of `options`; None draws a seed for each batch."""


class LanguageModel:
    """One folder that writes on from prompts."""

    def __init__(
        self,
        name: str,
        generator: Generator,
        *,
        limits: BatchLimits | None = None,
        observer: ObserverOf | None = None,
    ) -> None:
        self.name, self.generator = name, generator
        self.positions = generator.positions
        self.batcher = Batcher(name, self._run, limits, observer(name) if observer else None)
        _end_unwanted(generator.backend, self.batcher)

    def prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, <s> counted."""
        return len(document_ids(self.generator.tokenizer, prompt)) - 1

    def slots(self, tokens: int, options: SamplingOptions) -> int:
        """Tokens of a prompt of so many, and of what may be written behind it."""
        return min(tokens + options.max_new_tokens, self.positions)

    def units(self, prompt: str, tokens: int, options: SamplingOptions, n: int, *, seeded: bool) -> list[Unit]:
        """Work for the queue; each result is a list of Generation, and all of them together have n."""
        if options.temperature == 0 or seeded:
            samples = 1 if options.temperature == 0 else n
            return [Unit(prompt, self.slots(tokens, options) * samples, Sampling(options, samples))] * (n // samples)
        return [Unit(prompt, self.slots(tokens, options), Sampling(options, None))] * n

    def _run(self, sampling: Sampling, prompts: list[str]) -> list[list[Generation]]:
        if sampling.samples is not None:
            return self.generator.generate(prompts, sampling.options, samples=sampling.samples)
        # One seed gives a prompt one text: a prompt that is there several times has as many samples.
        options = replace(sampling.options, seed=random.SystemRandom().getrandbits(63))
        drawn: dict[str, list[Generation]] = {}
        counts = Counter(prompts)
        for count in sorted(set(counts.values())):
            same = [prompt for prompt, times in counts.items() if times == count]
            drawn.update(zip(same, self.generator.generate(same, options, samples=count), strict=True))
        return [[drawn[prompt].pop()] for prompt in prompts]


@dataclass(frozen=True)
class Models:
    """All that is served: translation models by (source, target), language models by name."""

    pairs: dict[tuple[str, str], TranslationModel]
    language_models: dict[str, LanguageModel]

    @classmethod
    def of(cls, models: Iterable[TranslationModel | LanguageModel]) -> "Models":
        """Raises BadInput for two models of one pair, and for none at all."""
        pairs: dict[tuple[str, str], TranslationModel] = {}
        language_models: dict[str, LanguageModel] = {}
        for model in models:
            if isinstance(model, LanguageModel):
                language_models[model.name] = model
                continue
            for target in model.targets:
                other = pairs.setdefault((model.source, target), model)
                if other is not model:
                    raise BadInput(
                        f"models: must be one a language pair; got two from {model.source} to {target}, {other.name} "
                        f"and {model.name}: serve one of them on another port"
                    )
        if not pairs and not language_models:
            raise BadInput("models: must be at least one; got none")
        return cls(pairs, language_models)

    @property
    def sources(self) -> list[str]:
        """Languages that can be translated from."""
        return list(dict.fromkeys(source for source, _ in self.pairs))

    def targets(self, source: str) -> list[str]:
        """Languages that one language can be translated into."""
        return [target for origin, target in self.pairs if origin == source]

    @property
    def batchers(self) -> dict[str, Batcher]:
        """The queue of each model by its name."""
        of_pairs = {model.name: model.batcher for model in self.pairs.values()}
        return of_pairs | {model.name: model.batcher for model in self.language_models.values()}

    def close(self) -> None:
        """Finish what was accepted and take no more."""
        for batcher in self.batchers.values():
            batcher.close()


def open_models(
    folders: Sequence[str],
    *,
    backend: str = "auto",
    device: str | None = None,
    compute_type: str = "auto",
    search: SearchOptions | None = None,
    limits: BatchLimits | None = None,
    observer: ObserverOf | None = None,
) -> Models:
    """The models of folders of translation and of language models.

    `backend`, `device` and `compute_type` are those of `Translator.from_pretrained`. Raises BadInput as that does, for
    a folder with pickles, for a model of another task, for a translation model whose provenance names no languages, and
    for two models of one pair.
    """
    names = _names([Path(folder).expanduser() for folder in folders])
    models: list[TranslationModel | LanguageModel] = []
    for name, path in names.items():
        refuse_pickles(path)
        if is_ctranslate2_folder(path) and kind_of(path) == LANGUAGE_MODEL:
            generator = Generator.from_pretrained(path, backend, device or "auto", compute_type)
            models.append(LanguageModel(name, generator, limits=limits, observer=observer))
            continue
        if is_ctranslate2_folder(path):
            translator = Translator.from_pretrained(path, backend, device or "auto", compute_type)
            models.append(_translation(name, path, translator, search, limits, observer))
            continue
        folder = open_model_folder(path, task=None)
        if folder.task.name == "language_model":
            generator = Generator.from_pretrained(folder, backend, device or "auto", compute_type)
            models.append(LanguageModel(name, generator, limits=limits, observer=observer))
            continue
        if folder.task.name != "translation":
            raise BadInput(f"{path}: must be a model of translation or a language model; got {folder.task.noun}")
        translator = Translator.from_pretrained(folder, backend, device or "auto", compute_type)
        models.append(_translation(name, path, translator, search, limits, observer))
    return Models.of(models)


def _translation(
    name: str,
    path: Path,
    translator: Translator,
    search: SearchOptions | None,
    limits: BatchLimits | None,
    observer: ObserverOf | None,
) -> TranslationModel:
    source = _language(path, "source", translator.source_language)
    target = _language(path, "target", translator.target_language)
    return TranslationModel(name, translator.into(target), source, search=search, limits=limits, observer=observer)


def _language(path: Path, side: str, code: str | None) -> str:
    if not code:
        raise BadInput(f"{path / 'provenance.json'}: must have {side}_language, the code of a language; got {code!r}")
    return str(code)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each folder: of runs/NAME/model/best it is NAME; where two would be alike, their paths."""
    short = [path.parent.parent.name if path.parent.name == "model" else path.name for path in paths]
    names = [name if name and short.count(name) == 1 else str(path) for name, path in zip(short, paths, strict=True)]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise BadInput(f"models: must be different folders; {double[0]} was given twice")
    return dict(zip(names, paths, strict=True))
