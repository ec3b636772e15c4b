from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sat_interp import SelfAblatingTransformer
from sat_interp._util.errors import UserError
from sat_interp.training.config import TrainConfig
from sat_interp.training.match import distance, interpolate, nearest, search, trial_config
from sat_interp.training.train import train

SEARCH = {"shortest": 1, "longest": 3200, "tolerance": 0.01, "runs": 12}


def power_law(steps: int) -> float:
    return 3 + 40 * steps**-0.5


@pytest.mark.parametrize("target", [3.8, 4.5, 6.1, 12.0])
def test_the_length_is_found_in_few_runs(target: float) -> None:
    trials = search(power_law, target, **SEARCH)
    chosen = nearest(trials, target)
    assert distance(trials[chosen], target) <= 0.01
    assert len(trials) <= 9
    assert next(iter(trials)) == 800


def test_lengths_double_until_they_bracket() -> None:
    lengths = list(search(power_law, 3.8, **SEARCH))
    assert lengths[:3] == [800, 1600, 3200]
    assert all(1600 < steps < 3200 for steps in lengths[3:])


def test_lengths_halve_where_the_first_is_too_good() -> None:
    lengths = list(search(power_law, 6.2, **SEARCH))
    assert lengths[:4] == [800, 400, 200, 100]
    assert all(100 < steps < 200 for steps in lengths[4:])


@pytest.mark.parametrize("steep", [lambda n: 50.0 if n < 737 else 2.0, lambda n: 2 + 1e4 / n**2])
def test_a_curve_that_is_no_line_is_still_bracketed(steep: Callable[[int], float]) -> None:
    trials = search(steep, 10.0, **{**SEARCH, "runs": 30})
    below = max(n for n, found in trials.items() if found > 10)
    above = min(n for n, found in trials.items() if found <= 10)
    near = distance(trials[nearest(trials, 10.0)], 10.0) <= 0.01
    assert near or above - below == 1


def test_noise_does_not_make_it_run_for_ever() -> None:
    def noisy(steps: int) -> float:
        return power_law(steps) * (1 + 0.1 * (-1) ** steps)

    assert len(search(noisy, 5.0, **{**SEARCH, "tolerance": 1e-9})) <= 12


@pytest.mark.parametrize(
    ("target", "said"), [(3.5, "3200 steps end at 3.7071"), (90.0, "1 steps end at 43.0000")]
)
def test_what_cannot_be_reached_is_refused_with_what_was(target: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        search(power_law, target, **SEARCH)


def test_too_few_runs_to_bracket_are_refused() -> None:
    with pytest.raises(UserError, match="2 runs did not reach .* allow more match_runs"):
        search(power_law, 3.8, **{**SEARCH, "runs": 2})


def test_interpolation_is_linear_in_the_logarithms() -> None:
    def line(steps: int) -> float:
        return 100 * steps**-0.3

    assert interpolate((100, line(100)), (1600, line(1600)), line(400)) == 400
    assert interpolate((100, 5.0), (102, 4.0), 4.999) == 101


def test_a_trial_is_the_same_recipe_with_a_complete_schedule() -> None:
    config = TrainConfig(
        steps=1000, warmup_steps=100, match_perplexity=9.0, out="runs/m", wandb="w"
    )
    trial = trial_config(config, 300, Path("runs/m"))
    changed = {name for name, value in trial.to_dict().items() if value != config.to_dict()[name]}
    assert changed == {
        "steps",
        "warmup_steps",
        "validate_every",
        "out",
        "resume",
        "wandb",
        "match_perplexity",
    }
    assert trial.warmup_steps == 30
    assert trial.learning_rate_at(299) < 1e-3 * config.learning_rate


def test_a_matched_run_ends_near_the_perplexity_and_reuses_its_trials(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sat_interp.training import match

    config = tiny(
        steps=128, learning_rate=1e-2, match_perplexity=170.0, match_tolerance=0.05, batch_size=2
    )
    ran: list[int] = []
    real = match.run

    def counting(trial: TrainConfig, *arguments: object) -> object:
        ran.append(trial.steps)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return real(trial, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(match, "run", counting)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    stamps = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("summary.json")}
    assert len(stamps) == 2
    result = train(dataclasses.replace(config, resume=True))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    found = result.summary["match"]
    assert found["is_within_tolerance"]
    assert abs(result.summary["final"]["clean_perplexity"] / 170 - 1) <= 0.05
    assert found["steps"] == result.summary["steps"]
    assert [trial["steps"] for trial in found["trials"]][:2] == ran[:2]
    out = Path(config.out)
    SelfAblatingTransformer.from_pretrained(out)
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(result.summary))
    last = (out / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == found["steps"]
    assert (out / "loss.png").exists()
    assert train(dataclasses.replace(config, resume=True)).summary == json.loads(
        json.dumps(result.summary)
    )
