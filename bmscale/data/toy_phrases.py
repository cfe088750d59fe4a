"""Phrases and clauses of the embedded corpus (bmscale.data.toy), each drawn in English and German at once.

A clause keeps the parts between the German brackets apart (pronouns, objects, complement), so that one clause can be
put as a statement, a question or a subordinate clause in either language.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from bmscale.data import toy_inflection as forms
from bmscale.data import toy_lexicon as words
from bmscale.data.toy_inflection import ACC, DAT, GEN, NOM, THEY, THIRD, Adjective, Determiner, Noun, Verb

T = TypeVar("T")
Pair = tuple[str, str]

INVARIABLE = ("present", "past", "will")
MOODS = {
    "a": (
        *("present",) * 7,
        *("past",) * 8,
        *("will",) * 3,
        "can",
        "can",
        "should",
        "have to",
        "had to",
        "want to",
        "wanted to",
        "be allowed to",
        "would like to",
    ),
    "e": (*("present",) * 4, *("past",) * 5, *("will",) * 2),
    "s": ("present", "present", "past"),
}
TENSE_OF = {"present": "present", "past": "past", "had to": "past", "wanted to": "past"}
PAST, PRESENT, FUTURE = "past", "present", "future"
PERSON_DETERMINERS = (forms.THE,) * 5 + (forms.A, forms.THIS)
OWNERS = forms.POSSESSIVES
BE, PUT, BECOME, RAIN, SNOW, DEPART = words.FRAMES["single"]
CERTAIN = (forms.THE, forms.THIS, *OWNERS)
CERTAIN_WORDS = frozenset(word for determiner in CERTAIN for row in determiner.german for word in row)
INTRANSITIVE = words.FRAMES["intransitive"]
NEED_PLACE = ("stay", "live", "arrive", "sit", "stand")
SHARED = ("work", "sing", "dance", "wait", "play", "swim", "sit", "stay")


# Where "to the" is not "zum" or "zur".
WHITHER = {"sea": ("an", ACC), "forest": ("in", ACC), "office": ("in", ACC)}
SPOTS = (("on", "auf"), ("under", "unter"), ("behind", "hinter"), ("next to", "neben"))


class Phrase(NamedTuple):
    """A noun phrase that fills a role. ``person`` is 0..4; ``pronoun`` its pronoun (None where English and German
    would disagree); ``kein`` says that it carries the clause's negation, ``bare`` that it has no determiner."""

    english: str
    german: str
    person: int = THIRD
    pronoun: int | None = None
    kein: bool = False
    is_pronoun: bool = False
    column: int = 0
    noun: Noun | None = None
    bare: bool = False

    @property
    def early(self) -> bool:
        """Pronouns and names, the only phrases that are the same in both languages, stand before the time."""
        return self.is_pronoun or self.english == self.german

    @property
    def is_child(self) -> bool:
        """One child, of whom English may say "her" and German not "ihr"."""
        return self.person == THIRD and self.noun is not None and self.noun.english == "child"

    @property
    def definite(self) -> bool:
        """Whether the hearer knows who or what is meant: a pronoun, a name, the, this or a possessive."""
        return self.early or self.german.partition(" ")[0] in CERTAIN_WORDS


NOTHING: Pair = ("", "")
NO_PHRASE = Phrase("", "")
WHO = Phrase("who", "wer", THIRD)


class Predicate(NamedTuple):
    """A verb and what it governs, without subject and tense: the parts between the German brackets, in order. The
    adverb of frequency stands between the ``known`` and the other objects."""

    verb: Verb
    english: str = ""
    pronouns: str = ""
    known: str = ""
    objects: str = ""
    complement: str = ""
    kein: bool = False

    def governing(self, target: Phrase) -> Predicate:
        """The same with an object in its place: pronouns and names first, what is known before what is new, a noun
        without determiner at the verb (im Haus Tee trinken)."""
        kein = self.kein or target.kein
        if target.early:
            return self._replace(pronouns=joined(self.pronouns, target.german), kein=kein)
        if target.bare:
            return self._replace(complement=joined(self.complement, target.german), kein=kein)
        if target.definite:
            return self._replace(known=joined(self.known, target.german), kein=kein)
        return self._replace(objects=joined(self.objects, target.german), kein=kein)


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
        objects = joined(predicate.known, self.frequency[1], predicate.objects)
        return joined(predicate.pronouns, time, objects, negation, predicate.complement)

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

    def without_reason(self) -> Clause:
        """The same without "because of ...", for a clause that is itself a reason."""
        return self._replace(time=NOTHING) if self.time[0].startswith("because") else self


def joined(*parts: str) -> str:
    """The parts that are not empty, with blanks between."""
    return " ".join(filter(None, parts))


class Phrases:
    """Draws phrases, predicates and clauses; every method that draws returns both languages at once."""

    def __init__(self, rng: random.Random) -> None:
        self.random = rng.random
        # What the last clauses said, so that the next one of the same sentence says something else.
        self.recent: deque[tuple[Verb, str]] = deque(maxlen=2)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each as likely; several times faster than random.choice."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    # --- noun phrases ---

    def adjective(self, kind: str, probability: float) -> Adjective | None:
        """An adjective that suits the kind of noun, or none."""
        return (
            self.pick(words.ADJECTIVES_OF[kind]) if kind in words.ADJECTIVES_OF and self.chance(probability) else None
        )

    def pronoun(self, index: int, case: int) -> Phrase:
        """The pronoun of this index in ``toy_lexicon.PRONOUNS``."""
        pronoun = words.PRONOUNS[index]
        english = pronoun.english if case == NOM else pronoun.english_object
        return Phrase(english, pronoun.german[case], pronoun.person, index, is_pronoun=True)

    def person(self, case: int, subject: Phrase | None = None, definite: bool = False) -> Phrase:
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
        return self.person_noun(case, subject, definite)

    def person_noun(self, case: int, subject: Phrase | None = None, definite: bool = False) -> Phrase:
        """A person named by a noun: relatives with their owner, the others with any determiner (or a definite one, as
        an object under negation needs)."""
        noun = self.pick(words.GROUPS["person"])
        if subject is not None and subject.noun is noun:
            return self.person_noun(case, subject, definite)
        draw = self.random()
        plural = draw < (0.12 if noun.kind == "kin" else 0.25)
        if noun.kind == "kin":
            plural = plural and not noun.english.endswith(("father", "mother"))
            determiner = self.pick(OWNERS)
        elif noun.kind == "social" and (draw > 0.6 or noun.english == "friend"):
            determiner = self.pick(OWNERS)
        elif definite:
            determiner = self.pick((forms.THE, forms.THE, forms.THIS))
        elif subject is None and draw > 0.93:
            determiner = forms.EVERY
        elif plural and draw < 0.12:
            determiner = self.pick(words.COUNTS) if draw < 0.07 else forms.MANY
        elif plural:
            determiner = forms.THE if draw < 0.2 else forms.THIS
        else:
            determiner = self.pick(PERSON_DETERMINERS)
        english, german = forms.noun_phrase(noun, determiner, case, plural, self.adjective(noun.kind, 0.22))
        pronoun = 5 if plural else (2, 3, None)[noun.gender]
        column = forms.PLURAL if plural else noun.gender
        return Phrase(english, german, THEY if plural else THIRD, pronoun, column=column, noun=noun)

    def thing(self, noun: Noun, case: int, negated: bool = False) -> Phrase:
        """A thing, animal, text or food: with kein where the clause is negated and the thing not a certain one."""
        adjective = self.adjective(noun.kind, 0.3)
        draw = self.random()
        pair = noun in words.GROUPS["pair"]
        plural = pair or (not noun.mass and draw < 0.3)
        if draw > 0.9 and noun.kind not in ("food", "drink") and noun not in words.GROUPS["public"] and not noun.mass:
            return self.owned(noun, case, adjective, plural)
        chosen: Determiner
        second = self.random()
        if negated:
            chosen = forms.NO if second < 0.6 else (forms.THE if second < 0.8 else self.owner(noun))
        elif noun.mass:
            chosen = forms.BARE if second < 0.6 else forms.THE
        elif plural:
            options = (forms.THE, forms.MANY, forms.THIS, self.owner(noun))
            chosen = self.pick(words.COUNTS) if second < 0.4 and not pair else self.pick(options)
        else:
            chosen = self.pick((forms.THE, forms.THE, forms.A, forms.A, forms.THIS, self.owner(noun)))
        english, german = forms.noun_phrase(noun, chosen, case, plural, adjective)
        column = forms.PLURAL if plural else noun.gender
        kein, bare = chosen is forms.NO, chosen is forms.BARE
        return Phrase(english, german, THEY if plural else THIRD, kein=kein, column=column, bare=bare)

    def owner(self, noun: Noun) -> Determiner:
        """A possessive; "this" for what is nobody's (this bus)."""
        return forms.THIS if noun in words.GROUPS["public"] else self.pick(OWNERS)

    def owned(self, noun: Noun, case: int, adjective: Adjective | None, plural: bool) -> Phrase:
        """my father's old car: das alte Auto meines Vaters."""
        owner = self.pick(words.GROUPS["person"])
        determiner = self.pick(OWNERS) if owner.kind in ("kin", "social") else forms.THE
        owner_english, owner_german = forms.noun_phrase(owner, determiner, GEN)
        _, german = forms.noun_phrase(noun, forms.THE, case, plural, adjective)
        english, _ = forms.noun_phrase(noun, forms.BARE, case, plural, adjective)
        person, column = (THEY, forms.PLURAL) if plural else (THIRD, noun.gender)
        return Phrase(f"{owner_english}'s {english}", f"{german} {owner_german}", person, column=column)

    def place(self, noun: Noun) -> Pair:
        """Where: in a small hotel, im alten Park."""
        adjective = self.adjective(noun.kind, 0.25) if not noun.mass else None
        determiner = forms.A if adjective and self.chance(0.4) else forms.THE
        english, german = forms.noun_phrase(noun, determiner, DAT, False, adjective)
        preposition, german_preposition = noun.prepositions
        return f"{preposition} {english}", forms.contract(german_preposition, german)

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
            return self.to_city()
        if way == "person":
            english, german = forms.noun_phrase(self.pick(words.GROUPS["host"]), self.pick(OWNERS), DAT)
            return f"to {english}", forms.contract("zu", german)
        if way == "into":
            noun = self.pick(words.GROUPS["into"])
            english, german = forms.noun_phrase(noun, forms.THE, ACC, False, self.adjective("place", 0.2))
            return f"into {english}", forms.contract("in", german)
        noun = self.pick(words.GROUPS[self.pick(("shop", "study", "study", "station", "goal", "bathing", "bathing"))])
        preposition, case = WHITHER.get(noun.english, ("zu", DAT))
        english, german = forms.noun_phrase(
            noun, forms.THE, case, False, None if noun.mass else self.adjective(noun.kind, 0.2)
        )
        return f"to {english}", forms.contract(preposition, german)

    def to_city(self, vehicle: Noun | None = None) -> Pair:
        """To Berlin; by ship only where ships go."""
        english, german = self.pick(words.HARBORS if vehicle in words.GROUPS["afloat"] else words.CITIES)
        return f"to {english}", f"nach {german}"

    def companion(self, subject: Phrase) -> Pair:
        """with his friend, without my dog."""
        if self.chance(0.3):
            english, german = forms.noun_phrase(self.pick(words.GROUPS["pet"]), self.pick(OWNERS), ACC)
            return f"without {english}", f"ohne {german}"
        other = self.person(DAT, subject)
        return f"with {other.english}", f"mit {other.german}"

    # --- predicates ---

    def predicate(self, subject: Phrase, negated: bool = False, frame: str | None = None) -> Predicate:
        """A verb with its objects and places."""
        predicate = PREDICATES[frame or self.pick(FRAME_WHEEL)](self, subject, negated)
        # "Das Kind" cannot well have "ihre Schwester", "the child" can have "her sister".
        if subject.is_child and "her" in predicate.english.split():
            return self.predicate(subject, negated, frame)
        return predicate

    def transitive(self, subject: Phrase, negated: bool) -> Predicate:
        """Accusative object, sometimes with a place, sometimes for somebody."""
        # Half by verb and half by noun: either alone would leave words of the other side too rare to learn.
        if self.chance(0.5):
            verb = self.pick(words.FRAMES["transitive"])
            noun = self.pick(verb.nouns)
        else:
            noun = self.pick(THINGS)
            verb = self.pick(VERBS_OF[noun])
        if noun.kind in words.PEOPLE:
            target = self.person(ACC, subject, negated)
        elif verb.base == "like":
            # Nobody says that she likes eight tomatoes.
            mass = forms.NO if negated else forms.BARE
            english, german = forms.noun_phrase(noun, mass if noun.mass else self.pick(CERTAIN), ACC)
            target = Phrase(english, german, kein=negated and noun.mass, bare=noun.mass and not negated)
        else:
            target = self.thing(noun, ACC, negated)
        english, german = NOTHING
        if verb.extra[0] != "-" and self.chance(0.3):
            english, german = self.place_of(verb.extra)
        elif verb.base in ("buy", "cook", "bake", "order", "write", "draw") and not negated and self.chance(0.35):
            other = self.person(ACC, subject)
            english, german = f"for {other.english}", f"für {other.german}"
        words_of_verb = (target.english, verb.rest) if verb.moves else (verb.rest, target.english)
        return Predicate(verb, joined(*words_of_verb, english), complement=german).governing(target)

    def dative(self, subject: Phrase, negated: bool) -> Predicate:
        """Verbs such as helfen."""
        verb = self.pick(words.FRAMES["dative"])
        other = self.person(DAT, subject, negated)
        return Predicate(verb, joined(verb.rest, other.english)).governing(other)

    def ditransitive(self, subject: Phrase, negated: bool) -> Predicate:
        """gives the child a book: gibt dem Kind ein Buch."""
        verb = self.pick(words.FRAMES["ditransitive"])
        other = self.person(DAT, subject, negated)
        target = self.thing(self.pick(verb.nouns), ACC, negated)
        predicate = Predicate(verb, f"{other.english} {target.english}", kein=target.kein).governing(other)
        return predicate._replace(objects=joined(predicate.objects, target.german))

    def prepositional(self, subject: Phrase, negated: bool) -> Predicate:
        """wait for the bus: auf den Bus warten."""
        verb = self.pick(words.FRAMES["prepositional"])
        _, preposition, case_digit = verb.extra
        case = DAT if case_digit == "3" else ACC
        noun = self.pick(verb.nouns)
        if noun.kind in words.PEOPLE:
            target = self.person(case, subject, negated)
        else:
            # A negated indefinite would be "auf kein ..." here, which few would say.
            english, german = forms.noun_phrase(noun, self.pick((forms.THE, self.owner(noun))), case)
            target = Phrase(english, german)
        complement = forms.contract(preposition, target.german)
        return Predicate(verb, f"{verb.rest} {target.english}", complement=complement)

    def intransitive(self, subject: Phrase, negated: bool) -> Predicate:
        """A verb alone, with a manner or with a place."""
        verb = self.pick(words.FRAMES["intransitive"])
        manners = verb.extra[0].split(",") if verb.extra[0] != "-" else []
        draw = self.random()
        english, german = NOTHING
        if verb.tags[0] != "-" and (draw < 0.55 or verb.base in NEED_PLACE):
            english, german = self.place_of(verb.tags)
            if not negated and verb.base in SHARED and self.chance(0.25):
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
            english, german = self.to_city(noun)
            _, vehicle = forms.noun_phrase(noun, forms.THE, DAT)
            english, german = f"{english} by {noun.english}", f"mit {vehicle} {german}"
        elif not negated and self.chance(0.25):
            with_english, with_german = self.companion(subject)
            english, german = f"{english} {with_english}", f"{with_german} {german}"
        return Predicate(verb, english, complement=german)

    def putting(self, subject: Phrase, negated: bool) -> Predicate:
        """puts the key on the table: legt den Schlüssel auf den Tisch."""
        target = self.thing(self.pick(words.GROUPS["lay"]), ACC, negated)
        english, german = self.spot(ACC)
        return Predicate(PUT, f"{target.english} {english}", complement=german).governing(target)

    def spot(self, case: int) -> Pair:
        """On, under, behind or next to a piece of furniture, in the accusative (whither) or the dative (where)."""
        english, german = self.pick(SPOTS)
        noun_english, noun_german = forms.noun_phrase(self.pick(words.GROUPS["furniture"]), forms.THE, case)
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
        action: bool = False,
    ) -> Clause:
        """A clause; ``tense`` limits it to the present, the past or the future (will and the modals), ``action`` to
        what one does on purpose, which fits into any order of events (nobody falls asleep while he finds a key).
        States have no plan ("will need") and stay out of the future."""
        who = self.person(NOM) if subject is None else subject
        negated = negatable and not who.english.startswith(("every", "who")) and self.chance(0.17)
        predicate = self.predicate(who, negated, frame)
        unfit = ("e", "s") if action else (("s",) if tense == FUTURE else ())
        while (predicate.verb, predicate.english) in self.recent or (
            predicate.verb.use in unfit and (predicate.verb is not BE or (action and frame is None))
        ):
            predicate = self.predicate(who, negated, frame)
        self.recent.append((predicate.verb, predicate.english))
        mood = self.mood(predicate.verb, who.person, negated, tense)
        time = frequency = NOTHING
        if adverbs and predicate.verb.use != "s":
            moving = predicate.verb in words.FRAMES["motion"]
            if mood == PAST and self.chance(0.5) and (moving or (negated and predicate.verb in INTRANSITIVE)):
                time = self.reason()
            elif mood == PRESENT and not negated and self.chance(0.3) and not who.english.startswith("every"):
                frequency = self.pick(words.FREQUENCIES)
            elif self.chance(0.42) and (mood != PRESENT or (predicate.verb.use == "a" and not negated)):
                time = self.time(mood, predicate.verb)
        front = time is not NOTHING and self.chance(0.35)
        return Clause(who, predicate, mood, negated, time, frequency, front)

    def mood(self, verb: Verb, person: int, negated: bool, tense: str) -> str:
        """A mood that the verb allows, in which its English form tells the tense."""
        while True:
            mood = self.pick(MOODS[verb.use])
            if tense and TENSE_OF.get(mood, FUTURE) != tense:
                if verb is BE and tense == FUTURE:
                    return "will"
                continue
            if verb.same_past and person != THIRD and not negated and mood in (PRESENT, PAST):
                if tense in (PRESENT, PAST):
                    return "have to" if tense == PRESENT else "had to"
                continue
            return mood

    def time(self, mood: str, verb: Verb) -> Pair:
        """When: a day or a period that fits the tense, an hour, or before, after or during an event. Nobody stays
        anywhere at three o'clock."""
        draw = self.random()
        tense = TENSE_OF.get(mood, FUTURE)
        if draw < 0.12 and verb.base != "stay":
            return self.pick(words.CLOCK)
        if draw < 0.3 and tense != PRESENT:
            event = self.pick(words.GROUPS["event"])
            english, german = self.pick((("before", "vor"), ("after", "nach"), ("during", "während")))
            case = GEN if english == "during" else DAT
            event_english, event_german = forms.noun_phrase(event, forms.THE, case, False, self.adjective("event", 0.2))
            return f"{english} {event_english}", f"{german} {event_german}"
        return self.pick(words.TIMES[tense])

    def reason(self) -> Pair:
        """because of the rain: wegen des Regens."""
        english, german = forms.noun_phrase(self.pick(words.GROUPS["cause"]), forms.THE, GEN)
        return f"because of {english}", f"wegen {german}"

    def weather(self, tense: str) -> Clause:
        """it rains, it was cold."""
        it = Phrase("it", "es")
        mood = "will" if tense == FUTURE else tense
        if self.chance(0.4):
            return Clause(it, Predicate(self.pick((RAIN, SNOW))), mood)
        adjective = self.pick(words.ADJECTIVES_OF["weather"])
        return Clause(it, Predicate(BE, adjective.english, complement=adjective.german), mood)

    def again(self, subject: Phrase) -> Phrase:
        """The pronoun for a definite subject of the other clause, or somebody else: the pronoun may come first, where
        "Because he was tired, a man slept" would be two people."""
        if subject.pronoun is not None and subject.definite and self.chance(0.6):
            return self.pronoun(subject.pronoun, NOM)
        return self.person(NOM, subject)


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
PREDICATES: dict[str, Callable[[Phrases, Phrase, bool], Predicate]] = {
    "transitive": Phrases.transitive,
    "dative": Phrases.dative,
    "ditransitive": Phrases.ditransitive,
    "prepositional": Phrases.prepositional,
    "intransitive": Phrases.intransitive,
    "motion": Phrases.motion,
    "putting": Phrases.putting,
    "state": Phrases.state,
}
VERBS_OF: dict[Noun, tuple[Verb, ...]] = {
    noun: tuple(verb for verb in words.FRAMES["transitive"] if noun in verb.nouns)
    for verb in words.FRAMES["transitive"]
    for noun in verb.nouns
    if noun.kind not in words.PEOPLE
}
THINGS = tuple(VERBS_OF)
