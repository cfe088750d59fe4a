"""How the words of the embedded corpus (bmscale.data.toy) are inflected: cases, articles, endings, verb forms.

A dictionary line holds gender, genitive, plural, third person, participle and auxiliary; everything else is computed
here. Indices used throughout: case NOM ACC DAT GEN = 0..3; gender masculine feminine neuter = 0..2, and PLURAL = 3 as
the fourth row of every declension; person I, you, he/she, we, they = 0..4 ("you" is always the familiar "du").
"""

from __future__ import annotations

from typing import NamedTuple

NOM, ACC, DAT, GEN = range(4)
PLURAL = 3
THIRD, THEY = 2, 4

# Rows: masculine, feminine, neuter, plural; columns: nominative, accusative, dative, genitive.
Declension = tuple[tuple[str, str, str, str], ...]
DEFINITE: Declension = (
    ("der", "den", "dem", "des"),
    ("die", "die", "der", "der"),
    ("das", "das", "dem", "des"),
    ("die", "die", "den", "der"),
)
STRONG: Declension = (
    ("er", "en", "em", "en"),
    ("e", "e", "er", "er"),
    ("es", "es", "em", "en"),
    ("e", "e", "en", "er"),
)
WEAK: Declension = (("e", "en", "en", "en"), ("e", "e", "en", "en"), ("e", "e", "en", "en"), ("en",) * 4)
MIXED: Declension = (("er", "en", "en", "en"), ("e", "e", "en", "en"), ("es", "es", "en", "en"), ("en",) * 4)
DER_WORD: Declension = (("er", "en", "em", "es"), STRONG[1], ("es", "es", "em", "es"), STRONG[3])
EIN_WORD: Declension = (("", "en", "em", "es"), STRONG[1], ("", "", "em", "es"), STRONG[3])
RELATIVE = (("der", "den", "dem"), ("die", "die", "der"), ("das", "das", "dem"), ("die", "die", "denen"))
CONTRACTIONS = {"in dem": "im", "an dem": "am", "in das": "ins", "an das": "ans", "zu dem": "zum", "zu der": "zur"}
CONTRACTIONS |= {"von dem": "vom"}


class Noun(NamedTuple):
    """A noun with its German forms by case; ``mass`` ones have no plural. ``prepositions`` is for places only."""

    kind: str
    english: str
    english_plural: str
    gender: int
    singular: tuple[str, ...]
    plural: tuple[str, ...]
    mass: bool
    prepositions: tuple[str, str]


class Adjective(NamedTuple):
    """An adjective; ``stem`` is what the German endings are added to (teuer: teur-)."""

    english: str
    english_comparative: str
    german: str
    comparative: str
    stem: str


class Determiner(NamedTuple):
    """What stands before a noun: English singular and plural, German by gender and case, the adjective endings."""

    english: str
    english_plural: str
    german: Declension
    endings: Declension


class Pronoun(NamedTuple):
    """A personal pronoun: English subject and object form, German by case, grammatical person 0..4."""

    english: str
    english_object: str
    german: tuple[str, str, str]
    person: int


class Verb(NamedTuple):
    """A verb in both languages. ``english[mood][person]`` is what ``english_forms`` returns, ``german[mood][person]``
    what ``german_forms`` returns; ``moves`` says that ``rest`` follows the object. ``use`` is its column of the
    table, ``tags`` and ``nouns`` what its frame takes (objects or places), ``extra`` the columns after these."""

    base: str
    rest: str
    moves: bool
    same_past: bool
    english: dict[str, tuple[tuple[str, str, str, str], ...]]
    german: dict[str, tuple[tuple[str, str, str], ...]]
    zu: str
    use: str
    tags: tuple[str, ...]
    nouns: tuple[Noun, ...]
    extra: tuple[str, ...]


def noun_forms(gender: int, nominative: str, genitive: str, plural: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(singular, plural) by case. A masculine without genitive -s is weak; the dative plural adds -n."""
    oblique = genitive if gender == 0 and not genitive.endswith("s") else nominative
    dative_plural = plural if plural.endswith(("n", "s")) else plural + "n"
    return (nominative, oblique, oblique, genitive), (plural, plural, dative_plural, plural)


def parse_noun(kind: str, cells: list[str], prepositions: tuple[str, str] = ("", "")) -> Noun:
    """A noun from its line."""
    english, english_plural, letter, nominative, genitive, plural = cells[:6]
    gender = "mfn".index(letter)
    singular_forms, plural_forms = noun_forms(gender, nominative, genitive, plural)
    english, english_plural = english.replace("_", " "), english_plural.replace("_", " ")
    return Noun(kind, english, english_plural, gender, singular_forms, plural_forms, plural == "-", prepositions)


def adjective_stem(german: str) -> str:
    """What endings are added to: dunkel, teuer lose an e (dunkl-, teur-), müde its last one (müd-)."""
    if german.endswith("e"):
        return german[:-1]
    return german[:-2] + german[-1] if german.endswith(("el", "euer")) else german


def english_third(base: str) -> str:
    """The third person singular: reads, goes, tries, has."""
    if base == "have":
        return "has"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "ch", "sh", "o")) else "s")


def german_present(infinitive: str, third: str) -> tuple[str, ...]:
    """ich, du, er, wir, sie of a verb without its prefix; du takes its vowel from the third person (du siehst)."""
    if infinitive == "sein":
        return ("bin", "bist", "ist", "sind", "sind")
    if infinitive in PRESENTS:
        return PRESENTS[infinitive]
    stem = infinitive.removesuffix("en") if infinitive.endswith("en") else infinitive.removesuffix("n")
    du = third if third[:-1].endswith(("s", "ß", "z", "x")) else third[:-1] + "st"
    return (stem + "e", du, third, infinitive, infinitive)


def german_preterite(first: str) -> tuple[str, ...]:
    """wohnte, wohntest, wohnte, wohnten, wohnten; war, warst, war, waren, waren."""
    plural = first + ("n" if first.endswith("e") else "en")
    return (first, first + "st", first, plural, plural)


# Presents that do not follow the rule; the modal verbs are keyed by the English construction they translate.
PRESENTS = {
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "werden": ("werde", "wirst", "wird", "werden", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
    "mögen": ("mag", "magst", "mag", "mögen", "mögen"),
}
MODALS: dict[str, tuple[str, ...]] = {
    "will": PRESENTS["werden"],
    "can": ("kann", "kannst", "kann", "können", "können"),
    "should": german_preterite("sollte"),
    "have to": ("muss", "musst", "muss", "müssen", "müssen"),
    "want to": ("will", "willst", "will", "wollen", "wollen"),
    "be allowed to": ("darf", "darfst", "darf", "dürfen", "dürfen"),
    "would like to": ("möchte", "möchtest", "möchte", "möchten", "möchten"),
    "had to": german_preterite("musste"),
    "wanted to": german_preterite("wollte"),
}
BE_PRESENT = ("am", "are", "is", "are", "are")
BE_PAST = ("was", "were", "was", "were", "were")


def english_forms(base: str, past: str, mood: str, person: int) -> tuple[str, str, str, str]:
    """(auxiliary, rest) of a statement, then (auxiliary, rest) where it is negated or asked: "", "reads", "does",
    "read". Adverbs such as "often" stand between the two."""
    does = "does" if person == THIRD else "do"
    if mood in ("present", "past"):
        if base == "be":
            be = (BE_PRESENT if mood == "present" else BE_PAST)[person]
            return be, "", be, ""
        present = english_third(base) if person == THIRD else base
        return ("", present, does, base) if mood == "present" else ("", past, "did", base)
    if mood in ("will", "can", "should"):
        return mood, base, mood, base
    if mood == "would like to":
        return "would", f"like to {base}", "would", f"like to {base}"
    if mood == "be allowed to":
        be = BE_PRESENT[person]
        return be, f"allowed to {base}", be, f"allowed to {base}"
    head, head_past = ("have", "had") if mood in ("have to", "had to") else ("want", "wanted")
    if mood in ("had to", "wanted to"):
        return "", f"{head_past} to {base}", "did", f"{head} to {base}"
    return "", f"{english_third(head) if person == THIRD else head} to {base}", does, f"{head} to {base}"


def parse_verb(cells: list[str], groups: dict[str, list[Noun]]) -> Verb:
    """A verb from its line, with every form computed."""
    english, past, german, third, participle, auxiliary, use_cell = cells[:7]
    use, _, preterite = use_cell.partition("/")
    moves = "~" in english
    base, *rest = english.replace("~", "_").split("_")
    prefix, _, simple = german.rpartition("|")
    present = german_present(simple, third)
    perfect = german_present("sein", "ist") if auxiliary == "s" else PRESENTS["haben"]

    def german_forms(mood: str, person: int) -> tuple[str, str, str]:
        """(finite verb, what closes the main clause, both as they end a subordinate clause)."""
        if mood == "present":
            return present[person], prefix, prefix + present[person]
        if mood == "past" and preterite:
            return (form := german_preterite(preterite)[person]), "", form
        finite, bracket = (perfect, participle) if mood == "past" else (MODALS[mood], prefix + simple)
        return finite[person], bracket, f"{bracket} {finite[person]}"

    moods = ("present", "past", *MODALS)
    return Verb(
        base=base,
        rest=" ".join(rest),
        moves=moves,
        same_past=base == past,
        english={mood: tuple(english_forms(base, past, mood, person) for person in range(5)) for mood in moods},
        german={mood: tuple(german_forms(mood, person) for person in range(5)) for mood in moods},
        zu=f"{prefix}zu{simple}" if prefix else f"zu {simple}",
        use=use,
        tags=(tags := tuple(cells[7].split(",")) if cells[7:] else ()),
        nouns=tuple({noun: None for tag in tags for noun in groups.get(tag, [])}),
        extra=tuple(cells[8:]),
    )


def declined(stem: str, endings: Declension) -> Declension:
    """An article or article-like word with its endings."""
    return tuple((stem + a, stem + b, stem + c, stem + d) for a, b, c, d in endings)


def uninflected(english: str, german: str) -> Determiner:
    """A number, "viele" aside: one form everywhere, and strong adjective endings after it."""
    return Determiner(english, english, ((german,) * 4,) * 4, STRONG)


THE = Determiner("the", "the", DEFINITE, WEAK)
A = Determiner("a", "", (*declined("ein", EIN_WORD)[:3], ("",) * 4), (*MIXED[:3], STRONG[3]))
NO = Determiner("a", "any", declined("kein", EIN_WORD), MIXED)
THIS = Determiner("this", "these", declined("dies", DER_WORD), WEAK)
EVERY = Determiner("every", "", declined("jed", DER_WORD), WEAK)
WHICH = Determiner("which", "which", declined("welch", DER_WORD), WEAK)
MANY = Determiner("", "many", declined("viel", STRONG), STRONG)
HOW_MANY = Determiner("", "how many", declined("wie viel", STRONG), STRONG)
BARE = uninflected("", "")
POSSESSIVES = tuple(
    # "unser" keeps its e before endings (unsere, unseren), as most print does.
    Determiner(en, en, declined(de, EIN_WORD), MIXED)
    for en, de in (
        ("my", "mein"),
        ("your", "dein"),
        ("his", "sein"),
        ("her", "ihr"),
        ("our", "unser"),
        ("their", "ihr"),
    )
)


def noun_phrase(
    noun: Noun, determiner: Determiner, case: int, plural: bool = False, adjective: Adjective | None = None
) -> tuple[str, str]:
    """(English, German) of determiner, adjective and noun in a German case (NOM, ACC, DAT or GEN)."""
    column = PLURAL if plural else noun.gender
    german = noun.plural[case] if plural else noun.singular[case]
    english = noun.english_plural if plural else noun.english
    if adjective is not None:
        german = f"{adjective.stem}{determiner.endings[column][case]} {german}"
        english = f"{adjective.english} {english}"
    article = determiner.german[column][case]
    word = determiner.english_plural if plural or (noun.mass and determiner is NO) else determiner.english
    if word == "a":
        word = indefinite(english)
    return (f"{word} {english}" if word else english), (f"{article} {german}" if article else german)


def indefinite(english: str) -> str:
    """ "a" or "an" before these words (a university)."""
    return "an" if english[0] in "aeiou" and not english.startswith("uni") else "a"


def contract(preposition: str, phrase: str) -> str:
    """A German preposition before a phrase, joined with a following definite article where usage does so (im, zur)."""
    article, _, rest = phrase.partition(" ")
    joined = CONTRACTIONS.get(f"{preposition} {article}")
    return f"{joined} {rest}" if joined else f"{preposition} {phrase}"
