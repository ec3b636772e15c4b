"""``sat-eval n2g``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluations.commands.inputs import Dtype

if TYPE_CHECKING:
    from evaluations.core.model_source import ModelSource
    from evaluations.core.models import LoadedModel
    from evaluations.core.text import Text
    from evaluations.suite.n2g.config import N2gConfig
    from evaluations.suite.n2g.evaluation import N2gData
    from evaluations.suite.n2g.substitutes import Substitutes
    from evaluations.suite.n2g.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def n2g(
    models: list[str],
    data: str | None = None,
    neurons_per_layer: int | Literal["all"] = 200,
    neuron: str | None = None,
    substitutes: str = "auto",
    activation: float = 0.5,
    importance: float = 0.75,
    examples: int = 20,
    hook: str = "blocks.*.mlp.hook_post",
    stream: Literal["clean", "ablated"] = "clean",
    sae: str | None = None,
    control: str | None = None,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> list[Any]:
    """Neuron to Graph: the token patterns that fire each neuron, and Table 2 of their graphs.

    From the top-activating excerpts of each neuron the shortest context that fires it, the tokens
    in it that matter, and the words that can stand in their place, all measured by the model. The
    trie of these patterns predicts firing on held-out excerpts, beside three token lookups and
    always firing; Table 2 describes the graphs. All models get the same text, thresholds, neurons
    and words. Finished layers are kept, so that an interrupted run goes on.

    Examples::

        sat-eval n2g demo:baseline demo:local-k4
        sat-eval n2g demo:baseline --neuron 3.117
        sat-eval n2g runs/a runs/b --data stories.jsonl.gz --neurons-per-layer all
        sat-eval n2g runs/a --substitutes distilbert-base-uncased
        sat-eval n2g demo:local-k4 --stream ablated
        sat-eval n2g runs/a --sae results/a-0123abcd/sae/blocks.2.hook_mlp_out-standard

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        data: text whose validation split (or all of files that have none) shows what neurons
            respond to, as in sat-eval lm. Needed for models whose training text is not known; by
            default what each model was trained on.
        neurons_per_layer: drawn at random, the same for all models; or all.
        neuron: LAYER.NUMBER of one neuron whose graph is drawn (PNG, SVG, GraphML, JSON) instead.
        substitutes: where words to try come from: a masked language model (hub id or directory);
            neighbours, the words that stand between the same tokens in the text; auto, which is
            DistilBERT where transformers has it on this machine, else neighbours.
        activation: a token fires above this share of the neuron's maximum.
        importance: from which on a context token matters: 1 - a_masked / a.
        examples: top-activating excerpts of each neuron.
        hook: another hook point; with * for every block.
        stream: which of the two streams of a model with gates.
        sae: a directory of a SAELens autoencoder, whose features are taken for neurons.
        control: also measure each model untrained (same shape, freshly initialised), shuffled
            (each weight matrix's entries permuted), or none; several with commas between them, as
            in untrained,untrained:1,shuffled with seeds. Same text, same tokenizer.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.
        out: directory of the records; graphs go to <model>/n2g/.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the computation.
        seed: of the choice of neurons and of the excerpts.

    Returns:
        A ``Record`` for each model, the written ones and those that were there; with ``neuron``,
        that neuron's graph in each model.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.core.autoencoder import content_hash, open_sae
    from evaluations.core.excerpts import GatherConfig
    from evaluations.core.model_source import sources, with_controls
    from evaluations.core.runner import run
    from evaluations.core.text_source import text_finder
    from evaluations.suite.n2g import report
    from evaluations.suite.n2g.config import N2gConfig, Thresholds
    from evaluations.suite.n2g.evaluation import EVALUATION

    if sae is not None:
        open_sae(Path(sae), "cpu")  # told before any model is loaded
    gathered = GatherConfig(seed=seed, top=max(examples, GatherConfig().top))
    config = N2gConfig(
        seed, None if neurons_per_layer == "all" else neurons_per_layer, examples,
        Thresholds(activation, importance), hook=hook, stream=stream,
        sae=content_hash(Path(sae)) if sae else None, gather=gathered,
    )  # fmt: skip
    chosen = with_controls(sources(models, tokenizer), control)
    text = text_finder(chosen, data, validation, stories)
    find = _data_finder(text, substitutes, Path(out), Path(sae) if sae else None, force)
    load = model_loader(device, dtype, EVALUATION, config, not (data or validation))
    if neuron is not None:
        return _draw(chosen, load, find, config, neuron)
    outcome = run(EVALUATION, chosen, find, config, out, force, load=load)
    finish(outcome, report, out)
    return outcome.records


def _data_finder(
    text_of: Callable[[LoadedModel], Text], spec: str, out: Path, sae: Path | None, again: bool
) -> Callable[[LoadedModel], N2gData]:
    """What each model's neurons are explained with."""
    from evaluations.core.runner import model_directory, model_key
    from evaluations.suite.n2g.evaluation import N2gData
    from evaluations.suite.n2g.vocabulary import Vocabulary

    def find(loaded: LoadedModel) -> N2gData:
        text = text_of(loaded)
        vocabulary = Vocabulary.of(loaded.tokenizer)
        return N2gData(
            text,
            vocabulary,
            _source(spec, text, vocabulary, loaded.device),
            model_directory(out, loaded) / "n2g",
            model_key(loaded),
            sae,
            again,
        )

    return find


def _source(spec: str, text: Text, vocabulary: Vocabulary, device: str) -> Substitutes:
    """The source of substitutions that is asked for.

    Raises:
        UserError: no such masked language model.
    """
    from evaluations.suite.n2g.masked import DISTILBERT, load_masked
    from evaluations.suite.n2g.substitutes import Neighbours
    from sat_interp._util.errors import UserError

    if spec == "auto":
        try:
            return load_masked(DISTILBERT, text.tokenizer, device, local_only=True)
        except UserError:
            log.info("%s is not on this machine: words come from the text", DISTILBERT)
    elif spec != "neighbours":
        return load_masked(spec, text.tokenizer, device)
    return Neighbours.of(text, vocabulary)


def _draw(
    models: Sequence[ModelSource],
    load: Callable[[ModelSource], LoadedModel],
    find: Callable[[LoadedModel], N2gData],
    config: N2gConfig,
    name: str,
) -> list[Any]:
    """One neuron's graph in each model, as files; their names are printed."""
    from evaluations.commands.show import console, say
    from evaluations.core.runner import Outcome
    from evaluations.suite.n2g.evaluation import neuron_graph
    from evaluations.suite.n2g.report import write_neuron

    graphs, outcome = [], Outcome()
    for source in models:
        with outcome.noting(source.label, "n2g --neuron"):
            loaded = load(source)
            data = find(loaded)
            graph = neuron_graph(loaded.model, data, config, name)
            graphs.append(graph)
            written = write_neuron(graph, data.directory)
            say(console(), f"{loaded.name} {graph['unit']}: {', '.join(map(str, written))}")
    outcome.raise_failures(len(models))
    return graphs
