"""German-English captions from a small grammar: what the translation task trains on when no data is at hand.

The captions are of Multi30k's kind: "Ein alter Mann liest ein Buch auf einer Bank." Articles and adjectives agree with
gender and case, and the verb keeps the second place when the caption begins with the place. All nouns are singular.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

Case = Literal["nom", "acc", "dat"]
# A German text and its English translation.
Pair = tuple[str, str]


class Noun(NamedTuple):
    """A noun: its German gender (m, f, n), the German word, the same in all three cases, and the English word."""

    gender: str
    german: str
    english: str


def _nouns(table: str) -> tuple[Noun, ...]:
    return tuple(Noun(*line.split()) for line in table.strip().splitlines())


def _pairs(table: str) -> tuple[Pair, ...]:
    """Read lines of a German word and its English translation, which may have several words."""
    return tuple((line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in table.strip().splitlines())


SUBJECTS = _nouns("""
m Mann man
f Frau woman
n Kind child
n Mädchen girl
m Bauarbeiter worker
f Sängerin singer
f Läuferin runner
m Koch cook
m Hund dog
f Katze cat
n Pferd horse
m Vogel bird
n Schaf sheep
""")
THINGS = _nouns("""
m Ball ball
n Buch book
f Zeitung newspaper
f Gitarre guitar
n Fahrrad bicycle
m Koffer suitcase
f Flasche bottle
m Apfel apple
f Kamera camera
n Seil rope
m Stuhl chair
f Tasche bag
n Ei egg
""")
PLACES = _nouns("""
f Straße street
f Bank bench
m Tisch table
n Haus house
m Garten garden
f Brücke bridge
m Brunnen fountain
n Boot boat
f Bühne stage
n Feld field
m Baum tree
f Mauer wall
m Strand beach
""")
# Stems; endings follow.
TRAITS = _pairs("jung young\nalt old\nklein small\ngroß big\nmüd tired\nfröhlich happy")
LOOKS = _pairs("rot red\nblau blue\ngrün green\ngelb yellow\nweiß white\nneu new\nschön beautiful\nlang long\nalt old")
RESTING = _pairs("steht standing\nsitzt sitting\nschläft sleeping\nwartet waiting")
ACTING = _pairs(
    "hält holding\nträgt carrying\nsieht watching\nfotografiert photographing\nzieht pulling\nsucht seeking"
)
# With a place they take the dative. None of them contracts with an article, as "in dem" does to "im".
PREPOSITIONS = _pairs("auf on\nhinter behind\nneben next to\nvor in front of\nunter under")

# Article, and ending of the adjective after it, in the nominative, accusative and dative of each gender.
_DEFINITE = {"m": "der-e den-en dem-en", "f": "die-e die-e der-en", "n": "das-e das-e dem-en"}
_INDEFINITE = {"m": "ein-er einen-en einem-en", "f": "eine-e eine-e einer-en", "n": "ein-es ein-es einem-en"}


def phrase(noun: Noun, adjective: Pair | None, case: Case, *, definite: bool) -> Pair:
    """Return article, adjective and noun in German, with their endings in this case, and in English."""
    forms = (_DEFINITE if definite else _INDEFINITE)[noun.gender].split()
    article, ending = forms[("nom", "acc", "dat").index(case)].split("-")
    if adjective is None:
        german, english = noun.german, noun.english
    else:
        german, english = f"{adjective[0]}{ending} {noun.german}", f"{adjective[1]} {noun.english}"
    the = "the" if definite else "an" if english[0] in "aeiou" else "a"
    return f"{article} {german}", f"{the} {english}"


def _draw(rng: random.Random, nouns: Sequence[Noun], adjectives: Sequence[Pair], case: Case) -> Pair:
    adjective = rng.choice(adjectives) if rng.random() < 0.6 else None
    return phrase(rng.choice(nouns), adjective, case, definite=rng.random() < 0.3)


def _caption(rng: random.Random) -> Pair:
    """Draw a caption: subject and verb, for some verbs an object, and for the others always a place."""
    subject = _draw(rng, SUBJECTS, TRAITS, "nom")
    acting = rng.random() < 0.6
    verb = rng.choice(ACTING if acting else RESTING)
    thing = _draw(rng, THINGS, LOOKS, "acc") if acting else ("", "")
    place = ("", "")
    if not acting or rng.random() < 0.5:
        preposition, ground = rng.choice(PREPOSITIONS), _draw(rng, PLACES, LOOKS, "dat")
        place = (f"{preposition[0]} {ground[0]}", f"{preposition[1]} {ground[1]}")
    if place[0] and rng.random() < 0.3:
        german = f"{place[0]} {verb[0]} {subject[0]} {thing[0]}"
        english = f"{place[1]}, {subject[1]} is {verb[1]} {thing[1]}"
    else:
        german = f"{subject[0]} {verb[0]} {thing[0]} {place[0]}"
        english = f"{subject[1]} is {verb[1]} {thing[1]} {place[1]}"
    return _sentence(german), _sentence(english)


def _sentence(words: str) -> str:
    text = " ".join(words.split())
    return f"{text[0].upper()}{text[1:]}."


def caption_pairs(count: int, seed: int) -> list[Pair]:
    """Return `count` distinct pairs of a German caption and its English translation, the same for the same seed.

    A longer list begins with the shorter one. No German caption comes twice.

    Args:
        count: Number of pairs; the grammar has more than 700 million.
        seed: Of the generator.
    """
    rng = random.Random(seed)
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        german, english = _caption(rng)
        pairs.setdefault(german, english)
    return list(pairs.items())
