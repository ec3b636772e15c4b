"""Shape annotations are checked at run time, and the network is off, whenever tests run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny tensors gain nothing from a second thread, and parallel tests would fight for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers: tests.*

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook below finds it by name)

install_import_hook(["sat_interp", "evaluations"], "tests.typechecker.check")
