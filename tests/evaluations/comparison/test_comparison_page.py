"""The page that compares models: from records alone, and what a reader finds in a browser."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from evaluations.comparison.collection import report
from evaluations.comparison.command import write
from evaluations.core.record import Interval, Metric
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.picture import Plan, circuit_picture
from tests.browser import drive

GRAPH = Graph(2, 2)
CIRCUIT = {
    "graph": {"n_layers": 2, "n_heads": 2, "mlps": True, "parallel": False, "n_edges": 79},
    "edges": [
        {"source": "embed", "destination": "a0.h1.q", "score": 0.5},
        {"source": "a0.h1", "destination": "a1.h0.k", "score": 0.25},
        {"source": "a1.h0", "destination": "m1", "score": -1.0},
        {"source": "m1", "destination": "resid_final", "score": 0.125},
    ],
}
IOI = {"method": "acdc", "ablation": "resample"}
UNABLE = "does not do the task: accuracy 0.44"


@pytest.fixture
def records(make_record):
    def make(name: str, weights: str, value: float, marked: str | None = None):
        interval = Interval(value - 1, value + 1, 0.95, "bootstrap, 2000 resamples")
        lm = make_record(
            name,
            weights,
            versions={"torch": "2.13"},
            commit="abc123",
            metrics=[
                Metric("perplexity", "Perplexity <clean>", value, "", "lower", 0.25, interval, 100),
                Metric("bits_per_byte", "Bits", None, n_failed=3, reasons={"no bytes": 3}),
            ],
        )
        acdc = make_record(
            name,
            weights,
            evaluation="acdc",
            commit="abc123-dirty",
            metrics=[Metric("edges", "Edges", 4.0, "", "lower", n=79)],
            extra={"circuit": CIRCUIT, "tau": 0.03, "marked": marked},
        )
        return [lm, dataclasses.replace(acdc, data={"spec": "ioi"}, config=IOI)]

    return [*make("base", "ab" * 32, 12.5), *make("gated <b>", "cd" * 32, 11.5, UNABLE)]


@pytest.fixture
def page(records, tmp_path):
    """The text of the page of records, and its path."""

    def make(records=records):
        for record in records:
            folder = tmp_path / "results" / str(record.model["weights_hash"])[:8]
            record.write(folder / f"{record.evaluation}-{record.config_hash}.json")
        made = report(out=tmp_path / "results")
        written, failures = write(made, tmp_path / "results" / "report")
        assert failures == []
        path = tmp_path / "results" / "report" / "report.html"
        assert path in written
        return path.read_text(encoding="utf-8"), path

    return make


def test_the_page_has_a_section_for_each_evaluation_and_names_no_other_file(page):
    text, _ = page()
    sections = ["summary", "tables", "lm", "acdc", "glossary"]
    assert re.findall(r'<section id="(\w+)">', text) == sections
    assert re.findall(r'img alt="([\w-]+)"', text) == ["lm", "acdc-curves"]
    assert "gated &lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "{{" not in text
    assert "{%" not in text


def test_the_summary_stands_first_with_what_must_be_known(page, records):
    text, _ = page()
    top = text.split('<section id="tables">')[0]
    assert "Does it predict text as well?" in top
    assert "Are its circuits smaller?" in top
    assert f"<li>gated &lt;b&gt; {UNABLE}</li>" in top
    assert "2 of 4 records come from a tree with uncommitted changes" in top


def test_without_warnings_there_is_no_box_of_them(page, records):
    text, _ = page([dataclasses.replace(one, commit="abc", extra={}) for one in records[:1]])
    assert 'role="note"' not in text


def test_every_heading_leads_to_its_definition(page):
    text, _ = page()
    anchors = set(re.findall(r"<th[^>]*><a href='#([\w-]+)'>", text))
    assert "column-perplexity" in anchors
    defined = re.findall(r'<dt id="([\w-]+)">', text)
    assert anchors <= set(defined)
    assert len(defined) == len(set(defined))
    assert text.count("What the columns mean") == text.count("<caption>")


def test_every_value_is_listed_with_how_it_was_measured(page):
    text, _ = page()
    details = text.split('<section id="lm">')[1].split('class="provenance"')[1]
    for words in (
        "abc123",
        "torch 2.13",
        "0123456789ab",
        "demo (c0ffee)",
        "3: no bytes (3)",
        "[11.5, 13.5] 95%, bootstrap, 2000 resamples",
    ):
        assert words in details, words


def test_paired_differences_of_single_models_are_not_shown(page):
    assert "Paired differences" not in page()[0]


def test_an_empty_circuit_says_so_in_place_of_a_picture(page, records):
    empty = {**CIRCUIT, "edges": []}
    changed = [
        dataclasses.replace(one, extra={**one.extra, "circuit": empty}) if one.extra else one
        for one in records
    ]
    text, _ = page(changed)
    assert text.count("The circuit is empty.") == 2
    assert '<svg class="circuit"' not in text


def test_every_edge_of_a_circuit_leads_upwards_between_its_ends():
    kept = torch.ones(GRAPH.n_edges, dtype=torch.bool)
    circuit = circuit_to_dict(GRAPH, kept, torch.rand(GRAPH.n_edges).double())
    text = circuit_picture(circuit)
    edges = re.findall(
        r'data-from="([\w.]+)" data-to="([\w.]+)"[^>]*><path class="touch" d="([^"]+)"', text
    )
    assert len(edges) == GRAPH.n_edges
    plan = Plan(circuit["graph"])
    for source, node, way in edges:
        numbers = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", way)]
        assert plan.y(node) < numbers[-1] < numbers[1] < plan.y(source)
    assert text.count('class="node') == 2 + 2 * 3


def test_in_a_browser_what_is_pointed_at_lights_up(page):
    _, path = page()
    script = """
    const panel = document.querySelector(".panel");
    const picture = panel.querySelector(".circuit");
    const over = (node, kind) => node.dispatchEvent(new PointerEvent(kind, {bubbles: true}));
    const lit = () => [...picture.querySelectorAll(".lit")]
      .map((node) => node.dataset.name ?? node.dataset.summary);
    const description = () => panel.querySelector(".pointed-at").textContent;
    const head = picture.querySelector('[data-name="a1.h0"]');
    over(head.querySelector("rect"), "pointerover");
    const node = [description(), lit().length, lit().includes("m1"), lit().includes("embed")];
    over(picture, "pointerleave");
    const none = [description(), lit()];
    const edge = picture.querySelector('.edge[data-from="embed"]');
    edge.querySelector("path").dispatchEvent(new MouseEvent("click", {bubbles: true}));
    over(head, "pointerover");  // kept by the click
    const image = document.querySelector(".drawing img");
    await image.decode();
    return {node, none, kept: description(), image: image.naturalWidth > 100,
      wide: document.documentElement.scrollWidth <= innerWidth};
    """
    driven = drive(path, script, "acdc")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == {
        "node": [
            "head 1.0: 1 in, 1 out; strongest: head 1.0 → MLP 1: effect -1 nats",
            5,
            True,
            False,
        ],
        "none": ["", []],
        "kept": "embed → head 0.1, queries: effect 0.5 nats",
        "image": True,
        "wide": True,
    }


def test_tables_use_the_width_and_scroll_in_a_box_of_their_own_on_a_phone(page):
    _, path = page()
    script = """
    const main = document.querySelector("main").getBoundingClientRect().width;
    const boxes = [...document.querySelectorAll(".table .scroll-x")];
    const widths = boxes.map((box) => box.querySelector("table").offsetWidth - box.offsetWidth);
    return [innerWidth, document.documentElement.scrollWidth, Math.min(...widths),
      boxes.every((box) => Math.abs(box.offsetWidth - main) < 2)];
    """
    for size in ("1400,1000", "500,900"):
        driven = drive(path, script, size=size)
        assert (driven.errors, driven.requests) == ([], [])
        inner, scrolled, narrowest, full = driven.value
        assert scrolled <= inner
        assert narrowest >= -1
        assert full
