"""Build the graph of every unit and measure the graphs (``n2g``).

The steps are ``prune``, ``saliency``, ``augment``, ``trie`` and ``graph``; ``layer`` runs them for
all units of a layer. Each finished layer is kept in a file beside the records, from which
interrupted runs are resumed and graphs are shown.
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
from evaluations.core.models import LoadedModel, evaluation_mode
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
from evaluations.suite.n2g.table import graph_metrics
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
    """Text, source of words, and the directory of finished layers.

    Attributes:
        text: text of the excerpts.
        vocabulary: tokens of the model as text.
        substitutes: source of words to try.
        directory: directory of this model's finished layers.
        model: hash of everything that determines the model's activations.
        sae: directory of the autoencoder whose features are the units.
        force: whether finished layers are computed again.
    """

    text: Text
    vocabulary: Vocabulary
    substitutes: Substitutes
    directory: Path
    model: str
    sae: Path | None = None
    force: bool = False

    @cached_property
    def content(self) -> str:
        """Hash of the text and of the source of words."""
        return hash_of({"text": self.text.content, **self.substitutes.describe()})

    def describe(self) -> dict[str, Any]:
        """Describe the text and the source of words for a record."""
        description = {**self.text.describe(), **self.substitutes.describe()}
        return {**description, "content": self.content, "words": self.vocabulary.has_words}

    def place(self, units: Units, config: N2gConfig, layer: int) -> Path:
        """Return the file of a layer's graphs."""
        key = hash_of(
            {
                "format": FORMAT,
                "version": SPEC.version,
                "model": self.model,
                "content": self.content,
                "config": config,
                "units": units.describe(),
                "layer": layer,
            }
        )
        return self.directory / f"layer-{layer}-{key}{ENDING}"


def configs(request: Request) -> list[N2gConfig]:
    """Return the configuration of the graphs.

    Raises:
        UserError: the autoencoder cannot be opened.
    """
    options: N2gOptions = request.options
    per_layer = options.neurons_per_layer
    return [
        N2gConfig(
            neurons_per_layer=None if per_layer == "all" else per_layer,
            thresholds=Thresholds(options.activation, options.importance),
            sae=opened_sae(options.sae),
            gather=GatherConfig(seed=options.seed, top=max(options.examples, GatherConfig().top)),
            **{field.name: getattr(options, field.name) for field in fields(GraphOptions)},
        )
    ]


def prepare(request: Request, configs: Sequence[N2gConfig]) -> Callable[[LoadedModel], N2gData]:
    """Return a function that gives each model its text and source of words."""
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
    """Return the requested source of words.

    Raises:
        UserError: the masked language model cannot be loaded.
    """
    from evaluations.suite.n2g.masked import DISTILBERT, load_masked

    if spec == "auto":
        try:
            return load_masked(DISTILBERT, text.tokenizer, device, local_only=True)
        except UserError:
            log.info("%s is not in the local cache: words are taken from the text", DISTILBERT)
    elif spec != "neighbours":
        return load_masked(spec, text.tokenizer, device)
    return Neighbours.of(text, vocabulary)


def instead(request: Request) -> tuple[list[Any], Outcome] | None:
    """Draw the graph of one neuron in each model, if requested.

    Returns:
        The graph of each model as a dictionary, whose ``files`` names the written files; and the
        models that failed.
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
            graphs.append({**graph, "model": loaded.name, "files": [str(path) for path in written]})
    return graphs, outcome


def preview(subject: Any) -> str:
    """Describe the units that the default settings explain."""
    per_layer, sizes = N2gConfig().neurons_per_layer, find_units(subject.known.model).sizes
    total = sum(sizes if per_layer is None else (min(per_layer, size) for size in sizes))
    return f"{total:,} of {sum(sizes):,} neurons"


def evaluate(model: HookedTransformer, data: N2gData, config: N2gConfig) -> Measurement:
    """Build the graphs of all chosen units and compute the metrics of Table 2.

    Raises:
        UserError: unknown hook point or unit, or text with tokens that the model does not know.
    """
    check_vocabulary(model, data.text)
    with evaluation_mode(model):
        layers = _layers(model, data, config)
    metrics, extra = graph_metrics(list(layers.values()))
    extra |= {"files": list(layers), "filler": "the token that begins a story"}
    return Measurement(metrics, extra)


def _layers(
    model: HookedTransformer, data: N2gData, config: N2gConfig
) -> dict[str, dict[str, Any]]:
    """Return the graphs of each layer by the name of its file, read or built and written."""
    units = find_units(model, config.hook, config.stream, data.sae)
    gathered: Gathered | None = None
    layers = {}
    for layer, members in progress.bar(choose(units, config).items(), desc="n2g", unit="layer"):
        path = data.place(units, config, layer)
        graphs = None if data.force else _read(path)
        if graphs is None:
            gathered = gathered or gather(model, data.text, units, config.gather, data.model)
            graphs = _explainer(model, data, config, units, layer, gathered).layer(members)
            graphs["read"] = {"text": data.text.content, "units": units.describe()}
            write_atomically(path, json.dumps(graphs, ensure_ascii=False) + "\n")
        layers[path.name] = graphs
    return layers


def check(model: HookedTransformer, config: N2gConfig) -> None:
    """Check that the model has the units.

    Raises:
        UserError: unknown hook point, or no ablated stream.
    """
    if config.sae is None:
        find_units(model, config.hook, config.stream)


def neuron_graph(
    model: HookedTransformer, data: N2gData, config: N2gConfig, name: str
) -> dict[str, Any]:
    """Return the graph of one unit, from its layer's file if it is there.

    Args:
        name: layer and number of the unit, such as ``3.117``.

    Raises:
        UserError: unknown hook point or unit, or text with tokens that the model does not know.
    """
    check_vocabulary(model, data.text)
    units = find_units(model, config.hook, config.stream, data.sae)
    layer, unit = units.parse(name)
    known = (_read(data.place(units, config, layer)) or {"neurons": []})["neurons"]
    graph = next((entry for entry in known if entry["unit"] == f"{layer}.{unit}"), None)
    if graph is None:
        with evaluation_mode(model):
            gathered = gather(model, data.text, units, config.gather, data.model)
            explainer = _explainer(model, data, config, units, layer, gathered)
            graph = explainer.layer([unit])["neurons"][0]
    return dict(graph)


def choose(units: Units, config: N2gConfig) -> dict[int, list[int]]:
    """Draw the units of each layer, the same for all models of one shape."""
    chosen = {}
    for layer, size in zip(units.layers, units.sizes, strict=True):
        draws = np.random.default_rng((config.seed, layer))
        count = min(size, config.neurons_per_layer or size)
        chosen[layer] = np.sort(draws.choice(size, size=count, replace=False)).tolist()
    return chosen


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
    """Read a finished layer; None if there is no file or it is damaged."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("not a file")
        layer = json.loads(path.read_text("utf-8"))
        graph_metrics([layer])
        return dict(layer)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        log.warning("%s cannot be read (%s); the layer is computed again", path.name, reason)
        return None
