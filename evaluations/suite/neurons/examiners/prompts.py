"""Prompts about a unit for a language model; ``answers.py`` parses the answers.

Explanation and simulation follow Bills et al. 2023 ("Language models can explain neurons in
language models"): a token and its level on each line, and a simulator that sees only the words of
the explanation. Detection and fuzzing are the tasks of EleutherAI's delphi: on which excerpts
does the unit fire, and are the correct tokens marked. The wording is our own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.suite.neurons.examiners.base import HIGHEST, Marked, ShownExcerpt

Style = Literal["lines", "json"]

UNKNOWN = "unknown"
"""Placeholder of a level that is predicted, if all are predicted at once."""

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
    """A fictitious neuron with its explanation and levels.

    Attributes:
        shown_from: first level that is shown if all levels are predicted at once; it varies, so
            that levels may start at any line.
    """

    explanation: str
    excerpt: ShownExcerpt
    shown_from: int


def _example(explanation: str, text: str, levels: Mapping[int, int], shown_from: int) -> Example:
    tokens = tuple(re.findall(r" ?\w+|[^\w\s]", text))
    given = tuple(levels.get(place, 0) for place in range(len(tokens)))
    return Example(explanation, ShownExcerpt(tokens, given), shown_from)


EXAMPLES = (
    _example(
        "animals kept at home",
        "The old man had a dog and two cats. The dog ran.",
        {5: 10, 8: 7, 11: 9},
        4,
    ),
    _example(
        "the place somebody goes to, after 'to the'",
        "They went to the beach, and then to the shop with Ben.",
        {4: 9, 9: 8},
        9,
    ),
    _example("full stops that end a sentence", "It was late. We sat down.", {3: 10, 7: 10}, 2),
)


@dataclass(frozen=True)
class Prompt:
    """A chat prompt.

    Attributes:
        messages: (role, text); the last message is the user's.
        max_tokens: maximum number of tokens of the answer.
        levels: whether the probabilities of the answer's levels are requested.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int
    levels: bool = False


def show(token: str) -> str:
    """Return a token with escaped line ends and tabs."""
    return token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def level_lines(tokens: Sequence[str], levels: Sequence[object]) -> str:
    """Return lines of tokens and levels, separated by tabs."""
    return "\n".join(f"{show(t)}\t{level}" for t, level in zip(tokens, levels, strict=True))


def explanation(excerpts: Sequence[ShownExcerpt], max_tokens: int = 60) -> Prompt:
    """Ask what the unit responds to; firing tokens are repeated in a list if they are few."""
    messages = [("system", EXPLAIN.format(highest=HIGHEST))]
    for example in EXAMPLES:
        messages += [("user", _evidence([example.excerpt])), ("assistant", example.explanation)]
    return Prompt((*messages, ("user", _evidence(excerpts))), max_tokens)


def _evidence(excerpts: Sequence[ShownExcerpt]) -> str:
    lines = []
    for number, shown in enumerate(excerpts, 1):
        lines += [f"Excerpt {number}:", level_lines(shown.tokens, shown.levels)]
    firing = [
        (token, level)
        for e in excerpts
        for token, level in zip(e.tokens, e.levels, strict=True)
        if level
    ]
    if 5 * len(firing) < sum(len(shown.tokens) for shown in excerpts):
        lines += ["The same, without those at 0:"]
        lines += [f"{show(token)}\t{level}" for token, level in firing]
    return "\n".join([*lines, "What does the neuron look for?"])


def brief_explanation(excerpts: Sequence[ShownExcerpt], max_tokens: int = 60) -> Prompt:
    """Ask a small model what the unit responds to, without context.

    The prompt lists the tokens at half of their excerpt's highest level or above.
    """
    words = [
        show(token).strip()
        for shown in excerpts
        for token, level in zip(shown.tokens, shown.levels, strict=True)
        if 2 * level >= max(shown.levels) > 0
    ]
    messages = [("system", EXPLAIN_BRIEFLY)]
    for given, answer in BRIEF_EXAMPLES:
        messages += [("user", given), ("assistant", answer)]
    return Prompt((*messages, ("user", ", ".join(dict.fromkeys(words)))), max_tokens)


def _question(text: str, rest: str) -> str:
    return f"The neuron looks for: {text}\n{rest}"


def simulation(text: str, tokens: Sequence[str], style: Style = "lines") -> Prompt:
    """Ask for the level of each token, given the text of an explanation."""
    messages = [("system", SIMULATE.format(highest=HIGHEST) + ANSWER[style])]
    for example in EXAMPLES:
        given = example.excerpt
        answer = level_lines(given.tokens, given.levels)
        if style == "json":
            pairs = zip(map(show, given.tokens), given.levels, strict=True)
            answer = json.dumps(list(pairs), ensure_ascii=False)
        messages += [
            ("user", _question(example.explanation, _column(given.tokens))),
            ("assistant", answer),
        ]
    messages.append(("user", _question(text, _column(tokens))))
    # at worst a token is repeated as one token per byte; in practice as at most four
    room = 32 + sum(6 + len(show(token).encode()) // 2 for token in tokens)
    return Prompt(tuple(messages), room * (2 if style == "json" else 1), levels=style == "lines")


def _column(tokens: Sequence[str]) -> str:
    return "\n".join(show(token) for token in tokens)


def simulation_at_once(text: str, tokens: Sequence[str], highest: int) -> tuple[Prompt, str]:
    """Ask for all levels at once, from a model whose probabilities are available everywhere.

    The model reads the answer with ``unknown`` for each level; its prediction is read after every
    tab (the "all at once" simulator of Bills et al.).

    Args:
        highest: maximum level; 9 if 10 is more than one token.

    Returns:
        The prompt, and the answer.
    """
    messages = [("system", SIMULATE.format(highest=highest) + ANSWER["lines"])]
    for example in EXAMPLES:
        given, start = example.excerpt, example.shown_from
        levels: list[object] = [UNKNOWN] * start
        levels += [min(level, highest) for level in given.levels[start:]]
        messages += [
            ("user", _question(example.explanation, "")),
            ("assistant", level_lines(given.tokens, levels)),
        ]
    messages.append(("user", _question(text, "")))
    return Prompt(tuple(messages), 0), level_lines(tokens, [UNKNOWN] * len(tokens))


def detection(text: str, excerpts: Sequence[Sequence[str]]) -> Prompt:
    """Ask in which excerpts the unit fires, given the text of an explanation."""
    return _judgement(DETECT, text, ["".join(map(show, tokens)) for tokens in excerpts])


def fuzzing(text: str, excerpts: Sequence[Marked]) -> Prompt:
    """Ask in which excerpts the correct tokens are marked."""
    return _judgement(FUZZ, text, [_marked(excerpt) for excerpt in excerpts])


def _judgement(task: str, text: str, excerpts: Sequence[str]) -> Prompt:
    numbered = "\n".join(f"{number}: {excerpt}" for number, excerpt in enumerate(excerpts, 1))
    return Prompt((("system", task), ("user", _question(text, numbered))), 16 + 4 * len(excerpts))


def _marked(excerpt: Marked) -> str:
    """Return the text with each run of marked tokens between << and >>."""
    text, inside = "", False
    for place, token in enumerate(excerpt.tokens):
        if (place in excerpt.marked) != inside:
            text += ">>" if inside else "<<"
            inside = not inside
        text += show(token)
    return text + (">>" if inside else "")


@functools.cache
def fingerprint() -> str:
    """Return a hash of all prompts, which is part of the examiner's description."""
    tokens = EXAMPLES[0].excerpt.tokens
    prompts = [
        explanation([EXAMPLES[0].excerpt]),
        brief_explanation([EXAMPLES[0].excerpt]),
        simulation("x", tokens),
        simulation("x", tokens, "json"),
        simulation_at_once("x", tokens, HIGHEST),
        detection("x", [tokens]),
        fuzzing("x", [Marked(tokens, frozenset({1}))]),
    ]
    return hashlib.sha256(repr(prompts).encode()).hexdigest()[:12]
