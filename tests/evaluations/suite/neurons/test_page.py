"""The page of neurons: what is written into it, and what a reader finds in a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest

from evaluations.suite.neurons.page import with_graphs, write_page
from evaluations.tables.page import data_script
from sat_interp._util.errors import UserError
from tests.browser import drive

VOCABULARY = [" the", " cat", "</script>", "\n", "<!--", ' "', " dog", "é\ud800", " ran"]
GRAPH = {
    "nodes": [
        {"id": 0, "token": " cat", "depth": 0, "kind": "activating", "activation": 0.9},
        {"id": 1, "token": " the", "depth": 1, "kind": "context", "activation": None},
        {"id": 2, "token": None, "depth": 1, "kind": "ignore", "activation": None},
    ],
    "edges": [{"source": 1, "target": 0, "count": 2}, {"source": 2, "target": 0, "count": 1}],
}


def excerpt(tokens, levels, half="explain", simulated=None, start=0):
    return {
        "half": half,
        "kind": "top",
        "story": 3,
        "start": start,
        "tokens": tokens,
        "levels": levels,
        "simulated": simulated,
    }


def unit(layer, index, score, explanation="", reason=None, **fields):
    return {
        "unit": f"{layer}.{index}",
        "layer": layer,
        "index": index,
        "score": score,
        "detection": score and 0.5 + score / 2,
        "fuzzing": None,
        "control": None,
        "reason": reason,
        "explanation": explanation,
        "density": 0.0123456789 * (index + 1),
        "maximum": 5.0 - index,
        "excerpts": [],
        "graph": None,
        **fields,
    }


@pytest.fixture
def details():
    def make(name="demo:baseline", units=None):
        cat = [
            excerpt([0, 1, 8], [0, 10, 2], start=7),
            excerpt([2, 1, 3], [0, 7, 0], "held_out", [0, 9, 1]),
        ]
        known = [
            unit(0, 0, 0.25, "fires on dogs", excerpts=[excerpt([6, 2], [10, 0])]),
            unit(0, 2, None, "", "dead"),
            unit(1, 1, 0.9, "fires on </script> & “cat”", excerpts=cat),
            unit(1, 3, -0.1, "fires on anything"),
        ]
        return {
            "model": name,
            "examiner": "lookup",
            "text": "demo: 3 stories",
            "stream": "clean",
            "hook": "blocks.*.mlp.hook_post",
            "layers": [0, 1],
            "reasons": {"dead": 1},
            "figures": [
                {"title": "Score", "value": 0.35, "low": 0.1, "high": 0.6, "n": 3},
                {"title": "Fuzzing", "value": None, "low": None, "high": None, "n": 0},
            ],
            "vocabulary": VOCABULARY,
            "units": units or known,
        }

    return make


def page_data(text: str, identity: str):
    kind, data = re.search(rf'<script type="(\S+)" id="{identity}">(.*?)</script>', text).groups()
    return json.loads(gzip.decompress(base64.b64decode(data)) if kind.endswith("gzip") else data)


def test_data_in_a_page_reads_back_and_cannot_end_its_element():
    data = {
        "tokens": ["</script>", "<!--", "&amp;", "\u2028", '"', "\n", "é"],
        "none": float("nan"),
    }
    text = data_script("x", data)
    assert text.count("<") == 2
    packed = data_script("x", data, packed=True)
    for one in (text, packed):
        assert page_data(one.strip(), "x") == {**data, "none": None}
    assert "\ud800" not in data_script("x", "\ud800")


def test_the_data_is_written_by_columns_and_layers(details, tmp_path):
    data = write_page([details()], tmp_path / "neurons.html").read_text(encoding="utf-8")
    (model,) = page_data(data, "neurons")
    assert model["columns"]["index"] == [0, 2, 1, 3]
    assert model["columns"]["score"] == [0.25, None, 0.9, -0.1]
    assert model["columns"]["density"][0] == 0.01235  # few digits
    assert model["peaks"] == [[6], [], [1], []]
    assert model["notes"] == [
        "Explained by lookup. demo: 3 stories, blocks.*.mlp.hook_post, clean",
        "Score 0.350 [0.100, 0.600], n = 3",
        "Not scored: 1 dead.",
    ]
    first, _ = page_data(data, "excerpts-0-1")
    assert first["excerpts"] == [
        ["explain", "top", 3, 7, [0, 1, 8], "0a2", None],
        ["held_out", "top", 3, 0, [2, 1, 3], "070", "091"],
    ]


def test_the_page_is_one_file_that_names_no_other(details, tmp_path):
    text = write_page([details()], tmp_path / "neurons.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "{{" not in text
    assert "{%" not in text


def test_a_page_of_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        write_page([], tmp_path / "neurons.html")


def test_graphs_are_taken_from_the_files_of_n2g(details, tmp_path, caplog):
    folder = tmp_path / "n2g"
    folder.mkdir()
    neurons = [{"unit": "1.1", "graph": GRAPH}, {"unit": "0.0", "graph": {"nodes": []}}]
    (folder / "layer-1-ab.graphs").write_text(json.dumps({"layer": 1, "neurons": neurons}))
    (folder / "layer-2-ab.graphs").write_text("{")
    found = with_graphs(details(), tmp_path)
    assert [one["graph"] for one in found["units"]] == [None, None, GRAPH, None]
    assert "layer-2-ab" in caplog.text


SHOWN = """
const names = (pane) => [...pane.querySelectorAll(".row")].map((row) => row.dataset.name);
const panes = [...document.querySelectorAll(".model")];
const shown = () => panes.map(names);
const set = (name, value) => {
  const control = document.querySelector(`[name="${name}"]`);
  control.value = value;
  control.dispatchEvent(new Event(name === "text" ? "input" : "change"));
};
const press = (key, target = document.body) =>
  target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const detail = (place = 0) => panes[place].querySelector(".detail");
const excerpts = async () => {
  while (!detail().querySelector(".excerpt")) await new Promise((done) => setTimeout(done, 10));
  return [...detail().querySelectorAll(".excerpt")];
};
"""


def test_it_sorts_and_filters(details, tmp_path):
    page = write_page([details()], tmp_path / "neurons.html")
    script = """
    const told = {first: shown()[0]};
    set("sort", "density"); told.density = shown()[0];
    document.querySelector('[name="down"]').click(); told.rising = shown()[0];
    panes[0].querySelector('[data-key="maximum"]').click(); told.maximum = shown()[0];
    panes[0].querySelector('[data-key="score"]').click();
    document.querySelector('[name="down"]').click(); told.worst = shown()[0];
    document.querySelector('[name="down"]').click();
    set("layer", "1"); told.layer = shown()[0]; set("layer", "");
    set("text", "DOG"); told.explanation = shown()[0];
    set("text", " cat"); told.token = shown()[0];
    set("text", "nothing like it");
    told.none = [shown()[0], panes[0].querySelector(".none").textContent];
    return told;
    """
    driven = drive(page, SHOWN + script)
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == {
        "first": ["1.1", "0.0", "1.3", "0.2"],  # by score, the unscored last
        "density": ["1.3", "0.2", "1.1", "0.0"],
        "rising": ["0.0", "1.1", "0.2", "1.3"],
        "maximum": ["0.0", "1.1", "0.2", "1.3"],
        "worst": ["1.3", "0.0", "1.1", "0.2"],
        "layer": ["1.1", "1.3"],
        "explanation": ["0.0"],
        "token": ["1.1"],
        "none": [[], "no neuron matches"],
    }


def test_it_shows_the_right_excerpts(details, tmp_path):
    model = details()
    model["units"][2]["graph"] = GRAPH
    page = write_page([model], tmp_path / "neurons.html")
    script = """
    const levels = ({style}) => [style.getPropertyValue("--a"), style.getPropertyValue("--s")];
    const tokens = (line) => [...line.querySelectorAll(".token")].map((token) =>
      [token.textContent, ...levels(token)]);
    const lines = await excerpts();
    const told = {
      explanation: detail().querySelector(".explanation").textContent,
      tokens: lines.map(tokens), cut: lines.map((line) => line.textContent.includes("… ")),
      heads: [...detail().querySelectorAll("h4")].map((head) => head.textContent),
      shade: getComputedStyle(lines[0].querySelectorAll(".token")[1]).backgroundColor,
      graph: [...detail().querySelectorAll(".graph text")].map((text) => text.textContent),
    };
    press("s");
    told.simulating = document.querySelector(".neurons").classList.contains("simulating");
    press("j"); told.next = detail().querySelector("h3").textContent;
    press("End", panes[0].querySelector(".rows"));
    told.last = detail().querySelector(".warning").textContent;
    told.address = location.hash;
    return told;
    """
    driven = drive(page, SHOWN + script)
    assert (driven.errors, driven.requests) == ([], [])
    shade = driven.value.pop("shade")
    assert shade not in ("rgba(0, 0, 0, 0)", "transparent")
    assert driven.value == {
        "explanation": "fires on </script> & “cat”",
        "tokens": [
            [[" the", "", ""], [" cat", "1", "0"], [" ran", "0.2", "0"]],
            [["</script>", "", ""], [" cat", "0.7", "0.9"], ["↵", "0", "0.1"]],
        ],
        "cut": [True, False],
        "heads": [
            "explained from: most active (1)",
            "held out: most active (1)",
            "Neuron to Graph",
        ],
        "graph": ["␣cat", "␣the", "any"],
        "simulating": False,
        "next": "Neuron 0.0",
        "last": "Not scored: dead",
        "address": "#simulated=0&neuron=0.2",
    }


def test_an_address_opens_its_neuron_and_follows_the_reader(details, tmp_path):
    model = details()
    model["units"][0]["excerpts"] += [
        {**excerpt([6, 2], [level, 0]), "kind": kind}
        for kind, level in [("random", 1), ("sample", 4), ("random", 0), ("sample", 2)]
    ]
    page = write_page([model], tmp_path / "neurons.html")
    script = """
    const shownNeuron = () => detail().querySelector("h3").textContent;
    const opened = [shownNeuron(), (await excerpts()).length];
    const folded = [...detail().querySelectorAll("details summary")].map((one) => one.textContent);
    press("j");
    const next = [shownNeuron(), location.hash, detail().querySelector("h3 a").hash];
    location.hash = "neuron=1.3";
    await new Promise((done) => setTimeout(done, 50));
    const followed = shownNeuron();
    location.hash = "neuron=7.7";
    await new Promise((done) => setTimeout(done, 50));
    return {opened, folded, next, followed, kept: shownNeuron(),
      missing: document.querySelector("header .warning").textContent};
    """
    driven = drive(page, SHOWN + script, "neuron=0.0")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == {
        "opened": ["Neuron 0.0", 5],
        "folded": ["explained from: random stories (2)"],
        "next": ["Neuron 1.3", "#neuron=1.3", "#neuron=1.3"],
        "followed": "Neuron 1.3",
        "kept": "Neuron 1.3",
        "missing": "There is no neuron 7.7 of this model here.",
    }


def test_two_models_stand_side_by_side_and_an_address_is_opened_again(details, tmp_path):
    page = write_page([details(), details("demo:local-k4")], tmp_path / "neurons.html", ["p < 0.1"])
    script = """
    const boxes = panes.map((pane) => pane.getBoundingClientRect());
    return {
      names: panes.map((pane) => pane.querySelector("h2").textContent), shown: shown(),
      chosen: panes.map((_, place) => detail(place).querySelector("h3").textContent),
      abreast: boxes[0].top === boxes[1].top && boxes[0].right < boxes[1].left,
      wide: document.documentElement.scrollWidth <= innerWidth,
      means: [...document.querySelectorAll(".histogram g text")].map((text) => text.textContent),
      notes: document.querySelector(".overview p").textContent,
    };
    """
    driven = drive(page, SHOWN + script, "sort=name&layer=1&neuron2=1.3")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == {
        "names": ["demo:baseline", "demo:local-k4"],
        "shown": [["1.1", "1.3"]] * 2,
        "chosen": ["Neuron 1.1", "Neuron 1.3"],
        "abreast": True,
        "wide": True,
        "means": ["demo:baseline: mean 0.400, n 2", "demo:local-k4: mean 0.400, n 2"],
        "notes": "p < 0.1",
    }


def test_of_three_models_any_can_be_put_into_a_pane(details, tmp_path):
    models = [details(name) for name in ("a", "b", "c")]
    page = write_page(models, tmp_path / "neurons.html")
    script = """
    const choice = panes[1].querySelector("header select");
    choice.value = "2";
    choice.dispatchEvent(new Event("change"));
    const chosen = panes.map((pane) => pane.querySelector("header select").selectedOptions[0].text);
    return [chosen, document.querySelectorAll(".histogram g text")[1].textContent.split(":")[0]];
    """
    driven = drive(page, SHOWN + script)
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == [["a", "c"], "c"]


def test_of_thousands_of_neurons_only_those_in_view_are_in_the_page(details, tmp_path):
    units = [unit(0, i, i / 4096, f"number {i}") for i in range(4096)]
    page = write_page([details(units=units)], tmp_path / "neurons.html")
    script = """
    const few = [shown()[0].length < 100];
    const view = panes[0].querySelector(".rows");
    const row = view.querySelector('[data-name="0.1000"]').getBoundingClientRect();
    const frame = view.getBoundingClientRect();
    const seen = frame.top <= row.top && row.bottom <= frame.bottom;
    press("End", view);
    return [...few, seen, shown()[0].length < 100, shown()[0].at(-1)];
    """
    driven = drive(page, SHOWN + script, "neuron=0.1000")
    assert (driven.errors, driven.requests) == ([], [])
    assert driven.value == [True, True, True, "0.0"]
    assert page.stat().st_size < 1.2e6
