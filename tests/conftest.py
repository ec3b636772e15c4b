"""Shape annotations are checked at run time, and the network is off, whenever tests run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny tensors gain nothing from a second thread, and parallel tests would fight for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers: tests.*

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook below finds it by name)

install_import_hook(["sat_interp", "evaluations"], "tests.typechecker.check")

from sat_interp._util import progress  # noqa: E402  (after the hook)
from sat_interp._util.devices import resolve_device  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _no_lines_of_progress() -> Iterator[None]:
    """On a busy machine a test takes long enough for such a line, which is no error message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LINE_SECONDS", 86_400.0)
        yield


@pytest.fixture
def accelerator_device() -> torch.device:
    """The accelerator of this machine; without one a test is skipped."""
    device = resolve_device("auto")
    if device.type == "cpu":
        pytest.skip("this machine has no accelerator")
    return device


@pytest.fixture(params=["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the accelerator: what holds there is first seen to hold here."""
    if request.param == "cpu":
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("accelerator_device")
    return found
