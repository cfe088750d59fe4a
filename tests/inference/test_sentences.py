"""Sentences end where a reader says that they do; what is no end is left alone."""

import pytest

from bmscale.inference.sentences import Document, split_everywhere, split_sentences

PARAGRAPHS = [
    (
        "en",
        ["The goat sleeps.", "Who counted it?", "Nobody!", "(They left.)", "“Stop!”", "He stopped…", "He ran."],
    ),
    ("en", ["Dr. Smith met Mr. J. R. Miller at 3.5 p.m. on Main St. in Paris.", "They ate, e.g. bread."]),
    ("en", ["He was born in 1999.", "See Fig. 3 and No. 5, pp. 3-4.", "It costs $3.50."]),
    ("en", ["“Where is it?” she asked.", "“Here!” he said."]),
    ("en", ["Visit example.com now.", "Version 2.0.1 is out."]),
    (
        "de",
        ["Am 3. Mai kam z.B. Herr Dr. Müller.", "Er blieb bis 1999.", "„Ja?“, sagte sie.", "Das war am 12. Juli."],
    ),
    ("de", ["Ludwig XIV. regierte lange.", "Es kamen ca. 20 Leute, u.a. Prof. Weber."]),
    ("fr", ["M. Dupont arrive.", "« Pourquoi ? » demande-t-il.", "Mme Durand part."]),
    ("es", ["¿Dónde está?", "¡Aquí!", "El Sr. García duerme."]),
    ("ru", ["Он жил в 1950 г. в Москве.", "Потом уехал."]),
    ("el", ["Καλημέρα.", "Τι κάνεις;"]),
    ("hi", ["मैं घर जाता हूँ।", "वह आता है।"]),
]


@pytest.mark.parametrize(("language", "sentences"), PARAGRAPHS)
def test_a_paragraph_is_split_into_its_sentences(language, sentences):
    assert split_sentences(" ".join(sentences), language) == sentences
    assert split_sentences("  " + "\t ".join(sentences) + " ", language) == sentences


def test_scripts_without_spaces():
    sentences = ["我看书。", "“你好！”", "他说：「走吧？」", "好。"]
    assert split_sentences("".join(sentences), "zh") == sentences
    assert split_sentences(" ".join(sentences), "zh") == sentences
    assert split_sentences("猫が寝る。犬が走る！！なぜ？", "ja") == ["猫が寝る。", "犬が走る！！", "なぜ？"]


def test_numbers_are_ordinals_only_where_they_are_written_so():
    assert split_sentences("She has 3. He has two.", "en") == ["She has 3.", "He has two."]
    assert split_sentences("Er kam am 3. Mai.", "de_AT") == ["Er kam am 3. Mai."]
    assert split_sentences("Er kam am 3. Mai.") == ["Er kam am 3.", "Mai."]


def test_nothing_and_no_ends():
    assert split_sentences("") == split_sentences(" \t ") == []
    assert split_sentences("no end") == ["no end"]
    assert split_sentences("...") == ["..."]


def test_what_is_too_long_is_cut_at_every_stop():
    assert split_everywhere("at 5 p.m. he left. now what?") == ["at 5 p.m.", "he left.", "now what?"]


@pytest.mark.parametrize("text", ["", "\n", "a", "A. B.\n\n  C\r\n", "\u2028x\x85", " \n \n", "one\n"])
def test_a_document_comes_back_as_it_was(text):
    document = Document(text)
    assert document.written(document.sentences) == text
    assert document.written([""] * len(document.sentences)).count("\n") == text.count("\n")


def test_a_document_with_other_sentences():
    document = Document("Who? Me.\n\n  He left.\n")
    assert document.sentences == ["Who?", "Me.", "He left."]
    assert document.written(["Wer?", "Ich.", "Er ging."]) == "Wer? Ich.\n\n  Er ging.\n"
    assert document.written(["谁？", "我。", "他走了。"], "") == "谁？我。\n\n  他走了。\n"
