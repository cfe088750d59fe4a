"""The gate: an artefact opened again and compared with the trained model, on texts that neither was made of.

`python -m bmscale.deployment.gate QUESTION ANSWER`, two JSON files, is a process of its own, in which nothing of the
export ran: what an artefact lacks cannot be there by accident. Three things are compared:

- log-probabilities of the tokens of given targets (teacher-forced), which see every weight: within the tolerance of
  the format;
- greedy outputs: the same;
- for translation, a test set translated by both with the model's own search, and scored: BLEU and chrF2++ with paired
  tests, and the time that each took.

Quantised weights are another model: of them the differences are reported, and only a mean log-probability that is far
lower does not pass.
"""

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bmscale.data.tokenizer import Tokenizer
from bmscale.deployment.formats import Candidate, Format, make_format
from bmscale.deployment.trained import open_trained, search_of
from bmscale.evaluation.compare import paired_tests
from bmscale.model.folder import ModelFolder, open_model_folder

WORSE = 0.05
"""The p-value below which a lower score of an unquantised artefact fails it."""
LOSS = 0.1
"""By how much (nats a token) the mean log-probability may be lower than the trained model's: also with quantised
weights, of which a broken scale loses far more."""
_NO_CHARACTERS = re.compile("[^ 0-9A-Za-z]*\ufffd[^ 0-9A-Za-z]*")


@dataclass(frozen=True)
class Examples:
    """The texts of a gate, as `formats.Candidate` wants them."""

    name: str
    sha256: str
    pairs: list[tuple[str, str]]
    """Source and reference, or nothing and a text, of which log-probabilities and greedy outputs are compared."""
    test: list[tuple[str, str]] = field(default_factory=list)
    """Source and reference of the test set that is translated."""
    target_language: str | None = None
    left_out: int = 0
    """Pairs of the file that are empty, or longer than the model was trained to read in one piece."""


@dataclass(frozen=True)
class Question:
    """All that the gate's process is told."""

    format: str
    options: Mapping[str, str | None]
    model: str
    artefact: str
    examples: Examples

    def save(self, path: Path) -> None:
        """Write it for the process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Question":
        """Read it there."""
        values = json.loads(path.read_bytes())
        examples = values.pop("examples")
        for key in ("pairs", "test"):
            examples[key] = [tuple(row) for row in examples[key]]
        return cls(**values, examples=Examples(**examples))


def main(arguments: Sequence[str]) -> int:
    """The process: what was found goes to the second file."""
    question, answer = (Path(name) for name in arguments)
    asked = Question.load(question)
    model = open_model_folder(asked.model, None)
    found = compare(model, make_format(asked.format, asked.options), Path(asked.artefact), asked.examples)
    answer.write_text(json.dumps(found), encoding="utf-8")
    return 0


def compare(model: ModelFolder, made: Format, artefact: Path, examples: Examples) -> dict[str, Any]:
    """What the gate found: `passed`, `reasons` where it did not, and the figures of each comparison."""
    is_translation = model.task.name == "translation"
    lines = [source if is_translation else target for source, target in examples.pairs]
    sources = [source for source, _ in examples.test]
    answers = {}
    for who in ("trained", "exported"):  # one after the other: both may be large
        side: Candidate = open_trained(model) if who == "trained" else made.open(artefact)
        answers[who] = _Answers.of(side, examples.pairs, lines, sources)
        del side
    trained, exported = answers["trained"], answers["exported"]
    found: dict[str, Any] = {
        "log_probabilities": _distance(trained.log_probabilities, exported.log_probabilities, made.tolerance),
        "greedy": _greedy(lines, trained.greedy, exported.greedy, Tokenizer.load(model.tokenizer).is_lossless),
    }
    if sources:
        found["test"] = _scored(model, trained, exported, examples)
    reasons = _reasons(found, made.tolerance)
    return {
        "passed": not reasons,
        "reasons": reasons,
        "texts": {"name": examples.name, "sha256": examples.sha256, "left_out": examples.left_out},
        **found,
    }


@dataclass(frozen=True)
class _Answers:
    """What one of the two says."""

    log_probabilities: list[list[float]]
    greedy: list[str]
    translations: list[str]
    seconds: float
    """That the test set took."""

    @classmethod
    def of(cls, side: Candidate, pairs: list[tuple[str, str]], lines: list[str], sources: list[str]) -> "_Answers":
        figures, greedy = side.log_probabilities(pairs), side.greedy(lines)
        begun = time.perf_counter()
        translations = side.translate(sources) if sources else []
        return cls(figures, greedy, translations, time.perf_counter() - begun)


def _distance(trained: list[list[float]], exported: list[list[float]], tolerance: float | None) -> dict[str, Any]:
    """How far log-probabilities lie apart; what is not finite, or of another number of tokens, infinitely far."""
    largest, total, worst = 0.0, 0.0, 0
    tokens = sum(map(len, trained))
    uneven = [row for row, (one, two) in enumerate(zip(trained, exported, strict=True)) if len(one) != len(two)]
    for row, (one, two) in enumerate(zip(trained, exported, strict=True)):
        for a, b in zip(one, two, strict=False):
            apart = abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf
            total += apart
            if apart > largest:
                largest, worst = apart, row
    return {
        "texts": len(trained),
        "tokens": tokens,
        "max_difference": largest,
        "mean_difference": total / max(1, tokens),
        "tolerance": tolerance,
        "worst_text": worst,
        "other_tokens": len(uneven),
        "mean_trained": sum(map(sum, trained)) / max(1, tokens),
        "mean_exported": sum(map(sum, exported)) / max(1, sum(map(len, exported))),
    }


def alike(one: str, two: str, is_lossless: bool = False) -> bool:
    """Whether two texts are the same but for what decoders spell differently.

    Bytes that are no characters: one decoder writes U+FFFD for each, another for each byte of the whole run, be some of
    them characters; so a run of U+FFFD and what may be spelt in bytes beside it counts as one sign, which both must
    have at the same place. Where the tokenizer is not lossless, also the number of spaces, and the signs of unknown
    pieces (or nothing) with or without spaces around them.
    """
    one, two = (_NO_CHARACTERS.sub("\ufffd", text) for text in (one, two))
    if is_lossless:
        return one == two
    for a, b in ((one, two), (two, one)):
        # What stands between unknown pieces has a letter or more, so that there is one way to match.
        known = re.split(r"\s*\u2047[\s\u2047]*", " ".join(a.split()))
        if re.fullmatch(r"[\s\u2047]*".join(map(re.escape, known)), " ".join(b.split())):
            return True
    return False


def _greedy(lines: list[str], trained: list[str], exported: list[str], is_lossless: bool) -> dict[str, Any]:
    rows = list(zip(lines, trained, exported, strict=True))
    different = [row for row in rows if not alike(row[1], row[2], is_lossless)]
    found: dict[str, Any] = {"texts": len(rows), "different": len(different)}
    if different:
        found["first"] = dict(zip(("text", "trained", "exported"), different[0], strict=True))
    return found


def _scored(model: ModelFolder, trained: _Answers, exported: _Answers, examples: Examples) -> dict[str, Any]:
    references = [reference for _, reference in examples.test]
    systems = [("trained", trained.translations), ("exported", exported.translations)]
    metrics = paired_tests(systems, references, n_trials=1000, target_language=examples.target_language)
    return {
        "name": examples.name,
        "sentences": len(references),
        "search": {key: value for key, value in vars(search_of(model)).items() if key != "max_batch_tokens"},
        "metrics": metrics,
        "sentences_per_second": {
            "trained": round(len(references) / trained.seconds, 3),
            "exported": round(len(references) / exported.seconds, 3),
        },
    }


def _reasons(found: Mapping[str, Any], tolerance: float | None) -> list[str]:
    """Why the artefact is not the trained model; none where it is, or is not meant to be in every figure."""
    figures, greedy = found["log_probabilities"], found["greedy"]
    reasons = []
    if figures["other_tokens"]:
        reasons.append(f"{figures['other_tokens']} of {figures['texts']} texts have other tokens")
    if not math.isfinite(figures["max_difference"]):
        reasons.append("a log-probability is not finite")
    loss = figures["mean_trained"] - figures["mean_exported"]
    if loss > LOSS:
        reasons.append(
            f"the mean log-probability of a token is {loss:.2g} nats lower than the trained model's; at most {LOSS:g} "
            "may be"
        )
    if tolerance is None:
        return reasons
    if figures["max_difference"] > tolerance:
        reasons.append(
            f"log-probabilities of a token lie up to {figures['max_difference']:.2g} nats apart; at most "
            f"{tolerance:g} may be"
        )
    if greedy["different"]:
        reasons.append(f"{greedy['different']} of {greedy['texts']} greedy outputs are different")
    for metric in found.get("test", {}).get("metrics", {}).values():
        row = metric["systems"][1]
        p_value = row["p_values"]["bootstrap"]
        if row["difference"] < 0 and p_value < WORSE:
            reasons.append(f"{metric['name']} is {-row['difference']:.2f} lower (p = {p_value:.3f})")
    return reasons


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
