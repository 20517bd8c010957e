"""German-English caption pairs from a small grammar: what the translation task trains on when no data is at hand.

The captions are of the kind that Multi30k has ("Ein alter Mann in einer roten Jacke liest ein Buch."), and German's
agreement is in them: articles and adjectives by gender, case and number after each kind of determiner, weak nouns,
dative plurals, verbs by number, two-way prepositions with the dative for a place and the accusative for a goal, and
the verb in second place whatever comes first.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

Gender = Literal["m", "f", "n"]
Case = Literal["nom", "acc", "dat", "gen"]
Number = Literal["sg", "pl"]

_CASES: tuple[Case, ...] = ("nom", "acc", "dat", "gen")


def _row(entries: str) -> dict[Case, str]:
    return dict(zip(_CASES, entries.replace("-", "").split(" "), strict=True))


# What follows the stem, for nominative, accusative, dative and genitive. Plurals have one row for all genders.
_DEFINITE = {
    "m": _row("der den dem des"),
    "f": _row("die die der der"),
    "n": _row("das das dem des"),
    "pl": _row("die die den der"),
}
_INDEFINITE = {
    "m": _row("ein einen einem eines"),
    "f": _row("eine eine einer einer"),
    "n": _row("ein ein einem eines"),
}
_WEAK = {"m": _row("e en en en"), "f": _row("e e en en"), "n": _row("e e en en"), "pl": _row("en en en en")}
_MIXED = {"m": _row("er en en en"), "f": _row("e e en en"), "n": _row("es es en en")}
_STRONG_PLURAL = _row("e e en er")

_CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
}


@dataclass(frozen=True)
class Noun:
    """A noun in both languages: German gender, nominative singular and plural; English singular and plural.

    `weak` nouns take -n or -en in every case but the nominative singular ("der Junge, den Jungen").
    """

    gender: Gender
    singular: str
    plural: str
    english: str
    english_plural: str
    weak: bool = False

    def german(self, case: Case, number: Number) -> str:
        """Return the German form."""
        if number == "pl":
            return self.plural + "n" if case == "dat" and self.plural[-1] not in "ns" else self.plural
        if self.weak:
            return self.singular if case == "nom" else self.plural
        if case == "gen" and self.gender != "f":
            # -es after one syllable or a hiss, but for loan words ("des Parks").
            syllables = len(re.findall("[aeiouäöü]+", self.singular.lower()))
            short = syllables == 1 and not self.plural.endswith("s")
            return self.singular + ("es" if short or self.singular[-1] in "sßxz" else "s")
        return self.singular


@dataclass(frozen=True)
class Adjective:
    """An adjective: the German stem that endings are put to, and the English word."""

    stem: str
    english: str


@dataclass(frozen=True)
class Verb:
    """A verb: German third person singular and plural, English -ing form; `object_` says which nouns it takes."""

    singular: str
    plural: str
    english: str
    object_: str | None = None


def _nouns(table: str) -> tuple[Noun, ...]:
    """Read lines of gender, German singular and plural, English singular and plural, and perhaps `weak`."""
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(
        Noun(gender, singular, plural, english, english_plural, bool(weak))  # type: ignore[arg-type]
        for gender, singular, plural, english, english_plural, *weak in rows
    )


PEOPLE = _nouns("""
m Mann Männer man men
f Frau Frauen woman women
n Kind Kinder child children
n Mädchen Mädchen girl girls
m Junge Jungen boy boys weak
m Student Studenten student students weak
m Bauarbeiter Bauarbeiter worker workers
f Sängerin Sängerinnen singer singers
m Tourist Touristen tourist tourists weak
f Läuferin Läuferinnen runner runners
m Koch Köche cook cooks
n Paar Paare couple couples
""")
ANIMALS = _nouns("""
m Hund Hunde dog dogs
f Katze Katzen cat cats
n Pferd Pferde horse horses
m Vogel Vögel bird birds
n Schaf Schafe sheep sheep
m Elefant Elefanten elephant elephants weak
""")
CLOTHES = _nouns("""
f Jacke Jacken jacket jackets
m Hut Hüte hat hats
n Hemd Hemden shirt shirts
n Kleid Kleider dress dresses
f Mütze Mützen cap caps
m Mantel Mäntel coat coats
m Helm Helme helmet helmets
f Weste Westen vest vests
""")
THINGS = _nouns("""
m Ball Bälle ball balls
n Buch Bücher book books
f Zeitung Zeitungen newspaper newspapers
f Gitarre Gitarren guitar guitars
n Fahrrad Fahrräder bicycle bicycles
m Koffer Koffer suitcase suitcases
f Flasche Flaschen bottle bottles
m Brief Briefe letter letters
f Kamera Kameras camera cameras
n Seil Seile rope ropes
m Stuhl Stühle chair chairs
f Tasche Taschen bag bags
""")
READABLE = tuple(noun for noun in THINGS if noun.english in ("book", "newspaper", "letter"))
PLACES = _nouns("""
f Straße Straßen street streets
f Bank Bänke bench benches
m Tisch Tische table tables
n Haus Häuser house houses
m Park Parks park parks
m Garten Gärten garden gardens
f Brücke Brücken bridge bridges
m Brunnen Brunnen fountain fountains
n Boot Boote boat boats
f Bühne Bühnen stage stages
n Feld Felder field fields
m Baum Bäume tree trees
f Mauer Mauern wall walls
m Strand Strände beach beaches
""")


def _adjectives(table: str) -> tuple[Adjective, ...]:
    """Read lines of a German stem and an English word."""
    return tuple(Adjective(*line.split()) for line in table.strip().splitlines())


COLOURS = _adjectives("""
rot red
blau blue
grün green
gelb yellow
schwarz black
weiß white
braun brown
grau gray
""")
TRAITS = _adjectives("""
jung young
alt old
klein small
groß big
müd tired
fröhlich happy
""")
SIZES = _adjectives("""
klein small
groß big
alt old
neu new
schön beautiful
lang long
""")

STANDING = (
    Verb("steht", "stehen", "standing"),
    Verb("sitzt", "sitzen", "sitting"),
    Verb("schläft", "schlafen", "sleeping"),
    Verb("wartet", "warten", "waiting"),
)
GOING = (
    Verb("läuft", "laufen", "running"),
    Verb("springt", "springen", "jumping"),
    Verb("geht", "gehen", "walking"),
    Verb("klettert", "klettern", "climbing"),
)
ACTING = (
    Verb("liest", "lesen", "reading", "readable"),
    Verb("hält", "halten", "holding", "thing"),
    Verb("trägt", "tragen", "carrying", "thing"),
    Verb("beobachtet", "beobachten", "watching", "anyone"),
    Verb("fotografiert", "fotografieren", "photographing", "anyone"),
    Verb("zieht", "ziehen", "pulling", "thing"),
)

# German preposition, English one for a place, English one for a goal: the dative says place, the accusative goal.
_TWO_WAY = (
    ("auf", "on", "onto"),
    ("in", "in", "into"),
    ("hinter", "behind", "behind"),
    ("neben", "next to", "next to"),
    ("vor", "in front of", "in front of"),
    ("unter", "under", "under"),
)
_DATIVE_GOAL = (("zu", "to"),)
_INSIDE = frozenset(("house", "park", "garden", "boat", "field", "street"))
_ON_TOP = frozenset(("street", "bench", "table", "bridge", "boat", "stage", "field", "wall", "beach"))

_NUMERALS = {"two": "zwei", "three": "drei", "four": "vier"}


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: what decides its form in both languages.

    Attributes:
        noun: The head.
        determiner: "a", "the", or a numeral's English word; the bare plural is "".
        adjective: Before the noun, or None.
    """

    noun: Noun
    determiner: str
    adjective: Adjective | None = None
    number: Number = "sg"

    def german(self, case: Case) -> str:
        """Return the phrase in a case: determiner, adjective with its ending, noun."""
        row = "pl" if self.number == "pl" else self.noun.gender
        if self.determiner == "the":
            article, ending = _DEFINITE[row][case], _WEAK[row][case]
        elif self.determiner == "a":
            article, ending = _INDEFINITE[row][case], _MIXED[row][case]
        else:
            article, ending = _NUMERALS.get(self.determiner, ""), _STRONG_PLURAL[case]
        adjective = "" if self.adjective is None else self.adjective.stem + ending
        return " ".join(part for part in (article, adjective, self.noun.german(case, self.number)) if part)

    def english(self) -> str:
        """Return the phrase in English."""
        noun = self.noun.english if self.number == "sg" else self.noun.english_plural
        words = " ".join(part for part in (self.adjective.english if self.adjective else "", noun) if part)
        if self.determiner == "a":
            return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
        return f"{self.determiner} {words}".strip()


def _phrase(rng: random.Random, nouns: tuple[Noun, ...], adjectives: tuple[Adjective, ...], plural: float) -> Phrase:
    noun = rng.choice(nouns)
    adjective = rng.choice(adjectives) if rng.random() < 0.6 else None
    if rng.random() < plural:
        determiner = rng.choice(("", "the", *_NUMERALS))
        return Phrase(noun, determiner, adjective, "pl")
    return Phrase(noun, "a" if rng.random() < 0.7 else "the", adjective)


def _place(rng: random.Random, goal: bool) -> tuple[str, str]:
    """Return where something is, or where it goes to: preposition, case and all, in German and English."""
    phrase = _phrase(rng, PLACES, SIZES, plural=0.1)
    if goal and rng.random() < 0.25:
        german, english = rng.choice(_DATIVE_GOAL)
        return _contracted(f"{german} {phrase.german('dat')}"), f"{english} {phrase.english()}"
    fitting = [
        entry
        for entry in _TWO_WAY
        if (entry[0] != "in" or phrase.noun.english in _INSIDE)
        and (entry[0] != "auf" or phrase.noun.english in _ON_TOP)
    ]
    german, at, towards = rng.choice(fitting)
    case: Case = "acc" if goal else "dat"
    return _contracted(f"{german} {phrase.german(case)}"), f"{towards if goal else at} {phrase.english()}"


def _contracted(text: str) -> str:
    head, _, rest = text.partition(" ")
    article, _, tail = rest.partition(" ")
    short = _CONTRACTIONS.get(f"{head} {article}")
    return text if short is None else f"{short} {tail}"


def _subject(rng: random.Random) -> tuple[str, str, Number]:
    if rng.random() < 0.2:
        phrase = _phrase(rng, ANIMALS, (*SIZES, *COLOURS), plural=0.3)
        return phrase.german("nom"), phrase.english(), phrase.number
    phrase = _phrase(rng, PEOPLE, TRAITS, plural=0.3)
    german, english = phrase.german("nom"), phrase.english()
    extra = rng.random()
    if extra < 0.35:
        worn = _phrase(rng, CLOTHES, COLOURS, plural=0.0 if phrase.number == "sg" else 0.5)
        on_head = worn.noun.english in ("hat", "cap", "helmet")
        german += " " + _contracted(f"{'mit' if on_head else 'in'} {worn.german('dat')}")
        english += f" {'with' if on_head else 'in'} {worn.english()}"
    elif extra < 0.45:
        owned = Phrase(rng.choice(ANIMALS), "the", None, "sg" if phrase.number == "sg" else "pl")
        # "der Hund des alten Mannes": the owner in the genitive, which needs something that shows it.
        owner = phrase if phrase.determiner in ("a", "the") else Phrase(phrase.noun, "the", phrase.adjective, "pl")
        german = f"{owned.german('nom')} {owner.german('gen')}"
        english = f"{owned.english()} of {owner.english()}"
        return german, english, owned.number
    return german, english, phrase.number


def _caption(rng: random.Random) -> tuple[str, str]:
    german_subject, english_subject, number = _subject(rng)
    kind = rng.random()
    german_rest, english_rest = "", ""
    front: tuple[str, str] | None = None
    if kind < 0.3:
        verb = rng.choice(STANDING)
        front = _place(rng, goal=False)
    elif kind < 0.55:
        verb = rng.choice(GOING)
        german_rest, english_rest = _place(rng, goal=True)
    else:
        verb = rng.choice(ACTING)
        nouns = {"readable": READABLE, "thing": THINGS, "anyone": (*PEOPLE, *ANIMALS)}[verb.object_ or "thing"]
        seen = _phrase(rng, nouns, TRAITS if verb.object_ == "anyone" else (*SIZES, *COLOURS), plural=0.2)
        german_rest, english_rest = seen.german("acc"), seen.english()
        if rng.random() < 0.4:
            front = _place(rng, goal=False)
    verb_german = verb.singular if number == "sg" else verb.plural
    verb_english = f"{'is' if number == 'sg' else 'are'} {verb.english}"
    if front is not None and rng.random() < 0.3:
        # The verb stays in second place, and the subject follows it.
        german = f"{front[0]} {verb_german} {german_subject} {german_rest}"
        english = f"{front[1]} , {english_subject} {verb_english} {english_rest}"
    else:
        german = f"{german_subject} {verb_german} {german_rest} {front[0] if front else ''}"
        english = f"{english_subject} {verb_english} {english_rest} {front[1] if front else ''}"
    return _sentence(german), _sentence(english)


def _sentence(text: str) -> str:
    text = " ".join(text.split()).replace(" ,", ",")
    return text[0].upper() + text[1:] + "."


def caption_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Return `count` distinct pairs of a German caption and its English translation, the same for the same seed.

    A longer list begins with the shorter one. No German caption comes twice.

    Args:
        count: How many pairs; the grammar has many millions.
        seed: Of the generator.
    """
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        german, english = _caption(rng)
        pairs.setdefault(german, english)
    return list(pairs.items())
