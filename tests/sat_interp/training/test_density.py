"""Weight sparsity: the largest entries of every matrix, by hand and by a twin that sorts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.training import trainer
from sat_interp.training.config import TrainConfig
from sat_interp.training.density import density_at, keep_largest, kept_entries
from sat_interp.training.directory import RunDirectory
from sat_interp.training.train import train
from tests.sat_interp.training.test_resume import interrupted, resumed

Tiny = Callable[..., TrainConfig]
DENSE = ("ln1", "ln2", "ln_final", "gates")


def weights_of(config: TrainConfig) -> dict[str, Tensor]:
    return load_file(Path(str(config.out)) / "model" / "model.safetensors")


def twin(parameters: Iterable[Tensor], density: float) -> None:
    """As keep_largest, entry by entry: sort the sizes, find the smallest that stays."""
    for parameter in parameters:
        entries = parameter.detach().flatten().tolist()
        ranked = sorted(range(len(entries)), key=lambda at: abs(entries[at]), reverse=True)
        stays = set(ranked[: max(1, int(density * len(entries) + 0.5))])
        for at in range(len(entries)):
            if at not in stays:
                parameter.data.view(-1)[at] = 0.0


def test_the_density_falls_linearly_over_the_first_half() -> None:
    assert [density_at(0.2, step, 8) for step in range(8)] == pytest.approx(
        [0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2]
    )
    assert density_at(0.2, 0, 1) == pytest.approx(0.2)
    assert density_at(1.0, 3, 8) == 1.0
    assert density_at(0.25, 4, 9) == pytest.approx(0.25)  # an odd number of steps: 4.5 is half


@pytest.mark.parametrize(
    ("entries", "density", "kept"),
    [(10, 0.25, 3), (10, 0.24, 2), (3, 0.01, 1), (8, 1.0, 8), (7, 0.5, 4), (1, 0.5, 1)],
)
def test_the_number_kept_is_rounded_half_up(entries: int, density: float, kept: int) -> None:
    assert kept_entries(entries, density) == kept


def test_the_largest_by_magnitude_stay_by_hand() -> None:
    matrix = torch.tensor([[0.1, -3.0, 2.0], [0.0, -0.5, 0.4]])
    bias = torch.tensor([-2.0, 1.0])
    keep_largest([matrix, bias], 0.5)
    assert matrix.tolist() == [[0.0, -3.0, 2.0], [0.0, -0.5, 0.0]]
    assert bias.tolist() == [-2.0, 0.0]


def test_of_equal_entries_the_first_stay() -> None:
    matrix = torch.ones(4, 5)
    matrix[1] = -1.0
    matrix[3, 3] = 2.0
    keep_largest([matrix], 0.35)
    assert matrix.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 18]


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6), (1,), (64,)])
def test_it_is_what_sorting_gives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(len(shape))
    for density in (0.9, 0.31, 0.02):
        one = torch.randn(shape)
        other = one.clone()
        keep_largest([one], density)
        twin([other], density)
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [{}, {"variant": "local", "gates": "learned"}])
def test_every_step_leaves_the_density_of_its_schedule(
    tiny: Tiny, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(weight_density=0.3, steps=11, learning_rate=1e-2, **settings)
    dense, seen = set(), []
    advance = trainer.Trainer.advance

    def watched(self: trainer.Trainer) -> None:
        advance(self)
        seen.append(self.step)
        density = density_at(0.3, self.step - 1, 11)
        for name, parameter in self.trained.items():
            if set(name.split(".")) & set(DENSE):
                dense.add(name)
                continue
            kept, left = kept_entries(parameter.numel(), density), int(parameter.count_nonzero())
            # a row of the embedding without a gradient, and a bias, may have zeros of their own
            exact = name.rsplit(".", 1)[-1].startswith("W_") and "embed" not in name
            assert left == kept if exact else left <= kept, name

    monkeypatch.setattr(trainer.Trainer, "advance", watched)
    result = train(config)
    assert seen == list(range(1, 12))
    assert any("gates" in name for name in dense) == bool(settings)
    for name, tensor in weights_of(config).items():
        if ".W_" in name and "gates" not in name and "embed" not in name:
            assert int(tensor.count_nonzero()) == kept_entries(tensor.numel(), 0.3), name
        elif set(name.split(".")) & set(DENSE) and name.endswith(("ln1.w", "W_neurons")):
            assert bool(tensor.count_nonzero() == tensor.numel()), name
    assert result.summary["config"]["weight_density"] == 0.3
    stored = SelfAblatingTransformer.from_pretrained(Path(str(config.out)) / "model")
    assert stored.card["weight_density"] == 0.3


def test_the_best_model_is_as_sparse_as_asked_for(tiny: Tiny) -> None:
    """Validations come at every step; the loss is lowest while the weights are still dense."""
    config = tiny(weight_density=0.05, steps=8, validate_every=1)
    result = train(config)
    assert result.summary["best"]["step"] >= 4  # density falls until half of the steps are done
    best = SelfAblatingTransformer.from_pretrained(Path(str(config.out)) / "best")
    weight = dict(best.named_parameters())["blocks.0.mlp.W_in"]
    assert int(weight.count_nonzero()) <= kept_entries(weight.numel(), 0.05)


def test_a_run_is_that_of_its_twin(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tiny(weight_density=0.3, steps=8, out=str(tmp_path / "ours"))
    train(ours)
    monkeypatch.setattr(trainer, "keep_largest", twin)
    theirs = dataclasses.replace(ours, out=str(tmp_path / "theirs"))
    train(theirs)
    own, other = weights_of(ours), weights_of(theirs)
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_interrupted_and_resumed_it_ends_in_the_same_bits(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"weight_density": 0.2, "steps": 24, "variant": "local", "gates": "random"}
    alone, broken = (tiny(out=str(tmp_path / name), **changes) for name in ("alone", "broken"))
    train(alone)
    interrupted(broken, monkeypatch, step=10)  # while the density falls; the checkpoint is of 7
    train(resumed(broken))
    own, other = weights_of(alone), weights_of(broken)
    assert all(torch.equal(own[name], other[name]) for name in own)
    changed = dataclasses.replace(resumed(broken), weight_density=0.3)
    with pytest.raises(UserError, match=r"weight_density \(0.2 there, 0.3 here\)"):
        train(changed)


def test_a_run_from_before_the_setting_is_the_same_run(tiny: Tiny) -> None:
    config = tiny()
    assert not {"weight_density", "stored_precision"} & set(config.to_dict())
    assert config.hash() == tiny(weight_density=1.0).hash() != tiny(weight_density=0.5).hash()
    assert TrainConfig(**tiny(weight_density=0.5).to_dict()) == tiny(weight_density=0.5)
    assert RunDirectory(str(config.out)).finished() is None


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(UserError, match="weight_density must be above 0 and at most 1"):
        TrainConfig(weight_density=density)


def test_float16_is_stored_and_checkpoints_stay_exact(tiny: Tiny, tmp_path: Path) -> None:
    whole, half = (
        tiny(out=str(tmp_path / kind), stored_precision=kind, variant="local")
        for kind in ("float32", "float16")
    )
    results = [train(config) for config in (whole, half)]
    stored, exact = weights_of(half), weights_of(whole)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert all(torch.equal(stored[name], exact[name].half()) for name in exact)
    last = [sorted((Path(str(c.out)) / "checkpoints").iterdir())[-1] for c in (whole, half)]
    states = [load_file(path / "tensors.safetensors") for path in last]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert results[0].summary["final"] == results[1].summary["final"]
    loaded = SelfAblatingTransformer.from_pretrained(Path(str(half.out)) / "model")
    assert loaded.W_E.dtype == torch.float32
    assert json.loads((Path(str(half.out)) / "config.json").read_text())["config"][
        "stored_precision"
    ] == ("float16")
