"""Causal tracing against values computed once in plain torch.

The same in any model and shape: ``test_run.py`` runs each problem by TransformerLens' hooks.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.trace.corrupt import added, constants
from evaluations.suite.trace.curves import Resamples
from evaluations.suite.trace.measure import Plan
from evaluations.suite.trace.run import NOTHING, Change, Problem, TraceRun
from evaluations.tasks.facts import Fact, FactPrompt
from tests.evaluations.vectors import VECTORS, needed, vectors_model

pytestmark = needed
POINTS = list(itertools.product(("attn", "mlp"), ("last", "last_subject", "all_subject"), (0, 1)))


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return vectors_model()


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    return load_file(VECTORS / "tracing.safetensors")


@pytest.fixture(scope="module")
def run(model: HookedTransformer, vectors: dict[str, Tensor]) -> TraceRun:
    tokens = load_file(VECTORS / "prompts.safetensors")["fit"]
    subject, answers = tuple(range(*vectors["subject"].tolist())), vectors["answer"].tolist()
    facts = [
        FactPrompt(Fact("", f"{number}", "", ""), tuple(row), subject, answer)
        for number, (row, answer) in enumerate(zip(tokens.tolist(), answers, strict=True))
    ]
    return TraceRun(model, facts, answers, [()] * len(facts), 1 << 20)


def changes(method: str, vectors: dict[str, Tensor], rows: list[int]) -> list[Change]:
    """The corruption of each draw; for OAT with the constants of these problems."""
    if method == "oat":
        return [constants(vectors["null"][rows])]
    return [added(draw) for draw in vectors["noise"]]


def test_the_clean_answers(run: TraceRun, vectors: dict[str, Tensor]) -> None:
    clean = run.answers([NOTHING])
    assert (clean.p[0] - vectors["p_clean"]).abs().max() < 1e-9
    assert run.first_choices().tolist() == vectors["answer"].tolist()


@pytest.mark.parametrize("method", ["oat", "gnt"])
def test_probabilities_and_effects(run: TraceRun, vectors: dict[str, Tensor], method: str) -> None:
    p_clean = vectors["p_clean"]
    corrupted = torch.stack(
        [run.answers([NOTHING], one).p[0] for one in changes(method, vectors, [2])]
    )
    assert (corrupted - vectors[f"{method}/p_corrupted"]).abs().max() < 1e-9
    below = (p_clean - corrupted).clamp(min=0).mean(0)
    resamples = Resamples(len(run), 1, 0)
    for kind, tokens, half in POINTS:
        name, plan = f"{method}/{kind}/{tokens}/{half}", Plan.of([(kind, tokens, 2 * half + 1)], 2)
        problems: list[Problem] = [
            plan.problems[plan.at[kind, tokens, 2 * half + 1, layer]] for layer in range(2)
        ]
        p = torch.stack(
            [run.answers(problems, one).p for one in changes(method, vectors, [0, 1])], 1
        )
        assert (p - vectors[f"{name}/p_patched"]).abs().max() < 1e-9
        lost = (p_clean - p).clamp(min=0).mean(1)
        # the project leaves effects of less damage undefined: the ratio alone is the vectors'
        effects = (
            1 - resamples.means(lost.numpy())[:, 0] / resamples.means(below[None].numpy())[0, 0]
        )
        assert abs(torch.from_numpy(effects) - vectors[f"{name}/aie"]).max() < 1e-9
        if below.mean() >= 0.02:
            own = resamples.effects(lost.numpy(), below.numpy())[:, 0]
            assert abs(own - effects).max() < 1e-12
