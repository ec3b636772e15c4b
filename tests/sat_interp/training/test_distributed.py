from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sat_interp.errors import UserError
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory, read_log
from sat_interp.training.distributed import processes, resolve_device
from sat_interp.training.loop import train

from .children import train_together
from .test_resume import TIMES

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize(("variant", "tolerance"), [("none", 2e-4), ("global", 1e-2)])
def test_two_processes_are_one_with_twice_the_batch(
    tiny: Tiny, tmp_path: Path, text_files: dict[str, str], variant: str, tolerance: float
) -> None:
    environment = {"SAT_INTERP_CACHE": text_files["cache"]}
    settings = {"variant": variant, "accumulate": 2, "weight_decay": 0.1}
    two = tiny(**settings, batch_size=3, out=str(tmp_path / "two"))
    one = tiny(**settings, batch_size=6, out=str(tmp_path / "one"))
    train(one)
    assert train_together(two.to_dict(), environment, world=2) == [0, 0]
    logs = []
    for config in (one, two):
        lines = read_log(Path(config.out) / "log.jsonl")
        for line in lines:
            for name in (*TIMES, *(["grad_norm"] if variant != "none" else [])):
                line.pop(name, None)
        logs.append(lines)
    assert len(logs[0]) == len(logs[1]) == 8
    # gated runs drift apart in float32, where near-ties between winners flip
    for first, second in zip(*logs, strict=True):
        assert second == pytest.approx(first, rel=tolerance)
    summary = json.loads((Path(two.out) / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["tokens"] == 24 * 2 * 2 * 3 * 24


def test_another_number_of_processes_is_another_run(tiny: Tiny) -> None:
    config = tiny(resume=True)
    with RunDirectory(config.out).claim(config, world=1):
        pass
    with (
        pytest.raises(UserError, match=r"processes \(1 there, 2 here\)"),
        RunDirectory(config.out).claim(config, world=2),
    ):
        pass


@pytest.mark.parametrize("name", ["quantum", "cpu:x", "meta", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="try --device cpu"):
        resolve_device(name)


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    expected = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    assert resolve_device("auto").type == expected.type
    with processes("cpu") as found:
        assert (found.rank, found.world, found.device.type) == (0, 1, "cpu")
        tensor = torch.ones(2)
        found.average([tensor])
        assert tensor.tolist() == [1, 1]
