"""``sat-eval acdc``."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Literal

from evaluations.commands.inputs import Dtype

if TYPE_CHECKING:
    from evaluations.core.models import LoadedModel
    from evaluations.tasks.pairs import TaskPrompts

log = logging.getLogger(__name__)


def acdc(
    models: list[str],
    task: str | None = None,
    tau: str | float | list[float] = "0.03",
    method: Literal["acdc", "eap", "eap-ig"] = "acdc",
    engine: Literal["fast", "auto-circuit"] = "fast",
    prompts: int = 100,
    held_out: int | None = None,
    ablation: Literal["resample", "zero", "mean"] = "resample",
    edges: int | None = None,
    score_by: Literal["logit-difference", "kl"] = "logit-difference",
    selection: Literal["greedy", "top"] = "greedy",
    steps: int = 5,
    points: Literal["paper", "released"] = "paper",
    random_circuits: int = 20,
    null_draws: int = 5,
    bootstrap: int | None = None,
    no_sweep: bool = False,
    no_bos: bool = False,
    tokenizer: str | None = None,
    out: str = "results",
    force: bool = False,
    device: str | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
) -> list[Any]:
    """Circuits: the edges a task needs, with the controls that make their number mean something.

    ACDC (or EAP, EAP-IG) on the edge-factorised graph with queries, keys and values apart. Beside
    the count: whether the model does the task, the circuit's KL and faithfulness on the prompts it
    was found on and on held-out ones, CPR and CMD of the method, random circuits, the null task,
    the spread over prompts and orders, the margin to tau. Tables are printed; a record for each
    model, the circuits as figure, JSON and GraphML, and curves of edges against faithfulness are
    written.

    Examples::

        sat-eval acdc demo:baseline demo:local-k4
        sat-eval acdc demo:baseline --task agreement --tau 0.003,0.01,0.03,0.1
        sat-eval acdc runs/a runs/b --task prompts.json --prompts 200 --bootstrap 10
        sat-eval acdc ./gpt2-directory --method eap-ig --edges 200
        sat-eval acdc runs/a --no-sweep --ablation mean

    Args:
        models: demo:baseline, demo:local-k4 or demo:global-k4; a directory of ours or of
            Hugging Face; a training run; a hub id.
        task: ioi, ioi-tinystories, greater-than, gender, quotes, agreement, induction, object, or
            a .json file in auto-circuit's format. Default: ioi for models trained on the built-in
            corpus, ioi-tinystories for all others.
        tau: ACDC removes an edge that raises KL by less, in nats; several with commas between
            them. The controls are for 0.03 where it is among them, else for the first.
        method: how the circuit is found.
        engine: of acdc; auto-circuit runs that package, where it is installed, on the prompts of
            the commonest length, since it knows no other.
        prompts: how many to find the circuit with.
        held_out: further prompts to measure it on; by default as many. They share no prompt with
            the others, and of IOI no pair of names. Of a file with too few prompts for both, those
            it has are shared; 0 holds out none.
        ablation: what replaces an edge: its source on the corrupted prompt, nothing, or its mean.
        edges: how many eap and eap-ig choose; by default 5 % of all. Of those, and of ACDC's, the
            ones on a path from embedding to output are the circuit.
        score_by: what eap-ig attributes; eap takes logit-difference only.
        selection: how eap and eap-ig choose by score: connected to the output, or simply the top.
        steps: interpolation points of eap-ig.
        points: where they lie from corrupted (0) to clean prompt (1): 1/m ... 1, as in the equation
            of its paper; or 0 ... (m - 1)/m, as in its released code.
        random_circuits: connected and layer-matched random circuits to compare with.
        null_draws: times the null task is drawn: the frame stays, as many tokens change as in the
            task, none of them bears on the answer.
        bootstrap: times the circuit is found again with other prompts, and in other orders; by
            default 5 where the graph has up to 2,000 edges, else 0. A standard deviation takes 5.
        no_sweep: only this tau: no ranking of edges, so no CPR and CMD.
        no_bos: leave out the token that begins a story (BOS, or end-of-text).
        tokenizer: gpt2, a directory or a hub id, in place of the model's own.
        out: directory of the records.
        force: run again what is done.
        device: such as cpu; by default an accelerator where there is one.
        dtype: precision; in float64 the circuit is the same on any number of threads. A bfloat16
            model's circuit is searched in float32.
        seed: of the prompts and of all controls.

    Returns:
        A ``Record`` for each model, the written ones and those that were there.
    """
    from evaluations.commands.inputs import model_loader
    from evaluations.commands.show import finish
    from evaluations.core.model_source import sources
    from evaluations.core.runner import run
    from evaluations.suite.circuits import report
    from evaluations.suite.circuits.evaluation import EVALUATION, CircuitConfig
    from evaluations.suite.circuits.metrics import LEAST_DRAWS

    config = CircuitConfig(
        seed, method, engine, _taus(tau), edges, score_by, selection, ablation, random_circuits,
        null_draws, bootstrap, steps, points, not no_sweep,
    )  # fmt: skip
    if 0 < (bootstrap or 0) < LEAST_DRAWS:
        log.warning(
            "--bootstrap %d gives no standard deviation: it takes %d", bootstrap, LEAST_DRAWS
        )
    kept_back = prompts if held_out is None else held_out

    def prompts_of(loaded: LoadedModel) -> TaskPrompts:
        from evaluations.tasks.registry import make_task

        made = make_task(
            task or default_task(loaded), loaded.tokenizer, prompts, seed, not no_bos, kept_back
        )
        return _one_length(made) if engine == "auto-circuit" else made

    load = model_loader(device, dtype, EVALUATION, config)
    outcome = run(EVALUATION, sources(models, tokenizer), prompts_of, config, out, force, load=load)
    for line in report.warnings(outcome.records):
        log.warning("%s", line)
    finish(outcome, report, out)
    return outcome.records


def _taus(tau: str | float | list[float]) -> tuple[float, ...]:
    """The thresholds: a number, several, or text with commas between them."""
    from sat_interp._util.errors import UserError

    values: list[Any] = tau.split(",") if isinstance(tau, str) else list(
        tau if isinstance(tau, list) else [tau]
    )  # fmt: skip
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"tau is {tau!r}: numbers with commas between them, such as 0.03") from None


def default_task(loaded: LoadedModel) -> str:
    """Return the IOI of the corpus a model was trained on."""
    return "ioi" if loaded.data == "demo" else "ioi-tinystories"


def _one_length(prompts: TaskPrompts) -> TaskPrompts:
    """The prompts of the commonest length; the others are counted as left out."""
    sizes = [len(batch) for batch in prompts.batches]
    largest = sizes.index(max(sizes))
    first = sum(sizes[:largest])
    chosen = prompts.subset(range(first, first + sizes[largest]))
    if not (others := prompts.n - chosen.n):
        return chosen
    return dataclasses.replace(
        chosen, left_out={**chosen.left_out, "not of the commonest length": others}
    )
