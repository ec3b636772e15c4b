"""The compiled k-winners, and products with few winners, against PyTorch in float64."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn import functional as F

from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
from sat_interp.model import fast
from sat_interp.model.gates import MIN_SPREAD, TEMPERATURE_FLOOR, k_winners, soft_weights
from sat_interp.model.kernels import cpu as native
from sat_interp.training.loss import LossWeights, training_loss
from tests.sat_interp.model.test_gates import near_tie

pytestmark = pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler"
)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _native(scores, k, temperature=1.0, soft=False, near_ties="no_gradient"):
    is_old = near_ties == "detached_floor"
    return native.k_winners(scores, k, temperature, TEMPERATURE_FLOOR, MIN_SPREAD, soft, is_old)[0]


def _agree(scores, k, temperature, soft, seed=7, near_ties="no_gradient"):
    """Values and gradient, each to float32's rounding: gradients scale with 1/T."""
    pull = _random(*scores.shape, seed=seed)
    ours, twin = scores.detach().clone().requires_grad_(), scores.double().requires_grad_()
    found = _native(ours, k, temperature, soft, near_ties)
    weights, mask = soft_weights(twin, k, "softmax", temperature, near_ties)
    (found * pull).sum().backward()
    (weights * pull).sum().backward()
    if soft:
        assert torch.allclose(found.double(), weights, atol=1e-6)
    else:
        assert torch.equal(found.double(), mask)
    ordered = twin.detach().sort(dim=-1, descending=True).values
    gap = temperature * (ordered[..., k - 1] - ordered[..., k])
    spread = (ordered[..., 0] - ordered[..., -1]).clamp(min=MIN_SPREAD)
    sharpness = torch.maximum(gap, TEMPERATURE_FLOOR * spread)[..., None]
    assert ((ours.grad - twin.grad) * sharpness).abs().max() < 2e-5


@pytest.mark.parametrize("units", [2, 3, 7, 8, 9, 17, 61, 128, 512, 3001])
@pytest.mark.parametrize("soft", [False, True])
def test_k_winners_and_their_gradient(units, soft):
    for seed, temperature in enumerate((1.0, 0.5, 3.0)):
        scores = [1.0, 10.0, 0.01][seed] * _random(3, 5, units, seed=seed)
        for k in {1, 4, units // 3, units - 1} & set(range(1, units)):
            _agree(scores, k, temperature, soft)


@pytest.mark.parametrize("near_ties", ["no_gradient", "detached_floor"])
@pytest.mark.parametrize("k", [1, 4])
def test_near_ties(k, near_ties):
    rows = [near_tie(k, gap).float() for gap in (1e-2, 1e-3, 5e-4, 3e-4, 1e-4, 1e-6)]
    _agree(torch.stack(rows), k, 1.0, False, near_ties=near_ties)
    held = torch.stack([near_tie(k, 1e-4).float(), near_tie(k, 0.0).float()]).requires_grad_()
    (_native(held, k, near_ties=near_ties) * _random(2, 40)).sum().backward()
    # At k = 4 the first three scores take all the weight of so small a T.
    assert bool(held.grad.any()) == (near_ties == "detached_floor" and k == 1)


def test_scores_that_lie_apart_in_memory():
    all_layers = _random(3, 5, 4 * 24)
    for scores in (all_layers.chunk(4, -1)[2], all_layers.transpose(0, 1), all_layers[..., ::3]):
        _agree(scores, 4, 1.0, False)
        assert torch.equal(_native(scores, 4), _native(scores.contiguous(), 4))


@pytest.mark.parametrize("k", [1, 3, 12, 28])
@pytest.mark.parametrize("values", [1, 2, 5])
def test_of_winners_that_tie_the_first_win_and_gradients_stay_finite(values, k):
    generator = torch.Generator().manual_seed(k)
    scores = torch.randint(0, values, (50, 29), generator=generator).float().requires_grad_()
    mask = _native(scores, k)
    order = scores.detach().sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(mask, torch.zeros(50, 29).scatter_(-1, order[:, :k], 1.0))
    (mask * _random(50, 29)).sum().backward()
    assert scores.grad.isfinite().all()


def test_units_that_tie_for_the_last_place_share_its_gradient():
    scores = torch.tensor([[3.0, 2.0, 2.0, 1.0, 0.0]], requires_grad=True)  # k = 3: T = 2 - 1
    (_native(scores, 3) * torch.tensor([[1.0, 0, 0, 0, 0]])).sum().backward()
    w = torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0]).softmax(-1)
    direct = w * (torch.tensor([1.0, 0, 0, 0, 0]) - w[0])
    through = -(direct * torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0])).sum()  # dL/dT at T = 1
    expected = direct + through * torch.tensor([0, 0.5, 0.5, -1.0, 0])
    assert torch.allclose(scores.grad[0], expected, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 9, 16])
def test_a_score_that_is_no_number_shows_in_its_row(bad, where):
    scores = _random(2, 17)
    scores[1, where] = bad
    mask = _native(scores, 3)
    assert mask[0].sum() == 3
    assert mask[1].isnan().all()


def test_the_gates_call_it_and_bfloat16_goes_through_in_float32():
    scores = _random(4, 40).bfloat16()
    mask = k_winners(scores, 3, SelfAblationConfig())
    assert mask.dtype == torch.bfloat16
    assert (mask.sum(-1) == 3).all()
    assert torch.equal(k_winners(scores.float(), 3, SelfAblationConfig()), mask.float())


@pytest.mark.parametrize("is_gelu", [False, True])
@pytest.mark.parametrize(("units", "width"), [(5, 3), (16, 8), (37, 130)])
def test_products_with_few_winners(units, width, is_gelu):
    x, weight, y = _random(9, units), _random(units, width, seed=1), _random(9, width, seed=2)
    mask = (_random(9, units, seed=3) > 0.8).float()
    mask[0], mask[1] = 0.0, _random(units)  # no winner at all; factors other than one
    value = (F.gelu(x.double(), approximate="tanh") if is_gelu else x.double()) * mask
    found = native.winners_product(x, mask, weight, is_gelu)
    assert torch.allclose(found.double(), value @ weight.double(), atol=1e-5)
    found = native.winners_outer(x, mask, y, is_gelu)
    assert torch.allclose(found.double(), value.T @ y.double(), atol=1e-5)


def test_the_number_of_threads_changes_no_bit_and_operators_keep_their_rules():
    scores, weight, y = _random(33, 70), _random(70, 20), _random(33, 20)
    mask, found, before = _native(scores, 5), [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        leaf = scores.clone().requires_grad_()
        (_native(leaf, 5, soft=True) * scores).sum().backward()
        product = native.winners_product(scores, mask, weight, True)
        outer = native.winners_outer(scores, mask, y, True)
        found.append((leaf.grad, product, outer))
    torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)
    leaf = scores.clone().requires_grad_()
    torch.library.opcheck(native.k_winners, (leaf, 5, 1.0, 1e-4, 1e-2, False, False))
    torch.library.opcheck(native.winners_product, (scores, mask, weight, True))
    torch.library.opcheck(native.winners_outer, (scores, mask, y, True))
    torch.library.opcheck(native.masked_gelu_backward, (scores, scores, mask))


@pytest.mark.parametrize("variant", ["local", "global"])
@pytest.mark.parametrize("unit", ["coordinate", "head"])
@pytest.mark.parametrize("gates", ["learned", "detached", "frozen", "random"])
def test_a_step_with_few_winners_is_that_with_whole_products(variant, unit, gates, monkeypatch):
    cfg = gpt_neo_config(n_layers=2, d_model=64, n_heads=8, d_vocab=31, n_ctx=12)
    torch.manual_seed(0)
    settings = SelfAblationConfig(
        variant=variant, unit=unit, gates=gates, k_attention=1, k_neurons=3
    )
    model = SelfAblatingTransformer(cfg, settings)
    windows, real, asked = torch.randint(31, (3, 13)), fast.is_sparse, []

    def step(is_sparse) -> list[torch.Tensor]:
        monkeypatch.setattr(fast, "is_sparse", is_sparse)
        torch.manual_seed(1)
        model.zero_grad()
        loss = training_loss(model, windows, LossWeights()).total
        loss.backward()
        return [loss.detach()] + [p.grad.clone() for p in model.parameters() if p.requires_grad]

    few = step(lambda *given: asked.append(real(*given)) or asked[-1])
    assert asked == [True] * 4  # attention and neurons of two blocks
    for ours, whole in zip(few, step(lambda *given: False), strict=True):
        assert torch.allclose(ours, whole, rtol=1e-4, atol=1e-5)
