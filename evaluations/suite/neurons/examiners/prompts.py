"""What a language model is asked about a unit; ``answers.py`` reads what it says.

Explanation and simulation follow Bills et al. 2023 ("Language models can explain neurons in
language models"): a token and its level on each line, and a simulator that sees only the words of
the explanation. Detection and fuzzing are the tasks of EleutherAI's delphi: which excerpts does the
unit fire on, and are the right tokens marked. The wording is ours.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.suite.neurons.examiners.base import HIGHEST, Marked, Shown

Style = Literal["lines", "json"]

UNKNOWN = "unknown"
"""Stands in place of a level that is to be predicted, where all are predicted at once."""

ROOM = "You study single neurons of a small language model."
EXPLAIN = (
    f"{ROOM} Below are excerpts of text, one token per line, each followed by a tab and how "
    "strongly the neuron fires on it: 0 is not at all, {highest} is the strongest. Work out what "
    "the neuron looks for, in the token itself or in what comes before it. Answer with one short "
    "phrase, on one line, and nothing else. Do not list the examples; name what they share."
)
EXPLAIN_BRIEFLY = "Say in a few words what the words have in common."
BRIEF_EXAMPLES = (
    ("blue, red, green", "names of colours"),
    ("morning, night, evening", "times of the day"),
    ("jumped, swam, climbed", "verbs of movement"),
)
SIMULATE = (
    f"{ROOM} You are told what a neuron looks for, and given an excerpt of text, one token per "
    "line. Predict how strongly the neuron fires on each token: 0 is not at all, {highest} is the "
    "strongest; most tokens get 0. "
)
ANSWER = {
    "lines": "Answer with every token, in order, each on its own line, then a tab, then its level.",
    "json": "Answer with one JSON list that holds, for every token in order, [token, level].",
}
DETECT = (
    f"{ROOM} You are told what a neuron looks for, and given numbered excerpts of text. For each, "
    "judge whether the neuron fires anywhere in it. Answer with one JSON list with a number for "
    "each excerpt: 1 if it fires, 0 if it does not. For two excerpts: [1, 0]"
)
FUZZ = (
    f"{ROOM} You are told what a neuron looks for, and given numbered excerpts of text in which "
    "some tokens are marked <<like this>>. For each, judge whether the marked tokens are those the "
    "neuron fires on. Answer with one JSON list with a number for each excerpt: 1 if they are, 0 "
    "if they are not. For two excerpts: [1, 0]"
)


@dataclass(frozen=True)
class Example:
    """A made-up neuron, worked out.

    Attributes:
        shown_from: where all levels are predicted at once, the first that is shown: so that any
            line may be the one where numbers begin.
    """

    explanation: str
    excerpt: Shown
    shown_from: int


def _example(explanation: str, text: str, levels: Mapping[int, int], shown_from: int) -> Example:
    tokens = tuple(re.findall(r" ?\w+|[^\w\s]", text))
    given = tuple(levels.get(place, 0) for place in range(len(tokens)))
    return Example(explanation, Shown(tokens, given), shown_from)


EXAMPLES = (
    _example(
        "animals kept at home", "The old man had a dog and two cats. The dog ran.",
        {5: 10, 8: 7, 11: 9}, 4,
    ),
    _example(
        "the place somebody goes to, after 'to the'",
        "They went to the beach, and then to the shop with Ben.", {4: 9, 9: 8}, 9,
    ),
    _example("full stops that end a sentence", "It was late. We sat down.", {3: 10, 7: 10}, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """One thing to ask.

    Attributes:
        messages: (role, text), the last from the user.
        max_tokens: room for the answer.
        levels: whether the probabilities of the answer's levels are wanted.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    levels: bool = False


def show(token: str) -> str:
    """A token as it stands on a line: line ends and tabs written out."""
    return token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def level_lines(tokens: Sequence[str], levels: Sequence[object]) -> str:
    return "\n".join(f"{show(t)}\t{level}" for t, level in zip(tokens, levels, strict=True))


def explanation(excerpts: Sequence[Shown], max_tokens: int = 60) -> Prompt:
    """What does the unit respond to? Those that fire are listed once more, where they are few."""
    messages = [("system", EXPLAIN.format(highest=HIGHEST))]
    for example in EXAMPLES:
        messages += [("user", _evidence([example.excerpt])), ("assistant", example.explanation)]
    return Prompt((*messages, ("user", _evidence(excerpts))), max_tokens)


def _evidence(excerpts: Sequence[Shown]) -> str:
    lines = []
    for number, shown in enumerate(excerpts, 1):
        lines += [f"Excerpt {number}:", level_lines(shown.tokens, shown.levels)]
    firing = [
        (token, level) for e in excerpts for token, level in zip(e.tokens, e.levels, strict=True)
        if level
    ]  # fmt: skip
    if 5 * len(firing) < sum(len(shown.tokens) for shown in excerpts):
        lines += ["The same, without those at 0:"]
        lines += [f"{show(token)}\t{level}" for token, level in firing]
    return "\n".join([*lines, "What does the neuron look for?"])


def brief_explanation(excerpts: Sequence[Shown], max_tokens: int = 60) -> Prompt:
    """The same for a small model, which is lost in long prompts: only the tokens that fire most.

    Those at half of an excerpt's highest level or more, without their context.
    """
    words = [
        show(token).strip() for shown in excerpts
        for token, level in zip(shown.tokens, shown.levels, strict=True)
        if 2 * level >= max(shown.levels) > 0
    ]  # fmt: skip
    messages = [("system", EXPLAIN_BRIEFLY)]
    for given, answer in BRIEF_EXAMPLES:
        messages += [("user", given), ("assistant", answer)]
    return Prompt((*messages, ("user", ", ".join(dict.fromkeys(words)))), max_tokens)


def _asked(said: str, rest: str) -> str:
    return f"The neuron looks for: {said}\n{rest}"


def simulation(said: str, tokens: Sequence[str], style: Style = "lines") -> Prompt:
    """Which level has each token, given the explanation ``said`` alone?"""
    messages = [("system", SIMULATE.format(highest=HIGHEST) + ANSWER[style])]
    for example in EXAMPLES:
        given = example.excerpt
        answer = level_lines(given.tokens, given.levels)
        if style == "json":
            pairs = zip(map(show, given.tokens), given.levels, strict=True)
            answer = json.dumps(list(pairs), ensure_ascii=False)
        messages += [
            ("user", _asked(example.explanation, _column(given.tokens))), ("assistant", answer),
        ]  # fmt: skip
    messages.append(("user", _asked(said, _column(tokens))))
    # a token written out takes as many tokens as it has bytes at worst; four at most in practice
    room = 32 + sum(6 + len(show(token).encode()) // 2 for token in tokens)
    return Prompt(tuple(messages), room * (2 if style == "json" else 1), levels=style == "lines")


def _column(tokens: Sequence[str]) -> str:
    return "\n".join(show(token) for token in tokens)


def simulation_at_once(said: str, tokens: Sequence[str], highest: int) -> tuple[Prompt, str]:
    """The same for a model whose probabilities can be read anywhere: the whole answer at once.

    The answer is given to the model with ``unknown`` for each level; what it would have put in its
    place is read after every tab (the "all at once" simulator of Bills et al.).

    Args:
        highest: 9 where 10 is more than one token.

    Returns:
        The prompt, and the answer.
    """
    messages = [("system", SIMULATE.format(highest=highest) + ANSWER["lines"])]
    for example in EXAMPLES:
        given, start = example.excerpt, example.shown_from
        levels: list[object] = [UNKNOWN] * start
        levels += [min(level, highest) for level in given.levels[start:]]
        messages += [
            ("user", _asked(example.explanation, "")),
            ("assistant", level_lines(given.tokens, levels)),
        ]
    messages.append(("user", _asked(said, "")))
    return Prompt(tuple(messages), 0), level_lines(tokens, [UNKNOWN] * len(tokens))


def detection(said: str, excerpts: Sequence[Sequence[str]]) -> Prompt:
    """On which excerpts does the unit fire?"""
    return _judgement(DETECT, said, ["".join(map(show, tokens)) for tokens in excerpts])


def fuzzing(said: str, excerpts: Sequence[Marked]) -> Prompt:
    """In which excerpts are the right tokens marked?"""
    return _judgement(FUZZ, said, [_marked(excerpt) for excerpt in excerpts])


def _judgement(task: str, said: str, texts: Sequence[str]) -> Prompt:
    numbered = "\n".join(f"{number}: {text}" for number, text in enumerate(texts, 1))
    return Prompt((("system", task), ("user", _asked(said, numbered))), 16 + 4 * len(texts))


def _marked(excerpt: Marked) -> str:
    """Its text, each run of marked tokens between << and >>."""
    text, inside = "", False
    for place, token in enumerate(excerpt.tokens):
        if (place in excerpt.marked) != inside:
            text += ">>" if inside else "<<"
            inside = not inside
        text += show(token)
    return text + (">>" if inside else "")


@functools.cache
def fingerprint() -> str:
    """A hash of all that is asked: another wording is another examiner."""
    tokens = EXAMPLES[0].excerpt.tokens
    asked = [
        explanation([EXAMPLES[0].excerpt]), brief_explanation([EXAMPLES[0].excerpt]),
        simulation("x", tokens),
        simulation("x", tokens, "json"), simulation_at_once("x", tokens, HIGHEST),
        detection("x", [tokens]), fuzzing("x", [Marked(tokens, frozenset({1}))]),
    ]  # fmt: skip
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
