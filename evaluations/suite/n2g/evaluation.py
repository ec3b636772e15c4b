"""n2g: every unit as a graph, Table 2 of the graphs, and whether they describe their units.

The steps are ``prune``, ``saliency``, ``augment``, ``trie`` and ``graph``; ``layer`` takes all
units of a layer through them. A finished layer is kept in a file beside the records, so that an
interrupted run goes on with the next, and whoever shows units finds their graphs.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformer_lens import HookedTransformer

from evaluations.core.activations import gather
from evaluations.core.excerpts import Gathered
from evaluations.core.record import hash_of
from evaluations.core.runner import Evaluation, Result
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.units import Units, find_units
from evaluations.core.versions import VERSIONS
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.layer import Explainer
from evaluations.suite.n2g.substitutes import Substitutes
from evaluations.suite.n2g.table import figures
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from sat_interp._util import progress
from sat_interp._util.files import write_atomically

FORMAT = 3
ENDING = ".graphs"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class N2gData:
    """What is read.

    Attributes:
        text: whose excerpts show what a unit responds to.
        substitutes: where words to try come from.
        directory: of this model's finished layers.
        model: what the model is known by, weights and whatever else decides its activations.
        sae: directory of the autoencoder whose features are the units.
        again: explain what is there already, too.
    """

    text: Text
    vocabulary: Vocabulary
    substitutes: Substitutes
    directory: Path
    model: str
    sae: Path | None = None
    again: bool = False

    @cached_property
    def content(self) -> str:
        """A hash of the text and of what decides the substitutions."""
        return hash_of({"text": self.text.content, **self.substitutes.describe()})

    def describe(self) -> dict[str, Any]:
        told = {**self.text.describe(), **self.substitutes.describe()}
        return {**told, "content": self.content, "words": self.vocabulary.has_words}

    def place(self, units: Units, config: N2gConfig, layer: int) -> Path:
        """Where the graphs of a layer lie, or will."""
        key = hash_of(
            {
                "format": FORMAT, "version": EVALUATION.version, "model": self.model,
                "content": self.content,
                "config": config, "units": units.describe(), "layer": layer,
            }
        )  # fmt: skip
        return self.directory / f"layer-{layer}-{key}{ENDING}"


def neuron_graphs(model: HookedTransformer, data: N2gData, config: N2gConfig) -> Result:
    """The graphs of all chosen units, layer by layer, and the figures of Table 2.

    Raises:
        UserError: text whose tokens the model does not know, no such hook point or unit.
    """
    check_vocabulary(model, data.text)
    was_training = model.training
    model.eval()
    units = find_units(model, config.hook, config.stream, data.sae)
    gathered: Gathered | None = None
    layers, names = [], []
    for layer, members in progress.bar(choose(units, config).items(), desc="n2g", unit="layer"):
        path = data.place(units, config, layer)
        found = None if data.again else _read(path)
        if found is None:
            gathered = gathered or gather(model, data.text, units, config.gather, data.model)
            found = _explainer(model, data, config, units, layer, gathered).layer(members)
            found["read"] = {"text": data.text.content, "units": units.describe()}
            write_atomically(path, json.dumps(found, ensure_ascii=False) + "\n")
        layers.append(found)
        names.append(path.name)
    model.train(was_training)
    metrics, extra = figures(layers)
    return Result(metrics, {**extra, "files": names, "filler": "the token that begins a story"})


def check(model: HookedTransformer, config: N2gConfig) -> None:
    """Refuse a model that has not the units asked for.

    Raises:
        UserError: no such hook point, or no ablated stream.
    """
    if config.sae is None:
        find_units(model, config.hook, config.stream)


EVALUATION = Evaluation("n2g", N2gConfig, neuron_graphs, version=VERSIONS["n2g"], check=check)


def neuron_graph(
    model: HookedTransformer, data: N2gData, config: N2gConfig, name: str
) -> dict[str, Any]:
    """The graph of one unit, from its layer's file where it is in it.

    Args:
        name: ``3.117``.

    Raises:
        UserError: no such unit; what ``neuron_graphs`` raises.
    """
    check_vocabulary(model, data.text)
    was_training = model.training
    model.eval()
    units = find_units(model, config.hook, config.stream, data.sae)
    layer, unit = units.parse(name)
    known = (_read(data.place(units, config, layer)) or {"neurons": []})["neurons"]
    found = next((one for one in known if one["unit"] == f"{layer}.{unit}"), None)
    if found is None:
        gathered = gather(model, data.text, units, config.gather, data.model)
        explainer = _explainer(model, data, config, units, layer, gathered)
        found = explainer.layer([unit])["neurons"][0]
    model.train(was_training)
    return dict(found)


def choose(units: Units, config: N2gConfig) -> dict[int, list[int]]:
    """The units of each layer: a seeded draw, the same for all models of one shape."""
    found = {}
    for layer, size in zip(units.layers, units.sizes, strict=True):
        draws = np.random.default_rng((config.seed, layer))
        count = min(size, config.neurons_per_layer or size)
        found[layer] = np.sort(draws.choice(size, size=count, replace=False)).tolist()
    return found


def _explainer(
    model: HookedTransformer,
    data: N2gData,
    config: N2gConfig,
    units: Units,
    layer: int,
    gathered: Gathered,
) -> Explainer:
    reader = Reader(model, units, layer, data.text.start)
    return Explainer(reader, gathered, data.substitutes, data.vocabulary, config)


def _read(path: Path) -> dict[str, Any] | None:
    """A finished layer; None where there is none, or none that the figures can be taken from."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        found = json.loads(path.read_text("utf-8"))
        figures([found])
        return dict(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        log.warning("%s cannot be read (%s); explained again", path.name, reason)
        return None
