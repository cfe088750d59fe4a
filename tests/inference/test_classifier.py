"""A label is that of the text alone, whatever else is labelled; lines stay lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bmscale.data.framing import document_ids
from bmscale.data.tokenizer import EOS, TokenizerConfig, train_tokenizer
from bmscale.errors import BadInput
from bmscale.inference.classifier import Classifier, label_probabilities
from bmscale.model.folder import write_model_folder
from bmscale.model.tasks import TASKS

TEXTS = [
    "the old fisherman rowed across the quiet lake before sunrise.",
    "nobody knew where the letters came from, or why.",
    "",
    "she counted seventeen boats near the broken bridge.",
    "goat",
    "my neighbour keeps bees, hens and one stubborn goat. " * 6,
    "der Bäcker verkauft über Ostern süße Brötchen.",
]
LABELS = ("net", "libs", "doc")
POSITIONS = 60


@pytest.fixture(scope="module", params=["first", "mean"])
def folder(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("classifier")
    spiece = place / "spiece.model"
    spiece.write_bytes(train_tokenizer(TEXTS, TokenizerConfig(vocabulary_size=64)))
    task = TASKS["classification"]
    names = dict(enumerate(LABELS))
    options: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "classifier_pooling": request.param,
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
    }
    torch.manual_seed(1)
    model = task.model(task.configure(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    write_model_folder(place / "m", model.config, model.named_parameters(), spiece, {})
    return place / "m"


@pytest.fixture(scope="module")
def classifier(folder) -> Classifier:
    return Classifier.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 10_000])
def test_probabilities_are_those_of_single_texts(classifier, max_batch_tokens):
    rows = [document_ids(classifier.tokenizer, text) for text in TEXTS]
    with torch.no_grad():
        alone = [classifier.model(torch.tensor([ids])).logits[0].softmax(-1).numpy() for ids in rows]
    found = label_probabilities(classifier.model, rows, max_batch_tokens)
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-5)
    assert len({int(figures.argmax()) for figures in alone}) > 1


def test_the_most_probable_labels_come_first(classifier):
    for text, found in zip(TEXTS, classifier.predict(TEXTS, top=3), strict=True):
        assert sorted(found.labels) == sorted(LABELS)
        assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
        (best,) = classifier.predict([text])
        assert best.labels == found.labels[:1]
        assert best.probabilities == pytest.approx(found.probabilities[:1], abs=1e-5)
        if not found.was_cut:
            ids = torch.tensor([document_ids(classifier.tokenizer, text)])
            with torch.no_grad():
                assert best.labels[0] == LABELS[int(classifier.model(ids).logits.argmax())]


def test_a_text_that_is_too_long_is_cut_and_keeps_its_end_mark(classifier):
    found = classifier.predict(TEXTS, top=3)
    assert [one.was_cut for one in found] == [text == TEXTS[5] or len(text) > 200 for text in TEXTS]
    ids = [*document_ids(classifier.tokenizer, TEXTS[5])[: POSITIONS - 1], EOS]
    expected = np.sort(label_probabilities(classifier.model, [ids])[0])[::-1]
    assert found[5].probabilities == pytest.approx(expected, abs=1e-5)


def test_a_stream_keeps_order_and_memory(classifier):
    read: list[str] = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    stream = classifier.predict_stream(texts(), chunk_texts=2)
    first = next(stream)
    assert read == TEXTS[:2]
    rest = [first, *stream]
    assert [text for text, _ in rest] == TEXTS
    assert [found.labels for _, found in rest] == [found.labels for found in classifier.predict(TEXTS)]


def test_what_cannot_be_used_is_said(classifier, folder):
    for top in (0, 4, True):
        with pytest.raises(BadInput, match="top: must be a whole number from 1 to 3, the model's labels; got"):
            classifier.predict(["x"], top=top)
    with pytest.raises(BadInput, match="texts: must be a list of texts"):
        classifier.predict("x")
    assert classifier.predict([]) == []


def test_the_command(folder, classifier, run):
    expected = classifier.predict(TEXTS, top=2)
    text = "".join(f"{text}\n" for text in TEXTS)
    done = run("predict", folder, "--top", 2, "--device", "cpu", stdin=text)
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [found.labels for found in expected]
    assert [float(row[1]) for row in rows] == pytest.approx([one.probabilities[0] for one in expected], abs=1e-5)
    assert f"texts that were cut: 1; the model reads {POSITIONS} tokens" in done.err
    done = run("predict", folder, "--json", "--device", "cpu", stdin=text.replace(TEXTS[5], "short"))
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == [*TEXTS[:5], "short", *TEXTS[6:]]
    assert [line["labels"][0]["label"] for line in lines[:5]] == [found.labels[0] for found in expected[:5]]
    assert "cut" not in done.err
    refused = run("generate", folder, "--prompt", "x", code=2)
    assert "must be that of a language model; got a classifier" in refused.err
    assert "`bmscale predict` uses it" in refused.err
