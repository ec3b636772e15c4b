"""Ablations against TransformerLens' own hooks, and optimal constants against what bounds them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core import ablation_metric, ablation_run
from evaluations.core import ablation_values as values
from evaluations.core.ablation import (
    Component,
    Feature,
    find_components,
    group,
    name_of,
)
from evaluations.core.ablation_fit import FitConfig, Objective, fit
from evaluations.core.ablation_lbfgs import Tolerance, minimise
from evaluations.core.ablation_metric import Metric
from evaluations.core.ablation_pass import SITES, FusedPasses, HookedPasses, is_fused
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots
from sat_interp._util.errors import UserError

QUICK = FitConfig(starts=3, rounds=2, evaluations=120)


def toy(seed: int = 0, **settings: object) -> HookedTransformer:
    fields: dict[str, object] = {
        "n_layers": 2,
        "d_model": 12,
        "n_ctx": 8,
        "d_head": 5,
        "n_heads": 2,
        "d_mlp": 20,
        "d_vocab": 30,
        "act_fn": "gelu_new",
        "normalization_type": "LN",
        "dtype": torch.float64,
        "device": "cpu",
        "seed": seed,
    }
    model = HookedTransformer(HookedTransformerConfig(**{**fields, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.4 * noise)
    return model.eval()


def tokens(n: int, length: int, seed: int) -> Tensor:
    drawn = torch.randint(1, 30, (n, length), generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return toy()


@pytest.fixture(scope="module")
def run(model: HookedTransformer) -> CleanRun:
    return CleanRun(model, [tokens(6, 5, 1), tokens(8, 7, 2)])


def by_hooks(
    model: HookedTransformer, batch: Tensor, edits: dict[str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """The KL of each prompt, by plain hooks that change the value at positions 1 on."""

    def hook_of(edit: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: object) -> Tensor:
            changed = edit(value.clone())
            changed[:, 0] = value[:, 0]
            return changed

        return hook

    hooks = [(name, hook_of(edit)) for name, edit in edits.items()]
    p = model(batch)[:, -1].log_softmax(-1)
    q = model.run_with_hooks(batch, fwd_hooks=hooks)[:, -1].log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def head(number: int, new: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(z: Tensor) -> Tensor:
        z[:, :, number] = new
        return z

    return edit


def one(model: HookedTransformer, *names: str) -> list[tuple[Component, ...]]:
    return find_components(model, names)


def test_names(model: HookedTransformer) -> None:
    everything = one(model, "heads", "mlps", "attention", "embedding", "head-sets")
    assert [name_of(found) for found in everything] == [
        "embed",
        "a0.h0",
        "a0.heads",
        "a0.h1",
        "attn0",
        "m0",
        "a1.h0",
        "a1.heads",
        "a1.h1",
        "attn1",
        "m1",
    ]
    assert len(one(model, "neurons")) == 40
    assert len(one(model, "coordinates")) == 20
    assert [name_of(found) for found in one(model, "m1+a0.h1", "a0.h1+m1")] == ["a0.h1+m1"]


@pytest.mark.parametrize(
    "name", ["a0.h2", "m2", "m0.n20", "a0.z10", "a0", "m0.h1", "hedas", "a0.h0+a0.z1", "f3", ""]
)
def test_unknown_names_are_refused(model: HookedTransformer, name: str) -> None:
    with pytest.raises(UserError):
        one(model, name)


def test_attention_only_models_have_no_mlps() -> None:
    with pytest.raises(UserError, match="no MLPs"):
        one(toy(attn_only=True, d_mlp=None, act_fn=None), "m0")


def test_neurons_of_experts_are_refused() -> None:
    experts = toy(num_experts=2, experts_per_token=1)
    with pytest.raises(UserError, match="the model's MLPs are experts"):
        one(experts, "m1.n3")
    with pytest.raises(UserError, match="the model's MLPs are experts"):
        one(experts, "neurons")
    assert len(one(experts, "mlps", "heads")) == 6


@pytest.mark.parametrize("scored", ["last", "all"])
def test_fused_and_hooked_passes_agree(
    model: HookedTransformer, scored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_fused(model)
    batches = [tokens(4, 6, 3)]
    sets = one(model, "embed", "a0.h1", "attn1", "m0", "m1.n3", "a1.z2", "a0.h0+m1", "a1.h0+m0.n2")
    costs = []
    for passes in (FusedPasses, HookedPasses):
        monkeypatch.setattr(ablation_run, "passes", passes)
        run = CleanRun(model, batches, scored=scored)  # type: ignore[arg-type]
        costs.append(
            torch.cat(
                [
                    values.constant_kl(
                        run, group([members]), values.zero_constants(group([members]))
                    )
                    for members in sets
                ]
            )
        )
    torch.testing.assert_close(costs[0], costs[1], atol=1e-12, rtol=0)
    assert (costs[0] > 0).all()


def test_every_site_of_the_fused_pass_is_transformer_lens(model: HookedTransformer) -> None:
    batch = tokens(3, 6, 4)
    streams = FusedPasses(model).streams(batch)
    state = FusedPasses(model).state(1, streams[1])
    _, cache = model.run_with_cache(batch)
    for site in SITES:
        torch.testing.assert_close(state[site][0], cache[f"blocks.1.{site}"].flatten(2))


def test_heads_by_plain_hooks(model: HookedTransformer, run: CleanRun) -> None:
    both = group(one(model, "a0.h0", "a0.h1"))
    zero = values.constant_kl(run, both, values.zero_constants(both))
    mean = values.mean_constants(run, both, Slots.one(run))[0]
    partners = values.draw_partners(run, 5)
    other = values.resample_kl(run, both, partners)
    means = values.constant_kl(run, both, [mean])
    start = 0
    for bucket, partner in zip(run.buckets, partners, strict=True):
        at = slice(start, start := start + len(bucket))
        assert (partner != torch.arange(len(bucket))).all()
        _, cache = model.run_with_cache(bucket.tokens)
        z, hook = cache["blocks.0.attn.hook_z"], "blocks.0.attn.hook_z"
        for number in range(2):
            for found, new in (
                (zero, torch.zeros(5).double()),
                (means, mean[number, 0]),
                (other, z[partner][:, :, number]),
            ):
                expected = by_hooks(model, bucket.tokens, {hook: head(number, new)})
                torch.testing.assert_close(found[number, at], expected)


def test_a_set_is_ablated_together(model: HookedTransformer, run: CleanRun) -> None:
    members = one(model, "a0.h1+m1")
    constants = [torch.randn(1, 1, 5).double(), torch.randn(1, 1, 12).double()]
    found = values.constant_kl(run, group(members), constants)[0, :6]

    def mlp(value: Tensor) -> Tensor:
        return constants[1][0].expand_as(value).clone()

    hooks = {"blocks.0.attn.hook_z": head(1, constants[0][0, 0]), "blocks.1.hook_mlp_out": mlp}
    torch.testing.assert_close(found, by_hooks(model, run.buckets[0].tokens, hooks))


def test_members_of_one_place_are_all_ablated(model: HookedTransformer, run: CleanRun) -> None:
    together, layer = (group(one(model, name)) for name in ("a0.h0+a0.h1", "a0.heads"))
    constant = torch.randn(1, 1, 10).double()
    found = values.constant_kl(run, together, [constant])
    torch.testing.assert_close(found, values.constant_kl(run, layer, [constant]))


def test_features_in_one_batch_and_in_one_set(model: HookedTransformer, run: CleanRun) -> None:
    encoder, decoder = torch.randn(12, 7).double(), torch.randn(7, 12).double()
    place = (1, "hook_resid_pre"), Feature(lambda x: (x @ encoder).relu(), decoder)
    sets = find_components(model, ["f2", "f5"], place)
    both = values.constant_kl(run, group(sets), values.zero_constants(group(sets)))
    for number, members in enumerate(sets):
        alone = values.constant_kl(run, group([members]), values.zero_constants(group([members])))
        torch.testing.assert_close(both[number], alone[0])

    def edit(x: Tensor) -> Tensor:
        return x - (x @ encoder).relu()[..., [2, 5]] @ decoder[[2, 5]]

    together = group(find_components(model, ["f2+f5"], place))
    found = values.constant_kl(run, together, values.zero_constants(together))[0, :6]
    expected = by_hooks(model, run.buckets[0].tokens, {"blocks.1.hook_resid_pre": edit})
    torch.testing.assert_close(found, expected)


def test_coordinates_and_a_feature_of_one_place(model: HookedTransformer, run: CleanRun) -> None:
    feature = Feature(lambda x: x[..., :3], torch.eye(12).double()[:3])
    members = find_components(model, ["embed+f1"], ((0, "hook_resid_pre"), feature))
    constants = [torch.ones(1, 1, 12).double(), torch.full((1, 1, 1), 2.0).double()]
    found = values.constant_kl(run, group(members), constants)[0, :6]
    new = torch.ones(12).double().index_fill(0, torch.tensor(1), 2.0)
    hooks = {"blocks.0.hook_resid_pre": lambda x: new.expand_as(x).clone()}
    torch.testing.assert_close(found, by_hooks(model, run.buckets[0].tokens, hooks))


def test_a_feature_keeps_the_reconstruction_error(model: HookedTransformer, run: CleanRun) -> None:
    encoder, decoder = torch.randn(12, 7).double(), torch.randn(7, 12).double()
    feature = Feature(lambda x: (x @ encoder).relu(), decoder)
    members = find_components(model, ["f2"], ((1, "hook_resid_pre"), feature))
    found = values.constant_kl(run, group(members), [torch.full((1, 1, 1), 0.7).double()])

    def edit(x: Tensor) -> Tensor:
        return x + (0.7 - (x @ encoder).relu()[..., 2:3]) * decoder[2]

    expected = by_hooks(model, run.buckets[0].tokens, {"blocks.1.hook_resid_pre": edit})
    torch.testing.assert_close(found[0, :6], expected)


def test_noise_and_counterfactuals(model: HookedTransformer, run: CleanRun) -> None:
    both = group(one(model, "a1.h0", "a1.h1"))
    assert (values.counterfactual_kl(run, both, run).abs() < 1e-12).all()
    noisy = values.noise_kl(run, both, run, seed=0, draws=2)
    assert noisy.isfinite().all()
    assert (noisy.mean(1) > 0).all()
    every = values.resample_all_kl(run, both)
    shifts = [
        values.resample_kl(run, both, [torch.arange(len(b)).roll(shift) for b in run.buckets])
        for shift in range(len(run.buckets[0]))
    ]
    torch.testing.assert_close(every[:, :6], torch.stack(shifts)[:, :, :6].mean(0))


def test_a_prompt_alone_has_no_other_one(model: HookedTransformer) -> None:
    run = CleanRun(model, [tokens(3, 5, 1), tokens(1, 6, 2)])
    found = values.resample_kl(run, group(one(model, "m0")), values.draw_partners(run, 0))
    assert found[0].isnan().tolist() == [False, False, False, True]


def test_positions_beyond_the_shortest_prompt_share_a_mean(
    model: HookedTransformer, run: CleanRun
) -> None:
    slots, batch = Slots.each(run), group(one(model, "m0"))
    assert slots.numbers(7).tolist() == [0, 0, 1, 2, 3, 4, 4]
    mean = values.mean_constants(run, batch, slots)[0][0]
    outs = [model.run_with_cache(b.tokens)[1]["blocks.0.hook_mlp_out"] for b in run.buckets]
    torch.testing.assert_close(mean[1], torch.cat([out[:, 2] for out in outs]).mean(0))
    torch.testing.assert_close(mean[4], outs[1][:, 5:].flatten(0, 1).mean(0))


def test_without_bos_every_position_is_ablated(model: HookedTransformer) -> None:
    run, batch = CleanRun(model, [tokens(4, 5, 1)], first=0), group(one(model, "embed"))
    found = values.constant_kl(run, batch, [torch.ones(1, 1, 12).double()])
    hooks = [("blocks.0.hook_resid_pre", lambda x, hook: torch.ones_like(x))]
    q = model.run_with_hooks(run.buckets[0].tokens, fwd_hooks=hooks)[:, -1].log_softmax(-1)
    p = model(run.buckets[0].tokens)[:, -1].log_softmax(-1)
    torch.testing.assert_close(found[0], (p.exp() * (p - q)).sum(-1))


def test_memory_changes_nothing(model: HookedTransformer) -> None:
    batches, sets = [tokens(9, 6, 3)], one(model, "neurons")
    costs = []
    for memory in (1, 1 << 28):
        run = CleanRun(model, batches, memory=memory)
        batch = group([s for s in sets if s[0].layer == 0])
        costs.append(values.constant_kl(run, batch, values.zero_constants(batch)))
    torch.testing.assert_close(*costs)


def test_activations_that_are_not_finite_are_refused() -> None:
    broken = toy()
    with torch.no_grad():
        broken.blocks[1].mlp.W_in[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        CleanRun(broken, [tokens(3, 5, 1)])
    with pytest.raises(UserError, match="no prompts"):
        CleanRun(toy(), [])
    with pytest.raises(UserError, match="no position"):
        CleanRun(toy(), [tokens(3, 1, 1)])


# Optimal constants -------------------------------------------------------------------------------


def test_lbfgs_finds_the_minima_of_independent_problems() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 8, 8, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.mT + 0.1 * torch.eye(8)
    wanted = torch.randn(5, 8, generator=generator, dtype=torch.float64)

    def evaluate(x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.einsum("pij,pj->pi", matrix[problems], x - wanted[problems])
        return ((x - wanted[problems]) * gradient).sum(1) / 2, gradient

    found = minimise(evaluate, torch.zeros(5, 8).double(), Tolerance(1e-9, 1e-9, 300))
    torch.testing.assert_close(found.point, wanted, atol=1e-6, rtol=0)
    assert found.converged.all()
    again = minimise(evaluate, found.point + 0.1, Tolerance(1e-9, 1e-9, 300), memory=found.memory)
    assert (again.evaluations < found.evaluations).all()


def test_lbfgs_on_a_curved_valley_and_on_values_that_are_not_finite() -> None:
    def rosenbrock(x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        value = (1 - leaf[:, 0]) ** 2 + 100 * (leaf[:, 1] - leaf[:, 0] ** 2) ** 2
        value = torch.where(leaf[:, 0] > 1.5, torch.nan, value)
        (gradient,) = torch.autograd.grad(value.nansum(), leaf)
        return value.detach(), gradient

    start = torch.tensor([[-1.2, 1.0], [0.0, 3.0]], dtype=torch.float64)
    found = minimise(rosenbrock, start, Tolerance(1e-8, 1e-8, 500))
    torch.testing.assert_close(found.point, torch.ones(2, 2).double(), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def fitted(model: HookedTransformer, run: CleanRun) -> dict[str, tuple[float, float, Tensor]]:
    """By name: the cost of one vector, that of one for each position, and the vector."""
    found = {}
    for names in (("a0.h0", "a0.h1"), ("attn1",), ("m0",), ("m1",), ("a1.heads",)):
        members = one(model, *names)
        batch = group(members)
        best = fit(run, batch, Slots.one(run), QUICK)
        each = fit(run, batch, Slots.each(run), QUICK, extra=[best.constants])
        for number, name in enumerate(map(name_of, members)):
            found[name] = (
                float(best.delta[number]),
                float(each.delta[number]),
                best.constants[0][number],
            )
            assert best.converged[number]
            assert not best.capped[number]
    return found


def test_optimal_constants_are_minima(
    model: HookedTransformer, run: CleanRun, fitted: dict[str, tuple[float, float, Tensor]]
) -> None:
    for name, (delta, each, constant) in fitted.items():
        batch = group(one(model, name))
        kl = values.constant_kl(run, batch, [constant[None]])
        assert kl.mean() == pytest.approx(delta, abs=1e-9)
        for method in ("zero", "mean_all"):
            constants = values.constants_of(method, run, batch)  # type: ignore[arg-type]
            assert delta <= values.constant_kl(run, batch, constants).mean() + 1e-9
        for step in torch.randn(4, *constant.shape, dtype=torch.float64):
            moved = values.constant_kl(run, batch, [(constant + 0.01 * step)[None]])
            assert moved.mean() > delta - 1e-9
        assert each <= delta + 1e-9


def test_only_the_last_position_of_the_last_layer_matters(
    fitted: dict[str, tuple[float, float, Tensor]],
) -> None:
    # prompts of two lengths end at positions with vectors of their own: only lower or equal
    assert fitted["m1"][1] <= fitted["m1"][0] + 1e-9


def test_an_attention_layer_costs_at_most_all_its_heads(
    fitted: dict[str, tuple[float, float, Tensor]],
) -> None:
    assert fitted["attn1"][0] <= fitted["a1.heads"][0] + 1e-6


def test_scalars_reach_the_minimum_of_a_fine_scan(model: HookedTransformer, run: CleanRun) -> None:
    members = one(model, "m0.n0", "m0.n7", "m0.n19")
    batch = group(members)
    best = fit(run, batch, Slots.one(run), QUICK)
    grid = torch.linspace(-6, 8, 401, dtype=torch.float64)
    scan = [values.constant_kl(run, batch, [x.expand(3)[:, None, None]]).mean(1) for x in grid]
    assert (best.delta <= torch.stack(scan).amin(0) + 1e-6).all()
    assert best.converged.all()


def test_float32_is_checked_in_float64(run: CleanRun) -> None:
    model = toy(dtype=torch.float32)
    single = CleanRun(model, [bucket.tokens for bucket in run.buckets])
    batch = group(one(model, "a1.h1"))
    best = fit(single, batch, Slots.one(single), QUICK)
    exact = values.constant_kl(single.double(), batch, best.constants).mean()
    assert best.delta[0] == pytest.approx(float(exact), abs=1e-10)
    assert best.gradient[0] <= 1e-5


def test_large_samples_are_grown(model: HookedTransformer) -> None:
    run = CleanRun(model, [tokens(60, 6, 8)])
    batch = group(one(model, "a0.h0", "a0.h1"))
    grown = fit(run, batch, Slots.one(run), FitConfig(starts=3, sample=10))
    direct = fit(run, batch, Slots.one(run), FitConfig(starts=3, sample=60))
    torch.testing.assert_close(grown.delta, direct.delta, atol=1e-6, rtol=0)
    assert (grown.evaluations < direct.evaluations).all()
    assert grown.stopped[0].shape == grown.constants[0].shape


def test_a_constant_that_would_run_away_is_capped(run: CleanRun) -> None:
    model = toy()
    batch = group(one(model, "m1"))
    import evaluations.core.ablation_fit as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CAP", 0.05)
        held = fit(run, batch, Slots.one(run), QUICK)
    assert held.capped.all()
    norms = [v[0, :, 1:].norm(dim=-1).flatten() for v in run.read(batch.parts[0])]
    assert held.constants[0].norm() <= 0.0501 * torch.cat(norms).quantile(0.99)


def test_the_metric_is_the_inverse_of_the_damped_fisher_information(
    model: HookedTransformer, run: CleanRun
) -> None:
    batch = group(one(model, "a0.h0", "a0.h1"))
    flat = values.mean_constants(run, batch, Slots.one(run))[0][:, 0]
    objective = Objective(run, batch, Slots.one(run), torch.full((1, 2), torch.inf))
    fisher = torch.zeros(2, 5, 5).double()
    for number in range(2):

        def log_q(a: Tensor, number: int = number) -> Tensor:
            def put(z: Tensor, hook: object) -> Tensor:
                z = z.clone()
                z[:, 1:, number] = a
                return z

            hooks = [("blocks.0.attn.hook_z", put)]
            logits = [model.run_with_hooks(b.tokens, fwd_hooks=hooks)[:, -1] for b in run.buckets]
            return torch.cat(logits).log_softmax(-1)

        jacobian = torch.autograd.functional.jacobian(log_q, flat[number])
        q = log_q(flat[number]).exp().detach()
        fisher[number] = torch.einsum("pv,pvi,pvj->ij", q, jacobian, jacobian) / len(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_metric, "DRAWS_EACH", 4000)
        patch.setattr(ablation_metric, "MOST_DRAWS", 600)
        found = objective.metric(flat)
    vector = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double()
    product = found.times(torch.arange(2), vector)
    damping = 1e-3 * fisher.diagonal(dim1=1, dim2=2).mean(1)
    damped = fisher + damping[:, None, None] * torch.eye(5)
    relative = (damped @ product[..., None])[..., 0] - vector
    assert relative.norm() < 0.15 * vector.norm()


@pytest.mark.parametrize("draws", [3, 40])
def test_a_metric_of_few_and_of_many_draws(draws: int) -> None:
    scores = torch.randn(2, draws, 6, generator=torch.Generator().manual_seed(1)).double()
    found = Metric.of(scores)
    fisher = scores.mT @ scores / draws
    damping = ablation_metric.DAMPING * fisher.diagonal(dim1=1, dim2=2).mean(1)
    expected = torch.linalg.inv(fisher + damping[:, None, None] * torch.eye(6))
    vector = torch.arange(12.0).view(2, 6).double()
    product = found.times(torch.arange(2), vector)
    torch.testing.assert_close(product, (expected @ vector[..., None])[..., 0])
    found.forget(torch.tensor([1]))
    torch.testing.assert_close(found.times(torch.tensor([1]), vector[1:]), vector[1:])
    broken = Metric.of(torch.full((1, 4, 2), torch.nan, dtype=torch.float64))
    assert broken.times(torch.tensor([0]), torch.ones(1, 2).double()).isfinite().all()
