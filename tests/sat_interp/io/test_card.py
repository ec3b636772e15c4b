"""The model card: the hub's front matter, the run's figures, three lines that load the model."""

from __future__ import annotations

import ast
import re

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from sat_interp.io.card import model_card

FACTS = {
    "name": "Gates of Lily",
    "repository": "me/gates",
    "command": "sat-train --preset demo --variant local --k 4 --out runs/a",
    "commit": "abc123",
    "data": "demo",
    "seed": 3,
    "steps": 1200,
    "tokens": 2_457_600,
    "seconds": 118.2,
    "clean_perplexity": 3.14159,
    "ablated_perplexity": 12345.6,
    "odd | fact": "two\nlines",
    "absent": None,
}


def test_the_front_matter_is_the_hubs(make_model):
    card = ModelCard(model_card(make_model("local"), FACTS))
    assert card.data.library_name == "sat-interp"
    assert "self-ablation" in card.data.tags
    assert card.data.license is None  # left to whoever publishes
    assert "self-ablation" not in ModelCard(model_card(make_model("none"), {})).data.tags


def test_the_run_is_in_the_card(make_model):
    card = model_card(make_model("local"), FACTS)
    assert "# Gates of Lily" in card
    for row in (
        "| data | demo |",
        "| training tokens | 2,457,600 |",
        "| validation perplexity, clean stream | 3.142 |",
        "| validation perplexity, ablated stream | 12,346 |",
        "| odd \\| fact | two lines |",
        "| variant | local |",
        "| k_neurons | 5 |",
    ):
        assert row in card.splitlines()
    assert FACTS["command"] in card
    assert "abc123" in card
    assert "None" not in card


@pytest.mark.parametrize("variant", ["none", "local", "global"])
def test_the_three_lines_of_the_card_load_the_model(make_model, tmp_path, variant):
    model = make_model(variant)
    card = model_card(model, {"repository": str(tmp_path / "m")})
    model.save_pretrained(tmp_path / "m")
    code = card.split("```python\n")[1].split("```")[0].splitlines()
    scope: dict[str, object] = {}
    exec("\n".join(line for line in code if not line.startswith("logits")), scope)
    assert scope["model"].ablation == model.ablation
    assert len([line for line in code if line]) == 3


def test_parameters_are_counted_without_gates_and_frozen_zeros(make_model):
    model = make_model("global")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gates = sum(p.numel() for p in model.gates.parameters())
    lines = model_card(model, {}).splitlines()
    assert f"| parameters | {trained - gates:,} |" in lines
    assert f"| gate parameters | {gates:,} |" in lines


HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred",
    "\ud800",
    "a`b``c```d",
    "```\n# end",
    '"); import os; os.abort("',
    "'\"\\",
    "a\n---\nlicense: mit",
    "$x$",
    "**b**",
    "a | b",
    "\u202eevil",
    "{name}",
    "![i](http://a/b.png)",
]
ALLOWED = {"https://arxiv.org/abs/2505.00509"}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_fact_is_html_a_link_or_a_heading(make_model, text):
    facts = dict.fromkeys(
        ["name", "repository", "command", "commit", "data", "tokenizer", "hardware"], text
    )
    model = make_model("local")
    card = model_card(model, {**facts, text: text, "steps": [text], "preset": {text: text}})
    card.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", card)
    assert (
        ModelCard(card).data.to_dict().keys()
        == ModelCard(model_card(model, {})).data.to_dict().keys()
    )
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inner = [one for token in tokens for one in [token, *(token.children or [])]]
    assert not {"html_block", "html_inline", "image", "strong_open"} & {one.type for one in inner}
    assert {one.attrs["href"] for one in inner if one.type == "link_open"} <= ALLOWED
    headings = [
        tokens[place + 1].content for place, one in enumerate(tokens) if one.type == "heading_open"
    ]
    assert headings[1:] == ["Load it", "Shape", "Gates", "Training", "Limits"]
    (code,) = [one.content for one in tokens if one.type == "fence" and one.info == "python"]
    call = ast.parse(code).body[1].value
    assert [argument.value for argument in call.args] == [text]
