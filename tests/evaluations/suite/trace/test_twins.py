"""Windows of 5 and 9 layers against a loop of plain hooked passes, in models of many shapes."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.trace.corrupt import added, constants
from evaluations.suite.trace.measure import Plan
from evaluations.suite.trace.run import Problem, TraceRun
from evaluations.tasks.facts import Fact, FactPrompt
from tests.unlike_ours import unlike_ours

VOCABULARY = 53
SHAPES: dict[str, dict[str, object]] = {
    "GPT-2's shape": {
        "n_layers": 10,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "gated_mlp": False,
        "act_fn": "gelu_new",
        "attn_scale": 1.5,
    },
    "grouped queries, RMS norms": {"n_layers": 8, "n_heads": 4, "n_key_value_heads": 2},
    "norms before and after, soft caps": {
        "n_layers": 12,
        "use_normalization_before_and_after": True,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0,
    },
    "ALiBi, a norm after the embedding (Bloom)": {
        "n_layers": 9,
        "normalization_type": "LN",
        "positional_embedding_type": "alibi",
        "post_embedding_ln": True,
        "gated_mlp": False,
        "act_fn": "gelu_new",
    },
    "local attention": {
        "n_layers": 8,
        "use_local_attn": True,
        "window_size": 3,
        "attn_types": ["local", "global"] * 4,
    },
}
POINTS = tuple(
    itertools.product(
        ("attn", "mlp"), ("last", "last_subject", "all_subject", "first_subject"), (5, 9)
    )
)
SAMPLED = 10
HOOK = {"attn": "hook_attn_out", "mlp": "hook_mlp_out"}


def shaped(name: str) -> HookedTransformer:
    model = unlike_ours(**{"d_vocab": VOCABULARY, "n_ctx": 12, **SHAPES[name]})
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.25 * drawn)
    return model.eval().requires_grad_(False)


def facts_of(model: HookedTransformer, n: int = 12) -> list[FactPrompt]:
    """Prompts of 5 to 11 tokens; subjects of 1 to 4, at the beginning, within, and at the end."""
    rng, facts = random.Random(3), []
    for number in range(n):
        length, size = rng.randrange(5, 12), rng.randrange(1, 5)
        start = (0, rng.randrange(length - size + 1), length - size)[number % 3]
        tokens = tuple(rng.randrange(VOCABULARY) for _ in range(length))
        answer = int(model(torch.tensor([tokens]))[0, -1].argmax())
        subject = tuple(range(start, start + size))
        facts.append(FactPrompt(Fact("", f"subject {number}", ""), tokens, subject, answer))
    return facts


@dataclass
class Case:
    """A model with its facts, the plan of all points, and the pairs that the loop is run on."""

    model: HookedTransformer
    facts: list[FactPrompt]
    run: TraceRun
    plan: Plan
    pairs: list[tuple[int, int]]


@pytest.fixture(scope="module", params=SHAPES)
def case(request: pytest.FixtureRequest) -> Case:
    model = shaped(request.param)
    facts = facts_of(model)
    run = TraceRun(model, facts, [one.answer for one in facts], [()] * len(facts), 1 << 27)
    plan, rng = Plan.of(POINTS, model.cfg.n_layers), random.Random(1)
    pairs = [(rng.randrange(len(plan.problems)), rng.randrange(len(facts))) for _ in range(SAMPLED)]
    return Case(model, facts, run, plan, pairs)


def places(fact: FactPrompt, tokens: str) -> list[int]:
    subject = list(fact.subject)
    return {
        "last": [len(fact.tokens) - 1],
        "last_subject": subject[-1:],
        "first_subject": subject[:1],
        "all_subject": subject,
    }[tokens]


def probability(
    model: HookedTransformer, fact: FactPrompt, problem: Problem, corrupted: Tensor | None
) -> float:
    """Probability of the answer; ``corrupted`` is what stands in place of the embeddings."""
    tokens, at = torch.tensor([fact.tokens]), places(fact, problem.tokens)
    _, cache = model.run_with_cache(tokens)

    def corrupt(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[0, list(fact.subject)] = corrupted
        return value

    def restore(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        value[:, at] = cache[hook.name][:, at]
        return value

    hooks = [(f"blocks.{layer}.{HOOK[problem.kind]}", restore) for layer in problem.layers]
    if corrupted is not None:
        hooks.append(("hook_embed", corrupt))
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
    return float(logits.softmax(-1)[fact.answer])


def test_windows_are_the_layers_around_each_layer(case):
    for (kind, tokens, width, layer), number in case.plan.at.items():
        layers = [j for j in range(case.model.cfg.n_layers) if abs(j - layer) <= width // 2]
        assert case.plan.problems[number] == Problem(kind, tokens, tuple(layers))


def test_optimal_constants_are_what_a_loop_makes_of_them(case):
    """Each problem has its constant, which stands at all tokens of every subject."""
    generator = torch.Generator().manual_seed(2)
    shape = (len(case.plan.problems), case.model.cfg.d_model)
    vectors = torch.randn(shape, generator=generator, dtype=torch.float64)
    found = case.run.answers(case.plan.problems, constants(vectors)).p
    for row, number in case.pairs:
        problem = case.plan.problems[row]
        p = probability(case.model, case.facts[number], problem, vectors[row])
        assert float(found[row, number]) == pytest.approx(p, abs=1e-9)


def test_noise_is_what_a_loop_makes_of_it(case):
    """The noise of each token of each subject is given."""
    most = max(len(one.subject) for one in case.facts)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(
        len(case.facts), most, case.model.cfg.d_model, generator=generator, dtype=torch.float64
    )
    found = case.run.answers(case.plan.problems, added(noise)).p
    for row, number in case.pairs:
        fact = case.facts[number]
        subject = case.model.embed(torch.tensor([fact.tokens]))[0, list(fact.subject)]
        corrupted = subject + noise[number, : len(subject)]
        p = probability(case.model, fact, case.plan.problems[row], corrupted)
        assert float(found[row, number]) == pytest.approx(p, abs=1e-9)
