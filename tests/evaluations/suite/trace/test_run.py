"""The batched run against one hooked forward pass for each problem and fact."""

from __future__ import annotations

import pytest
import torch

from evaluations.suite.trace.corrupt import (
    NOISE,
    constants,
    draw_partners,
    noise,
    noise_size,
    swap,
)
from evaluations.suite.trace.fit import fit
from evaluations.suite.trace.run import NOTHING, Problem, TraceRun, positions
from evaluations.tasks.facts import Fact, FactPrompt
from tests.evaluations.suite.trace.cases import some_facts, tiny
from tests.unlike_ours import unlike_ours

PROBLEMS = [
    NOTHING,
    Problem("mlp", "last", (0,)),
    Problem("attn", "last_subject", (0, 1)),
    Problem("mlp", "all_subject", (1, 2)),
    Problem("attn", "first_subject", (0, 1, 2)),
    Problem("attn", "last", (2,)),
]
HOOK = {"attn": "hook_attn_out", "mlp": "hook_mlp_out"}


def answer(model, fact, problem, embedding=None, zero=False):
    """Probability of the answer, by TransformerLens' own hooks."""
    tokens = torch.tensor([fact.tokens])
    _, cache = model.run_with_cache(tokens)
    at = list(positions(fact)[problem.tokens])

    def restore(value, hook):
        value[:, at] = 0 if zero else cache[hook.name][:, at]
        return value

    def corrupt(value, hook):
        value[:, list(fact.subject)] = embedding(value[:, list(fact.subject)])
        return value

    hooks = [(f"blocks.{layer}.{HOOK[problem.kind]}", restore) for layer in problem.layers]
    if embedding is not None:
        hooks.append(("hook_embed", corrupt))
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].double()
    return float(logits.softmax(-1)[fact.answer])


def run_of(model, facts, memory=1 << 18):
    return TraceRun(model, facts, [one.answer for one in facts], [()] * len(facts), memory)


def frozen():
    return unlike_ours(n_layers=3, d_vocab=60, n_ctx=12).requires_grad_(False)


@pytest.fixture(params=["ours", "hooked"])
def model(request):
    return tiny() if request.param == "ours" else frozen()


def test_each_problem_is_one_hooked_pass(model):
    facts = some_facts(model, 10).prompts
    run = run_of(model, facts)
    vectors = torch.randn(len(PROBLEMS), model.cfg.d_model, dtype=torch.float64)
    found = run.answers(PROBLEMS, constants(vectors)).p
    for row, problem in enumerate(PROBLEMS):
        for number, fact in enumerate(facts):
            own = answer(model, fact, problem, lambda _, row=row: vectors[row].to(model.W_E))
            assert found[row, number] == pytest.approx(own, rel=1e-5, abs=1e-9)


def test_a_knock_out_is_zero_in_the_clean_run(model):
    facts = some_facts(model, 6).prompts
    found = run_of(model, facts).answers(PROBLEMS, restored="zero").p
    for row, problem in enumerate(PROBLEMS):
        for number, fact in enumerate(facts):
            own = answer(model, fact, problem, zero=True)
            assert found[row, number] == pytest.approx(own, rel=1e-5, abs=1e-9)


def test_noise_is_added_to_the_subject_and_of_the_size_it_says():
    model = tiny()
    facts = some_facts(model, 9).prompts
    run = run_of(model, facts)
    subject = torch.cat([model.W_E[[one.tokens[at] for at in one.subject]] for one in facts])
    size = noise_size(run, by_dimension=False)
    assert float(size) == pytest.approx(float(subject.double().std()))
    change = noise(run, size, 3)
    drawn = torch.cat(
        [
            change(bucket, slice(None), torch.arange(1))[0][bucket.sets["all_subject"]]
            for bucket in run.buckets
        ]
    )
    generator = torch.Generator().manual_seed(3)
    most = max(len(one.subject) for one in facts)
    every = torch.randn(len(facts), most, 16, generator=generator).double() * NOISE * size
    wanted = [every[n, : len(facts[n].subject)] for b in run.buckets for n in b.numbers.tolist()]
    assert torch.allclose(drawn, torch.cat(wanted), rtol=1e-5)
    for bucket in run.buckets:
        outside = change(bucket, slice(None), torch.arange(1))[0][~bucket.sets["all_subject"]]
        assert not outside.any()
    by_dimension = noise_size(run, by_dimension=True)
    streams = [model.run_with_cache(torch.tensor([f.tokens]))[1]["resid_pre", 0][0] for f in facts]
    assert torch.allclose(by_dimension, torch.cat([one[1:] for one in streams]).double().std(0))


def test_an_unrelated_subject_is_the_prompt_with_its_tokens():
    model = tiny()
    facts = some_facts(model, 20).prompts
    run = run_of(model, facts)
    partners = draw_partners(run, 0)
    assert sum(one is not None for one in partners) > 15
    found = run.answers([NOTHING], swap(run, partners)).p[0]
    for number, (fact, partner) in enumerate(zip(facts, partners, strict=True)):
        tokens = list(fact.tokens)
        if partner is not None:
            other = facts[partner]
            for mine, theirs in zip(fact.subject, other.subject, strict=True):
                tokens[mine] = other.tokens[theirs]
                assert other.tokens[theirs] != fact.tokens[mine]
        p = model(torch.tensor([tokens]))[0, -1].double().softmax(-1)[fact.answer]
        assert float(found[number]) == pytest.approx(float(p), abs=1e-9)


def test_chunks_change_nothing():
    model = tiny()
    facts = some_facts(model, 12).prompts
    vectors = torch.randn(len(PROBLEMS), 16, dtype=torch.float64)
    one, many = (
        run_of(model, facts, memory).answers(PROBLEMS, constants(vectors))
        for memory in (1 << 30, 1)
    )
    assert torch.allclose(one.p, many.p, atol=1e-12)
    assert torch.allclose(one.logit, many.logit, atol=1e-10)


def test_roles_cover_the_prompt_once():
    fact = FactPrompt(Fact("", "", "", decides="last"), (0, *range(1, 9)), (2, 3), 5)
    found = positions(fact)
    assert found["deciding"] == found["last_subject"] == (3,)
    assert found["other"] == found["first_subject"] == (2,)
    assert found["next"] == (4,)
    assert found["further"] == (5, 6, 7)
    assert found["last"] == (8,)
    three = FactPrompt(Fact("", "", "", decides="last"), (0, *range(1, 9)), (2, 3, 4), 5)
    assert positions(three)["middle_subject"] == (3,)
    assert positions(three)["deciding"] == ()  # two tokens, or it is not known which decides


def test_optimal_constants_are_minima_and_carry_a_certificate():
    model = tiny()
    facts = some_facts(model, 5).prompts
    run = run_of(model, facts)
    clean = run.answers([NOTHING]).p[0]
    found = fit(run, PROBLEMS, clean, 120)
    polished = fit(run, PROBLEMS, clean, 120, polish=10)
    mean = run.embeddings().mean(0).expand(len(PROBLEMS), -1)
    plain = (clean - run.answers(PROBLEMS, constants(mean)).p).clamp(min=0).mean(1)
    exact = (clean - run.answers(PROBLEMS, constants(found.vectors)).p).clamp(min=0).mean(1)
    assert torch.allclose(exact, found.loss, atol=1e-9)
    assert (found.loss < plain).all()
    assert (polished.loss <= found.loss + 1e-9).all()
    assert found.converged.any()
    assert (found.gradient[found.converged] <= 1e-5).all()
    # a random step from the minimum of a converged problem does not lead down
    torch.manual_seed(1)
    at = found.converged.nonzero().flatten()
    problems = [PROBLEMS[i] for i in at]
    smooth = lambda v: (  # noqa: E731
        torch.nn.functional.softplus(20 * (clean - run.answers(problems, constants(v)).p)) / 20
    ).mean(1)
    own = found.vectors[at]
    for _ in range(5):
        step = 1e-2 * torch.randn(own.shape, dtype=torch.float64)
        assert (smooth(own + step) >= smooth(own) - 1e-5).all()
