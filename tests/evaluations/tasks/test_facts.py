"""Facts: files in ROME's format, subjects found in their prompts, and what is left out."""

from __future__ import annotations

import json

import pytest

from evaluations.tasks import facts as module
from evaluations.tasks.facts import NO_ATTRIBUTE, NO_SUBJECT, REPEATED, Fact, in_tokens, make_facts
from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import load_tokenizer

ROME = [
    {
        "known_id": 0,
        "subject": "Vinson Massif",
        "attribute": "Antarctica",
        "template": "{} is located in the continent",
        "prediction": " of Antarctica. It is the largest of the three",
        "prompt": "Vinson Massif is located in the continent of",
        "relation_id": "P30",
    },
    {
        "known_id": 1,
        "subject": "Beats Music",
        "attribute": "Apple",
        "template": "{} is owned by",
        "prediction": " Apple. The company is owned by Apple",
        "prompt": "Beats Music is owned by",
        "relation_id": "P127",
    },
]


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


@pytest.fixture(autouse=True)
def _no_fingerprint(monkeypatch):
    monkeypatch.setattr(module, "fingerprint", lambda tokenizer: "not taken")


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_romes_file_loads_unchanged(gpt2, tmp_path):
    found = make_facts(str(write(tmp_path / "known_1000.json", ROME)), gpt2, 10)
    assert found.name == "known_1000.json"
    assert len(found) == 2
    by_relation = {one.fact.relation: one for one in found.prompts}
    one = by_relation["P30"]
    assert one.tokens[0] == gpt2.eos_token_id
    assert gpt2.decode([one.tokens[at] for at in one.subject]) == "Vinson Massif"
    assert gpt2.decode([one.answer]) == " Antarctica"
    assert one.subject == tuple(range(1, 1 + len(gpt2.encode("Vinson Massif"))))


@pytest.mark.parametrize(
    ("prompt", "subject", "words"),
    [
        ("Near Paris, the Paris region is in", "Paris", [" Paris"]),  # the first occurrence
        ("They say unbelievable things", "believ", None),  # part of a token
        ("Tom's bike", "Tom", ["Tom"]),
    ],
)
def test_subject_tokens_are_those_whose_characters_meet_it(gpt2, prompt, subject, words):
    made = in_tokens(Fact(prompt, subject, "x"), gpt2, [])
    text = [gpt2.decode([made.tokens[at]]) for at in made.subject]
    if words is None:
        assert subject in "".join(text)
        assert made.subject == tuple(range(made.subject[0], made.subject[-1] + 1))
    else:
        assert text == words
    assert made.subject[0] == min(
        at for at in range(len(made.tokens)) if subject[:3] in gpt2.decode(made.tokens[: at + 1])
    )


def test_what_cannot_be_used_is_counted_with_its_reason(gpt2):
    entries = [
        {"prompt": "Rome is in", "subject": "Paris", "attribute": "Italy"},
        {"prompt": "Rome is in", "subject": "", "attribute": "Italy"},
        {"prompt": "Rome is in", "subject": "Rome", "attribute": "  "},
        {"prompt": "Rome is in", "subject": "Rome", "attribute": "Italy"},
        {"prompt": "Rome is in", "subject": "Rome", "attribute": " Italy"},
        {"template": "{} is in", "subject": "Lima", "attribute": "Peru", "decides": "last"},
    ]
    found = make_facts(entries, gpt2, 10)
    assert len(found) == 2
    assert found.left_out == {NO_SUBJECT: 2, NO_ATTRIBUTE: 1, REPEATED: 1}
    assert found.describe()["left_out"] == found.left_out
    lima = next(one for one in found.prompts if one.fact.subject == "Lima")
    assert lima.fact.prompt == "Lima is in"
    assert lima.fact.decides == "last"
    assert make_facts(found, gpt2, 1) is found


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"facts": []}, "is not a list of facts"),
        ([], "has no facts"),
        ([3], "fact 1 of 1 is not an object"),
        ([{"subject": "a", "prompt": "a b"}], "fact 1 of 1: 'attribute' is not text"),
        ([{"subject": "a", "attribute": "b"}], "has neither a prompt nor a template"),
        ([{**ROME[0], "decides": "both"}], "'decides' must be first or last, not 'both'"),
        ([{**ROME[0], "prompt": "x"}], "no fact can be used: the subject does not occur"),
    ],
)
def test_other_files_are_refused_in_one_line(content, told, gpt2, tmp_path):
    with pytest.raises(UserError, match=told) as caught:
        make_facts(str(write(tmp_path / "f.json", content)), gpt2, 10)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_answered_with_the_known_ones(gpt2, tmp_path):
    with pytest.raises(UserError, match="unknown facts 'fact': did you mean 'facts'"):
        make_facts("fact", gpt2, 3)
    with pytest.raises(UserError, match="there is no file"):
        make_facts(str(tmp_path / "none.json"), gpt2, 3)
    with pytest.raises(UserError, match="not int: 3"):
        make_facts(3, gpt2, 3)


def test_the_draw_depends_on_the_seed_and_content_on_the_facts(gpt2):
    one, same, other = (make_facts("facts", gpt2, 20, seed) for seed in (0, 0, 1))
    assert one.content == same.content != other.content
    assert len(one) == 20
    assert {fact.fact.decides for fact in one.prompts} == {"first", "last"}
    ioi = make_facts("ioi", gpt2, 20)
    for fact in ioi.prompts:
        assert gpt2.decode([fact.answer]) == f" {fact.fact.subject}"
        assert [fact.tokens[at] for at in fact.subject] == [fact.answer]
