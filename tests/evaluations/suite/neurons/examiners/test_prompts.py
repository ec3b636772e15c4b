"""What is asked says what it should; what is answered is read, or is Unscored with a reason."""

from __future__ import annotations

import math

import pytest

from evaluations.suite.neurons.examiners import answers, prompts
from evaluations.suite.neurons.examiners.base import Explanation, Marked, ShownExcerpt, Unscored

TOKENS = (" the", " dog", "\n", "\t", "“", ".")
LEVELS = (0, 10, 0, 0, 3, 0)
LINES = " the\t0\n dog\t10\n\\n\t0\n\\t\t0\n“\t3\n.\t0"


def last(prompt: prompts.Prompt) -> str:
    role, text = prompt.messages[-1]
    assert role == "user"
    return text


def test_an_explanation_is_asked_with_a_token_and_its_level_on_each_line():
    prompt = prompts.explanation([ShownExcerpt(TOKENS, LEVELS), ShownExcerpt((" a",), (0,))])
    assert LINES in last(prompt)
    assert " a\t0" in last(prompt)
    assert not prompt.levels


@pytest.mark.parametrize(("firing", "repeated"), [(1, True), (2, False)])
def test_those_that_fire_are_repeated_where_they_are_few(firing: int, repeated: bool):
    shown = ShownExcerpt(tuple("abcdefghi"), tuple([7] * firing + [0] * (9 - firing)))
    text = last(prompts.explanation([shown]))
    assert text.count("a\t7") == 1 + repeated
    assert text.count("i\t0") == 1


def test_a_brief_prompt_names_the_tokens_that_fire_most():
    excerpts = [
        ShownExcerpt((" a", " dog", " cat", "."), (4, 10, 5, 0)),
        ShownExcerpt((" hen", " dog"), (3, 2)),
        ShownExcerpt((" the",), (0,)),
    ]
    assert last(prompts.brief_explanation(excerpts)) == "dog, cat, hen"


def test_a_simulator_sees_the_words_of_the_explanation_and_no_level():
    prompt = prompts.simulation("dogs", TOKENS)
    assert last(prompt) == "The neuron looks for: dogs\n the\n dog\n\\n\n\\t\n“\n."
    assert prompt.levels
    assert not prompts.simulation("dogs", TOKENS, "json").levels


@pytest.mark.parametrize("style", ["lines", "json"])
def test_the_worked_answers_are_read_as_they_were_meant(style: prompts.Style):
    prompt = prompts.simulation("x", TOKENS, style)
    shown = [text for role, text in prompt.messages if role == "assistant"]
    read = answers.read_lines if style == "lines" else answers.read_json
    for answer, example in zip(shown, prompts.EXAMPLES, strict=True):
        assert read(answer, example.excerpt.tokens) == example.excerpt.levels
        assert max(example.excerpt.levels) > 5


def test_all_at_once_shows_no_level_of_the_excerpt_and_some_of_the_examples():
    prompt, answer = prompts.simulation_at_once("dogs", TOKENS, highest=9)
    assert (
        answer == " the\tunknown\n dog\tunknown\n\\n\tunknown\n\\t\tunknown\n“\tunknown\n.\tunknown"
    )
    assert answer.count("\t") == len(TOKENS)
    shown = "\n".join(text for role, text in prompt.messages if role == "assistant")
    assert "\tunknown" in shown
    assert "\t9" in shown
    assert "\t10" not in shown


def test_excerpts_to_judge_are_numbered_lines_and_marks_join():
    text = last(prompts.detection("dogs", [TOKENS, (" a",)]))
    assert text == "The neuron looks for: dogs\n1:  the dog\\n\\t“.\n2:  a"
    marked = Marked((" a", " big", " dog", "."), frozenset({1, 2}))
    end = Marked((" a", " dog"), frozenset({1}))
    text = last(prompts.fuzzing("dogs", [marked, end]))
    assert text.endswith("1:  a<< big dog>>.\n2:  a<< dog>>")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("dogs", "dogs"),
        ('\n\n**Explanation:** "dogs and cats."\nBecause ...', "dogs and cats."),
        ("- answer: the word 'dog'", "the word 'dog'"),
        ("x" * 1000, "x" * answers.LONGEST_EXPLANATION),
    ],
)
def test_the_first_line_that_says_something_is_the_explanation(answer: str, said: str):
    assert answers.read_explanation(answer) == Explanation(said)


@pytest.mark.parametrize("answer", ["", " \n ", "```\n```", "Explanation:", '""'])
def test_an_explanation_that_says_nothing_is_none(answer: str):
    assert answers.read_explanation(answer) == Unscored("empty answer")


def test_levels_of_lines_are_as_written_where_no_probabilities_are_given():
    assert answers.read_lines(LINES, TOKENS) == LEVELS
    fenced = f"Here you are:\n```\n{LINES}\n```\n"
    assert answers.read_lines(fenced, TOKENS) == LEVELS
    bare = "\n".join(line.strip(" ") for line in LINES.split("\n"))
    assert answers.read_lines(bare, TOKENS) == LEVELS  # blanks around a token do not matter


def test_levels_of_lines_are_expected_values_where_probabilities_are_given():
    answer = "a\t1\nb\t10\nc\t4"
    found = {
        2: ("1", {"1": math.log(0.5), "3": math.log(0.25)}),
        # written as 1, 0: the first stands for 10
        6: ("1", {"1": math.log(0.6), "2": math.log(0.2)}),
    }
    levels = answers.read_lines(answer, ("a", "b", "c"), found)
    assert levels == pytest.approx(((0.5 * 1 + 0.25 * 3) / 0.75, (6 + 0.4) / 0.8, 4))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot do that.", "unparsable answer"),
        ("a\t1\nb\t11", "unparsable answer"),
        ("a\t1\nb\t-1", "tokens differ"),
        ("a\t1", "tokens differ"),
        ("a\t1\nb\t2\nb\t2", "tokens differ"),
        ("b\t1\na\t2", "tokens differ"),
    ],
)
def test_lines_that_are_not_the_tokens_are_unscored(answer: str, reason: str):
    assert answers.read_lines(answer, ("a", "b")) == Unscored(reason)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('```json\n[["a", 1], [" b", 2.5]]\n```', (1.0, 2.5)),
        ('[["a", 1], ["\\n", 2]]', Unscored("tokens differ")),
        ('[["a", 1]]', Unscored("tokens differ")),
        ('[["a", 1], ["b", 2', Unscored("unparsable answer")),
        ('[["a", 1], ["b", true]]', Unscored("unparsable answer")),
        ('[["a", 1], ["b", 11]]', Unscored("unparsable answer")),
        ("[1, 2]", Unscored("unparsable answer")),
        ("no", Unscored("unparsable answer")),
    ],
)
def test_levels_of_json(answer: str, found: object):
    assert answers.read_json(answer, ("a", " b")) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("[1, 0]", (True, False)),
        ("The list is [true, false].", (True, False)),
        ('["Yes", "no"]', (True, False)),
        ("[1]", Unscored("wrong number of verdicts")),
        ("[1, 0, 1]", Unscored("wrong number of verdicts")),
        ("[1, 2]", Unscored("unparsable answer")),
        ("1, 0", Unscored("unparsable answer")),
        ("[1, ", Unscored("unparsable answer")),
        ("][", Unscored("unparsable answer")),
    ],
)
def test_verdicts(answer: str, found: object):
    assert answers.read_verdicts(answer, 2) == found


def test_another_wording_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = prompts.fingerprint()
    prompts.fingerprint.cache_clear()
    monkeypatch.setattr(prompts, "FUZZ", prompts.FUZZ + " Think.")
    assert prompts.fingerprint() != before
    prompts.fingerprint.cache_clear()
