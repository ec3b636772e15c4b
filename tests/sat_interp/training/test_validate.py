from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sat_interp.training.build import build_model
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.distributed import Processes
from sat_interp.training.inputs import load_inputs
from sat_interp.training.plot import draw_losses
from sat_interp.training.validate import validate

ALONE = Processes(0, 1, torch.device("cpu"))


def test_validation_is_the_mean_over_every_token_of_every_story(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    # every story fits; large weights part the streams
    config = tiny(variant="global", n_ctx=700, initializer_range=0.3)
    inputs = load_inputs(config, RunDirectory(tmp_path / "run"), ALONE)
    model = build_model(config, inputs.tokenizer, ALONE.device)
    found = validate(model, inputs.validation, ALONE)
    sums, tokens = torch.zeros(2, dtype=torch.float64), 0
    for i in range(len(inputs.validation)):
        end = torch.tensor([inputs.validation.end_of_text])
        story = torch.from_numpy(inputs.validation.story(i).astype("int64"))
        whole = torch.cat([end, story, end])[None]
        output = model.dual(whole[:, :-1])
        for stream, logits in enumerate((output.clean_logits, output.ablated_logits)):
            sums[stream] += F.cross_entropy(logits[0], whole[0, 1:], reduction="sum").item()
        tokens += whole.shape[1] - 1
    assert found.tokens == tokens == len(inputs.validation.tokens)
    assert [found.clean, found.ablated] == pytest.approx((sums / tokens).tolist(), rel=1e-5)
    assert found.clean != pytest.approx(found.ablated, rel=1e-3)


def test_validation_covers_what_fits_and_leaves_the_mode_alone(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = tiny(variant="local", gates="dropout")
    inputs = load_inputs(config, RunDirectory(tmp_path / "run"), ALONE)
    model = build_model(config, inputs.tokenizer, ALONE.device).train()
    found = validate(model, inputs.validation, ALONE)
    assert model.training
    assert found.tokens == len(inputs.validation) * config.n_ctx  # stories are longer than that
    assert found.ablated == pytest.approx(found.clean, rel=1e-5)  # dropout is off


def test_the_figure_draws_what_the_log_has(tmp_path: Path) -> None:
    log = [
        {"step": 5, "clean": 3.0, "ablated": 4.0},
        {"step": 10, "clean": 2.0, "ablated": 3.0},
        {"step": 10, "validation_clean": 2.1, "validation_ablated": 3.1},
    ]
    both = draw_losses(log, tmp_path / "both.png").read_bytes()
    clean_only = [{k: v for k, v in line.items() if "ablated" not in k} for line in log]
    clean = draw_losses(clean_only, tmp_path / "clean.png").read_bytes()
    assert both.startswith(b"\x89PNG")
    assert len(both) > len(clean)
