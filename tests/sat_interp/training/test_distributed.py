from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sat_interp._util.errors import UserError
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory, read_log
from sat_interp.training.distributed import own_device, processes
from sat_interp.training.train import train

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
        (Path(config.out) / "checkpoints" / "step-00000007").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"processes \(1 there, 2 here\)"),
        RunDirectory(config.out).claim(config, world=2),
    ):
        pass


def test_each_local_process_takes_an_accelerator_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sat_interp.training import distributed

    assert own_device("cpu", 1) == torch.device("cpu")
    monkeypatch.setattr(distributed, "resolve_device", torch.device)  # as if it were there
    assert own_device("xpu", 1) == torch.device("xpu", 1)
    assert own_device("xpu:0", 1) == torch.device("xpu", 0)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_variables_that_are_no_numbers_are_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "two")
    told = f"{name} must be a whole number, not 'two'"
    with pytest.raises(UserError, match=told), processes("cpu"):
        pass


def test_one_process_is_alone() -> None:
    with processes("cpu") as found:
        assert (found.rank, found.world, found.device.type) == (0, 1, "cpu")
        tensor = torch.ones(2)
        found.average([tensor])
        assert tensor.tolist() == [1, 1]
