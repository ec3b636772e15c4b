"""Training speed: the authors' published implementation beside ours, from the same weights.

    git clone https://github.com/keenanpepper/self-ablating-transformers CLONE
    git -C CLONE checkout 373f0921
    python -m benchmarks.published CLONE --baseline OTHER

CLONE is imported as it lies. Read for this: attention and blocks at 373f0921, model and
configuration at f74e44c, MLP at febecf4, masks at 4f1d49f, trainer at e38cc4d. OTHER is a clone of
LuhanMikaelson/self-ablating-transformers (9e3d841), which has their baseline; may be left out.

Both run the settings of their recorded runs (hard masks, sigmoid weights at temperature 1, loss
0.5 / 0.5 / 0) at the paper's shape. From theirs' fresh weights both compute one window's logits and
loss in float64, and the table says how far apart they are. (Their baseline's GELU is exact, ours
the tanh approximation.) Then whole steps, each as its own trainer takes it, take turns in one
process on one thread, and the best of the rounds counts; on a busy machine, read the processor's
time. train.py itself does not start (it gives WandBConfig an argument that it does not take): its
step is written down here.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.training import POS, VOCABULARIES, training_step
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp._util.commandline import run_command
from sat_interp._util.errors import UserError
from sat_interp.training.loss import LossWeights, training_loss

HEADS = 16
WEIGHTS = LossWeights(0.5, 0.5, 0.0)
MASKS = {"local": (2, 2), "global": (2, 4)}  # k of attention and of neurons in the recorded runs

OTHER_WORK = """What theirs does beside ours, for the same numbers:
all: patterns and all logits held whole, causal masks made at each call.
local, global: scores of every query with every key twice over for the sake of the diagonal, on the
  clean stream too; the clean stream's keys and values made three times; a full sort beside topk.
global: the clean stream run twice, with gradients; its first logits and masks thrown away."""


def published(folder: Path, vocabulary: int, variant: str) -> nn.Module:
    """The authors' model of the paper's shape, fresh; UserError where ``folder`` has none."""
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "mlp_hidden_size": 512,
        "num_layers": 8,
        "num_heads": HEADS,
        "max_position_embeddings": POS,
        "attention_layers": ["global"] * 8,
    }
    names = ("model_config", "ModelConfig"), ("basemodel_loader", "BaseGPTNeo")
    if variant in MASKS:
        names = ("model", "GPTNeoWithSelfAblationConfig"), ("model", "GPTNeoWithSelfAblation")
        settings |= {
            "k_attention": MASKS[variant][0],
            "k_neurons": MASKS[variant][1],
            "temperature_attention": 1.0,
            "temperature_neurons": 1.0,
            "has_layer_by_layer_ablation_mask": variant == "local",
            "has_overall_ablation_mask": variant == "global",
            "ablation_processing": "hard-top-K-with-soft-gradient",
            "loss_coeff_base": WEIGHTS.clean,
            "loss_coeff_ablated": WEIGHTS.ablated,
            "reconstruction_coeff": 0.0,
            "reconstruction_loss_type": None,
            "device": "cpu",
        }
    torch.manual_seed(0)
    try:
        config, model = (_from_clone(folder, *name) for name in names)
        built: nn.Module = model(config(**settings))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        why = str(error).split("\n")[0]
        raise UserError(f"{folder} is not a clone as this command's -h asks for: {why}") from error
    return built


def _from_clone(folder: Path, module: str, name: str) -> Any:
    if not any((folder / file).is_file() for file in (f"{module}.py", f"{module}/__init__.py")):
        raise ImportError(f"it holds no {module}")
    sys.path.insert(0, str(folder.resolve()))
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        sys.path.pop(0)


def published_step(model: nn.Module, vocabulary: int, batch: int) -> Callable[[], None]:
    """One optimiser step as their trainer takes it, on a batch of random windows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=400_000)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        windows = torch.randint(vocabulary, (batch, POS + 1), generator=generator)
        loss = model(windows[:, :-1], targets=windows[:, 1:].contiguous())["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return run


def differences(
    theirs: nn.Module, ablation: SelfAblationConfig, vocabulary: int
) -> tuple[float, float]:
    """The largest difference of a logit, and that of the loss: float64, where no score ties."""
    theirs.double()
    ours = SelfAblatingTransformer.from_released(theirs.state_dict(), HEADS, ablation)
    windows = torch.randint(vocabulary, (1, POS + 1))
    with torch.no_grad():
        outputs = theirs(windows[:, :-1], targets=windows[:, 1:].contiguous())
        loss = training_loss(ours, windows, WEIGHTS).total - outputs["loss"]
        if ablation.is_gated:
            dual = ours.dual(windows[:, :-1])
            found = torch.stack([dual.clean_logits, dual.ablated_logits])
            expected = torch.stack([outputs["logits_clean"], outputs["logits_ablated"]])
        else:
            found, expected = ours(windows[:, :-1]), outputs["logits"]
    theirs.float()
    return (found - expected).abs().max().item(), abs(loss.item())


def peak_mib(step: Callable[[], None]) -> float:
    """The most that two steps hold beyond what was held before; NaN where not on Linux."""

    def kib(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free must not count as held
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except (OSError, AttributeError):
        return float("nan")
    before = kib("VmRSS")
    step()
    step()
    return (kib("VmHWM") - before) / 1024


def row(folder: Path, vocabulary: int, variant: str, batch: int, rounds: int) -> list[str]:
    """One line of the table: the best seconds a step of each took, and how far apart they are."""
    theirs = published(folder, vocabulary, variant)
    ablation = SelfAblationConfig(variant, *MASKS.get(variant, ()), soft="sigmoid")  # type: ignore
    apart = differences(theirs, ablation, vocabulary)
    ours = SelfAblatingTransformer.from_released(theirs.state_dict(), HEADS, ablation)
    own = training_step(ours, lambda x: training_loss(ours, x, WEIGHTS).total, "float32", batch)
    steps = {"ours": own, "theirs": published_step(theirs, vocabulary, batch)}
    peaks = {name: peak_mib(step) for name, step in steps.items()}  # and the steps are warm
    cpu, wall = dict.fromkeys(steps, float("inf")), dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name, step in steps.items():
            processor, clock = time.process_time(), time.perf_counter()
            step()
            cpu[name] = min(cpu[name], time.process_time() - processor)
            wall[name] = min(wall[name], time.perf_counter() - clock)
    speeds = [f"{batch * POS / cpu[name]:,.0f}" for name in ("theirs", "ours")]
    ratios = [f"{seconds['theirs'] / seconds['ours']:.2f}" for seconds in (cpu, wall)]
    memory = [f"{peaks[name]:,.0f}" for name in ("theirs", "ours")]
    return [str(batch), variant, *speeds, *ratios, *memory, *(f"{one:.0e}" for one in apart)]


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--baseline", type=Path, help="a clone that has their baseline")
    parser.add_argument("--vocabulary", default="paper", choices=VOCABULARIES)
    parser.add_argument("--variants", nargs="+", default=["none", *MASKS], choices=["none", *MASKS])
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 24])
    parser.add_argument("--rounds", type=int, default=3, help="after two steps of warming up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vocabulary = VOCABULARIES[options.vocabulary]
    table = Table(title=f"Training steps, float32, vocabulary {vocabulary:,}")
    for heading in (
        "batch",
        "variant",
        "theirs, tokens/s of CPU",
        "ours",
        "times faster, CPU",
        "by the clock",
        "theirs, peak MiB",
        "ours",
        "logits apart",
        "loss apart",
    ):
        table.add_column(heading, justify="right")
    console = Console(width=150)
    published(options.clone, vocabulary, "local")  # a wrong folder is told before anything is timed
    for batch in options.batches:
        for variant in options.variants:
            folder = options.clone if variant in MASKS else options.baseline
            if folder:
                table.add_row(*row(folder, vocabulary, variant, batch, options.rounds))
                console.print(table)  # as far as it goes: a row takes minutes
    console.print(OTHER_WORK)


if __name__ == "__main__":
    sys.exit(run_command(main))
