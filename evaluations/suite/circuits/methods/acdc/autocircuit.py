"""auto-circuit as an engine, and as a reference for our own (UFO-101/auto-circuit 1.0.1, MIT).

Its code is used unchanged, except for the edge order: it iterates over a set of strings, so its
circuits depend on PYTHONHASHSEED. Here its edges are visited in our order. It supports one batch of
prompts and resample ablation only. It is not the default because it runs a forward pass for every
edge. ``make auto-circuit`` installs it without its dependencies, one of which replaces tqdm.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformer_lens
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from evaluations.suite.circuits.config import check_tau
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.patched import Prompts
from sat_interp._util.errors import UserError
from sat_interp._util.progress import bar
from sat_interp.model.transformer import SelfAblatingTransformer

_OLD_CACHE = "transformer_lens.past_key_value_caching"


def available() -> bool:
    """Return whether auto-circuit is installed."""
    return importlib.util.find_spec("auto_circuit") is not None


def autocircuit(
    model: HookedTransformer,
    graph: Graph,
    batches: Sequence[Prompts],
    tau: float,
    order: Int[Tensor, "some_edges"] | None = None,
) -> Bool[Tensor, "edge"]:
    """Return the edges that auto-circuit's ACDC keeps, visited in our order.

    Args:
        model: the model.
        graph: its graph.
        batches: prompts of one length.
        tau: the threshold in nats.
        order: the edges to visit, by default all; other edges are kept. auto-circuit itself always
            visits layer by layer.

    Raises:
        UserError: auto-circuit is not installed, tau is not positive, or the prompts differ in
            length.
    """
    check_tau(tau)
    prompts = _one_batch(batches, model.W_E.device)
    with _old_transformer_lens() as its_acdc:
        patchable = _patchable(model)
        edges = {_number(graph, edge): edge for edge in patchable.edges}
        visited = (graph.order() if order is None else order).tolist()
        patchable.edges = [edges[number] for number in visited]
        scores = its_acdc.acdc_prune_scores(patchable, [prompts], None, [0], [tau])
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    for number, edge in edges.items():
        kept[number] = bool(torch.isinf(edge.prune_score(scores)))
    return kept


def _one_batch(batches: Sequence[Prompts], device: torch.device) -> types.SimpleNamespace:
    if len({batch.clean.shape[1] for batch in batches}) != 1:
        raise UserError("auto-circuit takes prompts of one length: use --engine fast")
    return types.SimpleNamespace(
        clean=torch.cat([batch.clean for batch in batches]).to(device),
        corrupt=torch.cat([batch.corrupted for batch in batches]).to(device),
    )


def _patchable(model: HookedTransformer) -> Any:
    """Return a copy of the model, wrapped by auto-circuit."""
    if isinstance(model, SelfAblatingTransformer):
        plain = model.to_hooked_transformer()
    else:
        plain = copy.deepcopy(model)
    plain.eval().requires_grad_(False)
    plain.tokenizer = None  # the prompts are tokens without padding
    plain.cfg.use_attn_result = plain.cfg.use_split_qkv_input = True
    plain.cfg.use_hook_mlp_in = not plain.cfg.attn_only
    graph_utils: Any = importlib.import_module("auto_circuit.utils.graph_utils")
    return graph_utils.patchable_model(
        plain, factorized=True, slice_output="last_seq", separate_qkv=True, device=model.W_E.device
    )


def _number(graph: Graph, edge: Any) -> int:
    """Return our number of an edge of auto-circuit, which numbers sources as we do."""
    module = edge.dest.module_name.split(".")
    if module[-1] == "hook_resid_post":
        destination = graph.destination(graph.n_layers, "resid_final")
    elif module[-1] == "hook_mlp_in":
        destination = graph.destination(int(module[1]), "mlp")
    else:
        part = module[-1].removeprefix("hook_").removesuffix("_input")
        destination = graph.destination(int(module[1]), part, edge.dest.head_idx)
    return graph.edge(edge.src.src_idx, destination)


@contextmanager
def _old_transformer_lens() -> Iterator[Any]:
    """Import auto-circuit's ACDC with the TransformerLens names it expects and our progress bar."""
    if not available():
        raise UserError(
            "auto-circuit is not installed: run make auto-circuit, or use --engine fast"
        )
    cache = transformer_lens.TransformerLensKeyValueCache
    module = types.ModuleType(_OLD_CACHE)
    module.HookedTransformerKeyValueCache = cache  # type: ignore[attr-defined]
    lens: Any = transformer_lens
    lens.HookedTransformerKeyValueCache = cache
    sys.modules[_OLD_CACHE] = module
    try:
        its_acdc: Any = importlib.import_module("auto_circuit.prune_algos.ACDC")
        original, its_acdc.tqdm = its_acdc.tqdm, partial(bar, desc="auto-circuit")
        try:
            yield its_acdc
        finally:
            its_acdc.tqdm = original
    finally:
        del sys.modules[_OLD_CACHE]
        del lens.HookedTransformerKeyValueCache
