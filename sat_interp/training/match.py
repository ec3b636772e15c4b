"""Perplexity-matched runs: the length at which the same recipe reaches a given perplexity.

A run stopped in the middle of its schedule differs from a shorter run: its learning rate is still
high. So each length tried is a separate run with a complete schedule, in ``OUT/trials/steps-N``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sat_interp._util.errors import UserError
from sat_interp._util.files import atomic_directory, write_atomically
from sat_interp.training.config import TrainConfig
from sat_interp.training.directory import RunDirectory
from sat_interp.training.distributed import Processes
from sat_interp.training.inputs import Inputs, load_inputs
from sat_interp.training.loop import TrainResult, finished_result, run

logger = logging.getLogger(__name__)

FIRST_SHARE = 4
"""The first run tried is this many times shorter than the longest: a model with gates is
worse by less than most of its training, so the search starts near the full length."""


def train_matched(config: TrainConfig, ranks: Processes) -> TrainResult:
    """Find the length whose complete run ends nearest ``config.match_perplexity``.

    The chosen trial's model, log and figure are copied to OUT; all trials are in its summary.
    An interrupted search continues with the trials it has.

    Raises:
        UserError: even the full length stays above the perplexity, or the shortest below it.
    """
    target = config.match_perplexity
    assert target is not None
    directory = RunDirectory(config.out or "", writes=ranks.is_first)
    with directory.claim(config, ranks.world):
        ranks.wait()
        if done := finished_result(config, directory):
            return done
        inputs = load_inputs(config, directory, ranks)
        results: dict[int, TrainResult] = {}

        def perplexity_after(steps: int) -> float:
            trial = trial_config(config, steps, directory.path)
            results[steps] = run(trial, ranks, inputs)
            perplexity = float(results[steps].summary["final"]["clean_perplexity"])
            logger.info("%d steps end at perplexity %.4f (wanted %.4f)", steps, perplexity, target)
            return perplexity

        trials = search(
            perplexity_after,
            target,
            shortest=shortest_run(config),
            longest=config.steps,
            tolerance=config.match_tolerance,
            runs=config.match_runs,
        )
        chosen = nearest(trials, target)
        if distance(trials[chosen], target) > config.match_tolerance:
            logger.warning(
                "no run of %d came within %g of perplexity %g: the nearest ends at %.4f",
                len(trials),
                config.match_tolerance,
                target,
                trials[chosen],
            )
        result = results[chosen]
        summary = _summary(config, result, trials, chosen, results, inputs)
        if ranks.is_first:
            _adopt(result.out, directory)
            directory.write_summary(summary)
        ranks.wait()
        return TrainResult(result.model, directory.path, summary)


def trial_config(config: TrainConfig, steps: int, out: Path) -> TrainConfig:
    """The same recipe over ``steps`` steps, validated at the end; a warm-up keeps its share."""
    return dataclasses.replace(
        config,
        steps=steps,
        warmup_steps=config.warmup_steps * steps // config.steps,
        validate_every=0,
        out=str(out / "trials" / f"steps-{steps}"),
        resume=True,
        match_perplexity=None,
        match_of=None,
        wandb=None,
    )


def shortest_run(config: TrainConfig) -> int:
    """The fewest steps that keep a warm-up, where there is one."""
    return math.ceil(config.steps / config.warmup_steps) if config.warmup_steps else 1


def search(
    perplexity_after: Callable[[int], float],
    target: float,
    *,
    shortest: int,
    longest: int,
    tolerance: float,
    runs: int,
) -> dict[int, float]:
    """Lengths tried and the perplexities they ended at, in the order tried.

    From longest / 4 the length doubles (or, where that is already too good, halves) until two
    lengths bracket the target; then the length is interpolated between them, linearly in the
    logarithms of both, until a run is within ``tolerance`` or ``runs`` are spent.

    Raises:
        UserError: the longest run stays above the target, or the shortest ends below it.
    """
    tried: dict[int, float] = {}

    def attempt(steps: int) -> float:
        tried[steps] = perplexity_after(steps)
        return tried[steps]

    def is_over() -> bool:
        near = any(distance(perplexity, target) <= tolerance for perplexity in tried.values())
        return near or len(tried) >= runs

    steps = min(longest, max(shortest, longest // FIRST_SHARE))
    rises = attempt(steps) > target
    while not is_over():
        if steps == (longest if rises else shortest):
            _refuse(rises, steps, tried, target)
        steps = min(longest, steps * 2) if rises else max(shortest, steps // 2)
        if (attempt(steps) > target) != rises:
            break
    _refuse_unreached(tried, target, tolerance, runs)
    while not is_over():
        below = max((n for n, perplexity in tried.items() if perplexity > target))
        above = min(
            (n for n, perplexity in tried.items() if perplexity <= target and n > below), default=0
        )
        if above - below <= 1:
            break  # no length between them
        attempt(interpolate((below, tried[below]), (above, tried[above]), target))
    return tried


def interpolate(short: tuple[int, float], long: tuple[int, float], target: float) -> int:
    """A length between two: where the line through them, log against log, meets the target.

    It stays a tenth away from either end, so that the bracket always shrinks.
    """
    (n_short, high), (n_long, low) = short, long
    share = math.log(high / target) / math.log(high / low) if high > low else 0.5
    share = min(max(share, 0.1), 0.9)
    steps = round(math.exp(math.log(n_short) + share * math.log(n_long / n_short)))
    return min(max(steps, n_short + 1), n_long - 1)


def distance(perplexity: float, target: float) -> float:
    """Relative difference of a perplexity from the target."""
    return abs(perplexity / target - 1)


def nearest(trials: dict[int, float], target: float) -> int:
    """The length that ended nearest the target."""
    return min(trials, key=lambda steps: abs(math.log(trials[steps] / target)))


def _refuse(rises: bool, steps: int, tried: dict[int, float], target: float) -> None:
    if rises:
        raise UserError(
            f"perplexity {target:g} is out of reach: {steps} steps end at {tried[steps]:.4f}; "
            "allow more steps, or ask for a higher perplexity"
        )
    raise UserError(
        f"perplexity {target:g} is too high: already {steps} steps end at {tried[steps]:.4f}; "
        "ask for a lower perplexity"
    )


def _refuse_unreached(tried: dict[int, float], target: float, tolerance: float, runs: int) -> None:
    """Runs were spent before any two of them bracketed the target."""
    best = nearest(tried, target)
    sides = {perplexity > target for perplexity in tried.values()}
    if len(sides) == 1 and distance(tried[best], target) > tolerance:
        raise UserError(
            f"{runs} runs did not reach perplexity {target:g}: {best} steps end at "
            f"{tried[best]:.4f}; allow more match_runs"
        )


def _summary(
    config: TrainConfig,
    result: TrainResult,
    trials: dict[int, float],
    chosen: int,
    results: dict[int, TrainResult],
    inputs: Inputs,
) -> dict[str, Any]:
    return {
        **result.summary,
        "config": config.to_dict(),
        "config_hash": config.hash(),
        "match": {
            "perplexity": config.match_perplexity,
            "of": config.match_of,
            "tolerance": config.match_tolerance,
            "is_within_tolerance": distance(trials[chosen], config.match_perplexity or math.nan)
            <= config.match_tolerance,
            "steps": chosen,
            "trials": [
                {
                    "steps": steps,
                    "clean_perplexity": perplexity,
                    "seconds": results[steps].summary["seconds"],
                }
                for steps, perplexity in trials.items()
            ],
            "seconds": round(sum(each.summary["seconds"] for each in results.values()), 2),
        },
    }


def _adopt(trial: Path, directory: RunDirectory) -> None:
    """Copy model, log and figure of the chosen trial to OUT."""
    for name in ("log.jsonl", "loss.png"):
        write_atomically(directory.path / name, (trial / name).read_bytes())
    with atomic_directory(directory.model) as temporary:
        shutil.copytree(trial / "model", temporary, dirs_exist_ok=True)
