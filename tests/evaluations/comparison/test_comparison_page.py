"""The page that compares models: from records alone, and what a reader finds in a browser."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from evaluations.comparison.comparison_page import write_comparison
from evaluations.core.record import Interval, Metric
from evaluations.suite.circuits.graph import Graph, circuit_to_dict
from evaluations.suite.circuits.picture import Plan, circuit_picture
from evaluations.suite.lm.report import LANGUAGE
from evaluations.tables import Cell, Heading, Table, html, make_table
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
UNABLE = "does not do the task: accuracy 0.44"


@pytest.fixture
def records(make_record):
    def make(name: str, weights: str, value: float, marked: str | None = None):
        interval = Interval(value - 1, value + 1, 0.95, "bootstrap, 2000 resamples")
        lm = make_record(
            name, weights, versions={"torch": "2.13"}, commit="abc123",
            metrics=[
                Metric("perplexity", "Perplexity <clean>", value, "", "lower", 0.25, interval, 100),
                Metric("bits_per_byte", "Bits", None, n_failed=3, reasons={"no bytes": 3}),
            ],
        )  # fmt: skip
        acdc = make_record(
            name, weights, evaluation="acdc", commit="abc123-dirty",
            metrics=[Metric("edges", "Edges", 4.0, "", "lower", n=79)],
            extra={"circuit": CIRCUIT, "tau": 0.03, "marked": marked},
        )  # fmt: skip
        return [lm, dataclasses.replace(acdc, data={"spec": "ioi"}, config={"method": "acdc"})]

    return [*make("base", "ab" * 32, 12.5), *make("gated <b>", "cd" * 32, 11.5, UNABLE)]


@pytest.fixture
def neurons():
    unit = {
        "unit": "0.0", "layer": 0, "index": 0, "score": 0.5, "detection": None, "fuzzing": None,
        "control": None, "reason": None, "explanation": "fires on cats", "density": 0.1,
        "maximum": 1.0, "excerpts": [], "graph": None,
    }  # fmt: skip
    return {"model": "base", "vocabulary": [], "units": [unit]}


@pytest.fixture
def figure(tmp_path):
    def make(name: str):
        path = tmp_path / f"{name}.svg"
        path.write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>fetch("x")'
            '</script><rect id="a" width="9" height="9"/></svg>'
        )
        return path

    return make


def test_the_page_has_a_section_for_each_evaluation_and_names_no_other_file(
    records, figure, neurons, tmp_path
):
    figures = [figure("lm"), figure("circuits"), figure("circuits-curves"), figure("curves"),
               tmp_path / "lm.png"]  # fmt: skip
    summary = Table("t", "Table 1", (Heading("Model"),), [[Cell("base")]])
    path = write_comparison(
        records, tmp_path / "report.html", "A & B", [summary], figures, [neurons], notes=["n < 3"]
    )
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)">', text) == ["summary", "lm", "acdc", "browse"]
    assert re.findall(r'img alt="([\w-]+)"', text) == ["curves", "lm", "circuits-curves"]
    assert "<h1>A &amp; B</h1>" in text
    assert "<p>n &lt; 3</p>" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "{{" not in text


def test_what_has_to_be_known_first_stands_on_top(records, tmp_path):
    text = write_comparison(records, tmp_path / "r.html").read_text(encoding="utf-8")
    top = text.split("<main")[0]
    assert f"<li>gated &lt;b&gt; {UNABLE}</li>" in top
    assert "2 of 4 records come from a tree with uncommitted changes" in top
    fine = [dataclasses.replace(one, commit="abc", extra={}) for one in records[:1]]
    text = write_comparison(fine, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "role='note'" not in text


def test_a_table_tells_the_missing_and_what_a_figure_rests_on(records):
    text = html(make_table(LANGUAGE[0], records))
    cells = re.findall(r"<td(?: class='([\w ]*)')?(?: title='([^']*)')?>(.*?)</td>", text)
    # single models: none is the best
    assert [name for name, _, _ in cells] == ["", "soft", "soft"] * 2
    assert cells[0][2] == "12.50 <span class='interval'>[11.50, 13.50]</span>"
    assert cells[0][1] == (
        "Perplexity &lt;clean&gt;, 12.5, 95% [11.5, 13.5] (bootstrap, 2000 resamples), "
        "standard error 0.25, n 100, seed 1"
    )
    assert cells[1][2] == "–"
    assert "Not measured: Bits per byte (no bytes)." in text


def test_every_figure_is_listed_with_what_it_rests_on(records, tmp_path):
    text = write_comparison(records, tmp_path / "r.html").read_text(encoding="utf-8")
    details = text.split('<section id="lm">')[1].split("class='provenance'")[1]
    for told in ("abc123", "torch 2.13", "0123456789ab", "demo (c0ffee)", "3: no bytes (3)",
                 "[11.5, 13.5] 95%, bootstrap, 2000 resamples"):  # fmt: skip
        assert told in details, told


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


def test_circuits_of_chosen_models_are_drawn(records, tmp_path):
    path = write_comparison(records, tmp_path / "r.html", drawn={"ab" * 32})
    assert path.read_text(encoding="utf-8").count('<svg class="circuit"') == 1


def test_in_a_browser_what_is_pointed_at_lights_up(records, figure, neurons, tmp_path):
    path = write_comparison(
        records, tmp_path / "report.html", figures=[figure("lm")], neurons=[neurons]
    )
    script = """
    const panel = document.querySelector(".panel");
    const picture = panel.querySelector(".circuit");
    const over = (thing, kind) => thing.dispatchEvent(new PointerEvent(kind, {bubbles: true}));
    const lit = () => [...picture.querySelectorAll(".lit")]
      .map((one) => one.dataset.name ?? one.dataset.told);
    const told = () => panel.querySelector(".told").textContent;
    const head = picture.querySelector('[data-name="a1.h0"]');
    over(head.querySelector("rect"), "pointerover");
    const node = [told(), lit().length, lit().includes("m1"), lit().includes("embed")];
    over(picture, "pointerleave");
    const none = [told(), lit()];
    const edge = picture.querySelector('.edge[data-from="embed"]');
    edge.querySelector("path").dispatchEvent(new MouseEvent("click", {bubbles: true}));
    over(head, "pointerover");  // held by the click
    const image = document.querySelector(".drawing img");
    await image.decode();
    return {node, none, held: told(), image: image.naturalWidth,
      neuron: document.querySelector("#browse .row").dataset.name,
      wide: document.documentElement.scrollWidth <= innerWidth};
    """
    driven = drive(path, script, "acdc")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == {
        "node": ["head 1.0: 1 in, 1 out; strongest: head 1.0 → MLP 1: effect -1 nats", 5, True,
                 False],
        "none": ["", []],
        "held": "embed → head 0.1, queries: effect 0.5 nats",
        "image": 9,
        "neuron": "0.0",
        "wide": True,
    }  # fmt: skip


def test_a_narrow_window_has_no_page_wider_than_itself(records, figure, tmp_path):
    path = write_comparison(records, tmp_path / "report.html", figures=[figure("lm")])
    script = "return [innerWidth, document.documentElement.scrollWidth];"
    driven = drive(path, script, size="520,900")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value[1] <= driven.value[0]
