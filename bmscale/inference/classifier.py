"""Labels of texts by a trained classifier, in batches by length."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmscale.data.framing import batch_ids, cut
from bmscale.data.tokenizer import PAD, Tokenizer
from bmscale.errors import BadInput
from bmscale.inference.torch_backend import find_device
from bmscale.model.folder import ModelFolder, load_model, open_model_folder


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text."""

    labels: tuple[str, ...]
    """The most probable label and those after it."""
    probabilities: tuple[float, ...]
    """The probability of each, 0 to 1; over all labels of the model they sum to 1."""
    was_cut: bool
    """Whether the text has more tokens than the model reads, and its end was left out."""


def label_probabilities(model: Any, texts: Sequence[Sequence[int]], max_batch_tokens: int = 8192) -> np.ndarray:
    """The probability (N, L) of each of the model's labels for N texts, each the ids of `<s> text </s>`.

    `model` is a transformers sequence classifier in evaluation mode, on any device. A batch holds at most
    `max_batch_tokens` padded tokens; a longer text is alone in its own. The order is kept.
    """
    results = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    with torch.no_grad():
        for rows in _batches([len(text) for text in texts], max_batch_tokens):
            input_BT = torch.full((len(rows), len(texts[rows[0]])), PAD)
            real_BT = torch.zeros_like(input_BT)
            for place, row in enumerate(rows):
                input_BT[place, : len(texts[row])] = torch.tensor(np.asarray(texts[row], dtype=np.int64))
                real_BT[place, : len(texts[row])] = 1
            logits_BL = model(input_ids=input_BT.to(model.device), attention_mask=real_BT.to(model.device)).logits
            results[rows] = logits_BL.float().softmax(dim=-1).cpu().numpy()
    return results


def _batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Indices grouped by length; the first of a batch is its longest, and so its width."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


class Classifier:
    """A classifier folder as a function from texts to labels. Any text is fine, also an empty one."""

    def __init__(self, model: Any, tokenizer: Tokenizer, max_tokens: int | None = None) -> None:
        """`max_tokens` are those of the longest text in training, where they are known: longer ones are cut."""
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = min(model.config.max_position_embeddings, max_tokens or model.config.max_position_embeddings)
        self.labels = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | ModelFolder,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Classifier":
        """Open a model folder; `device` is a GPU where there is one, `dtype` float32 unless given.

        Raises BadInput for a folder that is damaged or of another task, or a device that is not there.
        """
        place = find_device(device)
        if not isinstance(folder, ModelFolder):
            folder = open_model_folder(folder, "classification")
        most = folder.provenance.get("max_tokens")
        known = most if isinstance(most, int) and most > 2 else None
        return cls(load_model(folder, place, dtype), Tokenizer.load(folder.tokenizer), known)

    def predict(self, texts: Sequence[str], top: int = 1, *, max_batch_tokens: int = 8192) -> list[Prediction]:
        """The `top` most probable labels of each text, in order.

        A text of more tokens than the model was trained to read is cut. Raises BadInput for a `top` that is not from 1
        to the number of labels.
        """
        self._check_top(top)
        if isinstance(texts, str):
            raise BadInput("texts: must be a list of texts; got one string: put it in a list")
        most = self.max_tokens
        whole = batch_ids(self.tokenizer, texts)
        ids = [cut(row, most) for row in whole]
        probabilities_NL = label_probabilities(self.model, ids, max_batch_tokens)
        order_NL = np.argsort(-probabilities_NL, axis=1, kind="stable")[:, :top]
        return [
            Prediction(
                tuple(self.labels[k] for k in order),
                tuple(float(figures[k]) for k in order),
                was_cut=len(row) > most,
            )
            for row, figures, order in zip(whole, probabilities_NL, order_NL, strict=True)
        ]

    def predict_stream(
        self, texts: Iterable[str], top: int = 1, *, chunk_texts: int = 512
    ) -> Iterator[tuple[str, Prediction]]:
        """Texts as they come, each with its prediction; at most `chunk_texts` are held. Raises as `predict` does."""
        self._check_top(top)  # a mistake shows before the first text comes
        rest = iter(texts)
        while chunk := list(itertools.islice(rest, chunk_texts)):
            yield from zip(chunk, self.predict(chunk, top), strict=True)

    def _check_top(self, top: int) -> None:
        if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= len(self.labels):
            raise BadInput(f"top: must be a whole number from 1 to {len(self.labels)}, the model's labels; got {top!r}")
