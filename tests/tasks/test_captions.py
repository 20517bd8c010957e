"""The grammar of the German-English captions that stand in for Multi30k."""

import itertools
import re

import pytest

from lsmooth.tasks import captions
from lsmooth.tasks.captions import Adjective, Phrase, caption_pairs

NOUNS = {
    noun.english: noun
    for noun in (*captions.PEOPLE, *captions.ANIMALS, *captions.CLOTHES, *captions.THINGS, *captions.PLACES)
}
ADJECTIVES = {adjective.english: adjective for adjective in (*captions.COLOURS, *captions.TRAITS, *captions.SIZES)}


@pytest.fixture(scope="module")
def pairs():
    return caption_pairs(100_000, seed=0)


def _phrase(determiner, adjective, noun, number="sg"):
    return Phrase(NOUNS[noun], determiner, ADJECTIVES[adjective] if adjective else None, number)


# Written by hand, from a grammar's tables.
@pytest.mark.parametrize(
    ("phrase", "nom", "acc", "dat", "gen"),
    [
        (
            ("a", "old", "man"),
            "ein alter Mann",
            "einen alten Mann",
            "einem alten Mann",
            "eines alten Mannes",
        ),
        (
            ("a", "young", "woman"),
            "eine junge Frau",
            "eine junge Frau",
            "einer jungen Frau",
            "einer jungen Frau",
        ),
        (
            ("a", "small", "child"),
            "ein kleines Kind",
            "ein kleines Kind",
            "einem kleinen Kind",
            "eines kleinen Kindes",
        ),
        (
            ("the", "old", "man"),
            "der alte Mann",
            "den alten Mann",
            "dem alten Mann",
            "des alten Mannes",
        ),
        (
            ("the", "red", "jacket"),
            "die rote Jacke",
            "die rote Jacke",
            "der roten Jacke",
            "der roten Jacke",
        ),
        (
            ("the", "new", "house"),
            "das neue Haus",
            "das neue Haus",
            "dem neuen Haus",
            "des neuen Hauses",
        ),
        (
            ("the", "tired", "boy"),
            "der müde Junge",
            "den müden Jungen",
            "dem müden Jungen",
            "des müden Jungen",
        ),
        (
            ("a", "happy", "tourist"),
            "ein fröhlicher Tourist",
            "einen fröhlichen Touristen",
            "einem fröhlichen Touristen",
            "eines fröhlichen Touristen",
        ),
        (
            ("the", "small", "children", "pl"),
            "die kleinen Kinder",
            "die kleinen Kinder",
            "den kleinen Kindern",
            "der kleinen Kinder",
        ),
        (
            ("two", "black", "dogs", "pl"),
            "zwei schwarze Hunde",
            "zwei schwarze Hunde",
            "zwei schwarzen Hunden",
            "zwei schwarzer Hunde",
        ),
        (
            ("", "big", "cars", "pl"),
            "große Brücken",
            "große Brücken",
            "großen Brücken",
            "großer Brücken",
        ),
        (
            ("the", None, "parks", "pl"),
            "die Parks",
            "die Parks",
            "den Parks",
            "der Parks",
        ),
        (
            ("a", None, "park"),
            "ein Park",
            "einen Park",
            "einem Park",
            "eines Parks",
        ),
        (
            ("the", None, "girl"),
            "das Mädchen",
            "das Mädchen",
            "dem Mädchen",
            "des Mädchens",
        ),
    ],
)
def test_declension_against_a_grammars_tables(phrase, nom, acc, dat, gen):
    singular = {"children": "child", "dogs": "dog", "cars": "bridge", "parks": "park"}
    determiner, adjective, noun, *number = phrase
    built = _phrase(determiner, adjective, singular.get(noun, noun), *number)
    assert [built.german(case) for case in ("nom", "acc", "dat", "gen")] == [nom, acc, dat, gen]


def _rule(determiner, gender, number, case):
    """Return article and adjective ending by the rule of thumb, not by tables.

    The ending of gender, number and case (that of `der`, `die`, `das`) is shown once: by the article, or by the
    adjective where the article shows none. An adjective after an article that shows it has -e in the forms that look
    like the nominative singular, and -en in all others.
    """
    shown = {
        ("m", "nom"): "er", ("m", "acc"): "en", ("m", "dat"): "em", ("m", "gen"): "es",
        ("n", "nom"): "es", ("n", "acc"): "es", ("n", "dat"): "em", ("n", "gen"): "es",
        ("f", "nom"): "e", ("f", "acc"): "e", ("f", "dat"): "er", ("f", "gen"): "er",
        ("pl", "nom"): "e", ("pl", "acc"): "e", ("pl", "dat"): "en", ("pl", "gen"): "er",
    }[(gender if number == "sg" else "pl", case)]  # fmt: skip
    if determiner == "a":
        bare = (case == "nom" and gender == "m") or (gender == "n" and case in ("nom", "acc"))
        article, marked = ("ein", False) if bare else ("ein" + shown, True)
    elif determiner == "the":
        article, marked = {"e": "die", "es": "das"}.get(shown, "d" + shown), True
        if shown == "es" and case == "gen":
            article = "des"
    else:
        article, marked = {"": "", "three": "drei"}[determiner], False
    if not marked:
        return article, shown
    like_nominative = number == "sg" and (case == "nom" or (case == "acc" and gender != "m"))
    return article, "e" if like_nominative else "en"


def test_every_article_and_ending_against_the_rule_of_thumb():
    seen = 0
    adjective = Adjective("rot", "red")
    combinations = [(d, "sg") for d in ("a", "the")] + [(d, "pl") for d in ("", "the", "three")]
    for noun, (determiner, number) in itertools.product(NOUNS.values(), combinations):
        for case in ("nom", "acc", "dat", "gen"):
            words = Phrase(noun, determiner, adjective, number).german(case).split()
            article, ending = _rule(determiner, noun.gender, number, case)
            assert words[:-1] == [*([article] if article else []), "rot" + ending], (noun.singular, determiner, case)
            seen += 1
    assert seen == len(NOUNS) * 5 * 4


def test_genders_of_all_nouns():
    masculine = (
        "Mann Junge Student Bauarbeiter Tourist Koch Hund Vogel Elefant Hut Mantel Helm Ball Koffer Brief Stuhl Tisch "
        "Park Garten Brunnen Baum Strand"
    )
    feminine = (
        "Frau Sängerin Läuferin Katze Jacke Mütze Weste Zeitung Gitarre Flasche Kamera Tasche Straße Bank Brücke Bühne "
        "Mauer"
    )
    neuter = "Kind Mädchen Paar Pferd Schaf Hemd Kleid Buch Fahrrad Seil Haus Boot Feld"
    expected = {
        noun: gender
        for gender, nouns in zip("mfn", (masculine, feminine, neuter), strict=True)
        for noun in nouns.split()
    }
    assert {noun.singular: noun.gender for noun in NOUNS.values()} == expected


def test_english_phrases():
    assert _phrase("a", "old", "woman").english() == "an old woman"
    assert _phrase("a", None, "elephant").english() == "an elephant"
    assert _phrase("a", "small", "elephant").english() == "a small elephant"
    assert _phrase("the", "young", "man", "pl").english() == "the young men"
    assert _phrase("two", None, "child", "pl").english() == "two children"
    assert _phrase("", "big", "house", "pl").english() == "big houses"


def test_a_hundred_thousand_distinct_pairs(pairs):
    assert len(pairs) == 100_000
    assert len({german for german, _ in pairs}) == 100_000


def test_the_same_seed_gives_the_same_pairs(pairs):
    assert caption_pairs(300, seed=0) == pairs[:300]
    assert caption_pairs(300, seed=1) != pairs[:300]


def test_verbs_agree_in_number_in_both_languages(pairs):
    verbs = (*captions.STANDING, *captions.GOING, *captions.ACTING)
    singular, plural = {verb.singular for verb in verbs}, {verb.plural for verb in verbs}
    for german, english in pairs[:20_000]:
        words = set(re.findall(r"\w+", german))
        assert len(words & (singular | plural)) == 1, german
        assert bool(words & plural) == (" are " in english), german
        assert bool(words & singular) == (" is " in english), german


def test_two_way_prepositions_have_the_dative_for_a_place_and_the_accusative_for_a_goal(pairs):
    prepositions = "auf|in|hinter|neben|vor|unter"
    dative, accusative = {"einem", "einer", "dem", "der", "den"}, {"einen", "eine", "ein", "den", "die", "das"}
    articles = dative | accusative
    places = re.compile(rf"(?:steht|sitzt|schläft|wartet|stehen|sitzen|schlafen|warten) (?:{prepositions}) (\w+)")
    goals = re.compile(rf"(?:läuft|springt|geht|klettert|laufen|springen|gehen|klettern) (?:{prepositions}) (\w+)")
    found = {"place": 0, "goal": 0}
    for german, _ in pairs[:20_000]:
        for kind, pattern, allowed in (("place", places, dative), ("goal", goals, accusative)):
            match = pattern.search(german)
            if match and match[1] in articles:
                found[kind] += 1
                assert match[1] in allowed, german
    assert min(found.values()) > 1000


def test_with_takes_the_dative(pairs):
    seen = 0
    for german, _ in pairs[:20_000]:
        for article in re.findall(r" mit (de\w|die|das|ein\w*) ", german):
            seen += 1
            assert article in {"einem", "einer", "dem", "der", "den"}, german
    assert seen > 300


def test_prepositions_and_articles_contract(pairs):
    text = " ".join(german.lower() for german, _ in pairs[:20_000])
    assert not re.findall(r"\b(?:in dem|in das|an dem|an das|zu dem|zu der|von dem)\b", text)
    assert all(f" {short} " in text for short in ("im", "ins", "zum", "zur"))


def test_the_verb_stays_second_when_the_place_comes_first(pairs):
    german, english = next(
        pair for pair in pairs if re.match(r"Auf einer Brücke (steht|sitzt|wartet|schläft) ", pair[0])
    )
    assert english.startswith("On a bridge, ")
    subject = re.match(r"Auf einer Brücke \w+ (\w+)", german)[1]
    # The subject follows the verb, in the nominative.
    assert subject in {"ein", "eine", "der", "die", "das"}


def test_english_articles_fit_the_next_word(pairs):
    text = " ".join(english.lower() for _, english in pairs[:20_000])
    assert not re.findall(r"\ba [aeiou]\w*", text)
    assert not re.findall(r"\ban [^aeiou]\w*", text)


def test_captions_are_sentences(pairs):
    for pair in pairs[:2_000]:
        for text in pair:
            assert re.fullmatch(r"[A-ZÄÖÜ][\wäöüß ,]*\.", text), text
            assert "  " not in text
