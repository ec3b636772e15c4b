from __future__ import annotations

import numpy as np
import pytest

from evaluations.suite.neurons.examiners import lookup
from evaluations.suite.neurons.examiners.base import (
    Explanation,
    Marked,
    Question,
    ShownExcerpt,
    Simulation,
    Trial,
    Unscored,
)
from evaluations.suite.neurons.examiners.contexts import PLACES
from evaluations.suite.neurons.examiners.lookup import (
    MEAN,
    ROUNDS,
    SEPARATOR,
    SHRINKAGE,
    SMALLEST,
    LookupExaminer,
)

WORDS = ("a", " b", " c", " d", " e", ".")


def random_question(seed: int, excerpts: int = 6) -> Question:
    draws = np.random.default_rng(seed)
    shown = []
    for _ in range(excerpts):
        tokens = tuple(draws.choice(WORDS, size=draws.integers(1, 12)).tolist())
        levels = [10 * (word == " b") if draws.random() < 0.9 else 4 for word in tokens]
        shown.append(ShownExcerpt(tokens, tuple(levels), int(draws.choice([0, 0, 24]))))
    return Question(f"0.{seed}", tuple(shown))


def contexts(tokens: tuple[str, ...], start: int, place: int) -> dict[str, str]:
    """The contexts of one token, written out."""

    def back(by: int) -> str | None:
        if place >= by:
            return tokens[place - by]
        return "" if start + place == by - 1 else None

    found = {
        "token": [tokens[place]],
        "place": [str(sum(start + place >= end for end in PLACES))],
        "after": [back(1)],
        "2 after": [back(2)],
        "3 after": [back(3)],
        "pair": [back(1), tokens[place]],
        "triple": [back(2), back(1), tokens[place]],
    }
    return {
        kind: SEPARATOR.join((kind, *names)) for kind, names in found.items() if None not in names
    }


def plain_table(question: Question) -> dict[str, float]:
    """The same effects, one token at a time."""
    rows = [
        (contexts(shown.tokens, shown.start, place), level)
        for shown in question.excerpts
        for place, level in enumerate(shown.levels)
    ]
    mean, effects = 0.0, {}
    rest = [float(level) for _, level in rows]
    for _ in range(ROUNDS):
        more = sum(rest) / len(rest)
        mean += more
        rest = [one - more for one in rest]
        for kind, shrinkage in SHRINKAGE.items():
            members: dict[str, list[int]] = {}
            for place, (known, _) in enumerate(rows):
                if kind in known:
                    members.setdefault(known[kind], []).append(place)
            for key, places in members.items():
                old = effects.get(key, 0.0)
                new = sum(rest[place] + old for place in places) / (len(places) + shrinkage)
                for place in places:
                    rest[place] += old - new
                effects[key] = new
    kept = {key: value for key, value in effects.items() if abs(value) >= SMALLEST}
    return {MEAN: mean, **kept}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_effects_are_those_of_a_plain_twin(seed):
    question = random_question(seed)
    (found,) = LookupExaminer().explain([question])
    assert isinstance(found, Explanation)
    assert dict(found.table) == pytest.approx(plain_table(question))
    assert len(found.table) > 10


def test_levels_are_the_sum_of_the_effects(tmp_path):
    question, other = random_question(3), random_question(4)
    (found,) = LookupExaminer().explain([question])
    assert isinstance(found, Explanation)
    excerpts = tuple(shown.tokens for shown in other.excerpts)
    starts = tuple(shown.start for shown in other.excerpts)
    (levels,) = LookupExaminer().simulate([Simulation(found, excerpts, starts)])
    assert not isinstance(levels, Unscored)
    for shown, row in zip(other.excerpts, levels, strict=True):
        for place, level in enumerate(row):
            keys = contexts(shown.tokens, shown.start, place).values()
            total = found.table[MEAN] + sum(found.table.get(key, 0.0) for key in keys)
            assert level == pytest.approx(min(10.0, max(0.0, total)))


def test_answers_do_not_depend_on_what_else_is_asked(monkeypatch):
    monkeypatch.setattr(lookup, "GROUP", 8)
    questions = [random_question(seed, excerpts=1 + seed % 7) for seed in range(20)]
    examiner = LookupExaminer()
    together = examiner.explain(questions)
    alone = [LookupExaminer().explain([question])[0] for question in questions]
    assert together == alone
    asked = [
        Simulation(one, tuple(shown.tokens for shown in question.excerpts))
        for one, question in zip(together, questions[::-1], strict=True)
    ]
    assert examiner.simulate(asked) == [LookupExaminer().simulate([one])[0] for one in asked]
    # and neither does what is asked after it
    assert examiner.simulate(asked[3:9]) == examiner.simulate(asked)[3:9]


def test_words_and_places_never_seen_are_predicted_at_the_mean():
    question = Question("0.0", (ShownExcerpt(("a", " b", " a"), (0, 10, 0), 500),))
    (found,) = LookupExaminer().explain([question])
    (levels,) = LookupExaminer().simulate([Simulation(found, ((" x", " y"),), (100,))])
    assert levels == ((found.table[MEAN],) * 2,)


def shown(text: str, fires: tuple[int, ...], start: int = 300) -> ShownExcerpt:
    tokens = tuple(text.split("|"))
    return ShownExcerpt(tokens, tuple(10 * (place in fires) for place in range(len(tokens))), start)


@pytest.mark.parametrize(
    ("excerpts", "words"),
    [
        ([shown("a| b| c| b", (1, 3)), shown(" c| b| a", (1,))], 'fires on " b"'),
        (
            [shown("a| b| c| b|a| e", (1,)), shown(" c| b|a| b|a| d", (3,)), shown(" d| b", ())],
            'fires on " b" after "a"',
        ),
        (
            [shown(f"{w}| {v}| x| {w}", (2,), 0) for w, v in ("ab", "cd", "ef", "ge")]
            + [shown("y| x| x| x| x| z| x", (), 300)],
            "fires at the story's token 3",
        ),
        (
            [shown("a| b| c", (2,)), shown(" d| b| e", (2,)), shown(" b| f| e| c", (1,))],
            'fires after " b"',
        ),
        (
            [shown(f'{v}|\u201c{w}"', (1,)) for w, v in zip("xyzxyz", "abcdef", strict=True)],
            'fires on "\u201cx\\"", "\u201cy\\"", "\u201cz\\""',
        ),
        ([shown("a| b", ())], "never fires here"),
    ],
)
def test_the_words_say_what_fires(excerpts, words):
    (found,) = LookupExaminer().explain([Question("0.0", tuple(excerpts))])
    assert found.text == words


def test_it_detects_where_a_high_level_is_predicted_and_marks_by_comparison():
    table = {MEAN: 0.0, SEPARATOR.join(("token", " b")): 9.0}
    said = Explanation("", table)
    examiner = LookupExaminer()
    assert examiner.detect([Simulation(said, (("a", " b"), ("a",), ()))]) == [(True, False, False)]
    trial = Trial(
        said,
        (
            Marked(("a", " b", " c"), frozenset({1})),
            Marked(("a", " b", " c"), frozenset({0})),
            Marked(("a", " c"), frozenset({0})),
        ),
    )
    assert examiner.fuzz([trial]) == [(True, False, False)]


def test_nothing_to_explain_from_is_a_reason():
    assert LookupExaminer().explain([Question("0.0", ())]) == [Unscored("nothing to explain from")]
