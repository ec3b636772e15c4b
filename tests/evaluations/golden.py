"""Golden values: what every evaluation says of small seeded models on a fixed text.

A record is found again by what decides it, and the code decides it through the ``version`` of its
``SPEC``. ``test_golden.py`` computes the figures below and compares them with the files in
``golden_values/``, one for each evaluation. Where a figure has changed on purpose, raise the
version and run, from the root of the repository::

    python -m tests.evaluations.golden            # all evaluations, or name some: lm n2g

It writes the values of evaluations whose version was raised. It refuses to replace changed values
under the same version. The activations that ``neurons`` and ``n2g`` keep on disk are among them:
their version is ``evaluations.core.activations.FORMAT``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from evaluations.core.excerpts import GatherConfig
from evaluations.core.record import Metric
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, evaluation_text
from evaluations.registry import SPECS
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp.data.tokenizer import train_bpe
from sat_interp.model.shape import gpt_neo_config

PLACE = Path(__file__).parent / "golden_values"
# Other processors add in another order. Models are in float64, where that costs about 1e-13, and
# some figures are of float32 activations.
RELATIVE, ABSOLUTE = 1e-4, 1e-6
Values = dict[str, dict[str, float | None]]
"""By metric: its value, standard error, interval, n and n_failed."""

_NAMES = ("Tim", "Mia", "Ben", "Amy", "Max", "Lily")
_THINGS = ("ball", "book", "hat", "toy")
_PLACES = ("park", "zoo", "school")


def stories() -> list[str]:
    """72 stories about a gift, six names, four things and three places."""
    found = []
    for number in range(72):
        giver, taker = _NAMES[number % 6], _NAMES[(number * 5 + 1 + number // 36) % 6]
        thing, place = _THINGS[number // 6 % 4], _PLACES[number // 24]
        ending = ("was happy.", "said “thank you”.", f"put the {thing} away.")[number % 3]
        start = "One day, " if number % 4 else "Then, "
        found.append(
            f"{start}{giver} and {taker} went to the {place}. {giver} gave a {thing} to {taker}. "
            f"{taker} {ending}"
        )
    return found


def values_of(result: Measurement) -> Values:
    """The figures of a result, times left out."""
    return {one.name: _plain(one) for one in result.metrics if one.unit != "s"}


def _plain(metric: Metric) -> dict[str, float | None]:
    interval = metric.interval
    return {
        "value": metric.value,
        "standard_error": metric.standard_error,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": metric.n,
        "n_failed": metric.n_failed,
    }


class Golden:
    """The models and the text; a method for each evaluation gives its cases."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        file = directory / "stories.jsonl"
        lines = [json.dumps({"text": story}) for story in stories()]
        file.write_text("\n".join(lines), encoding="utf-8")
        self.tokenizer: PreTrainedTokenizerFast = train_bpe(stories(), 330)
        self.text: Text = evaluation_text(self.tokenizer, str(file))
        self.file = file

    def model(self, variant: str = "none", **ablation: Any) -> SelfAblatingTransformer:
        torch.manual_seed(0)
        cfg = gpt_neo_config(
            n_layers=2,
            d_model=16,
            n_heads=4,
            d_vocab=len(self.tokenizer),
            n_ctx=64,
            initializer_range=0.4,
            dtype=torch.float64,
        )
        config = SelfAblationConfig(
            variant=variant,  # type: ignore[arg-type]
            **{"k_attention": 3, "k_neurons": 5, **ablation},
        )
        return SelfAblatingTransformer(cfg, config, tokenizer=self.tokenizer).eval()

    def lm(self) -> dict[str, Measurement]:
        from evaluations.suite.lm.config import LanguageConfig
        from evaluations.suite.lm.evaluation import evaluate as language_model

        config = LanguageConfig(resamples=50, activation_stories=20)
        return {
            variant: language_model(self.model(variant), self.text, config)
            for variant in ("none", "local")
        }

    def gates(self) -> dict[str, Measurement]:
        from evaluations.suite.gates.config import GatesConfig
        from evaluations.suite.gates.evaluation import evaluate as gates

        config = GatesConfig(
            resamples=50, probe_stories=40, probe_classes=16, intervention_stories=8
        )
        return {
            variant: gates(self.model(variant), self.text, config)
            for variant in ("local", "global")
        }

    def acdc(self) -> dict[str, Measurement]:
        from evaluations.suite.circuits.config import CircuitConfig
        from evaluations.suite.circuits.evaluation import evaluate as circuits
        from evaluations.tasks.registry import make_task
        from tests.evaluations.suite.circuits.cases import doable

        model = self.model()
        # the model's own best and worst answers: of a task it cannot do, half the figures are null
        prompts = doable(model, make_task("ioi-tinystories", self.tokenizer, 8))
        return {
            method: circuits(
                model, prompts, CircuitConfig(method=method, random_circuits=4, bootstrap=2)
            )
            for method in ("acdc", "eap", "eap-ig")
        }

    def circuits(self) -> dict[str, Measurement]:
        from evaluations.suite.circuits.frontier.config import FrontierConfig
        from evaluations.suite.circuits.frontier.data import FrontierData
        from evaluations.suite.circuits.frontier.evaluation import evaluate as frontiers
        from tests.evaluations.suite.circuits.cases import copied, task

        model = self.model()
        # words of these stories are too few for a null task
        prompts = dataclasses.replace(task(n=8), held_out=task(n=8, seed=7))
        # no optimal constants: they are at minima that other processors reach by other steps
        config = FrontierConfig(
            methods=("acdc", "eap-ig"),
            ablations=("cf", "mean"),
            points=3,
            random_circuits=1,
            restorations=2,
            resamples=50,
        )
        return {"random": frontiers(model, FrontierData.of(copied(model, prompts)), config)}

    def ablate(self) -> dict[str, Measurement]:
        from evaluations.suite.ablate.config import AblateConfig
        from evaluations.suite.ablate.evaluation import evaluate as ablate

        # fits are at their minima, which other processors reach by other steps
        config = AblateConfig(
            text=True,
            components=("heads", "m0", "m1"),
            methods=("zero", "mean_all", "oa"),
            fit_windows=20,
            held_windows=12,
            window=10,
            starts=2,
            resamples=50,
            no_bridge=True,
        )
        return {"local": ablate(self.model("local"), self.text, config)}

    def trace(self) -> dict[str, Measurement]:
        from evaluations.suite.trace.config import TraceConfig
        from evaluations.suite.trace.evaluation import evaluate as trace
        from evaluations.tasks.facts import make_facts

        # one constant alone: others are at minima that other processors reach by other steps
        config = TraceConfig(
            answer="own",
            methods=("gnt", "gnt_dims", "swap"),
            windows=(1,),
            draws=2,
            resamples=50,
        )
        entries = [
            {"subject": story.split()[2], "attribute": "ball", "prompt": story.split(". ")[0]}
            for story in stories()[:36]
        ]
        facts = make_facts(entries, self.tokenizer, 30)
        return {"noise": trace(self.model(), facts, config)}

    def lens(self) -> dict[str, Measurement]:
        from evaluations.suite.lens.config import LensConfig
        from evaluations.suite.lens.evaluation import LensData
        from evaluations.suite.lens.evaluation import evaluate as lens
        from evaluations.suite.lens.store import Owner

        # so few evaluations that other processors take the same steps
        config = LensConfig(
            lenses=("logit", "tuned", "mean", "oca"),
            fit_windows=30,
            held_windows=16,
            window=10,
            first=2,
            tuned_steps=20,
            evaluations=12,
            edit_prompts=8,
            directions=4,
            resamples=50,
        )
        data = LensData(self.text, Owner("golden", "golden", "golden"))
        measured = lens(self.model("local"), data, config)
        # how many evaluations a fit takes is the processor's affair
        kept = [one for one in measured.metrics if one.name not in ("read_oca", "not_converged")]
        return {"local": Measurement(kept)}

    def sae(self) -> dict[str, Measurement]:
        from evaluations.suite.sae.config import preset
        from evaluations.suite.sae.evaluation import SaeData
        from evaluations.suite.sae.evaluation import evaluate as sparse_autoencoder
        from sat_interp.data.corpus import load_corpus
        from sat_interp.data.sources import parse_data

        corpus = load_corpus(parse_data(str(self.file)), "train", self.tokenizer)
        model = self.model()
        found = {}
        for architecture in ("standard", "topk"):
            config = preset("demo", architecture)
            small = {
                "tokens": 3200,
                "batch_tokens": 32,
                "buffer_prompts": 8,
                "norm_batches": 4,
                "context": 16,
                "expansion": 4,
                "resamples": 50,
                "sparsity": 4.0 if architecture == "topk" else 0.1,
            }
            data = SaeData(corpus, self.text, self.directory / "sae", {"name": "golden"})
            found[architecture] = sparse_autoencoder(model, data, _with(config, small))
        return found

    def neurons(self) -> dict[str, Measurement]:
        from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
        from evaluations.suite.neurons.evaluation import evaluate as explain_neurons
        from evaluations.suite.neurons.examiners.lookup import LookupExaminer

        config = NeuronsConfig(
            LookupExaminer(), sample=12, gather=GatherConfig(width=24), resamples=50
        )
        data = NeuronsData(
            self.text,
            "golden",
            "golden",
            self.directory / "neurons",
            cache=self.directory / "cache",
        )
        return {"lookup": explain_neurons(self.model(), data, config)}

    def n2g(self) -> dict[str, Measurement]:
        from evaluations.suite.n2g.config import N2gConfig
        from evaluations.suite.n2g.evaluation import N2gData
        from evaluations.suite.n2g.evaluation import evaluate as neuron_graphs
        from evaluations.suite.n2g.substitutes import Neighbours
        from evaluations.suite.n2g.vocabulary import Vocabulary

        vocabulary = Vocabulary.of(self.tokenizer)
        substitutes = Neighbours.of(self.text, vocabulary)
        data = N2gData(self.text, vocabulary, substitutes, self.directory / "n2g", "golden")
        config = N2gConfig(
            neurons_per_layer=8, examples=4, gather=GatherConfig(top=4, sample=4, random=4)
        )
        return {"neighbours": neuron_graphs(self.model(), data, config)}

    def activations(self) -> dict[str, Values]:
        """The gathered excerpts, which ``neurons`` and ``n2g`` share and which are kept on disk."""
        from evaluations.core.activations import gather
        from evaluations.core.units import find_units

        model = self.model()
        config = GatherConfig(top=4, sample=4, random=4, width=24)
        found = gather(model, self.text, find_units(model), config, "golden", self.directory)
        values: dict[str, Values] = {}
        for layer, statistics in found.statistics.items():
            figures = {
                name: getattr(statistics, name).double() for name in ("maximum", "mean", "density")
            }
            for half, kinds in found.kept[layer].items():
                for kind, kept in kinds.items():
                    for name in ("stories", "starts", "activations"):
                        figures[f"{half}.{kind}.{name}"] = getattr(kept, name).double()
            values[f"layer {layer}"] = {
                name: {"value": float(value.nanmean()), "spread": float(value.nan_to_num().std())}
                for name, value in figures.items()
            }
        return values


def all_versions() -> dict[str, int]:
    """The version of every evaluation, and the format of the activations that are kept on disk."""
    from evaluations.core.activations import FORMAT

    return {**{spec.name: spec.version for spec in SPECS}, "activations": FORMAT}


def compute(name: str, directory: Path) -> dict[str, Values]:
    """The figures of one evaluation, by case. ``directory`` is empty, for what it writes.

    The package's cache is put there too.
    """
    before = os.environ.get("SAT_INTERP_CACHE")
    os.environ["SAT_INTERP_CACHE"] = str(directory / "cache")
    try:
        method: Callable[[], dict[str, Measurement | Values]] = getattr(Golden(directory), name)
        return {
            case: values_of(result) if isinstance(result, Measurement) else result
            for case, result in method().items()
        }
    finally:
        if before is None:
            del os.environ["SAT_INTERP_CACHE"]
        else:
            os.environ["SAT_INTERP_CACHE"] = before


def differences(wanted: dict[str, Values], found: dict[str, Values]) -> list[str]:
    """What differs between two sets of figures, one line each."""
    told = []
    for case in sorted(wanted.keys() | found.keys()):
        old, new = wanted.get(case, {}), found.get(case, {})
        for metric in sorted(old.keys() | new.keys()):
            if metric not in new or metric not in old:
                told.append(f"{case}: {metric} is {'gone' if metric in old else 'new'}")
                continue
            for part in old[metric].keys() | new[metric].keys():
                one, two = old[metric].get(part), new[metric].get(part)
                if not _close(one, two):
                    told.append(f"{case}: {metric}.{part} is {two}, was {one}")
    return sorted(told)


def _close(one: float | None, two: float | None) -> bool:
    if one is None or two is None:
        return one is two
    return math.isclose(one, two, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def read(name: str) -> dict[str, Any] | None:
    """The file of an evaluation: its ``version`` and ``cases``; None where there is none."""
    path = PLACE / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def update(name: str, version: int, cases: dict[str, Values]) -> str:
    """Write an evaluation's file if its version was raised; return a line that says what was done.

    Raises:
        ValueError: the values changed and the version did not, or the version fell.
    """
    known = read(name)
    if known is not None:
        changed = differences(known["cases"], cases)
        if version < known["version"]:
            raise ValueError(f"{name}: version {version} is below version {known['version']}")
        if version == known["version"]:
            if not changed:
                return f"{name}: version {version}, unchanged"
            listed = "\n  ".join(changed[:20])
            raise ValueError(
                f"{name}: {len(changed)} values changed under version {version}: raise the version "
                f"of its SPEC\n  {listed}"
            )
    PLACE.mkdir(exist_ok=True)
    content = json.dumps({"version": version, "cases": cases}, indent=1, allow_nan=False)
    (PLACE / f"{name}.json").write_text(content + "\n", encoding="utf-8")
    return f"{name}: version {version} written"


def _with(config: Any, changes: dict[str, Any]) -> Any:
    return dataclasses.replace(config, **changes)


def main(names: list[str]) -> int:
    known = all_versions()
    failed = 0
    for name in names or sorted(known):
        with tempfile.TemporaryDirectory() as directory:
            cases = compute(name, Path(directory))
        try:
            print(update(name, known[name], cases))
        except ValueError as error:
            print(error)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
