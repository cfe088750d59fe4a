"""The embedded corpus: its words are inflected correctly, its stream keeps its promises, its phenomena are there."""

import itertools
import random
import re
import unicodedata
from collections import Counter

import pytest

from bmscale.data import toy_inflection as forms
from bmscale.data import toy_lexicon as words
from bmscale.data.toy import Grammar, things_of, toy_pairs
from bmscale.data.toy_inflection import ACC, DAT, GEN, NOM, Determiner
from bmscale.errors import BadInput

NOUN = {noun.english: noun for nouns in words.GROUPS.values() for noun in nouns}
ADJECTIVE = {adjective.english: adjective for group in words.ADJECTIVES_OF.values() for adjective in group}
MY, HER, OUR = (words_of for words_of in forms.POSSESSIVES if words_of.english in ("my", "her", "our"))
THREE = words.COUNTS[1]


def verb(infinitive: str) -> forms.Verb:
    """The first verb whose zu-infinitive without "zu" is this."""
    found = (v for frame in words.FRAMES.values() for v in frame if v.zu.replace("zu ", "") == infinitive)
    return next(found)


def separable(zu: str) -> forms.Verb:
    return next(v for frame in words.FRAMES.values() for v in frame if v.zu == zu)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return list(toy_pairs("train", 20_000, seed=1))


@pytest.mark.parametrize(
    ("determiner", "noun", "case", "plural", "adjective", "english", "german"),
    [
        (forms.THE, "man", NOM, False, None, "the man", "der Mann"),
        (forms.THE, "man", ACC, False, "old", "the old man", "den alten Mann"),
        (forms.THE, "man", DAT, False, None, "the man", "dem Mann"),
        (forms.THE, "man", GEN, False, "poor", "the poor man", "des armen Mannes"),
        (forms.THE, "woman", NOM, False, "young", "the young woman", "die junge Frau"),
        (forms.THE, "woman", DAT, False, "young", "the young woman", "der jungen Frau"),
        (forms.THE, "woman", GEN, False, None, "the woman", "der Frau"),
        (forms.THE, "child", NOM, False, "small", "the small child", "das kleine Kind"),
        (forms.THE, "child", DAT, False, "small", "the small child", "dem kleinen Kind"),
        (forms.THE, "child", NOM, True, "small", "the small children", "die kleinen Kinder"),
        (forms.THE, "child", DAT, True, "small", "the small children", "den kleinen Kindern"),
        (forms.A, "dog", NOM, False, "big", "a big dog", "ein großer Hund"),
        (forms.A, "dog", ACC, False, "big", "a big dog", "einen großen Hund"),
        (forms.A, "apple", ACC, False, None, "an apple", "einen Apfel"),
        (forms.A, "cat", NOM, False, "black", "a black cat", "eine schwarze Katze"),
        (forms.A, "cat", DAT, False, "black", "a black cat", "einer schwarzen Katze"),
        (forms.A, "book", ACC, False, "expensive", "an expensive book", "ein teures Buch"),
        (forms.A, "book", DAT, False, "new", "a new book", "einem neuen Buch"),
        (forms.A, "university", NOM, False, None, "a university", "eine Universität"),
        (forms.A, "umbrella", NOM, False, None, "an umbrella", "ein Regenschirm"),
        (forms.NO, "car", ACC, False, "red", "a red car", "kein rotes Auto"),
        (forms.NO, "car", ACC, True, "red", "any red cars", "keine roten Autos"),
        (forms.NO, "key", ACC, False, None, "a key", "keinen Schlüssel"),
        (forms.NO, "milk", ACC, False, "fresh", "any fresh milk", "keine frische Milch"),
        (MY, "brother", ACC, False, None, "my brother", "meinen Bruder"),
        (MY, "daughter", DAT, True, None, "my daughters", "meinen Töchtern"),
        (MY, "father", GEN, False, None, "my father", "meines Vaters"),
        (HER, "grandmother", DAT, False, "sick", "her sick grandmother", "ihrer kranken Großmutter"),
        (OUR, "house", NOM, False, "new", "our new house", "unser neues Haus"),
        (OUR, "garden", ACC, False, "dark", "our dark garden", "unseren dunklen Garten"),
        (forms.THIS, "boy", ACC, False, "hungry", "this hungry boy", "diesen hungrigen Jungen"),
        (forms.THIS, "student", DAT, False, None, "this student", "diesem Studenten"),
        (forms.THIS, "girl", DAT, True, None, "these girls", "diesen Mädchen"),
        (forms.EVERY, "child", NOM, False, None, "every child", "jedes Kind"),
        (forms.WHICH, "hat", ACC, False, "brown", "which brown hat", "welchen braunen Hut"),
        (forms.MANY, "egg", ACC, True, "fresh", "many fresh eggs", "viele frische Eier"),
        (forms.MANY, "neighbor", DAT, True, "nice", "many nice neighbors", "vielen netten Nachbarn"),
        (THREE, "friend", DAT, True, "good", "three good friends", "drei guten Freunden"),
        (THREE, "photo", DAT, True, "old", "three old photos", "drei alten Fotos"),
        (forms.BARE, "bread", ACC, False, "fresh", "fresh bread", "frisches Brot"),
        (forms.BARE, "cheese", ACC, False, "good", "good cheese", "guten Käse"),
        (forms.BARE, "coffee", DAT, False, "cold", "cold coffee", "kaltem Kaffee"),
    ],
)
def test_noun_phrases(
    determiner: Determiner, noun: str, case: int, plural: bool, adjective: str | None, english: str, german: str
) -> None:
    described = ADJECTIVE[adjective] if adjective else None
    assert forms.noun_phrase(NOUN[noun], determiner, case, plural, described) == (english, german)


@pytest.mark.parametrize(
    ("infinitive", "third", "expected"),
    [
        ("sehen", "sieht", "sehe siehst sieht sehen sehen"),
        ("lesen", "liest", "lese liest liest lesen lesen"),
        ("essen", "isst", "esse isst isst essen essen"),
        ("waschen", "wäscht", "wasche wäschst wäscht waschen waschen"),
        ("arbeiten", "arbeitet", "arbeite arbeitest arbeitet arbeiten arbeiten"),
        ("laden", "lädt", "lade lädst lädt laden laden"),
        ("tanzen", "tanzt", "tanze tanzt tanzt tanzen tanzen"),
        ("begrüßen", "begrüßt", "begrüße begrüßt begrüßt begrüßen begrüßen"),
        ("füttern", "füttert", "füttere fütterst füttert füttern füttern"),
        ("haben", "hat", "habe hast hat haben haben"),
        ("sein", "ist", "bin bist ist sind sind"),
        ("wissen", "weiß", "weiß weißt weiß wissen wissen"),
        ("mögen", "mag", "mag magst mag mögen mögen"),
    ],
)
def test_german_present(infinitive: str, third: str, expected: str) -> None:
    assert " ".join(forms.german_present(infinitive, third)) == expected


@pytest.mark.parametrize(
    ("found", "mood", "person", "expected"),
    [
        (separable("anzurufen"), "present", 2, ("ruft", "an", "anruft")),
        (separable("anzurufen"), "past", 2, ("hat", "angerufen", "angerufen hat")),
        (separable("anzurufen"), "will", 1, ("wirst", "anrufen", "anrufen wirst")),
        (separable("einzuladen"), "present", 1, ("lädst", "ein", "einlädst")),
        (separable("aufzustehen"), "past", 0, ("bin", "aufgestanden", "aufgestanden bin")),
        (verb("gehen"), "past", 4, ("sind", "gegangen", "gegangen sind")),
        (verb("wohnen"), "past", 3, ("wohnten", "", "wohnten")),
        (verb("sein"), "past", 1, ("warst", "", "warst")),
        (verb("kaufen"), "have to", 0, ("muss", "kaufen", "kaufen muss")),
        (verb("kaufen"), "wanted to", 1, ("wolltest", "kaufen", "kaufen wolltest")),
        (verb("kaufen"), "would like to", 4, ("möchten", "kaufen", "kaufen möchten")),
    ],
)
def test_german_verb_forms(found: forms.Verb, mood: str, person: int, expected: tuple[str, str, str]) -> None:
    assert found.german[mood][person] == expected


@pytest.mark.parametrize(
    ("base", "past", "mood", "person", "statement", "asked"),
    [
        ("go", "went", "present", 2, "goes", "does go"),
        ("go", "went", "past", 4, "went", "did go"),
        ("try", "tried", "present", 2, "tries", "does try"),
        ("have", "had", "present", 2, "has", "does have"),
        ("be", "was", "present", 0, "am", "am"),
        ("be", "was", "past", 3, "were", "were"),
        ("wash", "washed", "have to", 2, "has to wash", "does have to wash"),
        ("wash", "washed", "had to", 2, "had to wash", "did have to wash"),
        ("sing", "sang", "be allowed to", 4, "are allowed to sing", "are allowed to sing"),
        ("sing", "sang", "would like to", 1, "would like to sing", "would like to sing"),
    ],
)
def test_english_verb_forms(base: str, past: str, mood: str, person: int, statement: str, asked: str) -> None:
    auxiliary, rest, ask_auxiliary, ask_rest = forms.english_forms(base, past, mood, person)
    assert f"{auxiliary} {rest}".strip() == statement
    assert f"{ask_auxiliary} {ask_rest}".strip() == asked


@pytest.mark.parametrize(
    ("preposition", "phrase", "expected"),
    [
        ("in", "dem Park", "im Park"),
        ("in", "das alte Haus", "ins alte Haus"),
        ("an", "dem Strand", "am Strand"),
        ("zu", "der Schule", "zur Schule"),
        ("zu", "dem Arzt", "zum Arzt"),
        ("von", "dem Hund", "vom Hund"),
        ("in", "der Stadt", "in der Stadt"),
        ("auf", "dem Markt", "auf dem Markt"),
        ("zu", "ihm", "zu ihm"),
    ],
)
def test_contractions(preposition: str, phrase: str, expected: str) -> None:
    assert forms.contract(preposition, phrase) == expected


def test_a_stream_is_deterministic_and_its_beginning_does_not_depend_on_its_length() -> None:
    long = list(toy_pairs("valid", 300, seed=5))
    assert list(toy_pairs("valid", 300, seed=5)) == long
    assert list(toy_pairs("valid", 40, seed=5)) == long[:40]
    assert list(toy_pairs("valid", 300, seed=6)) != long
    assert len(list(toy_pairs("test", 0))) == 0


def test_the_stream_is_the_same_in_every_release() -> None:
    # Scores on the embedded corpus are comparable only while its sentences stay: change this knowingly.
    assert list(toy_pairs("train", 2)) == FIRST_TRAIN_PAIRS


def test_pairs_are_distinct_and_a_sentence_has_one_translation(pairs: list[tuple[str, str]]) -> None:
    english, german = zip(*pairs, strict=True)
    assert len(set(english)) == len(set(german)) == len(pairs)


def test_english_decides_the_german_over_the_whole_grammar() -> None:
    # toy_pairs drops repeated sentences; here they are what is looked at.
    grammar = Grammar(random.Random("function"))
    german_of: dict[str, str] = {}
    for english, german in (grammar.sentence() for _ in range(40_000)):
        assert german_of.setdefault(english, german) == german, english
    assert len(german_of) < 40_000


def test_splits_share_no_sentence_whatever_the_seed(pairs: list[tuple[str, str]]) -> None:
    valid = [*toy_pairs("valid", 800, seed=1), *toy_pairs("valid", 800, seed=2)]
    test = [*toy_pairs("test", 800, seed=1), *toy_pairs("test", 800, seed=9)]
    for one, other in itertools.combinations((pairs, valid, test), 2):
        for side in (0, 1):
            assert not {pair[side] for pair in one} & {pair[side] for pair in other}


def test_sentences_are_written_properly(pairs: list[tuple[str, str]]) -> None:
    for english, german in pairs:
        assert unicodedata.normalize("NFC", english + german) == english + german
        for sentence in (english, german):
            assert sentence[0].isupper()
            assert sentence[-1] in ".?"
            assert re.search(r"  | [,.?]|,,|[,.?][,.?]|_", sentence) is None, sentence
        assert english[-1] == german[-1]


WRONG = {
    "ins Krankenhaus is said of patients": r"\bins (\w+ )?Krankenhaus\b",
    "große Schwester is the older one": (
        r"\bgroße[nmrs]? (Br[uü]der|Schwester|S[oö]hn|T[oö]chter|Onkel|Tante|V[aä]ter|M[uü]tter|Gro)"
    ),
    "after fragen follow wann and ob": r"\b(frage|fragst|fragt|fragen|gefragt)\b[^,]*, (als|wenn) ",
    "frequency after what is known": r"^Ich \w+ (nie|oft|immer|selten|meistens) (den|die|das|diese\w?|mein\w*) ",
    "a bare noun is at its verb": r"\b(hat|haben|will|wird|werden) (Tee|Milch|Kaffee|Wasser|Saft) (im|in der) ",
    "ans Meer": r"\b(zum Meer|zum (\w+ )?(Wald|Büro))\b",
    "ships go to harbours": r"\bmit dem (Schiff|Boot) nach (?!Hamburg|London)",
    "the bus is nobody's": r"\b(mein|dein|sein|ihr|unser)(e|en|em|es|er)? (\w+ )?(Bus|Busse|Zug|Züge|Flugzeuge?)\b",
    "one animal does not exist": r"^Es g\w+ eine?n? (\w+ )?(Hund|Katze|Pferd|Kuh|Vogel|Schwein|Ente|Kaninchen)\b",
}


@pytest.fixture(scope="module")
def many() -> list[tuple[str, str]]:
    grammar = Grammar(random.Random("wrong"))
    return [grammar.sentence() for _ in range(100_000)]


@pytest.mark.parametrize("name", WRONG)
def test_what_a_german_would_not_say_is_not_there(name: str, many: list[tuple[str, str]]) -> None:
    # Each pattern matches sentences of a grammar that lacks its rule.
    assert [german for _, german in many if re.search(WRONG[name], german)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b[Ss]hould you\b",
        r"\btake along the\b",
        r"\b([Tt]he|[Aa]|[Tt]his|[Ee]very) (\w+ )?child (?!whom)\w+ her \b",
        r"\bbecause [^,]* because of\b",
        r"\b(my|your|his|her|our|their|'s) (\w+ )?(sock|glove|shoe)\b",
        r"\b([Tt]he|[Aa]|[Tt]his) (\w+ )?friends?\b",
        r"\b(Peter|Anna|Maria)\b.*\b\1\b",
        r"\bstay(s|ed)? (in|at|on) (the )?(\w+ )?\w+ at \w+ o'clock",
        r"^(An?|Many|Every) (\w+ )?\w+ is \w+er than\b",
    ],
)
def test_what_english_would_not_say_is_not_there(pattern: str, many: list[tuple[str, str]]) -> None:
    assert [english for english, _ in many if re.search(pattern, english)] == []


def test_sentence_lengths(pairs: list[tuple[str, str]]) -> None:
    lengths = [len(english.split()) for english, _ in pairs]
    assert 8 <= sum(lengths) / len(lengths) <= 12
    assert min(lengths) == 3
    assert 20 <= max(lengths) <= 26


FIRST_TRAIN_PAIRS = [
    ("Whom does the engineer thank?", "Wem dankt der Ingenieur?"),
    ("The artist does not like my duck.", "Der Künstler mag meine Ente nicht."),
]

PHENOMENA = {
    "separable main": r"\b(ruft|rufen|zieht|ziehen|sieht|sehen) .* an\.",
    "separable last": r", (weil|obwohl|dass) .*(anruft|aufmacht|zumacht|einlädt|abholt|mitnimmt|ansieht)\.",
    "separable participle": r"\b(hat|haben) .*(angerufen|aufgemacht|eingeladen|abgeholt|mitgenommen)\.",
    "separable zu": r", .*(abzuholen|anzurufen|einzuladen|aufzumachen|mitzunehmen|wegzuwerfen)\.",
    "sein perfect": r"\b(ist|sind) .*gegangen\.",
    "haben perfect": r"\bhat .*gekauft\.",
    "future": r"\bwird .*(kaufen|lesen)\.",
    "modal": r"\b(kann|muss|sollte|darf|möchte) .*en\.",
    "kein": r"\bkeinen\b",
    "nicht": r"\bnicht\b",
    "weil": r", weil ",
    "dass": r", dass ",
    "wenn": r"\b[Ww]enn ",
    "obwohl": r"\b[Oo]bwohl ",
    "als": r"^Als ",
    "ob": r", ob ",
    "relative nominative": r", der .*, ",
    "relative dative plural": r", mit denen ",
    "um zu": r", um .* zu ",
    "fronted time": r"^(Gestern|Morgen|Bald|Am Montag|Letzte Woche) (hat|haben|ist|sind|wird|will|kann|muss)",
    "genitive possessor": r"\b(das|den|die) .*(meines|deines|seines|ihres|unseres) \w+s\b",
    "during": r"\bwährend (des|der) ",
    "number": r"\b(drei|sieben) \w+",
    "weak masculine": r"\b(den|einen|diesen) (\w+en )?Studenten\b",
    "contraction": r"\bim (\w+en )?Garten",
    "accusative direction": r"\bin den Wald|ins |auf den Tisch",
    "es gibt": r"^Es gibt ",
    "comparative": r"\bälter als ",
    "profession": r" ist (Lehrer|Arzt|Bäcker)\.",
    "wh": r"^(Was|Wen|Wem|Wo|Wann|Warum|Welche[nrs]?|Wie viele|Wer) .*\?",
    "yes no": r"^(Hat|Ist|Kann|Liest|Kauft) .*\?",
    "and": r" und (ich|er|sie|wir|du) ",
    "but": r", aber ",
}


@pytest.mark.parametrize("name", PHENOMENA)
def test_a_phenomenon_is_there(name: str, pairs: list[tuple[str, str]]) -> None:
    pattern = re.compile(PHENOMENA[name])
    assert sum(pattern.search(german) is not None for _, german in pairs) >= 10


def test_every_word_is_frequent_enough_to_be_learnt(pairs: list[tuple[str, str]]) -> None:
    counts = Counter(word for _, german in pairs for word in re.findall(r"\w+", german))
    for noun in NOUN.values():
        seen = sum(counts[form] for form in {*noun.singular, *(() if noun.mass else noun.plural)})
        assert seen >= 45, noun.english
    for adjective in ADJECTIVE.values():
        endings = ("", "e", "en", "er", "es", "em")
        seen = sum(counts[form] for form in {adjective.german, *(adjective.stem + ending for ending in endings)})
        assert seen >= 45, adjective.english


def test_lexicon_is_large_and_one_to_one() -> None:
    assert len(NOUN) + len(ADJECTIVE) + sum(map(len, words.FRAMES.values())) >= 250
    german = Counter(noun.singular[NOM] for noun in NOUN.values())
    assert max(german.values()) == 1


def test_verbs_that_share_their_first_english_word_keep_their_own_objects() -> None:
    assert {noun.kind for noun in things_of(separable("auszuziehen"))} == {"clothes"}
    assert NOUN["doll"] in things_of(separable("mitzunehmen"))
    assert NOUN["door"] not in things_of(separable("einzuschalten"))
    every = [verb.zu for verb in words.FRAMES["transitive"]]
    assert len(set(every)) == len(every)


def test_there_are_millions_of_pairs() -> None:
    # n draws of N equally likely sentences repeat about n²/2N times; unequal ones repeat more often, so the estimate
    # is low. Single clauses repeat, long sentences hardly ever: what counts is that a stream of millions goes on.
    grammar = Grammar(random.Random("size"))
    draws = 60_000
    distinct = len({grammar.sentence()[1] for _ in range(draws)})
    assert draws * draws / (2 * max(1, draws - distinct)) > 1_000_000


@pytest.mark.parametrize(("split", "count"), [("dev", 1), ("train", -1)])
def test_bad_input_is_refused_at_once(split: str, count: int) -> None:
    with pytest.raises(BadInput, match="toy corpus"):
        toy_pairs(split, count)


def test_an_exhausted_grammar_ends_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grammar, "sentence", lambda self: ("One.", "Eins."))
    with pytest.raises(BadInput, match="ask for fewer"):
        list(toy_pairs("train", 2))
