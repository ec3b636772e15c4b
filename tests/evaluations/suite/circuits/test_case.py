"""What a circuit does on each prompt, against the model itself."""

from __future__ import annotations

import pytest
import torch

from evaluations.suite.circuits import patched
from evaluations.suite.circuits.case import Case
from evaluations.suite.circuits.patched import circuit_kl
from tests.evaluations.suite.circuits.cases import tiny_case


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
