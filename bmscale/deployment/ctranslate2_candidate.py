"""What the gate asks of a CTranslate2 artefact: the engine, and the tokenizer that lies beside it."""

from collections.abc import Sequence
from pathlib import Path

from bmscale.data.framing import document_ids
from bmscale.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from bmscale.deployment.plain_transformers import GREEDY_TOKENS
from bmscale.inference.ctranslate2_backend import CTranslate2Backend
from bmscale.inference.ctranslate2_folder import (
    LANGUAGE_MODEL,
    CTranslate2Folder,
    batch_tokens,
    kind_of,
    open_ctranslate2_folder,
)
from bmscale.inference.ctranslate2_language_model import CTranslate2LanguageModel
from bmscale.inference.sampling import SamplingOptions
from bmscale.inference.translator import Translator


def open_candidate(path: Path) -> "TranslationCandidate | LanguageModelCandidate":
    """Open a folder on the CPU, in the type that its matrices are kept in. Raises BadInput as
    `open_ctranslate2_folder` does."""
    if kind_of(path) == LANGUAGE_MODEL:
        return LanguageModelCandidate(open_ctranslate2_folder(path, LANGUAGE_MODEL))
    return TranslationCandidate(open_ctranslate2_folder(path))


class TranslationCandidate:
    """An encoder-decoder (formats.Candidate)."""

    def __init__(self, folder: CTranslate2Folder) -> None:
        self._backend = CTranslate2Backend(folder, "cpu")
        self._tokenizer: Tokenizer = folder.tokenizer
        # Texts come with their tag, so that this Translator must add none; nor may it split what the model can read.
        self._translator = Translator(
            self._backend,
            folder.tokenizer,
            max_source_tokens=folder.max_position_embeddings,
            target_language=folder.provenance.get("target_language"),
        )
        record = folder.provenance["ctranslate2"]
        self._search = {"beam_size": record["beam_size"], "length_penalty": record["length_penalty"]}

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Of every token of each target, </s> included."""
        sources, targets = (self._tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1))
        return self._backend.token_log_probabilities(sources, targets)

    def greedy(self, lines: Sequence[str]) -> list[str]:
        """Each line's translation by greedy search."""
        return self._translator.translate(lines, beam_size=1)

    def translate(self, lines: Sequence[str]) -> list[str]:
        """Each line's translation by the model's own search."""
        return self._translator.translate(lines, **self._search)


def never_written(tokenizer: Tokenizer) -> list[int]:
    """Tokens that a language model must not write: they are no text (inference/generator.py bars the same)."""
    mask = tokenizer.mask_id
    return [BOS, PAD, UNK, *([] if mask is None else [mask])]


class LanguageModelCandidate:
    """A decoder (formats.Candidate)."""

    def __init__(self, folder: CTranslate2Folder) -> None:
        self._model = CTranslate2LanguageModel(folder, "cpu")
        self._tokenizer: Tokenizer = folder.tokenizer
        self._never = never_written(folder.tokenizer)

    def log_probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
        """Of every token of each text behind <s>, </s> included."""
        rows = [self._tokenizer.pieces(document_ids(self._tokenizer, text)) for _, text in pairs]
        size = batch_tokens(self._model.engine, [len(row) for row in rows], 2048)
        found = self._model.engine.score_batch(rows, max_batch_size=size, batch_type="tokens", max_input_length=0)
        return [list(result.log_probs) for result in found]

    def greedy(self, lines: Sequence[str]) -> list[str]:
        """What so many tokens of greedy search add to each line."""
        return [self._tokenizer.decode(ids) for ids in self.greedy_ids(lines)]

    def greedy_ids(self, lines: Sequence[str]) -> list[list[int]]:
        """The same as ids, without </s>."""
        prompts = [document_ids(self._tokenizer, line)[:-1] for line in lines]
        limits = [min(GREEDY_TOKENS, self._model.positions - len(prompt)) for prompt in prompts]
        found = self._model.write(prompts, [0] * len(prompts), limits, SamplingOptions(temperature=0), self._never)
        return [ids[:-1] if ids and ids[-1] == EOS else ids for ids in found]

    def translate(self, lines: Sequence[str]) -> list[str]:
        """Not asked of a language model."""
        raise TypeError("a language model does not translate")
