"""``sat-eval neurons``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evaluations.commands.inputs import Dtype

if TYPE_CHECKING:
    from evaluations.core.models import LoadedModel
    from evaluations.core.record import Record
    from evaluations.core.text import Text
    from evaluations.suite.neurons.config import NeuronsData
    from evaluations.suite.neurons.examiners.base import Examiner


def neurons(
    models: list[str],
    data: str | None = None,
    sample: int | None = None,
    examiner: Literal["lookup", "openai", "local"] = "lookup",
    model: str | None = None,
    max_spend: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    scores: str = "simulation,detection,fuzzing,control",
    hook: str = "blocks.*.mlp.hook_post",
    stream: Literal["clean", "ablated"] = "clean",
    sae: str | None = None,
    control: str | None = None,
    html: bool = False,
    validation: str | None = None,
    tokenizer: str | None = None,
    stories: int | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    resamples: int = 2000,
) -> list[Any]:
    """Neuron explanations: what each neuron responds to, in words, and how well they predict it.

    One pass over the text gathers, for all neurons at once, excerpts that fire each most and others
    drawn at random, half of the stories being held out. An examiner explains each neuron from the
    one half and predicts it on the other from its explanation alone. The score is the correlation
    of the two; beside it detection, fuzzing, and the same score with another neuron's explanation.
    The examiner lookup needs no model: what a language model says should beat it. An examiner
    behind an endpoint is told by OPENAI_BASE_URL and OPENAI_API_KEY; what it answered is kept, so
    that an interrupted run pays for nothing twice.

    Examples::

        sat-eval neurons demo:baseline demo:local-k4 --html
        sat-eval neurons runs/a runs/b --data stories.jsonl.gz --sample 100
        sat-eval neurons runs/a --examiner openai --model gpt-4o-mini --sample 20 --max-spend 2
        sat-eval neurons runs/a --examiner local --sample 5 --scores simulation
        sat-eval neurons runs/a --stream ablated --hook 'blocks.*.attn.hook_z'
        sat-eval neurons runs/a --sae results/a-0123abcd/sae/blocks.2.hook_mlp_out-standard

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        data: text whose validation split (or all of files that have none) shows what neurons
            respond to, as in sat-eval lm. Needed for models whose training text is not known; by
            default what each model was trained on.
        sample: neurons of each layer, drawn at random. Default: all.
        examiner: lookup (tokens and short contexts, no model), openai (any endpoint that speaks as
            OpenAI's), local (a Hugging Face model or GGUF file on this machine).
        model: the examiner's language model. Default: gpt-4o-mini; for local, smollm2.
        max_spend: dollars that this run may cost at most.
        price_in: dollars per million tokens the examiner reads; known for OpenAI's usual models.
        price_out: dollars per million tokens it writes.
        concurrency: requests under way at once.
        requests_per_minute: sent at most.
        scores: which, with commas between them; simulation must be among them.
        hook: another hook point; with * for every block.
        stream: which of the two streams of a model with gates.
        sae: a directory of a SAELens autoencoder, whose features are taken for neurons.
        control: also measure each model untrained (same shape, freshly initialised), shuffled
            (each weight matrix's entries permuted), or none; several with commas between them, as
            in untrained,untrained:1,shuffled with seeds. Same text, same tokenizer.
        html: write a page that shows every neuron, its excerpts and its explanation.
        validation: data with the validation text, where DATA has none of its own.
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        stories: only the first so many stories.
        out: directory of the records; explanations go to <model>/neurons/.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision of the computation.
        seed: of the sample, the excerpts, the control and the bootstrap.
        resamples: of the bootstrap.

    Returns:
        A ``Record`` for each model, the written ones and those that were there.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.core.autoencoder import content_hash, open_sae
    from evaluations.core.excerpts import GatherConfig
    from evaluations.core.model_source import sources, with_controls
    from evaluations.core.runner import run
    from evaluations.core.text_source import text_finder
    from evaluations.suite.neurons import report
    from evaluations.suite.neurons.config import NeuronsConfig
    from evaluations.suite.neurons.evaluation import EVALUATION

    if sae is not None:
        open_sae(Path(sae), "cpu")  # told before any model is loaded
    asked = _examiner(
        examiner, model, max_spend, price_in, price_out, concurrency, requests_per_minute, device
    )
    config = NeuronsConfig(
        asked.describe(), seed, sample, hook, stream, content_hash(Path(sae)) if sae else None,
        tuple(part.strip() for part in scores.split(",") if part.strip()),
        gather=GatherConfig(seed=seed), resamples=resamples,
    )  # fmt: skip
    chosen = with_controls(sources(models, tokenizer), control)
    text = text_finder(chosen, data, validation, stories)
    find = _data_finder(text, asked, Path(out), Path(sae) if sae else None)
    load = model_loader(device, dtype, EVALUATION, config, not (data or validation))
    outcome = run(EVALUATION, chosen, find, config, out, force, load=load)
    pages = {"page": lambda records: _page(records, Path(out))} if html else {}
    finish(outcome, report, out, pages)
    return outcome.records


def _examiner(
    kind: str,
    model: str | None,
    max_spend: float | None,
    price_in: float | None,
    price_out: float | None,
    concurrency: int,
    requests_per_minute: float | None,
    device: str | None,
) -> Examiner:
    """Who explains.

    Raises:
        UserError: options that mean nothing to it, or what it takes to ask it is not here.
    """
    from sat_interp._util.errors import UserError

    if kind != "openai" and (max_spend, price_in, price_out) != (None, None, None):
        raise UserError(f"the examiner {kind} costs nothing: --max-spend and prices are openai's")
    if kind == "openai":
        from evaluations.suite.neurons.examiners import openai as openai_examiner

        config = openai_examiner.OpenAIConfig(
            concurrency=concurrency, requests_per_minute=requests_per_minute,
            max_spend=max_spend, price_in=price_in, price_out=price_out,
        )  # fmt: skip
        return openai_examiner.make(model or "gpt-4o-mini", config)
    if kind == "local":
        from evaluations.suite.neurons.examiners import local as local_examiner

        return local_examiner.make(model or local_examiner.SMOLLM2, device)
    if model is not None:
        raise UserError("the examiner lookup has no language model: name --examiner, too")
    from evaluations.suite.neurons.examiners.lookup import LookupExaminer

    return LookupExaminer()


def _data_finder(
    text_of: Callable[[LoadedModel], Text], examiner: Examiner, out: Path, sae: Path | None
) -> Callable[[LoadedModel], NeuronsData]:
    """What each model's neurons are explained with."""
    from evaluations.core.runner import model_directory, model_key
    from evaluations.suite.neurons.config import NeuronsData

    def find(loaded: LoadedModel) -> NeuronsData:
        directory, key = model_directory(out, loaded) / "neurons", model_key(loaded)
        return NeuronsData(text_of(loaded), examiner, key, loaded.name, directory, sae)

    return find


def _page(records: Sequence[Record], out: Path) -> Path:
    """One page of all models.

    Raises:
        UserError: a record's explanations are gone.
    """
    from evaluations.suite.neurons.page import with_graphs, write_page
    from evaluations.suite.neurons.reading import read_details
    from evaluations.suite.neurons.report import difference_lines
    from evaluations.tables import rows

    models = []
    for row in rows(records):
        record = row.records["neurons"]
        name = str(record.extra["details"])
        weights = str(record.model["weights_hash"])[:8]
        found = sorted(out.glob(f"*-{weights}/neurons/{name}"))
        path = found[0] if found else out / f"{row.model}-{weights}" / "neurons" / name
        told = {**read_details(path), "model": row.model}
        models.append(with_graphs(told, path.parents[1]))
    return write_page(models, out / "neurons.html", difference_lines(records))
