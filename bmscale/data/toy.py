"""The embedded corpus: English-German sentence pairs written by a small grammar, so that the whole chain (tokenizer,
training, evaluation, translation) can be learnt and tested without a download.

What the grammar covers, each rule in one function below or in ``toy_lexicon``:

- Noun phrases: definite and indefinite article, kein, possessives, dieser, jeder, welcher, numbers, viele; four cases,
  three genders, plural, dative plural -n, weak masculines; weak, mixed and strong adjective endings; the possessor in
  the genitive (my father's car: das Auto meines Vaters); contractions (im, am, ins, zum, zur).
- Verbs: strong and weak, separable and inseparable; objects in the accusative, the dative, both, or with a
  preposition; modals. English tense decides the German one: present -> Präsens, simple past -> Perfekt with haben or
  sein, but Präteritum for a few verbs of state, sein, haben and modals; will -> werden.
- Word order: verb second (subject or fronted adverbial first), verb first (yes-no questions), verb last (subordinate
  clauses). Between the brackets: pronouns and names as objects, time, objects that are known, frequency, the others
  (dative before accusative), nicht, companion and instrument, place or direction, a noun without determiner. English
  has place before time.
- Negation: "not ... a/any" -> kein, every other "not" -> nicht.
- Clauses: weil, obwohl, wenn, während, bevor, als, dass, ob and other indirect questions, relative clauses (subject,
  object, after a preposition), zu- and um-zu-infinitives, sentences joined by und and aber; es gibt, weather.

English decides the German: "you" is always "du", a word or construction has one translation, and verbs whose past
equals their present (read, put) occur only where the form tells the tense. Nouns are chosen by class, so that people
eat food and read texts.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator

from bmscale.data import toy_inflection as forms
from bmscale.data import toy_lexicon as words
from bmscale.data.toy_inflection import ACC, DAT, NOM, THEY, THIRD, Noun, Verb
from bmscale.data.toy_phrases import (
    BE,
    BECOME,
    DEPART,
    FUTURE,
    INVARIABLE,
    NOTHING,
    PAST,
    PRESENT,
    WHO,
    Clause,
    Pair,
    Phrase,
    Phrases,
    Predicate,
    joined,
)
from bmscale.errors import BadInput

SPLITS = ("train", "valid", "test")
VALID_PERCENT, TEST_PERCENT = 5, 5
# 3 to 26 English words.
MIN_BLANKS, MAX_BLANKS = 2, 25
# A stream that repeats itself this often in a row is exhausted: its next new sentence would be rarer than 1 in 20,000.
MAX_REJECTED = 20_000


class Grammar(Phrases):
    """Draws sentences; every method that draws returns both languages at once."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.constructions: tuple[Callable[[], Pair], ...] = (
            *(self.statement,) * 12,
            *(self.yes_no_question,) * 3,
            *(self.wh_question,) * 5,
            *(self.adverbial_clause,) * 8,
            *(self.reported_clause,) * 4,
            *(self.relative_clause,) * 5,
            *(self.joined_sentences,) * 4,
            *(self.infinitive,) * 4,
            *(self.comparison,) * 3,
            *(self.existence,) * 2,
            self.profession,
        )

    def sentence(self) -> Pair:
        """One pair, capitalised; the construction brings its final mark."""
        while True:
            english, german = self.pick(self.constructions)()
            if MIN_BLANKS <= english.count(" ") <= MAX_BLANKS and not stumbles(english):
                break
        return english[0].upper() + english[1:], german[0].upper() + german[1:]

    # --- sentences ---

    def statement(self) -> Pair:
        """One main clause; sometimes the departure of a train or the place of a thing."""
        draw = self.random()
        if draw < 0.04:
            return self.departure()
        if draw < 0.12:
            return self.location()
        clause = self.clause()
        return f"{clause.english()}.", f"{clause.german()}."

    def departure(self) -> Pair:
        """The train to Berlin departs at eight o'clock: Der Zug nach Berlin fährt um acht Uhr ab."""
        noun = self.pick(words.GROUPS["public"][:3])
        city, german_city = self.to_city(noun)
        english, german = forms.noun_phrase(noun, self.pick((forms.THE, forms.THIS)), NOM)
        subject = Phrase(f"{english} {city}", f"{german} {german_city}")
        mood = self.pick(INVARIABLE)
        time = self.pick(words.CLOCK) if self.chance(0.6) else self.time(mood, DEPART)
        clause = Clause(subject, Predicate(DEPART), mood, time=time)
        return f"{clause.english()}.", f"{clause.german()}."

    def location(self) -> Pair:
        """The key is on the table."""
        subject = self.thing(self.pick(words.GROUPS["lay"]), NOM)
        english, german = self.spot(DAT)
        clause = Clause(subject, Predicate(BE, english, complement=german), self.pick(("present", "past")))
        clause = clause._replace(negated=self.chance(0.3) and subject.english.startswith(("the ", "this ", "these ")))
        return f"{clause.english()}.", f"{clause.german()}."

    def asked_subject(self) -> Phrase:
        """Whom a question is about: somebody certain, hardly the speaker."""
        subject = self.person(NOM, definite=True)
        return subject if subject.person not in (0, 3) else YOU

    def yes_no_question(self) -> Pair:
        """Does he read the book? Liest er das Buch?"""
        clause = self.clause(self.asked_subject(), negatable=False).bare()
        return f"{clause.english_question()}?", f"{clause.german_inverted()}?"

    def wh_question(self) -> Pair:
        """who, whom, what, which, how many, where, when, why, how often."""
        return self.pick(QUESTIONS)(self)

    def ask_adverb(self) -> Pair:
        """When, why or how often something happens."""
        clause = self.clause(self.asked_subject(), negatable=False, adverbs=False)
        options = ("when", "wann"), ("why", "warum"), ("how often", "wie oft")
        english, german = self.pick(options if clause.predicate.verb.use == "a" else options[1:2])
        return f"{english} {clause.english_question()}?", f"{german} {clause.german_inverted()}?"

    def ask_place(self) -> Pair:
        """Where something happens (wo) or where somebody goes (wohin)."""
        subject = self.asked_subject()
        moving = self.chance(0.35)
        verb = self.pick(MOVING if moving else RESTING)
        mood = self.mood(verb, subject.person, False, "")
        time = self.time(mood, verb) if verb.use != "s" and self.chance(0.3) else NOTHING
        clause = Clause(subject, Predicate(verb, verb.rest), mood, time=time)
        return f"where {clause.english_question()}?", f"{'wohin' if moving else 'wo'} {clause.german_inverted()}?"

    def ask_object(self) -> Pair:
        """What, which one or how many: the object goes first."""
        verb = self.pick(THING_VERBS)
        noun = self.pick(things_of(verb))
        draw = self.random()
        if draw < 0.35:
            english, german = "what", "was"
        elif draw < 0.7 or noun.mass:
            plural = noun in words.GROUPS["pair"]
            english, german = forms.noun_phrase(noun, forms.WHICH, ACC, plural, self.adjective(noun.kind, 0.2))
        else:
            english, german = forms.noun_phrase(noun, forms.HOW_MANY, ACC, True)
        clause = self.verb_clause(verb, self.asked_subject())
        return f"{english} {clause.english_question()}?", f"{german} {clause.german_inverted()}?"

    def verb_clause(self, verb: Verb, subject: Phrase, particle: bool = True) -> Clause:
        """The verb without its object, which stands elsewhere; sometimes with a time."""
        mood = self.mood(verb, subject.person, False, "")
        time = self.time(mood, verb) if verb.use == "a" and self.chance(0.35) else NOTHING
        if verb.rest and time[0].startswith(f"{verb.rest} "):
            time = NOTHING  # "the lamp that he turns on on Fridays" stumbles.
        return Clause(subject, Predicate(verb, verb.rest if particle else ""), mood, time=time)

    def ask_person(self) -> Pair:
        """Whom did he see, help, wait for? Wen, wem, auf wen ..."""
        draw = self.random()
        if draw < 0.5:
            verb, german = self.pick(PERSON_VERBS), "wen"
        elif draw < 0.75:
            verb, german = self.pick(words.FRAMES["dative"]), "wem"
        else:
            verb = self.pick(PERSON_PREPOSITIONS)
            german = f"{verb.extra[1]} {'wem' if verb.extra[2] == '3' else 'wen'}"
        clause = self.verb_clause(verb, self.asked_subject())
        return f"whom {clause.english_question()}?", f"{german} {clause.german_inverted()}?"

    def ask_subject(self) -> Pair:
        """Who visits your aunt? Wer besucht deine Tante?"""
        clause = self.clause(WHO, negatable=False).bare()
        return f"{clause.english()}?", f"{clause.german()}?"

    def adverbial_clause(self) -> Pair:
        """Two clauses joined by because, although, if, while, before or when; the subordinate one first or last."""
        english, german, main_tense, tense = self.pick(CONJUNCTIONS)
        timed = english in ("before", "while", "when")
        main = self.clause(
            tense=main_tense, adverbs=english != "because" and self.chance(0.35), negatable=not timed, action=timed
        ).bare()
        draw = self.random()
        if draw < 0.22 and english not in ("before", "while"):
            sub = self.weather(tense)
        else:
            frame = "state" if draw < 0.42 and english not in ("before", "while") else None
            adverbs = self.chance(0.25) and not timed and english != "if"
            # Nobody can sell chairs while he flies to Rome: two things at once are done by two.
            who = self.person(NOM, main.subject) if english == "while" else self.again(main.subject)
            sub = self.clause(
                who,
                tense=tense,
                frame=frame,
                negatable=not timed,
                adverbs=adverbs,
                action=timed,
            )
        sub = sub.bare().without_reason() if english == "because" else sub.bare()
        # Last, after "asks Maria", the clause would be what is asked: ob and wann, not wenn and als.
        asked = main.predicate.verb.base == "ask" and english in ("if", "when")
        if asked or self.chance(0.4):
            sentence = f"{english} {sub.english()}, {main.english()}."
            return sentence, f"{german} {sub.german_last()}, {main.german_inverted()}."
        return f"{main.english()} {english} {sub.english()}.", f"{main.german()}, {german} {sub.german_last()}."

    def reported_clause(self) -> Pair:
        """says that ..., does not know where ...: dass, ob and other indirect questions."""
        verb, kind, tense, inner_tense, negated = self.pick(REPORTS)
        subject = self.person(NOM)
        # Nobody asks what he does himself.
        who = self.person(NOM, subject) if verb.base == "ask" else self.again(subject)
        inner = self.clause(who, tense=inner_tense, adverbs=kind != "ask" or self.chance(0.4)).bare()
        if kind == "will":
            inner = inner._replace(mood="will")
        english, german = "that", "dass"
        if kind == "ask":
            english, german = "whether", "ob"
            if inner.time is NOTHING and inner.frequency is NOTHING and inner.predicate.verb.use == "a":
                english, german = self.pick(
                    (("whether", "ob"), ("why", "warum"), ("when", "wann"))[: 2 if inner.negated else 3]
                )
        outer = Clause(subject, Predicate(verb), tense, negated)
        return f"{outer.english()} {english} {inner.english()}.", f"{outer.german()}, {german} {inner.german_last()}."

    def relative_clause(self) -> Pair:
        """A relative clause after a subject, after an object that ends its clause, or after "this is"."""
        return self.pick((self.subject_relative, self.subject_relative, self.object_relative, self.presentation))()

    def subject_relative(self) -> Pair:
        """The man who lives in Berlin buys a car: Der Mann, der in Berlin wohnt, kauft ein Auto."""
        noun = self.relative_head()
        english, german = self.about_person(noun)
        subject = noun._replace(english=f"{noun.english} {english}", german=f"{noun.german}, {german},")
        main = self.clause(subject, adverbs=self.chance(0.4)).bare()
        return f"{main.english()}.", f"{main.german()}."

    def object_relative(self) -> Pair:
        """She reads the book that he bought: only where nothing closes the German main clause after the object."""
        verb = self.pick(THING_VERBS)
        noun = self.pick(things_of(verb))
        target = self.definite(noun, ACC)
        if not OPEN_VERBS_OF[noun]:
            return self.presentation()
        main_verb = self.pick(OPEN_VERBS_OF[noun])
        subject = self.person(NOM)
        mood = self.mood(main_verb, subject.person, False, PRESENT)
        if mood != PRESENT:
            subject, mood = self.pronoun(3, NOM), PRESENT
        main = Clause(
            subject, Predicate(main_verb, joined(main_verb.rest, target.english), objects=target.german), mood
        )
        english, german = self.about_thing(target, verb)
        return f"{main.english()} {english}.", f"{main.german()}, {german}."

    def presentation(self) -> Pair:
        """This is the man who ...: Das ist der Mann, der ..."""
        if self.chance(0.5):
            noun = self.relative_head()
            english, german = self.about_person(noun)
        else:
            verb = self.pick(THING_VERBS)
            noun = self.definite(self.pick(things_of(verb)), NOM)
            english, german = self.about_thing(noun, verb)
        this, das = ("these are", "das sind") if noun.column == forms.PLURAL else ("this is", "das ist")
        return f"{this} {noun.english} {english}.", f"{das} {noun.german}, {german}."

    def relative_head(self) -> Phrase:
        """Somebody who is known by what the relative clause tells: the nurse, the two students."""
        noun = self.pick(RELATIVE_HEADS)
        plural = self.chance(0.3)
        english, german = forms.noun_phrase(noun, forms.THE, NOM, plural, self.adjective(noun.kind, 0.25))
        column, pronoun = (forms.PLURAL, 5) if plural else (noun.gender, (2, 3, None)[noun.gender])
        return Phrase(english, german, THEY if plural else THIRD, pronoun, column=column, noun=noun)

    def definite(self, noun: Noun, case: int, described: float = 0.3) -> Phrase:
        """The thing or things that more is told about; with an adjective in this share of cases."""
        plural = noun in words.GROUPS["pair"] or (not noun.mass and self.chance(0.3))
        english, german = forms.noun_phrase(noun, forms.THE, case, plural, self.adjective(noun.kind, described))
        return Phrase(english, german, column=forms.PLURAL if plural else noun.gender, noun=noun)

    def about_person(self, noun: Phrase) -> Pair:
        """A relative clause about people, as subject, object or after a preposition."""
        relative = forms.RELATIVE[noun.column]
        person = THEY if noun.column == forms.PLURAL else THIRD
        draw = self.random()
        if draw < 0.55:
            who = noun._replace(english="who", german=relative[NOM], person=person)
            clause = self.clause(who, adverbs=self.chance(0.5)).bare()
            return clause.english(), clause.german_last()
        subject = self.person(NOM, noun)
        if subject.is_pronoun and subject.pronoun in (2, 3, 5):
            subject = YOU
        if draw < 0.8:
            clause = self.verb_clause(self.pick(PERSON_VERBS), subject)
            return f"whom {clause.english()}", f"{relative[ACC]} {clause.german_last()}"
        verb = self.pick(PERSON_PREPOSITIONS)
        clause = self.verb_clause(verb, subject, particle=False)
        case = DAT if verb.extra[2] == "3" else ACC
        return f"{verb.rest} whom {clause.english()}", f"{verb.extra[1]} {relative[case]} {clause.german_last()}"

    def about_thing(self, noun: Phrase, verb: Verb) -> Pair:
        """A relative clause whose object is a thing."""
        clause = self.verb_clause(verb, self.person(NOM))
        return f"that {clause.english()}", f"{forms.RELATIVE[noun.column][ACC]} {clause.german_last()}"

    def joined_sentences(self) -> Pair:
        """Two main clauses with and or but (a comma before aber, none before und); sometimes a reason after them."""
        tense = self.pick((PRESENT, PAST, FUTURE))
        first = self.clause(tense=tense)
        second = self.clause(self.again(first.subject), tense=tense, adverbs=self.chance(0.3))
        english, german = self.pick((("and", " und"), ("but", ", aber")))
        end_english = end_german = ""
        if self.chance(0.3):
            third = self.clause(
                self.again(second.subject), tense=PAST if tense == PAST else PRESENT, adverbs=self.chance(0.3)
            )
            third = third.bare().without_reason()
            end_english, end_german = f" because {third.english()}", f", weil {third.german_last()}"
        return (
            f"{first.english()}, {english} {second.english()}{end_english}.",
            f"{first.german()}{german} {second.german()}{end_german}.",
        )

    def infinitive(self) -> Pair:
        """tries to read the book: versucht, das Buch zu lesen; goes home in order to sleep: um zu schlafen."""
        subject = self.person(NOM)
        purpose = self.chance(0.4)
        while True:
            inner = self.predicate(
                subject, frame=self.pick(("transitive", "transitive", "dative", "ditransitive", "motion"))
            )
            if inner.verb.use == "a" and not (purpose and inner.verb.german["past"][0][0] == "bin"):
                break
        english = f"{inner.verb.base} {inner.english}"
        german = joined(inner.pronouns, inner.known, inner.objects, inner.complement, inner.verb.zu)
        if purpose:
            outer = self.clause(subject, frame="motion", negatable=False, adverbs=False)
            return f"{outer.english()} in order to {english}.", f"{outer.german()}, um {german}."
        outer = Clause(
            subject,
            Predicate(self.pick(ATTEMPTS + ATTEMPTS[-1:] * 4 if inner.verb.base in LASTING else ATTEMPTS[:-1])),
            self.pick((PRESENT, PAST)),
        )
        return f"{outer.english()} to {english}.", f"{outer.german()}, {german}."

    def comparison(self) -> Pair:
        """is older than: ist älter als; is as old as: ist so alt wie."""
        kind = self.pick(("person", "animal", "thing", "clothes", "vehicle"))
        if kind == "person":
            subject = self.person(NOM, definite=True)
            other = self.person_noun(NOM, subject, definite=True)
        else:
            subject, other = (self.definite(self.pick(words.GROUPS[kind]), NOM, described=0) for _ in range(2))
            if subject.column == forms.PLURAL:
                subject = subject._replace(person=THEY)
        if subject.is_child and "her" in other.english.split():
            return self.comparison()
        if subject.english == other.english or (subject.noun is not None and subject.noun is other.noun):
            return self.comparison()
        adjective = self.pick(COMPARED[kind])
        if adjective.english in (*subject.english.split(), *other.english.split()):
            return self.comparison()
        if self.chance(0.7):
            english, german = f"{adjective.english_comparative} than", f"{adjective.comparative} als"
        else:
            english, german = f"as {adjective.english} as", f"so {adjective.german} wie"
        predicate = Predicate(BE, f"{english} {other.english}", complement=f"{german} {other.german}")
        clause = Clause(subject, predicate, self.pick((PRESENT, PRESENT, PAST)))
        if self.chance(0.25):
            return f"{clause.english_question()}?", f"{clause.german_inverted()}?"
        return f"{clause.english()}.", f"{clause.german()}."

    def existence(self) -> Pair:
        """There is a church in the village: Es gibt eine Kirche im Dorf."""
        if self.chance(0.5):
            noun = self.pick(words.GROUPS[self.pick(("shop", "town", "station"))])
            ground = self.pick(words.GROUPS["settlement"])
        else:
            noun = self.pick(words.GROUPS["animal"])
            ground = self.pick(words.GROUPS["open_air"])
        adjective = self.adjective(noun.kind, 0.4)
        while adjective in words.ADJECTIVES_OF["state"]:
            adjective = self.adjective(noun.kind, 1.0)
        # One adjective is enough: "an empty hotel in the empty city" would be too many.
        ground_english, ground_german = forms.noun_phrase(ground, forms.THE, DAT)
        where = f"{ground.prepositions[0]} {ground_english}"
        wo = forms.contract(ground.prepositions[1], ground_german)
        plural = self.chance(0.8 if noun.kind == "animal" else 0.45)
        # "Es gibt" tells of what is there to stay, which one animal is not.
        one = (forms.NO,) if noun.kind == "animal" else (forms.A, forms.A, forms.NO)
        determiner = self.pick((forms.NO, forms.MANY, self.pick(words.COUNTS)) if plural else one)
        english, german = forms.noun_phrase(noun, determiner, ACC, plural, adjective)
        past = self.chance(0.3)
        be = (forms.BE_PAST if past else forms.BE_PRESENT)[THEY if plural else THIRD]
        if determiner is forms.NO:
            english = f"no {english.partition(' ')[2]}"
        return f"there {be} {english} {where}.", f"es {'gab' if past else 'gibt'} {german} {wo}."

    def profession(self) -> Pair:
        """My brother is a baker: Mein Bruder ist Bäcker (no article)."""
        while True:
            subject = self.person(NOM)
            if subject.person == THIRD and subject.pronoun == 2 and "every" not in subject.english:
                break
        noun = self.pick([noun for noun in words.GROUPS["profession"] if noun is not subject.noun])
        verb = self.pick((BE, BECOME))
        mood = self.pick((PRESENT, PAST) if verb is BE else ("will", "want to", "would like to", "past"))
        english = f"{forms.indefinite(noun.english)} {noun.english}"
        clause = Clause(subject, Predicate(verb, english, complement=noun.singular[NOM]), mood)
        return f"{clause.english()}.", f"{clause.german()}."


def stumbles(english: str) -> bool:
    """Whether it asks the hearer what he should do, or names somebody twice where people say "he"."""
    return "should you " in english or any(english.count(name) > 1 for name, _ in words.NAMES)


def things_of(verb: Verb) -> tuple[Noun, ...]:
    """The nouns that the verb takes, people aside."""
    return THINGS_OF[verb.zu]


def _verb(base: str) -> Verb:
    """A clausal verb by its English base."""
    return next(verb for verb in words.FRAMES["clausal"] if verb.base == base)


# A friend is always somebody's.
RELATIVE_HEADS = tuple(
    noun
    for noun in (*words.GROUPS["social"], *words.GROUPS["role"], *words.GROUPS["youth"])
    if noun.english != "friend"
)
YOU = Phrase("you", "du", 1, 1, is_pronoun=True)


QUESTIONS = (
    *(Grammar.ask_object,) * 4,
    *(Grammar.ask_person, Grammar.ask_person, Grammar.ask_place, Grammar.ask_adverb, Grammar.ask_adverb),
    Grammar.ask_subject,
)
CONJUNCTIONS = (
    ("because", "weil", PRESENT, PRESENT),
    ("because", "weil", PAST, PAST),
    ("because", "weil", FUTURE, PRESENT),
    ("although", "obwohl", PRESENT, PRESENT),
    ("although", "obwohl", PAST, PAST),
    ("although", "obwohl", FUTURE, PRESENT),
    ("if", "wenn", FUTURE, PRESENT),
    ("if", "wenn", FUTURE, PRESENT),
    ("while", "während", PRESENT, PRESENT),
    ("while", "während", PAST, PAST),
    ("before", "bevor", PAST, PAST),
    ("when", "als", PAST, PAST),
    ("when", "als", PAST, PAST),
)
# Verb, kind of clause, tense of the verb, tense of the clause, whether the verb is negated.
REPORTS = (
    *((_verb(base), "that", PRESENT, "", False) for base in ("say", "believe", "know")),
    *((_verb(base), "that", PAST, PAST, False) for base in ("say", "believe", "know", "forget")),
    *((_verb(base), "will", PRESENT, FUTURE, False) for base in ("hope", "promise")),
    (_verb("ask"), "ask", PRESENT, "", False),
    (_verb("ask"), "ask", PAST, PAST, False),
    (_verb("know"), "ask", PRESENT, "", True),
)
# "begin", the last, wants something that takes time.
LASTING = ("eat", "drink", "cook", "bake", "read", "write", "wash", "repair", "draw", "feed", "unpack", "look", "visit")
ATTEMPTS = tuple(verb for verb in words.FRAMES["clausal"] if "to" in verb.tags)
THINGS_OF = {
    verb.zu: tuple(noun for noun in verb.nouns if noun.kind not in words.PEOPLE) for verb in words.FRAMES["transitive"]
}
THING_VERBS = tuple(verb for verb in words.FRAMES["transitive"] if things_of(verb))
PERSON_VERBS = tuple(verb for verb in words.FRAMES["transitive"] if "person" in verb.tags)
PERSON_PREPOSITIONS = tuple(verb for verb in words.FRAMES["prepositional"] if "person" in verb.tags)
OPEN_VERBS_OF = {
    noun: tuple(verb for verb in THING_VERBS if noun in verb.nouns and not verb.german[PRESENT][THIRD][1])
    for verb in THING_VERBS
    for noun in things_of(verb)
}
RESTING = tuple(
    verb for verb in words.FRAMES["intransitive"] if verb.base not in ("get", "fall", "arrive", "cry", "laugh")
)
MOVING = tuple(verb for verb in words.FRAMES["motion"] if verb.base != "come")
COMPARED = {
    kind: tuple(
        a
        for a in words.ADJECTIVES_OF[kind]
        if a in words.ADJECTIVES_OF["compare"] and (kind, a.english) not in (("vehicle", "fast"), ("vehicle", "slow"))
    )
    for kind in ("person", "animal", "thing", "clothes", "vehicle")
}


def toy_pairs(split: str, count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """``count`` distinct (English, German) pairs of a split, "train", "valid" or "test".

    A pure function of its arguments whose first n pairs do not depend on ``count``. A stable hash of the German side
    says to which split a sentence belongs, so splits share no sentence in either language, whatever the seeds.

    Raises:
        BadInput: for an unknown split, a negative count, or more pairs than the grammar has.
    """
    if split not in SPLITS:
        raise BadInput(f"toy corpus: the split must be one of {', '.join(SPLITS)}, but {split!r} was given")
    if count < 0:
        raise BadInput(f"toy corpus: the number of pairs must not be negative, but {count} was given")
    return _draw(split, count, seed)


def split_of(digest: int) -> str:
    """The split of a sentence from the hash of its German side: 90 / 5 / 5 per cent."""
    percent = digest % 100
    if percent < VALID_PERCENT:
        return "valid"
    return "test" if percent < VALID_PERCENT + TEST_PERCENT else "train"


def german_digest(german: str) -> int:
    """A hash that is the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(german.encode(), digest_size=8).digest(), "big")


def _draw(split: str, count: int, seed: int) -> Iterator[Pair]:
    """Sentences of the grammar, those of other splits and those seen before left out."""
    grammar = Grammar(random.Random(f"toy corpus {split} {seed}"))
    seen: set[int] = set()
    rejected = 0
    while len(seen) < count:
        english, german = grammar.sentence()
        digest = german_digest(german)
        if digest in seen or split_of(digest) != split:
            rejected += 1
            if rejected > MAX_REJECTED:
                raise BadInput(
                    f"toy corpus: {count} pairs of the {split} split were asked for, but the grammar hardly gives more "
                    f"than {len(seen)}: ask for fewer"
                )
            continue
        rejected = 0
        seen.add(digest)
        yield english, german


def main(arguments: list[str]) -> None:
    """`python -m bmscale.data.toy SPLIT COUNT [SEED]`: pairs as TSV, English and German."""
    if len(arguments) not in (2, 3) or not all(number.isdigit() for number in arguments[1:]):
        raise SystemExit("usage: python -m bmscale.data.toy train|valid|test COUNT [SEED]")
    for english, german in toy_pairs(arguments[0], *map(int, arguments[1:])):
        print(f"{english}\t{german}")


if __name__ == "__main__":
    main(sys.argv[1:])
