"""Models that differ only in their training seed: what they have in common, and how sure that is.

A figure's interval here is over training seeds, Student's t with n - 1 degrees of freedom: it says
how another seed's model might come out, which no resampling of stories can.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluations.comparison.selection import Model
from evaluations.core.record import hash_of
from evaluations.core.statistics import t_quantile
from evaluations.tables.names import distinguished
from sat_interp.training.recipe import differences
from sat_interp.training.study import MATCHED_LONGEST, RunKind, Study

ENOUGH_SEEDS = 3
"""Fewest training seeds that an interval is given for."""
# Settings of a training run that make up its recipe.
RECIPE = (
    "data",
    "tokenizer",
    "learning_rate",
    "initializer_range",
    "embedding_range",
    "precision",
    "windows_per_step",
)


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with its interval; no interval of fewer than `ENOUGH_SEEDS`."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """A row of the tables: models that differ in their training seed alone.

    Attributes:
        name: what they are called without their seed.
        kind: baseline, learned gates, a control, a perplexity-matched baseline, or a group of
            another kind (sparse weights, or one that a study names).
        variant, k, gates: of the gates; "none" and None for models without.
        recipe: what data, shape and schedule they share, gates aside: groups of one recipe are
            compared.
        like: of a matched baseline, the group whose perplexity it has; where that is known.
        members: by training seed.
    """

    name: str
    kind: RunKind
    variant: str
    k: int | None
    gates: str
    recipe: str
    like: str | None
    members: dict[int, Model]

    @property
    def models(self) -> list[Model]:
        """The models of the group, by seed."""
        return list(self.members.values())


def seed_mean(values: Iterable[float]) -> SeedMean | None:
    """Mean and 95 % interval: mean -+ t(0.975, n - 1) * s / sqrt(n), s with n - 1.

    Two seeds have no interval: t(0.975, 1) is 12.7, and it would be of their difference alone.
    None without a value.
    """
    array = np.fromiter(values, dtype=np.float64)
    n = len(array)
    if not n:
        return None
    mean = float(array.mean())
    if n < ENOUGH_SEEDS:
        return SeedMean(mean, None, None, n)
    reach = t_quantile(n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return SeedMean(mean, mean - reach, mean + reach, n)


def groups(models: Sequence[Model], study: Study | None = None) -> list[Group]:
    """The models as rows: baselines, learned gates, controls, matched baselines, others.

    With a study its runs' names say which model belongs where, and other models are left out;
    otherwise the records of how they were trained do. A model of which no seed is known, or that
    has the seed of one already in its group, is a row of its own.
    """
    made = _of_study(models, study) if study else _of_records(models)
    order = {"baseline": 0, "learned": 1, "control": 2, "matched": 3, "extra": 4}
    variants = ("none", "local", "global")
    return sorted(
        made,
        key=lambda group: (
            order[group.kind],
            variants.index(group.variant),
            group.k or 0,
            group.gates,
            group.name,
        ),
    )


def references(group: Group, among: Sequence[Group]) -> list[Group]:
    """What a group is compared with: the baseline; learned gates with controls and matched, too."""
    same = [other for other in among if other.recipe == group.recipe and other is not group]
    found = [other for other in same if other.kind == "baseline" and group.kind != "baseline"]
    if group.kind == "learned":
        # without a record of what a baseline matches, there must be only one candidate
        alone = not any(other.kind == "learned" for other in same)
        found += [
            other
            for other in same
            if (other.kind == "control" and (other.variant, other.k) == (group.variant, group.k))
            or (other.kind == "matched" and (other.like == group.name if other.like else alone))
        ]
    return found


def _of_study(models: Sequence[Model], study: Study) -> list[Group]:
    by_name = {model.name: model for model in models}
    made: dict[str, Group] = {}
    for run in study.runs():
        config = run.config
        gated = config.is_gated
        group = made.setdefault(
            run.group,
            Group(
                run.group,
                run.kind,
                config.variant,
                config.k_neurons if gated else None,
                config.gates if gated else "",
                study.name,
                run.like,
                {},
            ),
        )
        found = by_name.get(run.name)
        if found is not None and not differences(run, _training(found)):
            group.members[run.seed] = dataclasses.replace(found, spec=str(run.directory))
    return list(made.values())


def _of_records(models: Sequence[Model]) -> list[Group]:
    made: dict[str, Group] = {}
    for model in sorted(models, key=lambda model: model.name):
        training = _training(model)
        ablation: dict[str, Any] = model.any.model.get("ablation") or {}
        seed, matched = training.get("seed"), "match_perplexity" in training
        # a matched run takes the length it needs: that makes it no other recipe
        steps = None if matched else training.get("planned_steps", training.get("steps"))
        recipe = _recipe(model, steps)
        density = training.get("weight_density", 1.0)
        key: Any = [recipe, ablation, training.get("loss_weights"), matched]
        key += [density] if density != 1 else []
        if matched:
            # seeds of one target have perplexities of their own: in older runs the name says which
            key.append(training.get("match_of") or _stem(model.name, seed))
        key = hash_of(key if isinstance(seed, int) else [key, model.key])
        if isinstance(seed, int) and key in made and seed in made[key].members:
            key = hash_of([key, model.key])
        group = made.setdefault(
            key,
            Group(
                "",
                "extra" if density != 1 else _kind(ablation, matched),
                str(ablation.get("variant", "none")),
                ablation.get("k_neurons"),
                str(ablation.get("gates", "")),
                recipe,
                None,
                {},
            ),
        )
        group.members[seed if isinstance(seed, int) else 0] = model
    return _with_targets(_named(list(made.values())))


def _with_targets(found: Sequence[Group]) -> list[Group]:
    """Matched baselines with the group they match, and its recipe.

    Where none is found, their recipe is that of their own length, if others have it, or of half of
    it, since a study lets them take twice as long.
    """
    made = []
    for group in found:
        if group.kind == "matched":
            like = next((one for one in found if _is_target(one, group)), None)
            recipe = like.recipe if like else _recipe_among(found, group)
            group = dataclasses.replace(group, like=like.name if like else None, recipe=recipe)
        made.append(group)
    return made


def _recipe_among(found: Sequence[Group], matched: Group) -> str:
    """The recipe of other groups that a matched baseline is of, but for its length."""
    others = {group.recipe for group in found if group.kind != "matched"}
    model = matched.models[0]
    longest = _training(model).get("planned_steps") or 0
    own = [_recipe(model, steps) for steps in (longest, longest // MATCHED_LONGEST)]
    return next((recipe for recipe in own if recipe in others), matched.recipe)


def _is_target(group: Group, matched: Group) -> bool:
    """Whether a matched baseline says so, or has the perplexity of the same seed's model."""
    if group.kind != "learned" or not _is_kin(group, matched):
        return False
    for seed, model in matched.members.items():
        training = _training(model)
        if "match_of" in training:
            names = {group.name, *(_stem(one.name, at) for at, one in group.members.items())}
            return training["match_of"] in names
        if seed in group.members:
            reached = _training(group.members[seed]).get("clean_perplexity")
            wanted = training["match_perplexity"]
            if reached is not None and math.isclose(reached, wanted, rel_tol=1e-9):
                return True
    return False


def _is_kin(group: Group, other: Group) -> bool:
    """Whether two groups share their recipe but for its length."""
    one, two = (_recipe(found.models[0], None) for found in (group, other))
    return one == two


def _recipe(model: Model, steps: Any) -> str:
    training = _training(model)
    return hash_of([model.any.model.get("shape"), *(training.get(key) for key in RECIPE), steps])


def _training(model: Model) -> dict[str, Any]:
    """The training settings in the model's records."""
    return model.any.model.get("training") or {}


def _kind(ablation: dict[str, Any], matched: bool) -> RunKind:
    if matched:
        return "matched"
    if not ablation:
        return "baseline"
    return "learned" if ablation.get("gates", "learned") == "learned" else "control"


def _named(found: Sequence[Group]) -> list[Group]:
    """Groups under the name their models share.

    Two of one name also have the hash of their weights, or of what else differs.
    """
    first = [group.models[0] for group in found]
    names = distinguished(
        [_common_name(group) for group in found],
        [model.weights[:8] for model in first],
        [model.key.rpartition(" ")[2][:8] for model in first],
    )
    return [dataclasses.replace(group, name=name) for group, name in zip(found, names, strict=True)]


def _common_name(group: Group) -> str:
    if len(group.members) == 1:
        return group.models[0].name
    stems = {_stem(one.name, seed) for seed, one in group.members.items()}
    if len(stems) == 1:
        return stems.pop()
    gates = "" if group.gates in ("", "learned") else f"-{group.gates}"
    name = "baseline" if group.variant == "none" else f"{group.variant}-k{group.k}{gates}"
    return f"matched-{name}" if group.kind == "matched" else name


def _stem(name: str, seed: Any) -> str:
    """``local-k4-s0`` without its seed."""
    return re.sub(rf"-s(?:eed)?{seed}$", "", name)
