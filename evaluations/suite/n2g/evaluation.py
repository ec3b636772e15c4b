"""n2g: every unit as a graph, Table 2 of the graphs, and whether they describe their units.

The steps are ``prune``, ``saliency``, ``augment``, ``trie`` and ``graph``; ``layer`` takes all
units of a layer through them. A finished layer is kept in a file beside the records, so that an
interrupted run goes on with the next, and whoever shows units finds their graphs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformer_lens import HookedTransformer

from evaluations.core.activations import gather
from evaluations.core.excerpts import GatherConfig, Gathered
from evaluations.core.inputs import load, opened_sae, resolved, text_data
from evaluations.core.models import LoadedModel
from evaluations.core.options import Request
from evaluations.core.outcome import Outcome
from evaluations.core.record import hash_of
from evaluations.core.runner import model_directory, model_key
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, check_vocabulary
from evaluations.core.units import Units, find_units
from evaluations.suite.n2g import SPEC
from evaluations.suite.n2g.config import N2gConfig, Thresholds
from evaluations.suite.n2g.layer import Explainer
from evaluations.suite.n2g.options import GraphOptions, N2gOptions
from evaluations.suite.n2g.substitutes import Neighbours, Substitutes
from evaluations.suite.n2g.table import figures
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.n2g.windows import Reader
from sat_interp._util import progress
from sat_interp._util.errors import UserError
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
                "format": FORMAT, "version": SPEC.version, "model": self.model,
                "content": self.content,
                "config": config, "units": units.describe(), "layer": layer,
            }
        )  # fmt: skip
        return self.directory / f"layer-{layer}-{key}{ENDING}"


def configs(request: Request) -> list[N2gConfig]:
    """Return the configuration of the graphs.

    Raises:
        UserError: the autoencoder cannot be opened.
    """
    options: N2gOptions = request.options
    wanted = options.neurons_per_layer
    return [
        N2gConfig(
            neurons_per_layer=None if wanted == "all" else wanted,
            thresholds=Thresholds(options.activation, options.importance),
            sae=opened_sae(options.sae),
            gather=GatherConfig(seed=options.seed, top=max(options.examples, GatherConfig().top)),
            **{field.name: getattr(options, field.name) for field in fields(GraphOptions)},
        )
    ]


def prepare(request: Request, configs: Sequence[N2gConfig]) -> Callable[[LoadedModel], N2gData]:
    """Return what each model's neurons are explained with."""
    text_of, options = text_data(request, configs), request.options

    def find(loaded: LoadedModel) -> N2gData:
        text = text_of(loaded)
        vocabulary = Vocabulary.of(loaded.tokenizer)
        return N2gData(
            text,
            vocabulary,
            _substitutes(options.substitutes, text, vocabulary, loaded.device),
            model_directory(request.out, loaded) / "n2g",
            model_key(loaded),
            options.sae,
            request.run.force,
        )

    return find


def _substitutes(spec: str, text: Text, vocabulary: Vocabulary, device: str) -> Substitutes:
    """Return the source of substitutions that is asked for.

    Raises:
        UserError: no such masked language model.
    """
    from evaluations.suite.n2g.masked import DISTILBERT, load_masked

    if spec == "auto":
        try:
            return load_masked(DISTILBERT, text.tokenizer, device, local_only=True)
        except UserError:
            log.info("%s is not on this machine: words come from the text", DISTILBERT)
    elif spec != "neighbours":
        return load_masked(spec, text.tokenizer, device)
    return Neighbours.of(text, vocabulary)


def instead(request: Request) -> tuple[list[Any], Outcome] | None:
    """Draw the graph of one neuron in each model, where one is asked for.

    Returns:
        The graph of each model as a dictionary, with the names of the files written in ``files``;
        and which models failed.
    """
    from evaluations.suite.n2g.report import write_neuron

    if request.options.neuron is None:
        return None
    request = resolved(request)
    (config,) = configs(request)
    find, graphs, outcome = prepare(request, [config]), [], Outcome()
    for source in request.models:
        with outcome.noting(source.label, "n2g --neuron"):
            loaded = load(source, SPEC, request, config)
            data = find(loaded)
            graph = neuron_graph(loaded.model, data, config, request.options.neuron)
            written = write_neuron(graph, data.directory)
            graphs.append({**graph, "model": loaded.name, "files": [str(one) for one in written]})
    return graphs, outcome


def preview(subject: Any) -> str:
    """Return what the defaults read of a model."""
    wanted, sizes = N2gConfig().neurons_per_layer, find_units(subject.known.model).sizes
    total = sum(sizes if wanted is None else (min(wanted, size) for size in sizes))
    return f"{total:,} of {sum(sizes):,} neurons"


def evaluate(model: HookedTransformer, data: N2gData, config: N2gConfig) -> Measurement:
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
    extra |= {"files": names, "filler": "the token that begins a story"}
    return Measurement(metrics, extra)


def check(model: HookedTransformer, config: N2gConfig) -> None:
    """Refuse a model that has not the units asked for.

    Raises:
        UserError: no such hook point, or no ablated stream.
    """
    if config.sae is None:
        find_units(model, config.hook, config.stream)


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
