"""Ablations of other architectures: costs by plain hooks, and constants that cost at most zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core import ablation_values as values
from evaluations.core.ablation import find_components, group
from evaluations.core.ablation_fit import FitConfig, fit
from evaluations.core.ablation_pass import is_fused
from evaluations.core.ablation_run import CleanRun
from evaluations.core.ablation_values import Slots
from sat_interp import SelfAblatingTransformer
from tests.sat_interp.io.test_architectures import FAMILIES, make

GEMMA = {
    "n_key_value_heads": 2,
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "rotary_dim": 4,
    "gated_mlp": True,
    "act_fn": "gelu_new",
    "use_normalization_before_and_after": True,
    "attn_scores_soft_cap": 50.0,
    "output_logits_soft_cap": 30.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma 2": GEMMA,
    "parallel blocks": {"parallel_attn_mlp": True, "act_fn": "gelu"},
    "attention only": {"attn_only": True, "act_fn": None},
}


def of_shape(settings: dict[str, Any]) -> HookedTransformer:
    sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 4, "n_heads": 4, "d_vocab": 61}
    d_mlp = None if settings.get("attn_only") else 24
    config = HookedTransformerConfig(**{**sizes, "d_mlp": d_mlp, "seed": 0, **settings})
    model = HookedTransformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def load(family: str, path: Path) -> HookedTransformer:
    if family in SHAPES:
        return of_shape(SHAPES[family])
    make(FAMILIES[family]).save_pretrained(path)
    return SelfAblatingTransformer.from_hf(path)


HOOKS = {
    "embed": "blocks.0.hook_resid_pre",
    "a1.h2": "blocks.1.attn.hook_z",
    "attn0": "blocks.0.hook_attn_out",
    "m1": "blocks.1.hook_mlp_out",
}


def by_hooks(model: HookedTransformer, tokens: Tensor, name: str, new: Tensor) -> Tensor:
    """The cost on each prompt of ``new`` (prompt or 1, pos or 1, width) in place of a component."""

    def put(value: Tensor, hook: object) -> Tensor:
        value = value.clone()
        part = value[:, :, 2] if name == "a1.h2" else value
        part[:, 1:] = new.expand_as(part)[:, 1:]
        return value

    log_p = model(tokens)[:, -1].double().log_softmax(-1)
    changed = model.run_with_hooks(tokens, fwd_hooks=[(HOOKS[name], put)])
    log_q = changed[:, -1].double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["gpt2", "neox, parallel", "llama, grouped", "mistral with windows", "qwen3", *SHAPES]
)
def test_components_by_plain_hooks(family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path / "theirs")
    tokens = torch.randint(61, (6, 9), generator=torch.Generator().manual_seed(1))
    run = CleanRun(model, [tokens])
    assert is_fused(model) == (family == "gpt2")
    partners = values.draw_partners(run, 3)
    _, cache = model.run_with_cache(tokens)
    for name in [one for one in HOOKS if not (one == "m1" and model.cfg.attn_only)]:
        batch = group(find_components(model, [name]))
        own = cache[HOOKS[name]]
        own = own[:, :, 2] if name == "a1.h2" else own
        mean = values.constants_of("mean", run, batch)
        for found, new in (
            (values.constant_kl(run, batch, values.zero_constants(batch)), torch.zeros(1)),
            (values.constant_kl(run, batch, mean), own.mean(0, keepdim=True)),
            (values.resample_kl(run, batch, partners), own[partners[0]]),
        ):
            expected = by_hooks(model, tokens, name, new)
            torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)
        if name != "a1.h2":
            continue
        best = fit(run, batch, Slots.one(run), FitConfig(starts=2, rounds=1, evaluations=10))
        zero = values.constant_kl(run, batch, values.zero_constants(batch))
        assert best.delta[0] <= zero.mean() + 1e-6
        expected = by_hooks(model, tokens, name, best.constants[0][0].float())
        assert float(best.delta[0]) == pytest.approx(float(expected.mean()), abs=1e-5)
