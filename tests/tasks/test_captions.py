"""The grammar of the German-English captions that stand in for Multi30k."""

import re

import pytest

from lsmooth.tasks import captions
from lsmooth.tasks.captions import caption_pairs, phrase

NOUNS = {noun.english: noun for noun in (*captions.SUBJECTS, *captions.THINGS, *captions.PLACES)}
ADJECTIVES = dict(map(reversed, (*captions.TRAITS, *captions.LOOKS)))


@pytest.fixture(scope="module")
def pairs():
    return caption_pairs(100_000, seed=0)


# All articles and endings, written by hand from a grammar's tables.
@pytest.mark.parametrize(
    ("english", "nom", "acc", "dat"),
    [
        ("an old man", "ein alter Mann", "einen alten Mann", "einem alten Mann"),
        ("a young woman", "eine junge Frau", "eine junge Frau", "einer jungen Frau"),
        ("a small child", "ein kleines Kind", "ein kleines Kind", "einem kleinen Kind"),
        ("the tired cook", "der müde Koch", "den müden Koch", "dem müden Koch"),
        ("the red guitar", "die rote Gitarre", "die rote Gitarre", "der roten Gitarre"),
        ("the new house", "das neue Haus", "das neue Haus", "dem neuen Haus"),
        ("an apple", "ein Apfel", "einen Apfel", "einem Apfel"),
        ("the girl", "das Mädchen", "das Mädchen", "dem Mädchen"),
    ],
)
def test_declension_against_a_grammars_tables(english, nom, acc, dat):
    determiner, *adjective, noun = english.split()
    pair = (ADJECTIVES[adjective[0]], adjective[0]) if adjective else None
    for case, german in (("nom", nom), ("acc", acc), ("dat", dat)):
        assert phrase(NOUNS[noun], pair, case, definite=determiner == "the") == (german, english)


def test_genders_of_all_nouns():
    masculine = "Mann Bauarbeiter Koch Hund Vogel Ball Koffer Apfel Stuhl Tisch Garten Brunnen Baum Strand"
    feminine = "Frau Sängerin Läuferin Katze Zeitung Gitarre Flasche Kamera Tasche Straße Bank Brücke Bühne Mauer"
    neuter = "Kind Mädchen Pferd Schaf Buch Fahrrad Seil Ei Haus Boot Feld"
    expected = {
        noun: gender
        for gender, nouns in zip("mfn", (masculine, feminine, neuter), strict=True)
        for noun in nouns.split()
    }
    assert {noun.german: noun.gender for noun in NOUNS.values()} == expected


def test_a_hundred_thousand_distinct_pairs(pairs):
    assert len(pairs) == 100_000
    assert len({german for german, _ in pairs}) == 100_000


def test_the_same_seed_gives_the_same_pairs(pairs):
    assert caption_pairs(300, seed=0) == pairs[:300]
    assert caption_pairs(300, seed=1) != pairs[:300]


def test_a_place_has_the_dative_and_an_object_the_accusative(pairs):
    dative, accusative = {"einem", "einer", "dem", "der"}, {"einen", "eine", "ein", "den", "die", "das"}
    verbs = "|".join(german for german, _ in captions.ACTING)
    found = {"place": 0, "object": 0}
    for german, english in pairs[:20_000]:
        for article in re.findall(r"(?:auf|hinter|neben|vor|unter) (\w+)", german.lower()):
            found["place"] += 1
            assert article in dative, german
        # Where the place comes first, the subject follows the verb.
        if "," not in english and (match := re.search(rf"(?:{verbs}) (\w+)", german)):
            found["object"] += 1
            assert match[1] in accusative, german
    assert min(found.values()) > 5_000


def test_the_verb_stays_second_when_the_place_comes_first(pairs):
    verbs = "|".join(german for german, _ in (*captions.RESTING, *captions.ACTING))
    fronted = [german for german, english in pairs[:20_000] if "," in english]
    assert len(fronted) > 2_000
    for german in fronted:
        # Preposition, article, perhaps an adjective, the place; then the verb, and the subject in the nominative.
        match = re.match(rf"[A-Z]\w+ \w+ (?:\w+ )?[A-ZÄÖÜ]\w+ (?:{verbs}) (\w+) ", german)
        assert match, german
        assert match[1] in {"ein", "eine", "der", "die", "das"}, german


def test_captions_are_sentences(pairs):
    for german, english in pairs[:5_000]:
        for text in (german, english):
            assert re.fullmatch(r"[A-ZÄÖÜ][\wäöüß ,]*\.", text), text
            assert "  " not in text
        assert english.count(" is ") == 1
        assert not re.findall(r"\ba [aeiou]|\ban [^aeiou]", english.lower()), english
