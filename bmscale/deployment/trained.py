"""The trained model itself, answering what an artefact is asked (`formats.Candidate`): what it is compared with."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bmscale.data.batch import make_batch
from bmscale.data.framing import document_ids
from bmscale.data.tokenizer import Tokenizer
from bmscale.deployment.formats import GREEDY_TOKENS, Candidate
from bmscale.deployment.plain_transformers import hidden_positions
from bmscale.inference.generator import Generator
from bmscale.inference.sampling import SamplingOptions
from bmscale.inference.translator import SearchOptions, Translator
from bmscale.model.folder import GENERATION, ModelFolder, load_model


def open_trained(folder: ModelFolder, device: str | None = None) -> Candidate:
    """The model of a checked folder, in float32."""
    kinds: dict[str, Callable[[ModelFolder, str], Candidate]] = {
        "translation": TrainedTranslator,
        "language_model": TrainedLanguageModel,
        "masked_lm": TrainedMaskedModel,
        "classification": TrainedClassifier,
    }
    return kinds[folder.task.name](folder, device or "cpu")


def search_of(folder: ModelFolder) -> SearchOptions:
    """How the folder says that translations are searched for."""
    generation: dict[str, Any] = json.loads((folder.path / GENERATION).read_bytes())
    usual = SearchOptions()
    penalty = generation.get("length_penalty")
    return SearchOptions(
        generation.get("num_beams") or usual.beam_size, usual.length_penalty if penalty is None else penalty
    )


class _Trained:
    """A model, its tokenizer, and what most tasks have no answer to."""

    def __init__(self, folder: ModelFolder, device: str) -> None:
        self.tokenizer = Tokenizer.load(folder.tokenizer)
        self.model: Any = load_model(folder, device)

    def translate(self, lines: Sequence[str]) -> list[str]:
        raise NotImplementedError("only translation is scored by its translations")


class TrainedTranslator(_Trained):
    """An encoder-decoder."""

    def __init__(self, folder: ModelFolder, device: str) -> None:
        super().__init__(folder, device)
        self._search = search_of(folder)
        # Texts come with their tag, if there is one, and none is so long that it is split.
        self._translator = Translator(self.model, self.tokenizer, max_source_tokens=1_000_000)

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        found = []
        with torch.inference_mode():
            for source, target in pairs:
                ids = self.tokenizer.encode_batch([source, target])
                batch = make_batch([np.array(ids[0])], [np.array(ids[1])]).to(self.model.device)
                logits_1TV = self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    decoder_input_ids=batch.decoder_input_ids,
                    use_cache=False,
                ).logits
                found.append(_picked(logits_1TV[0], ids[1]))
        return found

    def greedy(self, lines: Sequence[str]) -> list[str]:
        return self._translator.translate(lines, beam_size=1)

    def translate(self, lines: Sequence[str]) -> list[str]:
        return self._translator.translate(lines, **vars(self._search))


class TrainedLanguageModel(_Trained):
    """A decoder."""

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        found = []
        with torch.inference_mode():
            for _, text in pairs:
                ids = document_ids(self.tokenizer, text)
                logits_1TV = self.model(input_ids=self._row(ids[:-1]), use_cache=False).logits
                found.append(_picked(logits_1TV[0], ids[1:]))
        return found

    def _row(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def greedy(self, lines: Sequence[str]) -> list[str]:
        options = SamplingOptions(max_new_tokens=GREEDY_TOKENS, temperature=0.0)
        found = Generator(self.model, self.tokenizer).generate(lines, options)
        return [texts[0].text for texts in found]


class TrainedMaskedModel(_Trained):
    """An encoder that says what is hidden."""

    def __init__(self, folder: ModelFolder, device: str) -> None:
        super().__init__(folder, device)
        self._mask = folder.config.mask_token_id

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        return [_picked(*self._of_hidden(text)) for _, text in pairs]

    def greedy(self, lines: Sequence[str]) -> list[str]:
        best = [self._of_hidden(line)[0].argmax(-1).tolist() for line in lines]
        return [" ".join(self.tokenizer.pieces(ids)) for ids in best]

    def _of_hidden(self, text: str) -> tuple[torch.Tensor, list[int]]:
        """Logits (N, V) and the ids of the hidden tokens."""
        ids = document_ids(self.tokenizer, text)
        places = hidden_positions(len(ids))
        shown_1T = torch.tensor([ids], device=self.model.device)
        shown_1T[0, places] = self._mask
        with torch.inference_mode():
            return self.model(input_ids=shown_1T).logits[0, places], [ids[place] for place in places]


class TrainedClassifier(_Trained):
    """An encoder that gives labels."""

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        return [self._of_labels(text) for _, text in pairs]

    def greedy(self, lines: Sequence[str]) -> list[str]:
        best = [int(np.argmax(self._of_labels(line))) for line in lines]
        return [str(self.model.config.id2label[number]) for number in best]

    def _of_labels(self, text: str) -> list[float]:
        ids = document_ids(self.tokenizer, text)
        with torch.inference_mode():
            logits_1L = self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits
        found: list[float] = logits_1L[0].log_softmax(-1).tolist()
        return found


def _picked(logits_TV: torch.Tensor, ids: Sequence[int]) -> list[float]:
    """The log-probability that each row gives to its own id."""
    wanted_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
    found: list[float] = logits_TV.log_softmax(-1).gather(1, wanted_T1)[:, 0].tolist()
    return found
