"""Cleaning: normalisation is idempotent, each rule catches what it is for and forgives what a translator may write."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bmscale.data.clean import (
    RULES,
    Cleaner,
    CleaningConfig,
    Dropped,
    SeenHashes,
    digits_differ,
    hash_lines,
    language_script,
    normalise,
    urls_differ,
)

GOOD = ("The house has three doors.", "Das Haus hat drei Türen.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t\u00a0\u2003\u3000 b\n", "a b"),
        ("u\u0308ber", "über"),
        ("\ufeffa\u200bb\u00adc\u2060d\x07", "abcd"),
        ("a\u2028b\x85c\x1fd", "a b c d"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian spells with the zero-width non-joiner
        ("½ ™ ﬁ", "½ ™ ﬁ"),  # NFC, not NFKC
        ("a\ud800b", "ab"),
        ("▁Hello▁world", "Hello world"),
        ("u\u200b\u0308", "ü"),  # composed only once the character between is gone
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@given(st.text(st.one_of(st.characters(), st.sampled_from(" \u00a0\u200b\u0301\u0308▁\t\ufeffue\ud800"))))
def test_normalised_text_is_stable_nfc_and_fit_for_a_line(text):
    result = normalise(text)
    assert normalise(result) == result
    assert unicodedata.is_normalized("NFC", result)
    assert result.encode().decode() == result
    assert result == " ".join(result.split())
    assert not set(result) & set("\t\n\r\x0b\x0c\x85\u2028\ufeff\u200b▁")


@pytest.mark.parametrize(
    ("rule", "source", "target"),
    [
        ("empty", "", "etwas"),
        ("empty", "something", ""),
        ("too_long", "word " * 250 + "word", "Wort " * 200 + "Wort"),
        ("too_long", "x" * 2001, "y" * 2001),
        ("length_ratio", "Yes.", "Das ist eine sehr lange Antwort, die niemand auf diese Frage geben würde."),
        ("identical", "Parallel Virtual Machine", "Parallel Virtual Machine"),
        ("wrong_script", "The house has three doors.", "У дома три двери, и все."),
        ("wrong_script", "У дома три двери, и все.", "Das Haus hat drei Türen."),
        ("digits_mismatch", "It costs 35 euros.", "Es kostet 80 Euro."),
        ("urls_mismatch", "See http://example.org/x for more.", "Mehr dazu steht im Handbuch des Programms."),
        (None, *GOOD),
        (None, "* threads", "* Threads"),
        (None, "α-helix of the protein", "α-Helix des Proteins"),
    ],
)
def test_the_first_rule_that_hits(rule, source, target):
    assert Cleaner(CleaningConfig(), "en", "de").rule(source, target) == rule


@pytest.mark.parametrize(
    ("off", "pair"),
    [
        ({"empty": False}, ("", "x")),
        ({"max_words": None}, ("w " * 300 + "w", "v " * 300 + "v")),
        ({"max_characters": None}, ("x" * 3000, "y" * 3000)),
        ({"max_length_ratio": None}, ("Yes.", "Ja, so ist es wohl, und so wird es auch immer bleiben, sage ich dir.")),
        ({"identical": False}, ("same", "same")),
        ({"max_wrong_script": None}, ("дом", "Haus")),
        ({"target_script": "Greek"}, ("house", "σπίτι")),
        ({"source_script": "any"}, ("дом", "Haus")),
        ({"digits_mismatch": False}, ("35", "80")),
        ({"urls_mismatch": False}, ("http://a.org/", "no link")),
    ],
)
def test_each_rule_can_be_switched_off(off, pair):
    assert Cleaner(CleaningConfig(), "en", "de").rule(*pair) is not None
    assert Cleaner(CleaningConfig(**off), "en", "de").rule(*pair) is None


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("1,000 stars", "1.000 Sterne"),
        ("10,000 stars", "10 000 Sterne"),
        ("3.5 and 7", "7 und 3,5"),
        ("version 07", "Version 7"),
        ("three of five", "3 von 5"),
        ("over 50 games", "über fünfzig Spiele"),
        ("the 1990s", "die 90er Jahre"),
        ("at 7 pm", "um 19 Uhr"),
        ("600 thousand", "600000"),
        ("i18n support", "Internationalisierung"),
        ("on 12/31/2015", "am 31.12.2015"),
        ("in 1998, from 2005-08-01 to 7/9/2006", "1998, vom 01.08.2005 bis 7.9.2006"),
        ("in 2015", "٢٠١٥"),
        ("in 2015", "二〇一五年"),
        ("1 2 3 4 and RFC 868", "1 2 3 4 und RFC 869"),
    ],
)
def test_digits_forgive_spelling(source, target):
    assert not digits_differ(source, target)
    assert not digits_differ(target, source)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("It costs 35 euros", "Es kostet 80 Euro"),
        ("chapter 3", "Kapitel 7"),
        ("GTK 2.10", "GTK 2.12"),
        ("in 2015", "im letzten Jahr"),
        ("1000 people", "10 Menschen und 7"),
        ("pages 14 and 15", "Seite 99"),
        ("50 cats", "500 Katzen"),
    ],
)
def test_digits_catch_other_numbers(source, target):
    assert digits_differ(source, target)
    assert digits_differ(target, source)


@pytest.mark.parametrize(
    ("source", "target", "differ"),
    [
        ("see http://example.org/a.", "siehe http://example.org/a/", False),
        ("https://en.wikipedia.org/x", "https://de.wikipedia.org/y", False),
        ("www.example.com", "(www.example.de)", False),
        ("mail me@example.org", "Mail an me@example.org.", False),
        ("user @ home", "Nutzer @ Hause", False),
        ("http://localhost:80/", "http://localhost/", False),
        ("see http://example.org/", "siehe oben", True),
        ("http://example.org/", "http://other.net/", True),
        ("me@example.org", "ich", True),
    ],
)
def test_addresses(source, target, differ):
    assert urls_differ(source, target) == differ
    assert urls_differ(target, source) == differ


@pytest.mark.parametrize(
    ("language", "script"),
    [("de", "Latin"), ("ru", "Cyrillic"), ("zh-Hans", "Han"), ("srp_Latn", "Latin"), ("sr", None), ("en_XX", "Latin")],
)
def test_script_of_a_language(language, script):
    assert language_script(language) == script


def test_dense_scripts_may_be_shorter():
    english = "This package contains the documentation of the library and several examples of how to use it."
    chinese = "该软件包包含该库的文档以及若干使用示例。"
    assert Cleaner(CleaningConfig(), "en", "zh").rule(english, chinese) is None
    assert Cleaner(CleaningConfig(), "en", "de").rule(english, chinese) == "length_ratio"
    assert Cleaner(CleaningConfig(), "en", "ja").rule("The house.", "これはペンです。") is None


def test_unknown_script_is_refused():
    with pytest.raises(ValidationError, match=r"a script must be .*got 'Klingon'"):
        CleaningConfig(source_script="Klingon")


def test_clean_counts_and_keeps_normalised_lines():
    pairs = [GOOD, ("", "x"), (" a\u00a0b ", "c  d"), ("same", "same"), ("q", "")]
    cleaned = Cleaner(CleaningConfig(), "en", "de").clean(pairs)
    assert cleaned.lines == ["\t".join(GOOD).encode(), b"a b\tc d"]
    assert cleaned.dropped.counts == {"empty": 2, "identical": 1}
    report = cleaned.dropped.report()
    assert list(report) == list(RULES)
    assert report["identical"] == {"pairs": 1, "samples": [["same", "same"]]}


def test_samples_do_not_depend_on_chunks():
    rows = [(f"source {i}" + "x" * 300, f"target {i}") for i in range(50)]
    whole, merged = Dropped(), Dropped()
    for row in rows:
        whole.add("empty", *row)
    for start in range(0, 50, 7):
        part = Dropped()
        for row in rows[start : start + 7]:
            part.add("empty", *row)
        merged.merge(part)
    assert whole.report() == merged.report()
    samples = whole.report()["empty"]["samples"]
    assert len(samples) == 5
    assert samples != [[s[:200], t] for s, t in rows[:5]]  # spread over the corpus, not its beginning
    assert all(len(side) <= 200 for sample in samples for side in sample)


@given(st.lists(st.lists(st.integers(0, 40), max_size=20), max_size=12))
def test_seen_hashes_agree_with_a_set(batches):
    seen, known = SeenHashes(), set()
    for batch in batches:
        mask = seen.add(np.array(batch, dtype=np.uint64) * np.uint64(0x61C8864680B583EB))
        expected = []
        for value in batch:
            expected.append(value not in known)
            known.add(value)
        assert mask.tolist() == expected


def test_hashes_are_stable_and_distinct():
    hashes = hash_lines([f"line {i}".encode() for i in range(10_000)])
    assert len(np.unique(hashes)) == 10_000
    assert hashes[0] == hash_lines([b"line 0"])[0]
    assert len(hash_lines([])) == 0
