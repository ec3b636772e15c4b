"""Studies: many runs (variants x k x seeds x controls) in one file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sat_interp._util.errors import UserError, suggest
from sat_interp._util.files import expanded
from sat_interp._util.reading import UnreadableError, read_yaml
from sat_interp.model.config import GateKind, Variant
from sat_interp.training.config import TrainConfig

RunKind = Literal["baseline", "learned", "control", "matched", "extra"]
BASELINE = "baseline"
CONTROLS = tuple(kind for kind in get_args(GateKind) if kind != "learned")
MATCHED_LONGEST = 2
"""A matched baseline may take this many times the steps of the run it is to match."""
OWNED = {
    "variant": "variants",
    "k_attention": "k",
    "k_neurons": "k",
    "k": "k",
    "seed": "seeds",
    "out": "out",
    "gates": "controls",
    "match_perplexity": "match_perplexity",
    "preset": "preset",
    "match_of": "match_perplexity",
    "resume": "out",
}
"""Settings of a run that a study decides, and the key that decides them."""
OF_A_GROUP = ("variant", "k", "k_attention", "k_neurons", "gates")
"""Those of them that a group of ``extra`` decides for itself."""


@dataclass(frozen=True)
class Study:
    """Content of a study's YAML file; all keys but ``name`` are optional.

    A *group* is a set of runs that differ only in their seed: ``baseline``, ``local-k4``,
    ``local-k4-random``, ``matched-local-k4``, or one of ``extra``.
    Its runs are called ``local-k4-s0``, ``local-k4-s1``, ...

    Raises:
        UserError: a variant, control, group or setting that does not exist, or a value that is
            not possible; raised before anything is trained.
    """

    name: str
    """Name of the study."""

    preset: str = "demo"
    """The preset all runs start from (sat-train --help)."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of sat-train that all runs share, over the preset's."""

    variants: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"none": {}, "local": {}, "global": {}}
    )
    """Which gates: none (the baseline), local, global; each with settings of its own, if any."""

    k: tuple[int, ...] = (4,)
    """Units kept per token and layer: attention units and neurons alike."""

    seeds: tuple[int, ...] = (0,)
    """Training seeds; everything is trained with each."""

    controls: tuple[str, ...] = ()
    """Gates in place of learned ones: random, frozen, detached, dropout."""

    controls_for: tuple[str, ...] = ()
    """The groups with learned gates that get the controls (local-k4); all, where none is named."""

    match_perplexity: tuple[str, ...] | Literal[True] = ()
    """The groups with learned gates that get a baseline of their own, shortened (or lengthened, to
    twice the steps at most) until its clean validation perplexity is theirs, seed by seed;
    ``true`` in the file means all of them."""

    extra: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Groups of another kind by name, each with its own settings over those that all runs share:
    variant and k (none and 4 by default), gates, and any other setting of sat-train."""

    first: tuple[str, ...] = ()
    """Groups that are trained first, with all seeds, so that a study cut short still compares
    them; the others follow, seed by seed."""

    measures: tuple[dict[str, dict[str, Any]], ...] = ()
    """What sat-eval all --study measures of every run, in this order: one evaluation an entry, with
    its options (``- acdc: {task: quotes, prompts: 60}``)."""

    out: str = ""
    """Directory of the runs; runs/NAME by default."""

    def __post_init__(self) -> None:
        for name in ("variants", "k", "seeds"):
            if not getattr(self, name):
                raise UserError(f"a study needs {name}: name at least one")
        groups = (*self.controls_for, *self.matched_groups)
        _refuse_unknown("variant", self.variants, get_args(Variant))
        _refuse_unknown("control", self.controls, CONTROLS)
        _refuse_unknown("group with learned gates", groups, self.learned_groups)
        for kind, name in [("study", self.name), *(("group", name) for name in self.extra)]:
            if not re.fullmatch(r"[\w.-]+", name) or set(name) <= {"."}:
                raise UserError(
                    f"a {kind}'s name consists of letters, digits, - and _, not {name!r}"
                )
        shared = [name for own in (self.settings, *self.variants.values()) for name in own]
        _refuse_owned(shared, ())
        _refuse_owned([name for own in self.extra.values() for name in own], OF_A_GROUP)
        runs = self.runs()  # refuses impossible settings
        made = list(dict.fromkeys(run.group for run in runs))
        others = {run.group for run in runs if run.kind != "extra"}
        if twice := next((name for name in self.extra if name in others), None):
            raise UserError(f"extra: there is a group {twice} already: choose another name")
        _refuse_unknown("group", self.first, made)
        for group in self.matched_groups:
            if f"matched-{group}" in self.first and group not in self.first:
                raise UserError(f"first: matched-{group} needs {group}: name it, too")

    @property
    def directory(self) -> Path:
        """Directory of the runs."""
        return expanded(self.out or f"runs/{self.name}")

    @property
    def learned_groups(self) -> list[str]:
        """``local-k1``, ``local-k4``, ``global-k1``, ..."""
        return [f"{variant}-k{k}" for variant in self.variants if variant != "none" for k in self.k]

    @property
    def matched_groups(self) -> Sequence[str]:
        """Groups that get a baseline of their perplexity."""
        return self.learned_groups if self.match_perplexity is True else self.match_perplexity

    def runs(self) -> list[StudyRun]:
        """All runs in the order of training: a whole comparison of one seed, then the next.

        The groups named in ``first`` come before all others, with all their seeds.
        """
        runs = [run for seed in self.seeds for run in self._of_seed(seed)]
        return sorted(runs, key=lambda run: run.group not in self.first)

    def _of_seed(self, seed: int) -> list[StudyRun]:
        made = []
        if "none" in self.variants:
            made.append(self._run(BASELINE, "baseline", seed, "none"))
        learned = [(v, k) for v in self.variants if v != "none" for k in self.k]
        for variant, k in learned:
            made.append(self._run(f"{variant}-k{k}", "learned", seed, variant, {"k": k}))
        for variant, k in learned:
            group = f"{variant}-k{k}"
            for gates in self.controls if group in (self.controls_for or [group]) else ():
                own = {"k": k, "gates": gates}
                made.append(
                    self._run(f"{group}-{gates}", "control", seed, variant, own, like=group)
                )
        for group in self.matched_groups:
            matched = self._run(f"matched-{group}", "matched", seed, "none", like=group)
            made.append(_longer(matched))
        for group, settings in self.extra.items():
            own = {**settings}
            variant = str(own.pop("variant", "none"))
            made.append(self._run(group, "extra", seed, variant, own))
        return made

    def _run(
        self,
        group: str,
        kind: RunKind,
        seed: int,
        variant: str,
        own: Mapping[str, Any] | None = None,
        like: str | None = None,
    ) -> StudyRun:
        name = f"{group}-s{seed}"
        settings = {**self.settings, **self.variants.get(variant, {}), **(own or {})}
        config = TrainConfig.from_preset(
            self.preset,
            **settings,
            variant=variant,
            seed=seed,
            out=str(self.directory / name),
            resume=True,
        )
        return StudyRun(name, group, kind, seed, config, like)


@dataclass(frozen=True)
class StudyRun:
    """One run of a study.

    Attributes:
        group: name shared with the runs of other seeds.
        like: of a control, the group whose gates it replaces; of a matched baseline, the group
            whose perplexity it has.
    """

    name: str
    group: str
    kind: RunKind
    seed: int
    config: TrainConfig
    like: str | None = None

    @property
    def directory(self) -> Path:
        """Directory of the run."""
        return Path(str(self.config.out))


def read_study(path: str | Path, out: str | None = None) -> Study:
    """The study in a YAML file; ``out`` goes before the directory named there.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value of another type.
    """
    try:
        content = read_yaml(path)
    except UnreadableError as error:
        raise UserError(f"{path} is not a valid study file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a valid study file: it must be a YAML mapping with name, variants, ..."
        )
    known = [item.name for item in dataclasses.fields(Study)]
    for key in content:
        if key not in known:
            raise UserError(f"{path}: {suggest('key', key, known)}")
    content.setdefault("name", Path(path).stem)
    try:
        return Study(**_typed({**content, **({"out": out} if out else {})}))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:  # a setting of another type
        raise UserError(f"{path}: a setting is of another type ({error})") from None


def _longer(run: StudyRun) -> StudyRun:
    """A matched run that may take longer than its target did: the target may be the better model.

    A warm-up keeps its share, so the same length is the same recipe.
    """
    config = run.config
    longer = dataclasses.replace(
        config,
        steps=MATCHED_LONGEST * config.steps,
        warmup_steps=MATCHED_LONGEST * config.warmup_steps,
    )
    return dataclasses.replace(run, config=longer)


def _refuse_unknown(kind: str, names: Iterable[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices:
            raise UserError(suggest(kind, name, choices))


def _refuse_owned(settings: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse settings that a key of the study decides."""
    for setting in settings:
        if setting in OWNED and setting not in allowed:
            raise UserError(
                f"{setting} cannot be a setting of a study: use its key {OWNED[setting]}"
            )


_LISTS: dict[str, tuple[type, str]] = {
    "k": (int, "whole numbers"),
    "seeds": (int, "whole numbers"),
    "controls": (str, "names"),
    "controls_for": (str, "names"),
    "match_perplexity": (str, "names of groups"),
    "first": (str, "names of groups"),
}
"""Keys whose values are lists, the type of their items, and its name in messages."""


def _typed(content: dict[str, Any]) -> dict[str, Any]:
    """Values of a file in Study's types: lists as tuples, lists of variants as mappings."""
    typed = dict(content)
    for name in ("name", "preset", "out"):
        if not isinstance(typed.get(name, ""), str):
            raise UserError(f"{name} must be text, not {typed[name]!r}")
    for name in _LISTS.keys() & typed.keys():
        typed[name] = _listed(name, typed[name])
    if typed.get("variants") is not None:
        typed["variants"] = _variants(typed["variants"])
    if "settings" in typed:
        typed["settings"] = _mapping("settings", typed["settings"])
    if "measures" in typed:
        typed["measures"] = _measures(typed["measures"])
    if "extra" in typed:
        groups = _mapping("extra", typed["extra"])
        typed["extra"] = {name: _mapping(f"extra: {name}", own) for name, own in groups.items()}
    return typed


def _variants(value: Any) -> dict[str, dict[str, Any]]:
    if isinstance(value, str | list):
        return {str(variant): {} for variant in ([value] if isinstance(value, str) else value)}
    mapping = _mapping("variants", value)
    return {name: _mapping(f"variants: {name}", own) for name, own in mapping.items()}


def _measures(value: Any) -> tuple[dict[str, dict[str, Any]], ...]:
    """A list of evaluations, each by its name alone or with its options."""
    if not isinstance(value, list):
        raise UserError(f"measures must be a list of evaluations, not {value!r}")
    made = []
    for entry in value:
        one = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(one, dict) or len(one) != 1:
            raise UserError(f"measures: an entry is one evaluation with its options, not {entry!r}")
        made.append({str(name): _mapping(f"measures: {name}", own) for name, own in one.items()})
    return tuple(made)


def _listed(name: str, value: Any) -> tuple[Any, ...] | bool:
    if name == "match_perplexity" and isinstance(value, bool):
        return value or ()
    kind, words = _LISTS[name]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, kind) and not isinstance(item, bool) for item in values):
        raise UserError(f"{name} must be a list of {words}, not {value!r}")
    return tuple(dict.fromkeys(values))


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} must be a mapping of settings, not {value!r}")
    return {str(key): entry for key, entry in value.items()}
