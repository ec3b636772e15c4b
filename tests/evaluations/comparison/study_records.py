"""Records as a study leaves them, made by hand."""

from __future__ import annotations

import hashlib
from typing import Any

from evaluations.core.record import Metric, Record

TRAINING = {
    "preset": "demo",
    "data": "demo",
    "tokenizer": "bpe:2000",
    "learning_rate": 3e-3,
    "steps": 500,
}


def made(
    evaluation: str,
    name: str,
    seed: int | None,
    values: dict[str, float | None],
    *,
    ablation: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    started: str = "2026-01-01T00:00:00+00:00",
    config_hash: str = "0123456789ab",
) -> Record:
    """One record; the model's weights are known by its name."""
    told = {} if seed is None else {**TRAINING, "seed": seed, **(training or {})}
    model = {
        "name": name,
        "spec": name,
        "weights_hash": hashlib.sha256(name.encode()).hexdigest(),
        "ablation": ablation,
        "shape": {"n_layers": 2},
        "training": told,
    }
    reasons = {key: {"no prompt": 1} for key, value in values.items() if value is None}
    metrics = [
        Metric(
            key,
            key,
            value,
            direction="lower",
            n_failed=key in reasons,
            reasons=reasons.get(key, {}),
        )
        for key, value in values.items()
    ]
    return Record(
        evaluation=evaluation,
        model=model,
        config=config or {},
        config_hash=config_hash,
        seed=0,
        data={"spec": "demo", "content": "c0ffee", "n_stories": 10, **(data or {})},
        metrics=metrics,
        extra=extra or {},
        started=started,
    )


def gates(variant: str, k: int, kind: str = "learned") -> dict[str, Any]:
    """A record's ``ablation``."""
    return {"variant": variant, "k_attention": k, "k_neurons": k, "gates": kind}


def lm(name: str, seed: int | None, perplexity: float | None, **more: Any) -> Record:
    return made("lm", name, seed, {"perplexity": perplexity, "l1_exported": 0.5}, **more)


def acdc(name: str, seed: int | None, edges: float, accuracy: float = 1.0, **more: Any) -> Record:
    """Of IOI at tau 0.03, but for what ``more`` changes."""
    settings = {
        "config": {"method": "acdc", "ablation": "resample"},
        "extra": {"tau": 0.03},
        "data": {"spec": "ioi"},
        **more,
    }
    return made("acdc", name, seed, {"edges": edges, "accuracy": accuracy}, **settings)


def sae(name: str, seed: int | None, l0: float, sparsity: float = 5.0, **more: Any) -> Record:
    """Of the default hook point."""
    config = {
        "architecture": "standard",
        "sparsity": sparsity,
        "hook": None,
        "given": None,
        "tokens": 1000,
    }
    return made(
        "sae",
        name,
        seed,
        {"l0": l0, "ce_score": 0.9},
        config=config,
        config_hash=f"sae{sparsity}",
        **more,
    )
