from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.training import loop, trainer
from sat_interp.training.config import TrainConfig
from sat_interp.training.loss import LossWeights, training_loss
from sat_interp.training.train import train
from sat_interp.training.validate import Validation

Tiny = Callable[..., TrainConfig]


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (Path(config.out) / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def curve(config: TrainConfig) -> np.ndarray:
    """Clean loss, ablated loss (0 without gates) and gradient norm of each line of the log."""
    return np.array(
        [
            [line["clean"], line.get("ablated", 0), line["grad_norm"]]
            for line in log_of(config)
            if "clean" in line
        ]
    )


def weights_of(config: TrainConfig, which: str = "model") -> dict[str, torch.Tensor]:
    return load_file(Path(config.out) / which / "model.safetensors")


@pytest.fixture
def local(tiny: Tiny) -> Tiny:
    return lambda **changes: tiny(**{"variant": "local", **changes})


def test_a_run_learns_and_leaves_what_it_promises(local: Tiny) -> None:
    config = local(steps=60, learning_rate=1e-2)
    result = train(config)
    out = Path(config.out)
    expected = {
        "config.json",
        "log.jsonl",
        "loss.png",
        "summary.json",
        "model",
        "best",
        "tokenizer",
        "checkpoints",
    }
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == expected
    found = curve(config)
    assert found[-1, 0] < found[0, 0] - 0.5
    assert found[-1, 1] < found[0, 1] - 0.5
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == [
        "step-00000056",
        "step-00000060",
    ]
    loaded = SelfAblatingTransformer.from_pretrained(out / "model")
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(loaded(tokens), result.model(tokens))
    assert not result.model.training


def test_the_log_counts_tokens_and_the_rate_falls_to_zero(local: Tiny) -> None:
    config = local(steps=20, accumulate=2, learning_rate=4e-3)
    train(config)
    lines = [line for line in log_of(config) if "clean" in line]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [line["tokens"] for line in lines] == [step * 2 * 4 * 24 for step in (5, 10, 15, 20)]
    cosine = [4e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 20)) for step in (5, 10, 15, 20)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(cosine)


def test_warmup_rises_linearly_then_the_cosine_starts_at_the_peak(tiny: Tiny) -> None:
    config = tiny(steps=10, warmup_steps=4, learning_rate=1.0)
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.1


def test_the_summary_is_the_log_and_the_best_is_the_lowest(local: Tiny) -> None:
    config = local(learning_rate=0.3, steps=30)  # far too high: the last is not the best
    summary = train(config).summary
    validations = {line["step"]: line for line in log_of(config) if "validation_clean" in line}
    best = min(validations, key=lambda step: validations[step]["validation_clean"])
    assert summary["best"]["step"] == best
    assert summary["best"]["clean_loss"] == validations[best]["validation_clean"]
    assert summary["final"]["ablated_loss"] == validations[30]["validation_ablated"]
    assert summary["final"]["clean_perplexity"] == math.exp(validations[30]["validation_clean"])
    assert summary["tokens"] == 30 * 4 * 24
    card = json.loads((Path(config.out) / "best" / "cfg.json").read_text())["training"]
    assert card["steps"] == best
    assert card["clean_loss"] == summary["best"]["clean_loss"]


def test_a_baseline_has_no_ablated_numbers(tiny: Tiny) -> None:
    config = tiny(steps=5)
    summary = train(config).summary
    assert not any("ablated" in key for line in log_of(config) for key in line)
    assert "ablated_loss" not in summary["final"]


def test_accumulation_is_one_large_batch(tiny: Tiny, tmp_path: Path) -> None:
    for variant, columns, tolerance in (("none", [0, 2], 2e-4), ("local", [0, 1], 1e-2)):
        # near-ties between winners flip in float32, so the gated gradient norm is not compared
        whole = tiny(variant=variant, batch_size=6, out=str(tmp_path / f"whole-{variant}"))
        parts = tiny(
            variant=variant, batch_size=2, accumulate=3, out=str(tmp_path / f"parts-{variant}")
        )
        train(whole)
        train(parts)
        found, expected = curve(parts)[:, columns], curve(whole)[:, columns]
        np.testing.assert_allclose(found, expected, rtol=tolerance)
        assert np.abs(expected[-1] - expected[0]).max() > 20 * tolerance  # it moved meanwhile


def test_a_seed_decides_everything_and_leaves_the_callers_generator_alone(
    local: Tiny, tmp_path: Path
) -> None:
    runs = [
        local(gates="random", steps=6, seed=seed, out=str(tmp_path / name))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for config in runs:
        train(config)
    assert torch.rand(1) == expected
    a, b, c = (weights_of(config) for config in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embed.W_E"], c["embed.W_E"])


@pytest.mark.parametrize("gates", ["learned", "random", "frozen", "detached", "dropout"])
def test_every_kind_of_gates_trains(local: Tiny, gates: str) -> None:
    result = train(local(gates=gates, steps=6, variant="global"))
    assert math.isfinite(result.summary["final"]["ablated_loss"])


def test_frozen_gates_stay_and_other_weights_move(local: Tiny) -> None:
    config = local(gates="frozen", steps=6)
    trained = train(config).model.state_dict()
    start = train(
        local(gates="frozen", steps=1, learning_rate=1e-12, out=config.out + "-start")
    ).model.state_dict()
    gates = [name for name in trained if "gates.scores" in name]
    assert gates
    assert all(torch.equal(trained[name], start[name]) for name in gates)
    assert (trained["embed.W_E"] - start["embed.W_E"]).abs().max() > 1e-3
    assert trained["blocks.0.attn.b_Q"].abs().max() == 0


def test_gates_without_a_gradient_break_nothing(local: Tiny) -> None:
    # k = n: nothing is ablated, the gates get no gradient and no moments
    config = local(k_attention=16, k_neurons=24, steps=10, weight_decay=0.1)
    result = train(config)
    final = result.summary["final"]
    assert final["ablated_loss"] == pytest.approx(final["clean_loss"], abs=1e-5)
    resumed = train(TrainConfig(**{**config.to_dict(), "resume": True}))
    assert resumed.summary == json.loads(json.dumps(result.summary))


def test_bf16_is_near_float32(local: Tiny, tmp_path: Path) -> None:
    exact = local(out=str(tmp_path / "float32"))
    rough = local(out=str(tmp_path / "bf16"), precision="bf16")
    train(exact)
    train(rough)
    np.testing.assert_allclose(curve(rough)[:, :2], curve(exact)[:, :2], rtol=0.02)
    assert not np.array_equal(curve(rough), curve(exact))
    assert weights_of(rough)["embed.W_E"].dtype == torch.float32


@pytest.mark.parametrize("has", [True, False])
def test_bf16_without_instructions_is_said(
    local: Tiny, has: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sat_interp.training.trainer.has_bfloat16", lambda device: has)
    train(local(precision="bf16", steps=1))
    assert ("float32 would be many times faster" in caplog.text) is not has


def test_reconstruction_is_logged_when_it_has_a_weight(local: Tiny) -> None:
    config = local(steps=5, reconstruction_weight=0.5)
    train(config)
    assert log_of(config)[0]["reconstruction"] > 0


def test_a_compiler_that_fails_is_reported_and_done_without(
    local: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def broken(function: Any, **options: Any) -> Any:
        def fail(*arguments: Any) -> Any:
            raise RuntimeError("no compiler here\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    compiled, plain = local(compile=True, steps=5), local(steps=5, out=str(tmp_path / "plain"))
    train(compiled)
    train(plain)
    assert "torch.compile failed (no compiler here): training without it" in caplog.text
    np.testing.assert_array_equal(curve(compiled), curve(plain))


def test_the_compiled_loss_is_the_one_trained_with(
    local: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(function: Any, **options: Any) -> Any:
        return lambda *arguments: (calls.append(1), function(*arguments))[1]

    monkeypatch.setattr(torch, "compile", counting)
    train(local(compile=True, steps=5, accumulate=2))
    assert len(calls) == 10


RAMP = "0.1@0.2:1.0@0.8"


@pytest.mark.parametrize("compile", [False, True])
def test_each_step_has_its_weight_of_the_ramp(
    local: Tiny, monkeypatch: pytest.MonkeyPatch, compile: bool
) -> None:
    used = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    real = trainer.training_loss

    def seen(model: Any, windows: Any, weights: Any) -> Any:
        used.append(float(weights.ablated))
        return real(model, windows, weights)

    monkeypatch.setattr(trainer, "training_loss", seen)
    config = local(steps=10, log_every=1, ablated_weight=RAMP, compile=compile)
    result = train(config)
    assert used == pytest.approx([0.1, 0.1, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.0])
    logged = [line["ablated_weight"] for line in log_of(config) if "ablated_weight" in line]
    assert logged == pytest.approx(used)
    assert result.summary["config"]["ablated_weight"] == RAMP
    assert RAMP in SelfAblatingTransformer.from_pretrained(result.out).card["loss_weights"]


@pytest.mark.parametrize(("weight", "best"), [("0@0.5:1@0.9", 24), ("0@0.2:1@0.5", 12), (1.0, 6)])
def test_the_best_model_of_a_ramp_is_one_of_after_it(
    local: Tiny, monkeypatch: pytest.MonkeyPatch, weight: Any, best: int
) -> None:
    rising = iter(range(1, 100))
    monkeypatch.setattr(loop, "validate", lambda *given: Validation(float(next(rising)), 1.0, 1))
    config = local(ablated_weight=weight, validate_every=6)  # validated at 6, 12, 18 and 24
    assert train(config).summary["best"]["step"] == best
    assert weights_of(config, "best").keys() == weights_of(config).keys()


def test_a_weight_that_is_a_tensor_is_that_number(make_model: Any, tokens: torch.Tensor) -> None:
    model, found = make_model("local"), []
    for weight in (0.3, torch.tensor(0.3)):
        model.zero_grad()
        loss = training_loss(model, tokens, LossWeights(1.0, weight, 0.0)).total
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for number, tensor in zip(*found, strict=True):
        torch.testing.assert_close(number, tensor)


def test_a_nan_loss_stops_with_the_step_and_keeps_the_last_checkpoint(
    local: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = iter(range(1000))
    real = trainer.training_loss

    def poisoned(*arguments: Any) -> Any:
        losses = real(*arguments)
        return losses._replace(clean=losses.clean * math.nan) if next(count) == 17 else losses

    monkeypatch.setattr(trainer, "training_loss", poisoned)
    config = local()
    with pytest.raises(UserError, match=r"not finite at step 18: .* checkpoint is .*step-00000014"):
        train(config)
    assert log_of(config)[-1]["step"] == 15
    monkeypatch.setattr(trainer, "training_loss", real)
    resumed = train(TrainConfig(**{**config.to_dict(), "resume": True}))
    assert resumed.summary["final"]["step"] == 24


def test_a_gradient_that_overflows_stops_the_run_before_the_checkpoint(
    local: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.nn.utils.clip_grad_norm_
    count = iter(range(1000))
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda *args: real(*args) * (math.inf if next(count) == 6 else 1),
    )
    config = local()
    with pytest.raises(UserError, match="not finite at step 7: .*no checkpoint has been"):
        train(config)
    assert not list((Path(config.out) / "checkpoints").glob("*"))


def test_wandb_hears_every_line(local: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    heard: list[int] = []
    tracker = SimpleNamespace(log=lambda line, step: heard.append(step), finish=lambda: None)
    fake = SimpleNamespace(init=lambda **options: tracker)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = local(wandb="project", steps=10)
    train(config)
    assert heard == [line["step"] for line in log_of(config)]


def test_wandb_missing_is_one_line(local: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'sat-interp\[wandb\]'"):
        train(local(wandb="project"))


@pytest.mark.parametrize("reason", ["api_key not configured (no-tty)\nand more", ""])
def test_wandb_that_cannot_start_is_one_line(
    local: Tiny, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    import sys
    from types import SimpleNamespace

    def init(**options: Any) -> None:
        raise RuntimeError(reason)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(UserError, match="wandb cannot start .*: run wandb login") as caught:
        train(local(wandb="project"))
    assert "\n" not in str(caught.value)


def test_a_first_update_that_ruins_the_weights_leaves_nothing(local: Tiny) -> None:
    config = local(steps=1, learning_rate=1e30)
    with pytest.raises(UserError, match="not finite at step 1: .*no checkpoint has been"):
        train(config)
    out = Path(config.out)
    assert not any((out / name).exists() for name in ("best", "model", "summary.json"))
    assert not list((out / "checkpoints").glob("*"))
    assert train(local(steps=1)).summary["final"]["step"] == 1  # the directory is still free


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"validate_every": 7}, "the validation loss is not finite at step 14"),
        ({"validate_every": 0}, "the weights are not finite at step 14"),
    ],
)
def test_an_update_that_ruins_the_weights_displaces_no_checkpoint(
    local: Tiny, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], said: str
) -> None:
    from sat_interp.training.trainer import Trainer

    real = Trainer.advance

    def advance(self: Trainer) -> None:
        real(self)
        if self.step == 14:
            with torch.no_grad():
                self.model.ln_final.w.fill_(math.nan)

    config = local(checkpoint_every=7, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(UserError, match=f"{said}: .*step-00000007"):
            train(config)
    kept = [path.name for path in (Path(config.out) / "checkpoints").iterdir()]
    assert kept == ["step-00000007"]
    resumed = train(TrainConfig(**{**config.to_dict(), "resume": True}))
    assert resumed.summary["final"]["step"] == 24


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    from sat_interp.training.directory import RunDirectory
    from sat_interp.training.report import losses

    directory = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        directory.write_log({"clean": math.nan})
    with pytest.raises(ValueError, match="JSON"):
        directory.write_summary({"clean": math.inf})
    directory.write_summary(losses({"step": 1, "validation_clean": 1e6}))


def test_what_a_caller_watches_is_in_the_log_and_changes_nothing(
    local: Tiny, tmp_path: Path
) -> None:
    seen: list[int] = []

    def watch(model: SelfAblatingTransformer) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        seen.append(len(seen))
        return {"norm": float(model.W_E.norm())}

    alone, watched = (local(out=str(tmp_path / name)) for name in ("alone", "watched"))
    train(alone)
    train(watched, watch)
    lines = [line for line in log_of(watched) if "validation_clean" in line]
    assert seen == list(range(len(lines))) == [0, 1, 2]
    assert len({line["norm"] for line in lines}) == 3
    own, other = weights_of(alone), weights_of(watched)
    assert all(torch.equal(own[name], other[name]) for name in own)
    with pytest.raises(UserError, match="watch follows one run"):
        train(dataclasses.replace(watched, match_perplexity=3.0), watch)
