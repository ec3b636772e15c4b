"""How far the compiled loss is from the plain one, in a process without the checks of types.

    python -m tests.sat_interp.training.compiled DEVICE VARIANT BACKEND

The checks that tests add to every function are not for a compiler.
"""

from __future__ import annotations

import subprocess
import sys


def apart(device: str, variant: str, backend: str) -> float:
    """The largest relative difference of the loss and of a parameter's gradient."""
    command = [sys.executable, "-m", "tests.sat_interp.training.compiled", device, variant, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


def main(device: str, variant: str, backend: str) -> None:
    import torch

    from sat_interp import SelfAblatingTransformer, SelfAblationConfig, gpt_neo_config
    from sat_interp.training.loss import LossWeights, training_loss

    torch.manual_seed(3)
    shape = gpt_neo_config(n_layers=2, d_model=32, n_heads=4, d_vocab=97, n_ctx=40)
    ablation = SelfAblationConfig(variant=variant, k_attention=3, k_neurons=5)
    model = SelfAblatingTransformer(shape, ablation).to(device)
    windows = torch.randint(97, (5, 41)).to(device)
    sides = []
    for loss in (training_loss, torch.compile(training_loss, backend=backend, dynamic=False)):
        model.zero_grad()
        total = loss(model, windows, LossWeights()).total
        total.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        sides.append([total.detach(), *gradients])
    errors = [
        float((one - other).norm() / one.norm().clamp(min=1e-6))
        for one, other in zip(*sides, strict=True)
    ]
    print(max(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
