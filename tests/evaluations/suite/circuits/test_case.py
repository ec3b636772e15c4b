"""What a circuit does on each prompt, against the model itself."""

from __future__ import annotations

import pytest
import torch

from evaluations.suite.circuits import patched
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.graph import on_paths
from evaluations.suite.circuits.patched import circuit_kl, kl_divergence
from evaluations.suite.circuits.refit import Budget
from tests.evaluations.suite.circuits.cases import doable, task, tiny_case
from tests.evaluations.suite.circuits.test_patched import _patched_by_hooks
from tests.evaluations.suite.circuits.tiny import tiny_model


def test_whole_and_empty_circuit_are_the_model_on_clean_and_corrupted_prompts():
    case = tiny_case()
    full, empty = [], []
    for batch in case.prompts.batches:
        rows = torch.arange(len(batch))
        for prompts, found in ((batch.clean, full), (batch.corrupted, empty)):
            logits = case.model(prompts)[:, -1]
            found.append(logits[rows, batch.right] - logits[rows, batch.wrong])
    torch.testing.assert_close(case.full.difference, torch.cat(full))
    torch.testing.assert_close(case.empty.difference, torch.cat(empty))
    assert case.full.kl.abs().max() < 1e-12
    assert case.empty.kl.min() > 0


@pytest.mark.parametrize("ablation", ["resample", "mean", "cf_mean"])
def test_pieces_of_prompts_change_nothing(monkeypatch, ablation):
    case = tiny_case(ablation=ablation)
    kept = torch.rand(case.graph.n_edges, generator=torch.Generator().manual_seed(0)) < 0.5
    whole = case.outcome(kept)
    for share in ("CHUNK_SHARE", "KEPT_SHARE"):
        monkeypatch.setattr(patched, share, 0)
    pieces = Case.of(case.model, case.prompts, ablation)
    assert [len(batch) for _, batch in pieces.parts()] == [1] * case.prompts.n
    assert pieces.buckets[0] is not pieces.buckets[0]
    assert case.buckets[-1] is case.buckets[len(case.buckets) - 1]
    torch.testing.assert_close(pieces.outcome(kept).difference, whole.difference)
    torch.testing.assert_close(pieces.outcome(kept).kl, whole.kl)
    assert float(whole.kl.mean()) == pytest.approx(
        circuit_kl(case.model, case.graph, case.buckets, kept)
    )


def _written_by(model, graph, tokens) -> torch.Tensor:
    """What every source writes, from the model's own hooks."""
    model.cfg.use_attn_result = True
    _, cache = model.run_with_cache(tokens)
    found = [cache["blocks.0.hook_resid_pre"]]
    for layer in range(graph.n_layers):
        found += cache[f"blocks.{layer}.attn.hook_result"].unbind(2)
        found.append(cache[f"blocks.{layer}.hook_mlp_out"])
    return torch.stack(found)


def _constants(case, kept) -> torch.Tensor:
    """What every source writes on ablated edges, a vector each, put together by hand."""
    graph, model, first = case.graph, case.model, case.buckets[0].first
    if case.ablation == "oa":
        (fit,) = case.refitter.fits([kept])
        sizes = [16 if node.head is None else 4 for node in graph.sources]
        parts = fit.flat.split(sizes)
        return torch.stack(
            [
                part if node.head is None else part @ model.blocks[node.layer].attn.W_O[node.head]
                for part, node in zip(parts, graph.sources, strict=True)
            ]
        )
    written = [_written_by(model, graph, batch.clean) for batch in case.prompts.batches]
    ablated = torch.cat([one[:, :, first:].flatten(1, 2) for one in written], 1)
    return ablated.mean(1) if case.ablation == "mean" else torch.zeros_like(ablated[:, 0])


@pytest.mark.parametrize("ablation", ["oa", "zero", "mean"])
@pytest.mark.parametrize("shape", ["gpt-2", "grouped"])
def test_kept_edges_under_constants_are_patching_by_hooks(shape, ablation):
    """The whole model runs on the prompts; in each destination ablated edges carry the constant."""
    model = tiny_model(shape)
    prompts = doable(model, task(n=4))
    case = Case.of(model, prompts, ablation, budget=Budget(starts=2, first=3, evaluations=6))
    kept = torch.rand(case.graph.n_edges, generator=torch.Generator().manual_seed(3)) < 0.6
    kept = on_paths(case.graph, kept)
    constants, outcome = _constants(case, kept), case.outcome(kept)
    kls = []
    for batch, bucket in zip(case.prompts.batches, case.buckets, strict=True):
        replacement = _written_by(model, case.graph, batch.clean).clone()
        replacement[:, :, bucket.first :] = constants[:, None, None]
        logits = _patched_by_hooks(model, case.graph, batch.clean, kept, replacement)
        kls.append(kl_divergence(model(batch.clean)[:, -1], logits))
    torch.testing.assert_close(outcome.kl, torch.cat(kls))
    assert outcome.kl.min() > 1e-4
