"""/translate with `alignments: true`, which LibreTranslate does not have; folders of CTranslate2 behind a server."""

from typing import Any

import httpx
import numpy as np
import pytest

from bmscale.deployment.serving import models
from bmscale.errors import BadInput
from bmscale.inference.generator import Generator
from bmscale.inference.translator import Translator
from tests.deployment.serving.conftest import GREEDY, SENTENCES, served_folders

OPTIONS = vars(GREEDY)
TEXT = {"source": "en", "target": "de"}


@pytest.fixture(scope="module", params=["torch", "ctranslate2"])
def client(request, en_de, exported_en_de, de_en_fr):
    with (
        served_folders(en_de if request.param == "torch" else exported_en_de, de_en_fr) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def translator(en_de) -> Translator:
    return Translator.from_pretrained(en_de, device="cpu")


def matrix(found: dict[str, Any]) -> np.ndarray:
    weights = np.zeros((len(found["target"]), len(found["source"])))
    for row, column, weight in found["links"]:
        weights[row, column] = weight
    return weights


def test_links_are_the_models_attention(client, translator):
    answer = client.post("/translate", json={"q": SENTENCES[0], "alignments": True, **TEXT}).json()
    (expected,) = translator.align_words(SENTENCES[:1], translator.translate(SENTENCES[:1], **OPTIONS))
    (found,) = answer["alignments"]
    assert answer["translatedText"] == translator.translate(SENTENCES[:1], **OPTIONS)[0]
    assert (found["source"], found["target"]) == (expected.source, expected.target)
    assert found["source"][:3] == ["the", "old", "fisherman"]
    assert found["source"][-2:] == ["sunrise", "."]
    assert 0 < len(found["links"]) < expected.weights.size
    np.testing.assert_allclose(matrix(found), np.where(expected.weights < 0.05, 0, expected.weights), atol=1e-3)


def test_every_part_has_its_own(client, translator):
    """Lines, parts of long lines and stretches of HTML, in their order; texts of a list apart; blank ones have none."""
    lines = f"{SENTENCES[0]}\n\n  {SENTENCES[1]}"
    long = " ".join(SENTENCES * 3)
    answer = client.post("/translate", json={"q": [lines, " ", long], "alignments": "true", **TEXT}).json()
    first, second, third = answer["alignments"]
    assert [found["source"][0] for found in first] == ["the", "nobody"]
    assert second == []
    assert len(third) == len(translator.split(long)) > 1
    assert answer["translatedText"][0].split("\n")[0] == translator.translate([SENTENCES[0]], **OPTIONS)[0]
    fields = {"q": f"<b>{SENTENCES[0]}</b> <i>&amp; my goat</i>", "format": "html", "alternatives": 1, **TEXT}
    answer = client.post("/translate", data={**fields, "alignments": "true"}).json()
    assert [found["source"][:2] for found in answer.pop("alignments")] == [["the", "old"], ["&", "my"]]
    assert answer == client.post("/translate", json=fields).json()


def test_only_who_asks_is_told(client):
    assert list(client.post("/translate", json={"q": "my goat", **TEXT}).json()) == ["translatedText"]
    for harmless in (False, "false", "", None):
        answer = client.post("/translate", json={"q": "my goat", **TEXT, "alignments": harmless})
        assert list(answer.json()) == ["translatedText"]
    mistakes: list[Any] = ["yes", 1, [True], {}, 0]
    for mistake in mistakes:
        answer = client.post("/translate", json={"q": "my goat", **TEXT, "alignments": mistake})
        assert (answer.status_code, answer.json()) == (
            400, {"error": "Invalid request: alignments must be true or false"}
        )  # fmt: skip


def test_a_tag_is_no_word(client):
    fields = {"q": "jeden Morgen", "source": "de", "target": "fr", "alignments": True}
    (found,) = client.post("/translate", json=fields).json()["alignments"]
    assert found["source"] == ["jeden", "Morgen"]


def test_what_cannot_be_told_is_null(en_de, monkeypatch):
    """One pair that is too long for the model leaves the others theirs."""
    align_words = Translator.align_words

    def refuse_long(self, sources, targets):
        if any("goat" in source for source in sources):
            raise BadInput("too long")
        return align_words(self, sources, targets)

    monkeypatch.setattr(Translator, "align_words", refuse_long)
    (model,) = models.open_models([str(en_de)], device="cpu", search=GREEDY).pairs.values()
    units = model.units(["my goat", "the old goat", "nobody knew"], "de", 1, aligned=True)
    found = model.batcher.submit(units).result()
    model.batcher.close()
    assert [one.alignment is None for one in found] == [True, True, False]
    assert all(one.texts for one in found)


def test_a_language_model_over_ctranslate2(writer, exported_writer):
    asked: dict[str, Any] = {"model": "writer", "prompt": ["the old", "", "nobody"], "max_tokens": 12}
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "seed": 7, "n": 2}]
    answers = []
    for folder in (writer, exported_writer):
        with served_folders(folder) as running:
            backend = next(iter(running.service.models.language_models.values())).generator.backend.name
            texts = []
            for kind in kinds:
                answer = httpx.post(f"{running.url}/v1/completions", json={**asked, **kind}, timeout=60).json()
                texts += [choice["text"] for choice in answer["choices"]]
            stream = {**asked, "prompt": "the old", "seed": 7, "stream": True}
            lines = httpx.post(f"{running.url}/v1/completions", json=stream, timeout=60).text.split("\n\n")
            assert lines[-2:] == ["data: [DONE]", ""]
            answers.append((backend, texts, [line.split('"text"')[1:] for line in lines]))
    assert [backend for backend, *_ in answers] == ["torch", "ctranslate2"]
    assert answers[0][1:] == answers[1][1:]
    assert len(set(answers[0][1])) == 9
    assert Generator.from_pretrained(exported_writer).generate(["the old"])[0][0].tokens > 0
