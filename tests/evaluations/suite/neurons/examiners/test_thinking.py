"""What a reasoning model thought is no answer; what it answered keeps its place."""

from __future__ import annotations

import math

import pytest

from evaluations.suite.neurons.examiners import answers
from evaluations.suite.neurons.examiners.base import Explanation, Unscored
from evaluations.suite.neurons.examiners.thinking import final_answer

UNFINISHED = Unscored("unfinished reasoning")
# What is written before and after the thoughts; the thoughts hold a list and a line with a level.
THOUGHTS = 'The neuron fires on "cats" [0, 1]\na\t9\n'
BLOCKS = {
    "deepseek": ("<think>\n", "</think>\n\n"),
    "opened by the template": ("", "\n</think>\n\n"),
    "capitals and blanks": ("< THINK >", "</ Think >"),
    "prompted": ("<thinking>", "</thinking>"),
    "closed by another name": ("<think>", "</thinking>"),
    "reasoning": ("<reasoning>\n", "\n</reasoning>"),
    "exaone": ("<thought>", "</thought>"),
    "an attribute": ('<think budget="512">', "</think>"),
    "underlined": ("<chain_of_thought>", "</chain_of_thought>"),
    "scratchpad": ("<scratchpad>", "</scratchpad>"),
    "seed": ("<seed:think>", "</seed:think>"),
    "anthropic": ("<thinking>", "</thinking>"),
    "escaped": ("&lt;think&gt;", "&lt;/think&gt;"),
    "mistral": ("[THINK]", "[/THINK]"),
    "kimi": ("◁think▷", "◁/think▷"),
    "sky": ("<|begin_of_thought|>", "<|end_of_thought|>\n<|begin_of_solution|>"),
    "cohere": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "harmony": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "harmony, constrained": (
        "<|start|>assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    "harmony, commentary": (
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "harmony, bare": ("analysisWe need to ", "assistantfinal"),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "granite": ("Here is my thought process:\n", "\nHere is my response:\n"),
    "ernie": ("<think>", "</think>\n<response>\n"),
    "hunyuan": ("<think>\n", "\n</think>\n<answer>\n"),
    "no tag but one around the answer": ("", "\n<answer>"),
    "twice": ("<think>no</think><think>", "</think>"),
    "nested": ("<think>I am in <think> tags <think>", "</think> still </think>"),
    "something said before": ("Let me see. <think>", "</think>"),
    "another word in quotes": ('<think>"<think>" is a token', "</think>"),
}
ENDS = ["", "<|im_end|>", "<|return|>", "</answer>", "</s>", "<|END_RESPONSE|>", "\n<|eot_id|>"]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("end", ENDS)
def test_only_what_comes_after_the_thoughts_is_read(name: str, end: str):
    before, after = BLOCKS[name]

    def reply(answer: str) -> str:
        return f"{before}{THOUGHTS}{after}{answer}{end}"

    assert answers.read_explanation(reply("names of dogs")) == Explanation("names of dogs")
    assert answers.read_verdicts(reply("[1, 0]"), 2) == (True, False)
    assert answers.read_lines(reply("a\t1\n b\t10\n"), ("a", " b")) == (1, 10)
    assert answers.read_json(reply('[["a", 3], [" b", 0]]'), ("a", " b")) == (3, 0)
    whole = final_answer(reply("[1, 0]"))
    assert whole is not None
    assert len(whole) == len(reply("[1, 0]"))
    assert whole.index("[") == reply("[1, 0]").rindex("[1, 0]")


OPEN = [name for name, (before, _) in BLOCKS.items() if before]


@pytest.mark.parametrize("name", OPEN)
def test_thoughts_without_an_end_are_no_answer(name: str):
    before, _ = BLOCKS[name]
    reply = f"{before}{THOUGHTS}"
    for found in (
        answers.read_explanation(reply),
        answers.read_verdicts(reply, 2),
        answers.read_lines(reply, ("a",)),
        answers.read_json(reply, ("a",)),
    ):
        assert found == UNFINISHED


@pytest.mark.parametrize("name", BLOCKS)
def test_thoughts_and_nothing_else_are_no_answer(name: str):
    before, after = BLOCKS[name]
    reply = f"{before}{THOUGHTS}{after}"
    if name != "something said before":  # which is all that is said
        assert isinstance(answers.read_explanation(reply), Unscored)
    assert isinstance(answers.read_verdicts(reply, 2), Unscored)
    assert isinstance(answers.read_lines(reply, ("a",)), Unscored)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("[1, 0]<think>or [0, 1]?</think>", (True, False)),
        ("<think>x</think>[1, 0]<think>or [0, 1]?</think>", (True, False)),
        ("[0, 1]<think>no</think>[1, 0]", (True, False)),
        ("[1, 0]<think>or", UNFINISHED),
        ("[1, 0]<think", UNFINISHED),
        ("<think/>[1, 0]", (True, False)),
        ("[1, 0]", (True, False)),
        ("[1.0, 0.0]", (True, False)),
        ('["1.0", "0."]', (True, False)),
        ("[1.0, 0]", (True, False)),
        ("[true, 0.0]", (True, False)),
        ("[1.0, 0.5]", answers.UNPARSABLE),
        ("[1.0, NaN]", answers.UNPARSABLE),
        ("[1, -1]", answers.UNPARSABLE),
        ("[[1], [0]]", answers.UNPARSABLE),
        ("[null, 1]", answers.UNPARSABLE),
        ("[" * 100_000 + "]" * 100_000, answers.UNPARSABLE),
    ],
)
def test_verdicts(reply: str, said: object):
    assert answers.read_verdicts(reply, 2) == said


@pytest.mark.parametrize(
    "said",
    [
        "words that name a thought",
        "analysis of texts",
        "the token `<think>` in a log",
        "a '</think>' that ends a thought",
        "thinking, reasoning and analysis",
        "final answers",
        "what a channel says",
        "x < thinking",
        "a [thought] in brackets",
    ],
)
def test_words_about_thinking_are_no_marks(said: str):
    assert answers.read_explanation(said) == Explanation(said)


def test_marks_that_are_tokens_of_the_excerpt_have_levels():
    tokens = ("<|endoftext|>", "<think>", "a", "</think>")
    reply = "<|endoftext|>\t0\n<think>\t1\na\t2\n</think>\t3"
    assert answers.read_lines(reply, tokens) == (0, 1, 2, 3)
    pairs = '[["<|endoftext|>", 0], ["<think>", 1], ["a", 2], ["</think>", 3]]'
    assert answers.read_json(pairs, tokens) == (0, 1, 2, 3)


def test_probabilities_are_found_where_the_levels_stand():
    thoughts = "<think>a\t7</think>\n"
    reply = f"{thoughts}a\t1"
    at = len(thoughts) + 2
    found = {9: ("7", {"7": 0.0}), at: ("1", {"1": math.log(0.5), "3": math.log(0.5)})}
    assert answers.read_lines(reply, ("a",), found) == pytest.approx((2,))


def test_control_characters_of_an_explanation_are_blanks():
    assert answers.read_explanation("dogs\x1b[31m and\x00 cats") == Explanation(
        "dogs [31m and  cats"
    )


def test_long_replies_are_read_in_no_time():
    # 100,000 blanks squared would be a minute
    for text in ("<think>" * 5_000, "< " * 5_000, "chain of " * 5_000, "<think" + " " * 100_000):
        final_answer(text)
