"""Every field of a real record of each evaluation, with values of wrong types."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from evaluations.core.record import InvalidRecordError, Record, read_record
from sat_interp._util.errors import UserError

RESULTS = Path(__file__).parents[3] / "results" / "tinystories-slice"
EVALUATIONS = ("lm", "acdc", "sae", "gates", "neurons", "n2g")
WRONG = (None, -1.5, "x", [])


def real(evaluation: str) -> dict[str, Any]:
    path = sorted(RESULTS.glob(f"global-k4-*/{evaluation}-*.json"))[0]
    content = json.loads(path.read_text(encoding="utf-8"))
    content["metrics"] = content["metrics"][:1]
    content["model"] |= {"shape": {}, "training": {"seed": 0}}
    units = content["extra"].get("units")
    if units:
        content["extra"]["units"] = {name: values[:2] for name, values in units.items()}
    return content


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every field; of lists the first entry's."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, one in inner for found in fields(one, (*path, key)))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(content)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_real_record_of_before_is_read_and_no_wrong_value_ends_in_a_traceback(evaluation):
    content = real(evaluation)
    assert Record.from_json(json.dumps(content)).evaluation == evaluation
    refused = 0
    for path in [one for one in fields(content)[1:] if len(one) <= 4]:
        for value in WRONG:
            try:
                Record.from_json(json.dumps(changed(content, path, value)))
            except UserError as error:
                refused += len(str(error).splitlines()) == 1
    assert refused > 30


@pytest.mark.parametrize(
    ("evaluation", "path", "value"),
    [
        ("lm", ("model", "ablation", "variant"), "spiral"),
        ("lm", ("metrics", 0, "value"), "2.1"),
        ("lm", ("metrics", 0, "value"), 1e308),
        ("lm", ("metrics", 0, "reasons"), ["nan"]),
        ("lm", ("metrics", 0, "direction"), "up"),
        ("lm", ("extra", "activations", "z_hoyer", "standard_error", 0), -0.1),
        ("lm", ("extra",), [1]),
        ("lm", ("config",), "x"),
        ("lm", ("started",), 5),
        ("lm", ("data", "n_stories"), "300"),
        ("acdc", ("extra", "circuit", "graph", "n_layers"), 10**9),
        ("acdc", ("extra", "circuit", "edges"), [{"source": "m99", "destination": "m0"}]),
        ("acdc", ("extra", "tau"), "0.03"),
        ("sae", ("config", "sparsity"), "5"),
        ("sae", ("extra", "density", "features"), [1]),
        ("gates", ("extra", "usage", "neuron", "dead", "value"), [1.0]),
        ("neurons", ("extra", "units", "layer"), [0]),
        ("neurons", ("extra", "details"), "../../etc/passwd"),
        ("n2g", ("extra", "layers"), [10**9]),
        ("n2g", ("config", "thresholds"), {"activation": 0.5}),
    ],
)
def test_what_reports_read_must_have_its_type(evaluation, path, value):
    with pytest.raises(InvalidRecordError) as caught:
        Record.from_json(json.dumps(changed(real(evaluation), path, value)))
    assert str(path[0]) in caught.value.reason


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"seconds": ', '"seconds": NaN, "x": '),
        lambda text: text.replace('"device": "', '"device": "\\ud800'),
        lambda text: text.replace('"extra": {', '"extra": {"deep": ' + "[" * 500 + "]" * 500 + ","),
        lambda text: text.replace('"seed": ', '"seed": ' + "9" * 5000),
    ],
)
def test_no_nan_half_character_depth_or_endless_number(damage):
    text = json.dumps(real("lm"))
    with pytest.raises(UserError) as caught:
        Record.from_json(damage(text))
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(UserError, match="not a regular file"):
        read_record(tmp_path / "a.json")


def test_a_missing_part_of_extra_is_no_reason_to_lose_the_figures():
    for evaluation in EVALUATIONS:
        content = {**real(evaluation), "extra": {}}
        assert Record.from_json(json.dumps(content)).extra == {}


@pytest.mark.parametrize("started", ["yesterday", "9999", "2025-13-01T00:00:00"])
def test_a_record_is_not_taken_for_the_newest_by_what_is_no_date(started):
    with pytest.raises(InvalidRecordError, match="started.*is no date and time"):
        Record.from_json(json.dumps({**real("lm"), "started": started}))
