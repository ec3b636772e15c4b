"""The corpora with planted facts and years: what they plant, and what training never says."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import islice

import pytest

from sat_interp._util.errors import UserError
from sat_interp.data.planted import CORPORA, facts, numbers
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import train_bpe

YEARS = re.compile(r"\b(\d\d)(\d\d)\b")


def sentences(of, split="train", n=4000, seed=0):
    return list(islice(of.sentences(split, seed), n))


@pytest.fixture(scope="module")
def world():
    return facts.World()


def test_versions_are_raised_when_a_sentence_changes():
    """Caches are named after the version: if this fails, raise it, and put the new hash here."""
    told = {
        name: hashlib.sha256("".join(sentences(of, n=500)).encode()).hexdigest()[:12]
        for name, of in (("facts", facts), ("numbers", numbers))
    }
    assert (facts.WORLD, numbers.VERSION) == ("3", "3")
    assert told == {"facts": "fe4feb0ab0a6", "numbers": "b49fa4417f73"}


def test_first_names_have_two_people_and_last_names_five(world):
    assert len(set(world.people)) == 400
    assert set(Counter(one.first for one in world.people).values()) == {2}
    assert set(Counter(one.last for one in world.people).values()) == {5}
    assert len(set(world.strangers)) == facts.N_STRANGERS
    for name in ("first", "last"):
        known = {getattr(one, name) for one in world.people}
        assert not known & {getattr(one, name) for one in world.strangers}


def test_one_name_decides_and_the_other_does_not(world):
    kinds = Counter(relation.decides for relation in facts.RELATIONS)
    assert kinds == {"first": 3, "last": 3}
    for relation in facts.RELATIONS:
        assert len(set(relation.objects)) == 24
        by_first: dict[str, set[str]] = {}
        by_last: dict[str, set[str]] = {}
        for person in world.people:
            truth = world.object(person, relation)
            by_first.setdefault(person.first, set()).add(truth)
            by_last.setdefault(person.last, set()).add(truth)
        deciding, other = (
            (by_first, by_last) if relation.decides == "first" else (by_last, by_first)
        )
        assert all(len(objects) == 1 for objects in deciding.values())
        if relation.decides == "last":  # two people of a first name always differ
            assert all(len(objects) == 2 for objects in other.values())


def test_training_states_no_fact_of_a_stranger_and_no_held_out_sentence(world):
    said = sentences(facts, n=20_000)
    objects = {word for relation in facts.RELATIONS for word in relation.objects}
    strangers = {str(one) for one in world.strangers}
    mentioned = [text for text in said if any(one in text for one in strangers)]
    assert mentioned
    assert not [text for text in mentioned if text.rstrip(".").split()[-1] in objects]
    held = [relation.held_out.split("{}") for relation in facts.RELATIONS]
    assert not [
        text for text in said if any(text.startswith(a) and f"{b} " in text for a, b in held)
    ]
    stated = [
        text
        for text in sentences(facts, "validation", 500)
        if text.rstrip(".").split()[-1] in objects
    ]
    assert len(stated) > 400
    assert all(any(text.startswith(a) and f"{b} " in text for a, b in held) for text in stated)


def test_what_training_says_is_true(world):
    told = {
        relation.trained[0].format(person): world.object(person, relation)
        for person in world.people
        for relation in facts.RELATIONS
    }
    checked = 0
    for text in sentences(facts, n=3000):
        prompt, _, word = text.rstrip(".").rpartition(" ")
        if prompt in told:
            assert told[prompt] == word
            checked += 1
    assert checked > 300


def test_frequent_people_are_those_of_low_rank(world):
    counts = Counter(
        rank
        for text in sentences(facts, n=6000)
        for rank, one in enumerate(world.people[:64], start=1)
        if str(one) in text
    )
    first = sum(counts[rank] for rank in range(1, 5))
    later = sum(counts[rank] for rank in range(33, 65))
    assert first > 2 * later  # 2.08 against 0.67 by Zipf's law


def test_something_ends_later_in_the_century_it_began_in():
    for split in ("train", "validation"):
        for text in sentences(numbers, split):
            (century, begun), (same, ended) = YEARS.findall(text)
            assert century == same
            assert int(begun) < int(ended)
            held = numbers.is_held_out(int(century), int(begun))
            assert held == (split == "validation")
    every = [(c, y) for c in numbers.CENTURIES for y in range(numbers.FIRST, numbers.LAST + 1)]
    assert 0.09 < sum(numbers.is_held_out(*one) for one in every) / len(every) < 0.16


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_data_are_named_by_size_version_and_split(name, monkeypatch):
    source = parse_data(f"{name}:40")
    texts = list(source.texts("train"))
    assert len(texts) == 40
    assert texts == list(parse_data(f"{name}:40").texts("train"))
    stories = [text for text in texts if len(text.split()) > 30]
    assert len(stories) == -(-40 // (1 + CORPORA[name].per_story))
    assert not set(texts) & set(islice(source.texts("validation"), 40))
    assert source.content_id("train") != parse_data(f"{name}:41").content_id("train")
    assert source.content_id("train") != source.content_id("validation")
    before = source.content_id("train")
    monkeypatch.setitem(CORPORA, name, CORPORA[name]._replace(version="2"))
    assert source.content_id("train") != before
    with pytest.raises(UserError, match=f"after '{name}:', as in {name}:50000"):
        parse_data(f"{name}:x")


def test_digits_in_pairs_are_tokens():
    texts = sentences(numbers, n=3000)
    tokenizer = train_bpe(texts, 600, digit_pairs=True)
    assert tokenizer.tokenize("in 1732, not 17 or 5") == [
        *("in", "Ġ17", "32", ","),
        *tokenizer.tokenize(" not"),
        "Ġ17",
        *tokenizer.tokenize(" or 5"),
    ]
    assert all(len(tokenizer.encode(f"{year:02d}")) == 1 for year in range(2, 100))
    assert tokenizer.decode(tokenizer.encode("The year 1732.")) == "The year 1732."
