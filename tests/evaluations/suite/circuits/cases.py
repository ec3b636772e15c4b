"""Tasks made of random tokens, and models that have to do nothing with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import torch

from evaluations.suite.circuits.case import Case, CircuitOutcome
from evaluations.tasks.pairs import Pair, PairBatch, TaskPrompts
from tests.evaluations.suite.circuits.tiny import D_VOCAB, prompts, tiny_model


def task(lengths: tuple[int, ...] = (5, 7), n: int = 3, seed: int = 0) -> TaskPrompts:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for batch in prompts(lengths, n, seed):
        right = torch.randint(D_VOCAB, (n,), generator=generator)
        offset = torch.randint(1, D_VOCAB, (n,), generator=generator)
        batches.append(PairBatch(batch.clean, batch.corrupted, right, (right + offset) % D_VOCAB))
    texts = (Pair("clean", "corrupted", "right", "wrong"),) * (n * len(lengths))
    return TaskPrompts("random", tuple(batches), texts)


def write_prompts(path: Path, names: Sequence[str]) -> None:
    """Write a task's file: the answer is who gave the ball, a corrupted prompt names another."""
    prompts = [
        {
            "clean": f"The {a} gave the ball to the {b}",
            "answers": [f" {a}"],
            "corrupt": f"The {c} gave the ball to the {b}",
            "wrong_answers": [f" {c}"],
        }
        for a, b, c in permutations(names, 3)
    ]
    path.write_text(json.dumps({"prompts": prompts}))


def doable(model: object, prompts: TaskPrompts) -> TaskPrompts:
    """The same prompts, the model's best token for the right answer, its worst for the wrong."""
    held_out = None if prompts.held_out is None else doable(model, prompts.held_out)
    batches = []
    for batch in prompts.batches:
        logits = model(batch.clean)[:, -1]
        batches.append(
            PairBatch(batch.clean, batch.corrupted, logits.argmax(-1), logits.argmin(-1))
        )
    return TaskPrompts(prompts.name, tuple(batches), prompts.texts, held_out=held_out)


def copied(model: object, prompts: TaskPrompts) -> TaskPrompts:
    """The same prompts with answers that are words of the prompt: the model's best and worst."""
    held_out = None if prompts.held_out is None else copied(model, prompts.held_out)
    batches = []
    for batch in prompts.batches:
        own = model(batch.clean)[:, -1].cpu().gather(-1, batch.clean)
        right, wrong = (batch.clean.gather(-1, at[:, None])[:, 0] for at in _ends(own))
        batches.append(PairBatch(batch.clean, batch.corrupted, right, wrong))
    return TaskPrompts(prompts.name, tuple(batches), prompts.texts, held_out=held_out)


def _ends(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return values.argmax(-1), values.argmin(-1)


def tiny_case(
    shape: str = "gpt-2", seed: int = 0, ablation: str = "resample", n: int = 3, **settings
) -> Case:
    model = tiny_model(shape, seed, **settings)
    return Case.of(model, doable(model, task(n=n, seed=seed)), ablation)


def outcome(*differences: float, kl: float = 0.0) -> CircuitOutcome:
    values = torch.tensor(differences, dtype=torch.float64)
    return CircuitOutcome(torch.full_like(values, kl), values)
