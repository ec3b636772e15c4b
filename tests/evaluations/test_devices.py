"""Every evaluation on a device that is not the CPU: the same figures, and nothing left behind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from evaluations.core.excerpts import GatherConfig
from evaluations.core.spec import Measurement
from evaluations.core.text import Text, evaluation_text
from evaluations.registry import SPECS
from evaluations.suite.ablate.config import AblateConfig
from evaluations.suite.ablate.evaluation import evaluate as ablate
from evaluations.suite.circuits.config import CircuitConfig
from evaluations.suite.circuits.evaluation import evaluate as circuits
from evaluations.suite.circuits.frontier.config import FrontierConfig
from evaluations.suite.circuits.frontier.data import FrontierData
from evaluations.suite.circuits.frontier.evaluation import evaluate as frontiers
from evaluations.suite.gates.config import GatesConfig
from evaluations.suite.gates.evaluation import evaluate as gates
from evaluations.suite.lens.config import LensConfig
from evaluations.suite.lens.evaluation import LensData
from evaluations.suite.lens.evaluation import evaluate as lens
from evaluations.suite.lens.store import Owner
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.evaluation import evaluate as language_model
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.evaluation import N2gData
from evaluations.suite.n2g.evaluation import evaluate as neuron_graphs
from evaluations.suite.n2g.substitutes import Neighbours
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.neurons.config import NeuronsConfig, NeuronsData
from evaluations.suite.neurons.evaluation import evaluate as explain_neurons
from evaluations.suite.neurons.examiners.lookup import LookupExaminer
from evaluations.suite.sae.evaluation import SaeData
from evaluations.suite.sae.evaluation import evaluate as sparse_autoencoder
from evaluations.suite.trace.config import TraceConfig
from evaluations.suite.trace.evaluation import evaluate as trace
from evaluations.tasks.facts import make_facts
from tests.evaluations.conftest import STORIES
from tests.evaluations.suite.circuits.cases import copied, doable, task
from tests.evaluations.suite.sae.conftest import TINY
from tests.stand_in import DEVICE, StandIn, accelerator, moved

GATHER = GatherConfig(top=4, sample=4, random=4, width=12)
TIMES = {"seconds"}
Measure = Callable[[Any, Text, Path], Measurement]


def _lm(model: Any, text: Text, out: Path) -> Measurement:
    return language_model(model, text, LanguageConfig(resamples=20))


def _gates(model: Any, text: Text, out: Path) -> Measurement:
    return gates(model, text, GatesConfig(resamples=20, probe_classes=20, picture_tokens=6))


def _circuits(**settings: object) -> Measure:
    def measure(model: Any, text: Text, out: Path) -> Measurement:
        prompts = dataclasses.replace(task((5,), n=4), held_out=task((5,), n=3, seed=3))
        with torch.no_grad():
            prompts = _on_cpu(doable(model, prompts))
        config = CircuitConfig(random_circuits=1, bootstrap=1, null_draws=1, **settings)
        return circuits(model, prompts, config)

    return measure


def _frontiers(model: Any, text: Text, out: Path) -> Measurement:
    prompts = dataclasses.replace(task((5,), n=8), held_out=task((5,), n=8, seed=3))
    with torch.no_grad():
        prompts = _on_cpu(copied(model, prompts))
    config = FrontierConfig(
        methods=("acdc", "eap-ig"),
        ablations=("cf", "oa"),
        points=2,
        random_circuits=1,
        restorations=1,
        resamples=20,
        evaluations=4,
    )
    return frontiers(model, FrontierData.of(prompts), config)


def _on_cpu(prompts: Any) -> Any:
    """Prompts lie on the CPU, wherever the model is that chose their answers."""
    batches = tuple(
        type(batch)(*(part.cpu() for part in batch._parts())) for batch in prompts.batches
    )
    held_out = None if prompts.held_out is None else _on_cpu(prompts.held_out)
    return dataclasses.replace(prompts, batches=batches, held_out=held_out)


def _sae(model: Any, text: Text, out: Path) -> Measurement:
    config = dataclasses.replace(TINY, tokens=320, resamples=20)
    data = SaeData(text.corpus, text, out / "sae", {"name": "tiny", "weights": "ab"}, [config])
    return sparse_autoencoder(model, data, config)


def _neurons(model: Any, text: Text, out: Path) -> Measurement:
    data = NeuronsData(text, "tiny", "tiny", out / "own", cache=out / "cache")
    config = NeuronsConfig(LookupExaminer(), gather=GATHER, resamples=20)
    return explain_neurons(model, data, config)


def _n2g(model: Any, text: Text, out: Path) -> Measurement:
    vocabulary = Vocabulary.of(text.tokenizer)
    data = N2gData(text, vocabulary, Neighbours.of(text, vocabulary), out / "n2g", "tiny")
    return neuron_graphs(model, data, N2gConfig(neurons_per_layer=3, examples=4, gather=GATHER))


def _ablate(model: Any, text: Text, out: Path) -> Measurement:
    config = AblateConfig(
        text=True,
        components=("a0.h0", "m1"),
        methods=("zero", "mean_all", "oa"),
        fit_windows=20,
        held_windows=12,
        window=10,
        starts=2,
        resamples=20,
        no_bridge=True,
    )
    stories = [f"{first} {second}" for first in STORIES for second in STORIES]
    return ablate(model, evaluation_text(text.tokenizer, stories), config)


def _trace(model: Any, text: Text, out: Path) -> Measurement:
    config = TraceConfig(
        answer="own",
        methods=("oat", "gnt", "swap"),
        kinds=("mlp",),
        tokens=("last",),
        windows=(1,),
        draws=1,
        evaluations=4,
        resamples=20,
    )
    entries = [
        {"subject": name, "attribute": "x", "prompt": f"{before} {name} {after}"}
        for name in ("Tom", "Anna", "cat", "ball", "park")
        for before in ("One day", "Then")
        for after in ("went to the park", "gave the ball to")
    ]
    return trace(model, make_facts(entries, text.tokenizer, 20), config)


def _lens(model: Any, text: Text, out: Path, memory: int = 64) -> Measurement:
    config = LensConfig(
        memory=memory,
        fit_windows=16,
        held_windows=12,
        window=10,
        first=2,
        tuned_steps=3,
        evaluations=8,
        edit_prompts=6,
        directions=3,
        resamples=20,
    )
    stories = [f"{first} {second}" for first in STORIES for second in STORIES]
    owner = Owner("tiny", "tiny", str(out))
    return lens(model, LensData(evaluation_text(text.tokenizer, stories), owner), config)


MEASURES: dict[str, Measure] = {
    "lm": _lm,
    "gates": _gates,
    "acdc": _circuits(tau=(0.05, 0.3)),
    "acdc, eap-ig": _circuits(method="eap-ig", ablation="mean"),
    "acdc, ugs": _circuits(
        method="ugs", ablation="oa", search_steps=2, evaluations=2, objective="logit-difference"
    ),
    "acdc, hcgs": _circuits(method="hcgs", search_steps=4, exchanges=1),
    "acdc, edge-pruning": _circuits(
        method="edge-pruning", warm_start=True, search_steps=2, edges=8, exchanges=0
    ),
    "sae": _sae,
    "neurons": _neurons,
    "n2g": _n2g,
    "ablate": _ablate,
    "trace": _trace,
    "lens": _lens,
    "lens, streams in a file": partial(_lens, memory=0),
    "circuits": _frontiers,
}


GROUPED = "grouped queries, rotary positions"
VARIANTS: dict[str, tuple[str, ...]] = {
    "gates": ("local", "global"),
    "lm": ("none", "global", GROUPED),
    "acdc": ("none", GROUPED),
    "acdc, eap-ig": ("local",),
    "sae": ("local",),
    "n2g": ("local", GROUPED),
    "ablate": ("none", GROUPED),
}
"""Models on which a measure is tried, where it is not the one without gates alone."""


def _model(variant: str, make_model: Any, text: Text) -> Any:
    if variant != GROUPED:
        return make_model(variant)
    torch.manual_seed(0)
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 4, "n_key_value_heads": 2, "d_head": 4}
    cfg = HookedTransformerConfig(
        **shape,
        d_mlp=20,
        n_ctx=24,
        d_vocab=len(text.tokenizer),
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=4,
        initializer_range=0.3,
        dtype=torch.float64,
    )
    return HookedTransformer(cfg, tokenizer=text.tokenizer).eval()


def test_every_evaluation_of_the_battery_is_tried_here():
    assert {spec.name for spec in SPECS} == {name.partition(",")[0] for name in MEASURES}


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name in MEASURES for variant in VARIANTS.get(name, ("none",))],
)
def test_no_tensor_of_the_cpu_meets_the_models(name, variant, make_model, text, tmp_path):
    model = _model(variant, make_model, text).requires_grad_(False)
    here = MEASURES[name](copy.deepcopy(model), text, tmp_path / "cpu")
    with accelerator():
        there = MEASURES[name](moved(model), text, tmp_path / "there")
    for one, other in zip(here.metrics, there.metrics, strict=True):
        assert one.name == other.name
        if one.name in TIMES:
            continue
        assert other.reasons == one.reasons
        if one.value is None:
            assert other.value is None
        else:
            assert other.value == pytest.approx(one.value, rel=1e-4, abs=1e-6), one.name


def test_the_stand_in_computes_and_refuses_what_an_accelerator_refuses():
    with accelerator():
        there = torch.ones(3, device=DEVICE)
        made = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
        assert isinstance(made, StandIn)
        assert made.device == DEVICE
        assert (made * there).cpu().tolist() == [1.0, 2.0, 3.0]
        assert made[torch.tensor([2, 0])].cpu().tolist() == [3.0, 1.0]  # an index may lie here
        assert made.new_tensor([4]).dtype == torch.float32
        assert (made + torch.tensor(1.0)).sum().item() == 9.0
        changed = made.clone()
        changed[1:] = 0
        assert changed.cpu().tolist() == [1.0, 0.0, 0.0]
        for mixed in (
            lambda: made + torch.ones(3),
            lambda: torch.cat([made, torch.ones(1)]),
            lambda: torch.ones(3) @ made,
            lambda: torch.arange(3)[made.long()],
            lambda: made.gather(0, torch.zeros(1, dtype=torch.long)),
            lambda: torch.where(torch.ones(3, dtype=torch.bool), made, there),
        ):
            with pytest.raises(RuntimeError, match=r"meta"):
                mixed()
        with pytest.raises((TypeError, RuntimeError)):
            np.asarray(made)
        weight = made.clone().requires_grad_()
        (weight**2).sum().backward()
        assert weight.grad.cpu().tolist() == [2.0, 4.0, 6.0]
