"""Scores equal sacreBLEU's own, carry its signature, repeat under a seed and refuse what cannot be scored."""

import json
import os

import pytest
import sacrebleu

from bmscale.errors import BadInput
from bmscale.evaluation.scores import bleu_tokenizer, format_scores, score, sentence_chrf

REFERENCES = [
    "The cat sat on the mat, and the dog barked loudly at it.",
    "It's 3.5 °C outside -- colder than yesterday .",
    "Der Zug fährt um 12:30 Uhr ab.",
    'She said: "We shall see what comes of this."',
] * 5
HYPOTHESES = [
    "The cat sat on a mat, and the dog barked loudly.",
    "It is 3.5 °C outside -- colder than yesterday .",
    "der Zug fährt um 12:30 ab.",
    "",
] * 5


def test_scores_and_signatures_are_those_of_sacrebleu():
    results = score(HYPOTHESES, REFERENCES, n_bootstrap=20)
    assert list(results) == ["bleu", "chrf", "ter"]
    assert results["bleu"]["score"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], force=True).score
    assert results["chrf"]["score"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES], word_order=2).score
    assert results["ter"]["score"] == sacrebleu.corpus_ter(HYPOTHESES, [REFERENCES]).score
    version = sacrebleu.__version__
    assert results["bleu"]["signature"] == (
        f"nrefs:1|bs:20|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    )
    assert results["chrf"]["name"] == "chrF2++"
    assert "|nw:2|" in results["chrf"]["signature"]
    json.dumps(results, allow_nan=False)


def test_case_counts_and_a_perfect_translation_scores_full_marks():
    lowered = score([text.lower() for text in REFERENCES], REFERENCES, metrics=("bleu",), n_bootstrap=0)
    assert 0 < lowered["bleu"]["score"] < 95
    perfect = score(REFERENCES, REFERENCES, n_bootstrap=10)
    assert [round(result["score"], 6) for result in perfect.values()] == [100, 100, 0]
    assert perfect["bleu"]["plus_minus"] == pytest.approx(0, abs=1e-4)


def test_the_interval_repeats_under_a_seed_and_moves_with_it(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    first, again, other = (score(HYPOTHESES, REFERENCES, n_bootstrap=50, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["bleu"]["mean"] != other["bleu"]["mean"]
    assert first["bleu"]["score"] == other["bleu"]["score"]
    assert first["bleu"]["plus_minus"] > 0
    assert "seed:1|" in first["bleu"]["signature"]
    assert os.environ["SACREBLEU_SEED"] == "7"


def test_the_seed_leaves_no_trace_in_the_environment(monkeypatch):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    score(HYPOTHESES, REFERENCES, metrics=("chrf",), n_bootstrap=2)
    assert "SACREBLEU_SEED" not in os.environ


def test_without_resamples_there_is_no_interval():
    full = score(HYPOTHESES, REFERENCES, n_bootstrap=0)
    assert full["bleu"]["mean"] is None
    assert "bs:" not in full["bleu"]["signature"]


def test_sentence_chrf_orders_sentences():
    same, near, far = sentence_chrf(["a small house", "a small horse", "xyz"], ["a small house"] * 3)
    assert same == pytest.approx(100)
    assert 0 == far < near < same
    with pytest.raises(BadInput, match="2 hypotheses and 1 references"):
        sentence_chrf(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [(None, "13a"), ("de", "13a"), ("zh", "zh"), ("zh-Hans", "zh"), ("ZH_CN", "zh"), ("ja", "char"), ("ko", "char")],
)
def test_the_tokenizer_follows_the_target_language(language, tokenizer):
    chosen, note = bleu_tokenizer(language)
    assert chosen == tokenizer
    assert (note is None) == (tokenizer == "13a")
    results = score(["我 喜欢 猫。"], ["我喜欢狗。"], n_bootstrap=0, target_language=language)
    assert f"|tok:{tokenizer}|" in results["bleu"]["signature"]


def test_a_script_without_spaces_is_not_one_word():
    results = score(["我喜欢猫和鸟。"], ["我喜欢狗和鸟。"], n_bootstrap=0, target_language="zh")
    assert 0 < results["bleu"]["score"] < 100
    assert 0 < results["ter"]["score"] < 50
    assert results["ter"]["note"]


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "message"),
    [
        (["a", "b"], ["a"], {}, "2 hypotheses and 1 references"),
        ([], [], {}, "no lines"),
        (["a", "b"], ["", " \t"], {}, "2 lines, all empty"),
        ("abc", ["a", "b", "c"], {}, "one string"),
        (["a"], ["a"], {"metrics": ("bleu", "rouge")}, "bleu, chrf, ter; got rouge"),
        (["a"], ["a"], {"metrics": ()}, "got none"),
        (["a"], ["a"], {"n_bootstrap": -1}, "0 or more; got -1"),
    ],
)
def test_what_cannot_be_scored_is_refused(hypotheses, references, options, message):
    with pytest.raises(BadInput, match=message):
        score(hypotheses, references, **options)


def test_all_empty_hypotheses_score_nothing_and_do_not_fail():
    results = score(["", ""], ["Some words here.", "More words."], n_bootstrap=5)
    assert results["bleu"]["score"] == 0
    assert results["ter"]["score"] == 100


def test_resamples_without_a_single_match_are_averaged_too():
    """A weak model on a small test set: some resamples score exactly 0."""
    hypotheses = ["A cat sat on the mat today.", "xx yy", "zz ww"]
    references = ["A cat sat on the mat today.", "one two", "three four"]
    bleu = score(hypotheses, references, metrics=("bleu",), n_bootstrap=200)["bleu"]
    assert 0 < bleu["mean"] < 100
    assert bleu["plus_minus"] > 0
    assert type(bleu["score"]) is type(bleu["mean"]) is type(bleu["plus_minus"]) is float


def test_the_terminal_lines_show_score_interval_signature_and_note():
    results = score(["猫です"], ["犬です"], n_bootstrap=10, target_language="ja")
    lines = format_scores(results).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("BLEU ")
    assert "±" in lines[0]
    assert results["bleu"]["signature"] in lines[0]
    assert lines[3].startswith("note: BLEU is over characters for Japanese")
    assert "±" not in format_scores(score(["a b"], ["a b"], n_bootstrap=0))
