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
  clauses). Between the brackets: pronoun objects, time, noun objects (dative before accusative), nicht, companion and
  instrument, place or direction. English has place before time.
- Negation: "not ... a/any" -> kein, every other "not" -> nicht.
- Clauses: weil, obwohl, wenn, während, bevor, als, dass, ob and other indirect questions, relative clauses (subject,
  object, after a preposition), zu- and um-zu-infinitives, sentences joined by und and aber; clauses with es and es gibt.

English decides the German: "you" is always "du", a word or construction has one translation, and verbs whose past
equals their present (read, put) occur only where the form tells the tense. Nouns are chosen by class, so that people
eat food and read texts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from bmscale.data import toy_lexicon as words
from bmscale.data.toy_lexicon import ACC, DAT, GEN, NOM, THEY, THIRD, Adjective, Determiner, Noun, Verb
from bmscale.errors import BadInput

T = TypeVar("T")
Pair = tuple[str, str]

SPLITS = ("train", "valid", "test")
VALID_PERCENT, TEST_PERCENT = 5, 5
# A stream that repeats itself this often in a row is exhausted: its next new sentence would be rarer than 1 in 20,000.
MAX_REJECTED = 20_000

INVARIABLE = ("present", "past", "will")
MOODS = {
    "a": (*("present",) * 7, *("past",) * 8, *("will",) * 3, "can", "can", "should", "have to", "had to")
    + ("want to", "wanted to", "be allowed to", "would like to"),
    "e": (*("present",) * 4, *("past",) * 5, *("will",) * 2),
    "s": ("present", "present", "past"),
}
TENSE_OF = {"present": "present", "past": "past", "had to": "past", "wanted to": "past"}
PAST, PRESENT, FUTURE = "past", "present", "future"
# "every" and numbers are for subjects and objects that are not negated.
PERSON_DETERMINERS = (words.THE,) * 5 + (words.A, words.THIS)
OWNERS = words.POSSESSIVES
BE, PUT, BECOME, RAIN, SNOW, DEPART = words.FRAMES["single"]
NEED_PLACE = ("stay", "live", "arrive")


class Phrase(NamedTuple):
    """A noun phrase that fills a role. ``person`` is 0..4; ``pronoun`` its pronoun (None where English and German
    would disagree); ``kein`` says that it carries the clause's negation, ``is_pronoun`` that it stands early."""

    english: str
    german: str
    person: int = THIRD
    pronoun: int | None = None
    kein: bool = False
    is_pronoun: bool = False
    column: int = 0


NOTHING: Pair = ("", "")
NO_PHRASE = Phrase("", "")


class Predicate(NamedTuple):
    """A verb and what it governs, without subject and tense: the parts between the German brackets, in order."""

    verb: Verb
    english: str = ""
    pronouns: str = ""
    objects: str = ""
    complement: str = ""
    kein: bool = False


class Clause(NamedTuple):
    """One finite clause; its methods put the same parts in the order that each construction asks for."""

    subject: Phrase
    predicate: Predicate
    mood: str
    negated: bool = False
    time: Pair = NOTHING
    frequency: Pair = NOTHING
    front: bool = False

    def english(self) -> str:
        """Statement order: subject, verb, objects, place, time (or the time first)."""
        subject, predicate = self.subject, self.predicate
        auxiliary, rest, ask_auxiliary, ask_rest = predicate.verb.english[self.mood][subject.person]
        if self.negated:
            verb = "cannot" if ask_auxiliary == "can" else f"{ask_auxiliary} not"
            auxiliary, rest = verb, ask_rest
        if self.front:
            start, time = f"{self.time[0]},", ""
        else:
            start, time = "", self.time[0]
        return joined(start, subject.english, auxiliary, self.frequency[0], rest, predicate.english, time)

    def english_question(self) -> str:
        """Auxiliary before the subject."""
        predicate = self.predicate
        _, _, auxiliary, rest = predicate.verb.english[self.mood][self.subject.person]
        return joined(auxiliary, self.subject.english, self.frequency[0], rest, predicate.english, self.time[0])

    def middle(self, time: str) -> str:
        """What stands between subject or finite verb and the closing bracket."""
        predicate = self.predicate
        negation = "nicht" if self.negated and not predicate.kein else ""
        return joined(predicate.pronouns, time, self.frequency[1], predicate.objects, negation, predicate.complement)

    def german(self) -> str:
        """Verb second: the subject or the fronted time comes first."""
        if self.front:
            return f"{self.time[1]} {self.german_inverted(time='')}"
        finite, bracket, _ = self.predicate.verb.german[self.mood][self.subject.person]
        return joined(self.subject.german, finite, self.middle(self.time[1]), bracket)

    def german_inverted(self, time: str | None = None) -> str:
        """Finite verb, then subject: questions, and what follows anything fronted."""
        finite, bracket, _ = self.predicate.verb.german[self.mood][self.subject.person]
        return joined(finite, self.subject.german, self.middle(self.time[1] if time is None else time), bracket)

    def german_last(self) -> str:
        """Finite verb at the end: subordinate clauses."""
        _, _, final = self.predicate.verb.german[self.mood][self.subject.person]
        return joined(self.subject.german, self.middle(self.time[1]), final)

    def bare(self) -> Clause:
        """The same without anything fronted."""
        return self._replace(front=False)


def joined(*parts: str) -> str:
    """The parts that are not empty, with blanks between."""
    return " ".join(filter(None, parts))


class Grammar:
    """Draws sentences; every method that draws returns both languages at once."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng.random
        self.constructions: tuple[Callable[[], Pair], ...] = (
            *(self.statement,) * 12,
            *(self.yes_no_question,) * 3,
            *(self.wh_question,) * 5,
            *(self.adverbial_clause,) * 8,
            *(self.reported_clause,) * 4,
            *(self.relative_clause,) * 5,
            *(self.joined_sentences,) * 4,
            *(self.infinitive,) * 4,
            *(self.comparison,) * 2,
            *(self.existence,) * 2,
            self.profession,
        )

    def sentence(self) -> Pair:
        """One pair, capitalised; the construction brings its final mark."""
        english, german = self.pick(self.constructions)()
        return english[0].upper() + english[1:], german[0].upper() + german[1:]

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely; several times faster than random.choice."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    # --- noun phrases ---

    def adjective(self, kind: str, probability: float) -> Adjective | None:
        """An adjective that suits the kind of noun, or none."""
        return self.pick(words.ADJECTIVES_OF[kind]) if kind in words.ADJECTIVES_OF and self.chance(probability) else None

    def pronoun(self, index: int, case: int) -> Phrase:
        """The pronoun of this index in ``words.PRONOUNS``."""
        pronoun = words.PRONOUNS[index]
        english = pronoun.english if case == NOM else pronoun.english_object
        return Phrase(english, pronoun.german[case], pronoun.person, index, is_pronoun=True)

    def person(self, case: int, subject: Phrase | None = None) -> Phrase:
        """Somebody: a pronoun, a name or a noun; as an object never the subject itself."""
        draw = self.random()
        if draw < 0.27:
            index = int(self.random() * 6)
            if subject is None:
                return self.pronoun(index, case)
            # "I see us" is not said either.
            if index != subject.pronoun and {index, subject.pronoun} != {0, 4}:
                return self.pronoun(index, case)
        if draw < 0.36:
            name, gender = self.pick(words.NAMES)
            if subject is None or subject.english != name:
                return Phrase(name, name, THIRD, 2 + gender, column=gender)
        return self.person_noun(case, subject)

    def person_noun(self, case: int, subject: Phrase | None = None) -> Phrase:
        """A person named by a noun: relatives with their owner, the others with any determiner."""
        noun = self.pick(words.GROUPS["person"])
        draw = self.random()
        plural = draw < (0.12 if noun.kind == "kin" else 0.25)
        if noun.kind == "kin":
            plural = plural and noun.english not in ("father", "mother")
            determiner = self.pick(OWNERS)
        elif noun.kind == "social" and draw > 0.6:
            determiner = self.pick(OWNERS)
        elif subject is None and draw > 0.93:
            determiner = words.EVERY
        elif plural and draw < 0.12:
            determiner = self.pick(words.COUNTS) if draw < 0.07 else words.MANY
        elif plural:
            determiner = words.THE if draw < 0.2 else words.THIS
        else:
            determiner = self.pick(PERSON_DETERMINERS)
        english, german = words.noun_phrase(noun, determiner, case, plural, self.adjective(noun.kind, 0.22))
        if subject is not None and subject.english == english:
            return self.person_noun(case, subject)
        pronoun = 5 if plural else (2, 3, None)[noun.gender]
        column = words.PLURAL if plural else noun.gender
        return Phrase(english, german, THEY if plural else THIRD, pronoun, column=column)

    def thing(self, noun: Noun, case: int, negated: bool = False) -> Phrase:
        """A thing, animal, text or food: with kein where the clause is negated and the thing not a certain one."""
        adjective = self.adjective(noun.kind, 0.3)
        draw = self.random()
        plural = not noun.mass and draw < 0.3
        if draw > 0.9 and noun.kind not in ("food", "drink") and not noun.mass:
            return self.owned(noun, case, adjective)
        chosen: Determiner
        second = self.random()
        if negated:
            chosen = words.NO if second < 0.6 else (words.THE if second < 0.8 else self.pick(OWNERS))
        elif noun.mass:
            chosen = words.BARE if second < 0.6 else words.THE
        elif plural:
            options = (words.THE, words.MANY, words.THIS, self.pick(OWNERS))
            chosen = self.pick(words.COUNTS) if second < 0.4 else self.pick(options)
        else:
            chosen = self.pick((words.THE, words.THE, words.A, words.A, words.THIS, self.pick(OWNERS)))
        english, german = words.noun_phrase(noun, chosen, case, plural, adjective)
        column = words.PLURAL if plural else noun.gender
        return Phrase(english, german, THEY if plural else THIRD, kein=chosen is words.NO, column=column)

    def owned(self, noun: Noun, case: int, adjective: Adjective | None) -> Phrase:
        """my father's old car: das alte Auto meines Vaters."""
        owner = self.pick(words.GROUPS["person"])
        determiner = self.pick(OWNERS) if owner.kind in ("kin", "social") else words.THE
        owner_english, owner_german = words.noun_phrase(owner, determiner, GEN)
        _, german = words.noun_phrase(noun, words.THE, case, False, adjective)
        english, _ = words.noun_phrase(noun, words.BARE, case, False, adjective)
        return Phrase(f"{owner_english}'s {english}", f"{german} {owner_german}", column=noun.gender)

    def place(self, noun: Noun) -> Pair:
        """Where: in a small hotel, im alten Park."""
        adjective = self.adjective("place", 0.25) if not noun.mass else None
        determiner = words.A if adjective and self.chance(0.4) else words.THE
        english, german = words.noun_phrase(noun, determiner, DAT, False, adjective)
        preposition, german_preposition = noun.prepositions
        return f"{preposition} {english}", words.contract(german_preposition, german)

    def place_of(self, classes: Sequence[str]) -> Pair:
        """A place of one of the classes; "city" is a name."""
        name = self.pick(classes)
        if name != "city":
            return self.place(self.pick(words.GROUPS[name]))
        english, german = self.pick(words.CITIES)
        return f"in {english}", f"in {german}"

    def destination(self, tags: Sequence[str]) -> Pair:
        """Where to: to the station, into the forest, to the doctor, to Berlin."""
        way = self.pick(tags)
        if way == "city":
            english, german = self.pick(words.CITIES)
            return f"to {english}", f"nach {german}"
        if way == "person":
            english, german = words.noun_phrase(self.pick(words.GROUPS["social"]), self.pick(OWNERS), DAT)
            return f"to {english}", words.contract("zu", german)
        if way == "into":
            noun = self.pick(words.GROUPS[self.pick(("home", "town"))])
            english, german = words.noun_phrase(noun, words.THE, ACC, False, self.adjective("place", 0.2))
            return f"into {english}", words.contract("in", german)
        noun = self.pick(words.GROUPS[self.pick(("shop", "study", "station", "outdoors"))])
        english, german = words.noun_phrase(noun, words.THE, DAT, False, self.adjective("place", 0.2))
        return f"to {english}", words.contract("zu", german)

    def companion(self, subject: Phrase) -> Pair:
        """with his friend, without my dog."""
        if self.chance(0.3):
            english, german = words.noun_phrase(self.pick(words.GROUPS["pet"]), self.pick(OWNERS), ACC)
            return f"without {english}", f"ohne {german}"
        other = self.person(DAT, subject)
        return f"with {other.english}", f"mit {other.german}"

    # --- predicates ---

    def predicate(self, subject: Phrase, negated: bool = False, frame: str | None = None) -> Predicate:
        """A verb with its objects and places."""
        draw = self.random()
        if frame is None:
            frame = FRAME_WHEEL[int(draw * len(FRAME_WHEEL))]
        return PREDICATES[frame](self, subject, negated)

    def transitive(self, subject: Phrase, negated: bool) -> Predicate:
        """Accusative object, sometimes with a place, sometimes for somebody."""
        verb = self.pick(words.FRAMES["transitive"])
        noun = self.pick(verb.nouns)
        if noun.kind in ("kin", "social", "role"):
            target = self.person(ACC, subject)
        else:
            target = self.thing(noun, ACC, negated)
        english, german = NOTHING
        if verb.extra[0] != "-" and self.chance(0.3):
            english, german = self.place_of(verb.extra)
        elif verb.base in ("buy", "cook", "bake", "order", "write", "draw") and not negated and self.chance(0.35):
            other = self.person(ACC, subject)
            english, german = f"for {other.english}", f"für {other.german}"
        if verb.moves and target.is_pronoun:
            english = joined(target.english, verb.rest, english)
        else:
            english = joined(verb.rest, target.english, english)
        pronouns, objects = (target.german, "") if target.is_pronoun else ("", target.german)
        return Predicate(verb, english, pronouns, objects, german, target.kein)

    def dative(self, subject: Phrase, negated: bool) -> Predicate:
        """Verbs such as helfen."""
        verb = self.pick(words.FRAMES["dative"])
        other = self.person(DAT, subject)
        pronouns, objects = (other.german, "") if other.is_pronoun else ("", other.german)
        return Predicate(verb, joined(verb.rest, other.english), pronouns, objects)

    def ditransitive(self, subject: Phrase, negated: bool) -> Predicate:
        """gives the child a book: gibt dem Kind ein Buch."""
        verb = self.pick(words.FRAMES["ditransitive"])
        other = self.person(DAT, subject)
        target = self.thing(self.pick(verb.nouns), ACC, negated)
        pronouns, objects = (other.german, "") if other.is_pronoun else ("", other.german)
        return Predicate(
            verb, f"{other.english} {target.english}", pronouns, joined(objects, target.german), kein=target.kein
        )

    def prepositional(self, subject: Phrase, negated: bool) -> Predicate:
        """wait for the bus: auf den Bus warten."""
        verb = self.pick(words.FRAMES["prepositional"])
        _, preposition, case_digit = verb.extra
        case = DAT if case_digit == "3" else ACC
        noun = self.pick(verb.nouns)
        if noun.kind in ("kin", "social", "role"):
            target = self.person(case, subject)
        else:
            # A negated indefinite would be "auf kein ..." here, which few would say.
            english, german = words.noun_phrase(noun, self.pick((words.THE, self.pick(OWNERS))), case)
            target = Phrase(english, german)
        complement = words.contract(preposition, target.german)
        return Predicate(verb, f"{verb.rest} {target.english}", complement=complement)

    def intransitive(self, subject: Phrase, negated: bool) -> Predicate:
        """A verb alone, with a manner or with a place."""
        verb = self.pick(words.FRAMES["intransitive"])
        manners = verb.extra[0].split(",") if verb.extra[0] != "-" else []
        draw = self.random()
        english, german = NOTHING
        if verb.tags[0] != "-" and (draw < 0.55 or verb.base in NEED_PLACE):
            english, german = self.place_of(verb.tags)
            if not negated and verb.base not in ("live", "arrive") and self.chance(0.2):
                with_english, with_german = self.companion(subject)
                english, german = f"{english} {with_english}", f"{with_german} {german}"
        elif manners and draw < 0.9:
            english = self.pick(manners)
            german = words.MANNERS[english]
        return Predicate(verb, joined(verb.rest, english), complement=german)

    def motion(self, subject: Phrase, negated: bool) -> Predicate:
        """go to the station with my brother: mit meinem Bruder zum Bahnhof gehen."""
        verb = self.pick(words.FRAMES["motion"])
        english, german = self.destination(verb.tags)
        if verb.base == "travel" and self.chance(0.4):
            noun = self.pick(words.GROUPS["vehicle"])
            _, vehicle = words.noun_phrase(noun, words.THE, DAT)
            english, german = f"{english} by {noun.english}", f"mit {vehicle} {german}"
        elif not negated and self.chance(0.25):
            with_english, with_german = self.companion(subject)
            english, german = f"{english} {with_english}", f"{with_german} {german}"
        return Predicate(verb, english, complement=german)

    def putting(self, subject: Phrase, negated: bool) -> Predicate:
        """puts the key on the table: legt den Schlüssel auf den Tisch."""
        target = self.thing(self.pick(words.GROUPS["lay"]), ACC, negated)
        english, german = self.spot(ACC)
        return Predicate(PUT, f"{target.english} {english}", objects=target.german, complement=german, kein=target.kein)

    def spot(self, case: int) -> Pair:
        """On, under, behind or next to a piece of furniture, in the accusative (whither) or the dative (where)."""
        english, german = self.pick(SPOTS)
        noun_english, noun_german = words.noun_phrase(self.pick(words.GROUPS["furniture"]), words.THE, case)
        return f"{english} {noun_english}", f"{german} {noun_german}"

    def state(self, subject: Phrase, negated: bool) -> Predicate:
        """is tired: ist müde."""
        adjective = self.pick(words.ADJECTIVES_OF["state"])
        return Predicate(BE, adjective.english, complement=adjective.german)

    # --- clauses ---

    def clause(
        self,
        subject: Phrase | None = None,
        *,
        tense: str = "",
        frame: str | None = None,
        negatable: bool = True,
        adverbs: bool = True,
    ) -> Clause:
        """A clause; ``tense`` limits it to the present, the past or the future (will and the modals)."""
        who = self.person(NOM) if subject is None else subject
        negated = negatable and not who.english.startswith(("every", "who")) and self.chance(0.17)
        predicate = self.predicate(who, negated, frame)
        mood = self.mood(predicate.verb, who.person, negated, tense)
        time = frequency = NOTHING
        if adverbs and predicate.verb.use != "s":
            if mood == "present" and not negated and self.chance(0.3):
                frequency = self.pick(words.FREQUENCIES)
            elif self.chance(0.42) and (mood != "present" or predicate.verb.use == "a"):
                time = self.time(mood)
                if negated and mood == "past" and predicate.complement and self.chance(0.3):
                    time = self.reason()
        front = time is not NOTHING and self.chance(0.35)
        return Clause(who, predicate, mood, negated, time, frequency, front)

    def mood(self, verb: Verb, person: int, negated: bool, tense: str) -> str:
        """A mood that the verb allows, in which its English form tells the tense."""
        while True:
            mood = self.pick(MOODS[verb.use])
            if tense and TENSE_OF.get(mood, FUTURE) != tense:
                if verb.use == "s" and tense == FUTURE:
                    return "will"
                continue
            if verb.same_past and person != THIRD and not negated and mood in (PRESENT, PAST):
                if tense in (PRESENT, PAST):
                    return "have to" if tense == PRESENT else "had to"
                continue
            return mood

    def time(self, mood: str) -> Pair:
        """When: a day or a period that fits the tense, an hour, or before, after or during an event."""
        draw = self.random()
        tense = TENSE_OF.get(mood, FUTURE)
        if draw < 0.12:
            return self.pick(words.CLOCK)
        if draw < 0.3 and tense != PRESENT:
            event = self.pick(words.GROUPS["event"])
            english, german = self.pick((("before", "vor"), ("after", "nach"), ("during", "während")))
            case = GEN if english == "during" else DAT
            event_english, event_german = words.noun_phrase(event, words.THE, case, False, self.adjective("event", 0.2))
            return f"{english} {event_english}", f"{german} {event_german}"
        return self.pick(words.TIMES[tense])

    def reason(self) -> Pair:
        """because of the rain: wegen des Regens."""
        english, german = words.noun_phrase(self.pick(words.GROUPS["cause"]), words.THE, GEN)
        return f"because of {english}", f"wegen {german}"

    def weather(self, tense: str) -> Clause:
        """it rains, it was cold."""
        it = Phrase("it", "es")
        mood = "will" if tense == FUTURE else tense
        if self.chance(0.4):
            return Clause(it, Predicate(self.pick((RAIN, SNOW))), mood)
        adjective = self.pick(words.ADJECTIVES_OF["weather"])
        return Clause(it, Predicate(BE, adjective.english, complement=adjective.german), mood)

    def again(self, subject: Phrase) -> Phrase | None:
        """The pronoun for a subject that was just named, or nobody in particular."""
        if subject.pronoun is not None and self.chance(0.6):
            return self.pronoun(subject.pronoun, NOM)
        return None

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
        city, german_city = self.pick(words.CITIES)
        english, german = words.noun_phrase(noun, self.pick((words.THE, words.THIS)), NOM)
        subject = Phrase(f"{english} to {city}", f"{german} nach {german_city}")
        mood = self.pick(INVARIABLE)
        time = self.pick(words.CLOCK) if self.chance(0.6) else self.time(mood)
        clause = Clause(subject, Predicate(DEPART), mood, time=time)
        return f"{clause.english()}.", f"{clause.german()}."

    def location(self) -> Pair:
        """The key is on the table."""
        subject = self.thing(self.pick(words.GROUPS["lay"]), NOM)
        english, german = self.spot(DAT)
        clause = Clause(subject, Predicate(BE, english, complement=german), self.pick(("present", "past")))
        clause = clause._replace(negated=self.chance(0.15) and "many" not in subject.english)
        return f"{clause.english()}.", f"{clause.german()}."

    def asked_subject(self) -> Phrase:
        """Whom a question is about; hardly the speaker."""
        subject = self.person(NOM)
        return subject if subject.person not in (0, 3) and not subject.english.startswith("every") else YOU

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
        time = self.time(mood) if verb.use != "s" and self.chance(0.3) else NOTHING
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
            english, german = words.noun_phrase(noun, words.WHICH, ACC, False, self.adjective(noun.kind, 0.2))
        else:
            english, german = words.noun_phrase(noun, words.HOW_MANY, ACC, True)
        clause = self.verb_clause(verb, self.asked_subject())
        return f"{english} {clause.english_question()}?", f"{german} {clause.german_inverted()}?"

    def verb_clause(self, verb: Verb, subject: Phrase, particle: bool = True) -> Clause:
        """The verb without its object, which stands elsewhere; sometimes with a time."""
        mood = self.mood(verb, subject.person, False, "")
        time = self.time(mood) if verb.use == "a" and self.chance(0.35) else NOTHING
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
        main = self.clause(tense=main_tense, adverbs=self.chance(0.3)).bare()
        draw = self.random()
        if draw < 0.22 and english not in ("before", "while"):
            sub = self.weather(tense)
        else:
            frame = "state" if draw < 0.42 and english not in ("before", "while") else None
            negatable = english in ("because", "although", "if")
            adverbs = self.chance(0.25) and english not in ("before", "when")
            sub = self.clause(self.again(main.subject), tense=tense, frame=frame, negatable=negatable, adverbs=adverbs)
        sub = sub.bare()
        if self.chance(0.4):
            sentence = f"{english} {sub.english()}, {main.english()}."
            return sentence, f"{german} {sub.german_last()}, {main.german_inverted()}."
        return f"{main.english()} {english} {sub.english()}.", f"{main.german()}, {german} {sub.german_last()}."

    def reported_clause(self) -> Pair:
        """says that ..., does not know where ...: dass, ob and other indirect questions."""
        verb, kind, tense, inner_tense, negated = self.pick(REPORTS)
        subject = self.person(NOM)
        inner = self.clause(self.again(subject), tense=inner_tense, adverbs=kind != "ask" or self.chance(0.4)).bare()
        if kind == "will":
            inner = inner._replace(mood="will")
        english, german = "that", "dass"
        if kind == "ask":
            english, german = "whether", "ob"
            if inner.time is NOTHING and inner.frequency is NOTHING and inner.predicate.verb.use == "a":
                english, german = self.pick((("whether", "ob"), ("when", "wann"), ("why", "warum")))
        outer = Clause(subject, Predicate(verb), tense, negated)
        return f"{outer.english()} {english} {inner.english()}.", f"{outer.german()}, {german} {inner.german_last()}."

    def relative_clause(self) -> Pair:
        """A relative clause after a subject, after an object that ends its clause, or after "this is"."""
        return self.pick((self.subject_relative, self.subject_relative, self.object_relative, self.presentation))()

    def subject_relative(self) -> Pair:
        """The man who lives in Berlin buys a car: Der Mann, der in Berlin wohnt, kauft ein Auto."""
        noun = self.person_noun(NOM, NO_PHRASE)
        english, german = self.about_person(noun)
        subject = noun._replace(english=f"{noun.english} {english}", german=f"{noun.german}, {german},")
        main = self.clause(subject, adverbs=self.chance(0.4)).bare()
        return f"{main.english()}.", f"{main.german()}."

    def object_relative(self) -> Pair:
        """She reads the book that he bought: only where nothing closes the German main clause after the object."""
        verb = self.pick(THING_VERBS)
        noun = self.pick(things_of(verb))
        target = self.definite(noun, ACC)
        main_verb = self.pick(OPEN_VERBS_OF[noun])
        subject = self.person(NOM)
        mood = self.mood(main_verb, subject.person, False, PRESENT)
        if mood != PRESENT:
            subject, mood = self.pronoun(3, NOM), PRESENT
        main = Clause(subject, Predicate(main_verb, joined(main_verb.rest, target.english), objects=target.german), mood)
        english, german = self.about_thing(target, verb)
        return f"{main.english()} {english}.", f"{main.german()}, {german}."

    def presentation(self) -> Pair:
        """This is the man who ...: Das ist der Mann, der ..."""
        if self.chance(0.5):
            noun = self.person_noun(NOM, NO_PHRASE)
            english, german = self.about_person(noun)
        else:
            verb = self.pick(THING_VERBS)
            noun = self.definite(self.pick(things_of(verb)), NOM)
            english, german = self.about_thing(noun, verb)
        this, das = ("these are", "das sind") if noun.column == words.PLURAL else ("this is", "das ist")
        return f"{this} {noun.english} {english}.", f"{das} {noun.german}, {german}."

    def definite(self, noun: Noun, case: int) -> Phrase:
        """The thing or things that a relative clause tells more about."""
        plural = not noun.mass and self.chance(0.3)
        english, german = words.noun_phrase(noun, words.THE, case, plural, self.adjective(noun.kind, 0.3))
        return Phrase(english, german, column=words.PLURAL if plural else noun.gender)

    def about_person(self, noun: Phrase) -> Pair:
        """A relative clause about people, as subject, object or after a preposition."""
        relative = words.RELATIVE[noun.column]
        person = THEY if noun.column == words.PLURAL else THIRD
        draw = self.random()
        if draw < 0.55:
            clause = self.clause(Phrase("who", relative[NOM], person), adverbs=self.chance(0.5)).bare()
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
        return f"that {clause.english()}", f"{words.RELATIVE[noun.column][ACC]} {clause.german_last()}"

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
            ).bare()
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
            inner = self.predicate(subject, frame=self.pick(("transitive", "transitive", "dative", "ditransitive", "motion")))
            if inner.verb.use == "a" and not (purpose and inner.verb.german["past"][0][0] == "bin"):
                break
        english = f"{inner.verb.base} {inner.english}"
        german = joined(inner.pronouns, inner.objects, inner.complement, inner.verb.zu)
        if purpose:
            outer = self.clause(subject, frame="motion", negatable=False, adverbs=False)
            return f"{outer.english()} in order to {english}.", f"{outer.german()}, um {german}."
        outer = Clause(subject, Predicate(self.pick(ATTEMPTS)), self.pick(INVARIABLE))
        return f"{outer.english()} to {english}.", f"{outer.german()}, {german}."

    def comparison(self) -> Pair:
        """is older than: ist älter als; is as old as: ist so alt wie."""
        kind = self.pick(("person", "animal", "thing", "clothes", "vehicle"))
        if kind == "person":
            subject, other = self.person(NOM), self.person_noun(NOM, NO_PHRASE)
        else:
            subject, other = (self.definite(self.pick(words.GROUPS[kind]), NOM) for _ in range(2))
            if subject.column == words.PLURAL:
                subject = subject._replace(person=THEY)
        if subject.english == other.english:
            return self.comparison()
        adjective = self.pick(COMPARED[kind])
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
            where, wo = self.place(self.pick(words.GROUPS["settlement"]))
            adjective = self.adjective("place", 0.4)
        else:
            noun = self.pick(words.GROUPS["animal"])
            where, wo = self.place(self.pick(words.GROUPS["open_air"]))
            adjective = self.adjective(noun.kind, 0.4)
        plural = self.chance(0.45)
        determiner = self.pick((words.NO, words.MANY, self.pick(words.COUNTS)) if plural else (words.A, words.A, words.NO))
        english, german = words.noun_phrase(noun, determiner, ACC, plural, adjective)
        past = self.chance(0.3)
        be = (words.BE_PAST if past else words.BE_PRESENT)[THEY if plural else THIRD]
        negation = " not" if determiner is words.NO else ""
        return f"there {be}{negation} {english} {where}.", f"es {'gab' if past else 'gibt'} {german} {wo}."

    def profession(self) -> Pair:
        """My brother is a baker: Mein Bruder ist Bäcker (no article)."""
        while True:
            subject = self.person(NOM)
            if subject.person == THIRD and subject.pronoun == 2 and "every" not in subject.english:
                break
        noun = self.pick(words.GROUPS["profession"])
        verb = self.pick((BE, BECOME))
        mood = self.pick((PRESENT, PAST) if verb is BE else ("will", "want to", "would like to", "past"))
        english = f"{words.indefinite(noun.english)} {noun.english}"
        clause = Clause(subject, Predicate(verb, english, complement=noun.singular[NOM]), mood)
        return f"{clause.english()}.", f"{clause.german()}."


def things_of(verb: Verb) -> tuple[Noun, ...]:
    """The nouns that the verb takes, people aside."""
    return THINGS_OF[verb.base]


def _verb(base: str) -> Verb:
    """A clausal verb by its English base."""
    return next(verb for verb in words.FRAMES["clausal"] if verb.base == base)


PEOPLE = ("kin", "social", "role")
YOU = Phrase("you", "du", 1, 1, is_pronoun=True)
WHO = Phrase("who", "wer", THIRD)
SPOTS = (("on", "auf"), ("under", "unter"), ("behind", "hinter"), ("next to", "neben"))
FRAME_WHEEL = (
    *("transitive",) * 24,
    *("dative",) * 2,
    *("ditransitive",) * 4,
    *("prepositional",) * 4,
    *("intransitive",) * 8,
    *("motion",) * 4,
    "putting",
    "state",
    "state",
)
PREDICATES: dict[str, Callable[[Grammar, Phrase, bool], Predicate]] = {
    "transitive": Grammar.transitive,
    "dative": Grammar.dative,
    "ditransitive": Grammar.ditransitive,
    "prepositional": Grammar.prepositional,
    "intransitive": Grammar.intransitive,
    "motion": Grammar.motion,
    "putting": Grammar.putting,
    "state": Grammar.state,
}
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
ATTEMPTS = tuple(verb for verb in words.FRAMES["clausal"] if "to" in verb.tags)
THINGS_OF = {
    verb.base: tuple(noun for noun in verb.nouns if noun.kind not in PEOPLE) for verb in words.FRAMES["transitive"]
}
THING_VERBS = tuple(verb for verb in words.FRAMES["transitive"] if things_of(verb))
PERSON_VERBS = tuple(verb for verb in words.FRAMES["transitive"] if "person" in verb.tags)
PERSON_PREPOSITIONS = tuple(verb for verb in words.FRAMES["prepositional"] if "person" in verb.tags)
OPEN_VERBS_OF = {
    noun: tuple(verb for verb in THING_VERBS if noun in verb.nouns and not verb.german[PRESENT][THIRD][1])
    for verb in THING_VERBS
    for noun in things_of(verb)
}
RESTING = tuple(verb for verb in words.FRAMES["intransitive"] if verb.base not in ("get", "fall", "arrive", "cry", "laugh"))
MOVING = tuple(verb for verb in words.FRAMES["motion"] if verb.base != "come")
COMPARED = {
    kind: tuple(a for a in words.ADJECTIVES_OF[kind] if a not in words.ADJECTIVES_OF["color"])
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
