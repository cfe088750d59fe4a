"""Paired tests are sacreBLEU's own, repeat, and tell a real difference from chance."""

import json
import os
import re
import warnings
from typing import Any

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from bmscale.data.corpus import CorpusConfig
from bmscale.errors import BadInput
from bmscale.evaluation.compare import System, compare, format_comparison, paired_tests
from bmscale.evaluation.scores import score

REFERENCES = [
    f"The {word} dog sees number {number} of the old trees ." for number in range(15) for word in ("big", "red")
]
GOOD = [line.replace("old trees", "trees") if number % 3 else line for number, line in enumerate(REFERENCES)]
BAD = [line.replace("sees", "is seeing").replace("dog", "hound") for line in REFERENCES]
SMALL: dict[str, Any] = {"n_bootstrap": 50, "n_trials": 100}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_scores_intervals_and_p_values_are_those_of_sacrebleu(monkeypatch):
    found = paired_tests([("a", GOOD), ("b", BAD)], REFERENCES, metrics=("bleu", "chrf", "ter"))
    assert [result["name"] for result in found.values()] == ["BLEU", "chrF2++", "TER"]
    baseline, other = found["bleu"]["systems"]
    plain = score(GOOD, REFERENCES, metrics=("bleu",))["bleu"]
    assert baseline["score"] == pytest.approx(plain["score"])
    assert (baseline["mean"], baseline["plus_minus"]) == pytest.approx((plain["mean"], plain["plus_minus"]), abs=1e-3)
    assert baseline["p_values"] == {"bootstrap": None, "randomisation": None}
    assert other["difference"] == pytest.approx(other["score"] - baseline["score"])
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    for test, kind in (("bootstrap", "bs"), ("randomisation", "ar")):
        scores: Any
        signatures, scores = PairedTest([("a", GOOD), ("b", BAD)], {"BLEU": BLEU(force=True)}, [REFERENCES], kind)()
        assert other["p_values"][test] == scores["BLEU"][1].p_value
        assert found["bleu"]["signatures"][test] == str(signatures["BLEU"])
    assert "|ar:10000|seed:12345|" in found["bleu"]["signatures"]["randomisation"]
    assert sacrebleu.__version__ in found["bleu"]["signatures"]["bootstrap"]
    json.dumps(found, allow_nan=False)


def test_a_real_difference_is_told_from_none():
    # One sentence worse, one better: two of the four ways to swap them differ more, whatever the rounding of a score.
    two_words = [GOOD[0].replace("old trees", "tree"), REFERENCES[1], *GOOD[2:]]
    found = paired_tests([("a", GOOD), ("b", BAD), ("same", GOOD), ("c", two_words)], REFERENCES)
    table = format_comparison(found)
    assert re.search(r"^same .* \+0\.00 +identical +identical$", table, re.M)
    assert table.count("identical") == 2 * len(found)
    for result in found.values():
        _, bad, same, near = (row["p_values"] for row in result["systems"])
        assert max(bad.values()) < 0.01
        assert same == {"bootstrap": 1.0, "randomisation": 1.0}
        assert [row["identical"] for row in result["systems"]] == [False, False, True, False]
        assert near["randomisation"] > 0.1


def test_the_tests_repeat_under_a_seed_and_leave_no_trace(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    systems = [("a", GOOD), ("b", BAD)]
    first, again, other = (paired_tests(systems, REFERENCES, **SMALL, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["bleu"]["systems"][0]["mean"] != other["bleu"]["systems"][0]["mean"]
    assert os.environ["SACREBLEU_SEED"] == "none"


def test_the_target_language_chooses_the_tokenizer():
    found = paired_tests(
        [("a", ["猫です", "犬"]), ("b", ["猫", "犬です"])], ["猫です", "犬です"], **SMALL, target_language="ja"
    )
    assert "|tok:char|" in found["bleu"]["signatures"]["bootstrap"]
    assert "characters for Japanese" in format_comparison(found)


def test_the_table_shows_systems_scores_and_p_values():
    lines = format_comparison(paired_tests([("runs/a", GOOD), ("b", BAD)], REFERENCES, **SMALL)).splitlines()
    assert lines[0].split()[:2] == ["BLEU", "score"]
    assert lines[1].startswith("baseline: runs/a ")
    assert lines[2].startswith("b ")
    assert "*" in lines[2]
    assert "-" in lines[2]
    assert len(lines) == 10
    assert lines[3].startswith("  bootstrap: nrefs:1|")


def test_empty_translations_and_a_single_segment_do_not_fail():
    found = paired_tests(
        [("a", ["", ""]), ("b", ["a tree", ""])], ["a tree here", "no"], metrics=("bleu", "chrf", "ter"), **SMALL
    )
    assert found["bleu"]["systems"][0]["score"] == 0
    paired_tests([("a", ["x"]), ("b", ["y"])], ["x"], **SMALL)


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        ([("a", GOOD)], {}, "at least two systems"),
        ([("a", GOOD), ("b", BAD[:-1])], {}, "29 hypotheses and 30 references"),
        ([("a", GOOD), ("b", BAD)], {"n_trials": 0}, "must be 1 or more; got 1000, 0 and 12345"),
        ([("a", GOOD), ("b", BAD)], {"seed": 0}, "must be 1 or more"),
        ([("a", GOOD), ("b", BAD)], {"metrics": ("rouge",)}, "metrics must be chosen"),
    ],
)
def test_what_cannot_be_tested_is_refused(systems, options, message):
    with pytest.raises(BadInput, match=message):
        paired_tests(systems, REFERENCES, **options)


def test_models_of_different_languages_are_refused():
    systems = [System("a", languages=("en", "de")), System("b", languages=("en", "fr"))]
    with pytest.raises(BadInput, match="the target language must be the same for all models; a has 'de', b has 'fr'"):
        compare(systems, CorpusConfig(toy="test", pairs=2))


def test_the_command_compares_a_run_a_folder_and_a_file(bmscale, trained):
    """Each as what it is; the same model twice is no difference, and its own translations score as `evaluate` says."""
    evaluated = json.loads(bmscale("evaluate", "runs/tiny", "--beam-size", "2", folder=trained).stdout)
    from bmscale.data.corpus import read_pairs

    pairs = list(read_pairs(CorpusConfig(toy="test", pairs=20), "en", "de"))
    (trained / "toy-test.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    (trained / "references.txt").write_text("".join(f"{target}\n" for _, target in pairs))
    systems = ["runs/tiny", "runs/tiny/model/last", "runs/tiny/translations/toy-test.txt", "references.txt"]
    result = bmscale("compare", *systems, "--test", "toy-test.tsv", "--ter", "--beam-size", "2", folder=trained)
    found = json.loads(result.stdout)
    assert found["target_language"] == "de"
    assert found["segments"] == 20
    assert found["systems"][0]["model"] == "runs/tiny/model/best"
    assert found["systems"][0]["search"]["beam_size"] == 2
    assert found["systems"][2] == {"system": systems[2]}
    scores = [row["score"] for row in found["metrics"]["bleu"]["systems"]]
    assert scores[0] == scores[2] == evaluated["test"]["toy-test"]["scores"]["bleu"]["score"]
    assert scores[3] == pytest.approx(100)
    perfect = found["metrics"]["ter"]["systems"][3]
    assert perfect["score"] == 0
    assert max(perfect["p_values"].values()) < 0.01
    assert "baseline: runs/tiny" in result.stderr
