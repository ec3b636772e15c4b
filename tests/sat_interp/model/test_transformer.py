"""The model: two paths and a plain twin, hook points, tying, controls, guards."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from transformer_lens import HookedTransformer

from sat_interp._util.errors import UserError
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config, validate
from sat_interp.model.transformer import SelfAblatingTransformer
from sat_interp.training.loss import LossWeights, next_token_loss
from tests.sat_interp.model.plain import plain_dual, plain_loss

SETTINGS = [
    {},
    {"soft": "sigmoid"},
    {"unit": "head"},
    {"forward_mask": "soft", "soft": "sigmoid", "temperature": 0.7},
    {"forward_mask": "soft"},
    {"k_attention": 1, "k_neurons": 40},
]
VARIANTS = ["local", "global"]


def _gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_both_paths_equal_the_plain_model(make_model, tokens, variant, settings):
    model = make_model(variant, **settings)
    plain = plain_dual(model, tokens)
    for path in ("fast", "hooked"):
        out = model.dual(tokens, path)
        found = (out.clean_logits, out.ablated_logits, out.attention_masks, out.neuron_masks)
        for ours, theirs in zip(found, plain, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-9)
    assert torch.allclose(model.fast(tokens), plain[0], atol=1e-9)
    assert torch.allclose(model(tokens), plain[0], atol=1e-9)


@pytest.mark.parametrize("loss_per_token", [False, True])
def test_the_fast_loss_is_transformer_lens_own(make_model, tokens, loss_per_token):
    model = make_model("local")
    found = model.fast(tokens, return_type="loss", loss_per_token=loss_per_token)
    expected = model(tokens, return_type="loss", loss_per_token=loss_per_token)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-9)
    assert model.fast(tokens[:, :1], return_type="loss", loss_per_token=True).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # with the kernels and without
def test_no_row_gives_no_row(make_model, tokens, dtype):
    model = make_model("local").to(dtype)
    assert model.fast(tokens[:0]).shape == (0, 7, 61)
    assert model.dual(tokens[:0], "fast").ablated_logits.shape == (0, 7, 61)


def test_the_fast_path_returns_nothing_else(make_model, tokens):
    with pytest.raises(UserError, match="'logits' or 'loss', not 'both'"):
        make_model().fast(tokens, return_type="both")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_and_every_gradient_agree(make_model, tokens, variant, settings):
    model, weights = make_model(variant, **settings), LossWeights(0.7, 0.4, 0.0)
    targets = tokens.roll(-1, 1)
    plain = _gradients(model, plain_loss(model, tokens, targets, weights))
    for path in ("fast", "hooked"):
        losses = next_token_loss(model, tokens, targets, weights, chunk=5, path=path)
        assert losses.total.item() == pytest.approx(
            plain_loss(model, tokens, targets, weights).item(), abs=1e-9
        )
        for name, gradient in _gradients(model, losses.total).items():
            assert torch.allclose(gradient, plain[name], atol=1e-9), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_reconstruction_term_agrees_between_paths(make_model, tokens, variant):
    model, weights = make_model(variant), LossWeights(1, 0.1, 0.1)
    results = [
        next_token_loss(model, tokens, tokens, weights, path=path) for path in ("fast", "hooked")
    ]
    fast, hooked = (_gradients(model, losses.total) for losses in results)
    assert results[0].reconstruction > 0
    for name, gradient in fast.items():
        assert torch.allclose(gradient, hooked[name], atol=1e-9), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_hard_masks_sum_to_k_and_k_equal_n_ablates_nothing(make_model, tokens, variant):
    out = make_model(variant).dual(tokens)
    assert out.attention_masks.shape == (2, 7, 3, 16)
    assert out.neuron_masks.shape == (2, 7, 3, 40)
    assert (out.attention_masks.sum(-1) == 3).all()
    assert (out.neuron_masks.sum(-1) == 5).all()
    full = make_model(variant, k_attention=16, k_neurons=40)
    for path in ("fast", "hooked"):
        out = full.dual(tokens, path)
        assert torch.allclose(out.clean_logits, out.ablated_logits, atol=1e-12)
    losses = next_token_loss(full, tokens, tokens, LossWeights())
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in full.parameters())


@pytest.mark.parametrize("path", ["fast", "hooked"])
def test_the_clean_stream_runs_once(make_model, tokens, path, monkeypatch):
    model = make_model("global")
    calls = []
    from sat_interp.model import fast

    real_pass, real_forward = fast.clean_pass, HookedTransformer.forward
    monkeypatch.setattr(
        fast, "clean_pass", lambda *a, **k: (calls.append(1), real_pass(*a, **k))[1]
    )
    monkeypatch.setattr(
        HookedTransformer, "forward", lambda *a, **k: (calls.append(1), real_forward(*a, **k))[1]
    )
    model.dual(tokens, path)
    assert len(calls) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_tied_scores_leave_gradients_bounded(make_model, tokens, variant):
    model = make_model(variant)
    for name, parameter in model.named_parameters():
        if "gates." in name:
            torch.nn.init.zeros_(parameter)  # every score ties with every other
    next_token_loss(model, tokens, tokens, LossWeights()).total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


# Hooks ------------------------------------------------------------------------------------------


def test_clean_calls_fire_transformer_lens_hooks_only(make_model, tokens):
    model = make_model()
    plain = HookedTransformer(model.cfg)
    logits, cache = model.run_with_cache(tokens)
    assert set(cache.keys()) == set(plain.run_with_cache(tokens)[1].keys())
    assert torch.equal(logits, model(tokens))


def test_run_with_cache_dual_fires_every_hook_point_once(make_model, tokens):
    model = make_model()
    fired: Counter[str] = Counter()
    hooks = [(name, lambda x, hook: fired.update([hook.name])) for name in model.hook_dict]
    with model.hooks(fwd_hooks=hooks):
        model(tokens)
        clean_alone = Counter(fired)
        fired.clear()
        model.dual(tokens)
    own = {name for name in model.hook_dict if "ablated." in name or "gates." in name}
    assert own
    assert fired == clean_alone + Counter(own)  # each own point once, the clean ones as ever
    out, cache = model.run_with_cache_dual(tokens)
    assert set(cache.keys()) == set(fired)
    assert torch.equal(cache["blocks.1.gates.hook_neuron_mask"], out.neuron_masks[:, :, 1])
    assert torch.allclose(cache["ablated.hook_logits"], out.ablated_logits)
    assert torch.allclose(
        cache["blocks.2.ablated.mlp.hook_post_masked"],
        cache["blocks.2.ablated.mlp.hook_post"] * out.neuron_masks[:, :, 2],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_hooks_change_what_follows(make_model, tokens, variant):
    model = make_model(variant)
    before = model.dual(tokens, "hooked")
    keep_all = [("blocks.2.gates.hook_neuron_mask", lambda x, hook: torch.ones_like(x))]
    with model.hooks(fwd_hooks=keep_all):
        out = model.dual(tokens)
    assert torch.equal(out.clean_logits, before.clean_logits)
    assert not torch.allclose(out.ablated_logits, before.ablated_logits)
    # A patched clean value reaches the ablated stream's later positions, and no earlier one.
    patch = [("blocks.0.attn.hook_v", lambda x, hook: x.index_fill(1, torch.tensor([4]), 0.0))]
    with model.hooks(fwd_hooks=patch):
        out = model.dual(tokens)
    change = (out.ablated_logits - before.ablated_logits).abs().amax((0, 2))
    assert (change[:4] == 0).all()
    assert (change[5:] > 0).all()


def test_generate_and_weight_processing_work_on_the_clean_stream(make_model, tokens):
    model = make_model()
    before = model(tokens)
    generated = model.generate(
        tokens[:1, :4], max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False
    )
    assert torch.equal(generated[:, 4], before[:1, 3].argmax(-1))
    model.process_weights_()
    after = model(tokens)
    assert torch.allclose(after.log_softmax(-1), before.log_softmax(-1), atol=1e-9)
    assert torch.allclose(model.W_U.mean(-1), torch.zeros(16, dtype=torch.float64), atol=1e-6)
    for call in (model.dual, model.fast):
        with pytest.raises(UserError, match="processed"):
            call(tokens)


# One parameter for the embedding and the unembedding ----------------------------------------------


def test_the_embedding_is_one_parameter(make_model, tokens):
    for model in (make_model(), copy.deepcopy(make_model()), make_model().to(torch.float32)):
        names = [name for name, p in model.named_parameters() if p.shape in [(61, 16), (16, 61)]]
        assert names == ["embed.W_E"]
        assert "unembed.W_U" not in model.state_dict()
        assert model.W_U.data_ptr() == model.W_E.data_ptr()
        before = model.W_E.detach().clone()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        next_token_loss(model, tokens, tokens, LossWeights()).total.backward()
        gradient = model.W_E.grad.clone()
        optimiser.step()
        assert torch.allclose(model.W_E, before - 0.1 * gradient, atol=1e-6)
        assert torch.equal(model.W_U, model.W_E.T)


def test_biases_gpt_neo_lacks_are_frozen_zeros(make_model, tokens):
    model = make_model()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {f"blocks.{layer}.attn.b_{x}" for layer in range(3) for x in "QKV"}
    assert frozen == expected | {"unembed.b_U"}
    assert all(not dict(model.named_parameters())[name].any() for name in frozen)


def test_parameter_counts_of_the_paper():
    def count(variant: str, d_vocab: int) -> tuple[int, int]:
        cfg = gpt_neo_config(n_layers=8, d_model=128, n_heads=16, d_vocab=d_vocab, n_ctx=256)
        model = SelfAblatingTransformer(cfg, SelfAblationConfig(variant=variant))
        trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
        gates = sum(size for name, size in trained.items() if "gates." in name)
        return sum(trained.values()) - gates, gates

    assert count("none", 50_257) == (8_049_024, 0)
    assert count("local", 50_257) == (8_049_024, 660_480)
    assert count("global", 50_257) == (8_049_024, 660_480)


# Controls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_gates_differ_at_every_step_and_learn_nothing(make_model, tokens, variant):
    model = make_model(variant, gates="random")
    assert not any("gates." in name for name, _ in model.named_parameters())
    torch.manual_seed(0)
    first, second = model.dual(tokens), model.dual(tokens)
    assert (first.neuron_masks.sum(-1) == 5).all()
    assert not torch.equal(first.neuron_masks, second.neuron_masks)
    torch.manual_seed(0)
    assert torch.equal(model.dual(tokens).neuron_masks, first.neuron_masks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_gates_do_not_train_but_speak(make_model, tokens, variant):
    model = make_model(variant, gates="frozen")
    next_token_loss(model, tokens, tokens, LossWeights()).total.backward()
    gates = [p for name, p in model.named_parameters() if "gates." in name]
    assert gates
    assert all(p.grad is None for p in gates)
    assert model.dual(tokens).neuron_masks.sum() == 2 * 7 * 3 * 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_detached_gates_learn_but_do_not_pull_on_the_stream(make_model, tokens, variant):
    learned, detached = make_model(variant), make_model(variant, gates="detached")
    detached.load_state_dict(learned.state_dict())
    loss = LossWeights(clean=0.0, ablated=1.0)
    gradients = [
        _gradients(model, next_token_loss(model, tokens, tokens, loss).total)
        for model in (learned, detached)
    ]
    gates = [name for name in gradients[0] if "gates." in name]
    assert all(gradients[1][name].abs().sum() > 0 for name in gates)
    # The last layer's gates see the same upstream gradient; the stream below them does not.
    last = "blocks.2.gates.scores.W_neurons" if variant == "local" else "gates.W_neurons"
    assert torch.allclose(gradients[0][last], gradients[1][last], atol=1e-12)
    assert not torch.allclose(gradients[0]["embed.W_E"], gradients[1]["embed.W_E"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_dropout_in_place_of_gates(make_model, tokens, variant):
    model = make_model(variant, gates="dropout")
    torch.manual_seed(0)
    masks = torch.cat([model.dual(tokens).neuron_masks.flatten() for _ in range(20)])
    assert set(masks.unique().tolist()) == {0.0, 8.0}  # survivors are rescaled by n/k = 40/5
    share = (masks > 0).double().mean().item()
    assert abs(share - 5 / 40) < 5 * (5 / 40 * 35 / 40 / len(masks)) ** 0.5
    model.eval()
    out = model.dual(tokens)
    assert torch.allclose(out.clean_logits, out.ablated_logits, atol=1e-12)


# Guards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "lokal"}, "did you mean 'local'"),
        ({"variant": "local", "soft": "sofmax"}, "did you mean 'softmax'"),
        ({"variant": "local", "k_neurons": 0}, "k_neurons must be at least 1"),
        ({"variant": "local", "k_neurons": 41}, "k_neurons <= 40"),
        ({"variant": "local", "k_attention": 17}, "k_attention <= 16"),
        ({"variant": "local", "k_attention": 5, "unit": "head"}, "k_attention <= 4"),
        ({"variant": "local", "temperature": float("nan")}, "temperature must be positive"),
    ],
)
def test_impossible_gates_are_refused_by_name(make_model, settings, message):
    config, shape = SelfAblationConfig(), make_model().cfg
    for name, value in settings.items():  # set, not passed: beartype would speak before we do
        setattr(config, name, value)

    def check() -> None:
        config.__post_init__()
        validate(config, shape)

    with pytest.raises(UserError, match=message):
        check()


def test_what_the_gates_do_not_cover_says_so():
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=5, n_ctx=4)
    cfg.normalization_type = "LNPre"
    with pytest.raises(UserError, match="normalization_type='LNPre'"):
        SelfAblatingTransformer(cfg)
    with pytest.raises(UserError, match="not divisible"):
        gpt_neo_config(n_layers=1, d_model=9, n_heads=2, d_vocab=5, n_ctx=4)


def test_dual_without_gates_and_beyond_the_context(make_model, tokens):
    with pytest.raises(UserError, match="no gates"):
        make_model("none").dual(tokens)
    with pytest.raises(UserError, match="context is 12"):
        make_model().dual(torch.zeros(1, 13, dtype=torch.long))
