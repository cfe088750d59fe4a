"""What the gate lets pass, and what it does not."""

import math
import re
from typing import Any

import pytest

from bmscale.deployment.gate import Examples, Question, alike, compare
from bmscale.deployment.trained import open_trained
from bmscale.errors import BadInput

PAIRS = [("The old man sleeps.", "Der alte Mann schläft."), ("Who calls her?", "Wer ruft sie an?")] * 3


class Shifted:
    """A format whose artefact is the model itself, but for what a test changes."""

    name, suffix = "shifted", ""

    def __init__(self, model, tolerance: float | None = 1e-4, *, by: float = 0.0, greedy: str = "", worse: int = 0):
        """`by`: nats of the last token."""
        self.side, self.tolerance, self.by, self.tail, self.worse = open_trained(model), tolerance, by, greedy, worse

    def open(self, target):
        return self

    def log_probabilities(self, pairs):
        found = self.side.log_probabilities(pairs)
        found[-1][-1] += self.by
        return found

    def greedy(self, lines):
        found = self.side.greedy(lines)
        return [*found[:-1], found[-1] + self.tail]

    def translate(self, lines):
        return [text if row >= self.worse else "x" for row, text in enumerate(self.side.translate(lines))]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("translation", "modern")


def examples(test=()) -> Examples:
    return Examples("some", "0" * 64, list(PAIRS), list(test), "de")


def gate(model, tmp_path, test=(), **changes: Any) -> dict[str, Any]:
    return compare(model, Shifted(model, **changes), tmp_path, examples(test))  # type: ignore[arg-type]


def test_the_same_passes(model, tmp_path):
    found = gate(model, tmp_path)
    assert found["passed"]
    assert found["log_probabilities"]["max_difference"] == 0
    assert found["log_probabilities"]["tokens"] == sum(map(len, open_trained(model).log_probabilities(PAIRS)))
    assert found["greedy"] == {"texts": 6, "different": 0}
    assert "test" not in found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"by": 1.1e-3}, r"log-probabilities of a token lie up to 0\.0011 nats apart; at most 0\.0001 may be"),
        ({"by": math.nan}, "a log-probability is not finite"),
        ({"greedy": " mehr"}, "1 of 6 greedy outputs are different"),
    ],
)
def test_what_is_not_the_model_does_not_pass(changes, reason, model, tmp_path):
    found = gate(model, tmp_path, **changes)
    assert not found["passed"]
    assert any(re.search(reason, said) for said in found["reasons"])
    allowed = gate(model, tmp_path, tolerance=None, **changes)
    assert allowed["passed"] == (not math.isnan(changes.get("by", 0.0)))


def test_quantised_weights_may_lose_little(model, tmp_path):
    tokens = gate(model, tmp_path)["log_probabilities"]["tokens"]
    assert gate(model, tmp_path, tolerance=None, by=-0.09 * tokens)["passed"]
    found = gate(model, tmp_path, tolerance=None, by=-0.11 * tokens)
    assert found["reasons"] == [
        "the mean log-probability of a token is 0.11 nats lower than the trained model's; at most 0.1 may be"
    ]


def test_worse_translations_do_not_pass(model, tmp_path):
    # References are the model's own translations, so that those of the artefact can only be worse.
    sources = [source for source, _ in PAIRS] * 4
    test = list(zip(sources, open_trained(model).translate(sources), strict=True))
    found = gate(model, tmp_path, test, worse=20)
    assert not found["passed"]
    bleu = found["test"]["metrics"]["bleu"]
    assert bleu["systems"][0]["score"] == pytest.approx(100)
    assert "version:" in bleu["signatures"]["bootstrap"]
    assert any(said.startswith("BLEU is") for said in found["reasons"])
    assert gate(model, tmp_path, test)["passed"]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (" a  b", "a b", True),
        ("ab", "a b", False),
        ("a \u2047 b", "a b", True),
        ("a \u2047 b", "ab", True),
        ("a \u2047 b", "a c", False),
        ("\u2047 b \u2047 \u2047 ", "b", True),
        (" \u2047 " * 200, " \u2047 " * 200 + "x", False),
        ("ab\ufffd\u00e9 c", "ab\ufffd\ufffd\ufffd c", True),
        ("ac\ufffd", "ab\ufffd", False),
        ("ab\ufffd c", "ab\ufffd d", False),
        ("Der alte Mann", "\ufffd", False),
        ("Der alte Mann", "Der \ufffd", False),
        ("a", "b", False),
    ],
)
def test_texts_are_alike_but_for_what_decoders_spell_differently(one, two, same):
    assert alike(one, two) is same
    assert alike(two, one) is same


def test_texts_of_a_lossless_tokenizer_are_alike_to_the_letter():
    assert not alike("a  b", "a b", True)
    assert not alike("a", "a\n", True)
    assert not alike("a \u2047 b", "a b", True)
    assert alike("a\n\ufffd", "a\ufffd\ufffd", True)


def test_a_question_comes_back(tmp_path):
    asked = Question("hf", {"layout": "auto"}, "model", "artefact", examples(PAIRS))
    asked.save(tmp_path / "q.json")
    assert Question.load(tmp_path / "q.json") == asked


def test_an_unknown_format_or_option_is_named():
    from bmscale.deployment.formats import make_format

    with pytest.raises(BadInput, match="--to: must be one of hf"):
        make_format("hff")
    with pytest.raises(BadInput, match="--colour: is no option of --to hf"):
        make_format("hf", {"colour": "red"})
