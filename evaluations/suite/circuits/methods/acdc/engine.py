"""The fast engine: the KL of many candidate inputs of one destination, in one batch.

Activations upstream of the destination are those of the clean run and are not recomputed.
Downstream, only activations that change are computed (``plan.py``), as differences from the circuit
accepted so far. Positions before the first difference between clean run and replacement do not
change either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evaluations.suite.circuits.attention import visible
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc.folded import Folded, Layer
from evaluations.suite.circuits.methods.acdc.plan import LayerPlan, Plan, Read
from evaluations.suite.circuits.patched import PromptBatch

States = Float[Tensor, "state batch pos d_model"]
Inputs = Float[Tensor, "state batch read_pos d_model"]


class BatchState:
    """The activations of prompts of one length in the circuit accepted so far."""

    def __init__(self, graph: Graph, folded: Folded, bucket: PromptBatch) -> None:
        self.graph, self.folded = graph, folded
        self.current = folded.centre(bucket.clean).clone()
        self.replacement = folded.centre(bucket.replacement)
        self.n_prompts, self.n_positions = bucket.clean.shape[1:3]
        self.first = min(bucket.first, self.n_positions - 1)
        self.base: dict[int, Tensor] = {}  # inputs of decided destinations
        self.streams: dict[int, Tensor] = {}  # the clean residual stream after n sources
        self.qkv: list[Tensor] = []
        self.z: list[Tensor] = []
        for layer in range(graph.n_layers):
            self._run_clean(layer)
        self._add_stream(graph.n_sources, graph.n_layers)
        self.masks = [
            visible(self.n_positions, layer.window, bucket.logits.device).logical_not_()
            for layer in folded.layers
        ]
        self.divergence = (
            folded.divergence(bucket.logits)
            if bucket.answers is None
            else folded.distance(bucket.logits, bucket.answers)
        )

    def _run_clean(self, layer: int) -> None:
        """Compute queries, keys, values and z of the clean run."""
        graph, weights = self.graph, self.folded.layers[layer]
        stream = self._add_stream(graph.before(layer), layer)
        if graph.mlps and not graph.parallel:
            self._add_stream(graph.before(layer) + graph.n_heads, layer + 1)
        scale = self.folded.scale(stream)
        qkv = (stream * scale) @ weights.weights[:, :, None].mT + weights.biases[:, :, None, None]
        if weights.finish is not None:
            for number, part in enumerate(qkv):
                part.copy_(weights.finish(number, part.flatten(0, 1), 0).view_as(part))
        future = visible(self.n_positions, weights.window, stream.device).logical_not_()
        q, k, v = qkv
        self.qkv.append(qkv)
        scores = weights.positioned(q @ k.mT, None)
        self.z.append(scores.masked_fill_(future, -torch.inf).softmax(-1) @ v)

    def _add_stream(self, n: int, n_biases: int) -> Float[Tensor, "batch pos d_model"]:
        written = self.current[:n].sum(0)
        bias = sum(
            (layer.bias for layer in self.folded.layers[:n_biases]), start=written.new_zeros(())
        )
        self.streams[n] = written + bias
        return self.streams[n]

    def positions(self, wide: bool) -> int:
        """Return the number of positions, counted from the end, of a wide or narrow input."""
        return self.n_positions - self.first if wide else 1

    # The input of the destination being visited ------------------------------------------------

    def clean_input(self, plan: Plan) -> Float[Tensor, "batch pos d_model"]:
        """Return the input of a destination with every edge kept."""
        stream = self.streams[self.graph.n_read[plan.destination]]
        return stream[:, -self.positions(plan.wide) :]

    def states(
        self,
        start: Float[Tensor, "batch pos d_model"],
        sources: Sequence[int],
        stays_removed: Sequence[bool],
    ) -> States:
        """Return states: ``start`` with source i and the earlier removed sources replaced.

        Args:
            start: the input before any of the sources is replaced.
            sources: the sources, one state each.
            stays_removed: whether a source stays replaced in the states after it.
        """
        n = start.shape[1]
        states = start.new_empty(len(sources), *start.shape)
        for state, source, stays in zip(states, sources, stays_removed, strict=True):
            torch.sub(start, self.current[source][:, -n:], out=state)
            state += self.replacement[source][:, -n:]
            if stays:
                start = state
        return states

    # Downstream --------------------------------------------------------------------------------

    def kl(self, plan: Plan, states: States, accept: bool = False) -> Float[Tensor, "state"]:
        """Return the KL from the clean output, summed over prompts, for each state.

        Args:
            plan: what changes downstream of the destination.
            states: inputs of the destination.
            accept: whether to make the single state given the state of the circuit.
        """
        deltas: dict[int, Tensor] = {}
        if accept:
            whole = self.streams[self.graph.n_read[plan.destination]].clone()
            self.base[plan.destination] = whole
        for layer in plan.layers:
            if layer.wide or layer.narrow:
                self._attention(layer, plan, states, deltas, accept)
            if layer.mlp is not None:
                self._mlp(layer, plan, states, deltas, accept)
        end = Read(self.graph.n_destinations - 1, 0, [], plan.final)
        final = self._read(end, False, plan, states, deltas, accept)
        scaled = (final * self.folded.scale(final))[:, :, 0]
        found: Tensor = self.divergence(scaled).double().sum(1)
        return found

    def _read(
        self,
        read: Read,
        wide: bool,
        plan: Plan,
        states: States,
        deltas: dict[int, Tensor],
        accept: bool,
    ) -> Inputs:
        """Return the input of a destination in each state."""
        n = self.positions(wide)
        if read.destination == plan.destination:
            inputs = states
        else:
            first, *others = read.sources
            inputs = self.base[read.destination][:, -n:] + deltas[first][:, :, -n:]
            for source in others:
                inputs += deltas[source][:, :, -n:]
        if accept:
            self.base[read.destination][:, -n:] = inputs[0]
        return inputs

    def _attention(
        self,
        layer: LayerPlan,
        plan: Plan,
        states: States,
        deltas: dict[int, Tensor],
        accept: bool,
    ) -> None:
        weights = self.folded.layers[layer.layer]
        fresh: dict[tuple[int, int], Tensor] = {}
        for wide, reads in ((True, layer.reads), (False, layer.narrow_reads)):
            for read in reads:
                x = self._read(read, wide, plan, states, deltas, accept)
                y = self._projected(weights, read, x)
                for head in read.heads:
                    if accept:
                        kept = self.qkv[layer.layer][read.part, head]
                        kept[:, -y.shape[2] :] = y[0]
                    fresh[read.part, head] = y
        for wide, heads in ((True, layer.wide), (False, layer.narrow)):
            if heads:
                self._heads(layer.layer, heads, wide, len(states), fresh, deltas, accept)

    def _projected(
        self, weights: Layer, read: Read, x: Inputs
    ) -> Float[Tensor, "state batch pos d_head"]:
        """Return queries, keys or values of a destination; its heads share their weights."""
        product = weights.weights[read.part, read.heads[0]] @ x.flatten(0, 2).T
        y: Tensor = product.T.unflatten(0, x.shape[:3]) * self.folded.scale(x)
        y += weights.biases[read.part, read.heads[0]]
        if weights.finish is None:
            return y
        offset = self.n_positions - y.shape[2]
        finished: Tensor = weights.finish(read.part, y.flatten(0, 1), offset)
        return finished.view_as(y)

    def _heads(
        self,
        layer: int,
        heads: list[int],
        wide: bool,
        n_states: int,
        fresh: dict[tuple[int, int], Tensor],
        deltas: dict[int, Tensor],
        accept: bool,
    ) -> None:
        """Compute the change of these heads' outputs."""
        n = self.positions(wide)
        q = self._gathered(layer, 0, heads, n_states, fresh, n)
        k = self._gathered(layer, 1, heads, n_states, fresh, self.n_positions)
        v = self._gathered(layer, 2, heads, n_states, fresh, self.n_positions)
        scores: Tensor = self.folded.layers[layer].positioned(q @ k.mT, heads)
        if n > 1 or self.folded.layers[layer].window is not None:
            scores.masked_fill_(self.masks[layer][-n:], -torch.inf)
        z = scores.softmax(-1) @ v
        kept = self.z[layer][heads][:, :, -n:]
        change = (z - kept[:, None]).flatten(1, 3) @ self.folded.layers[layer].out[heads]
        change = change.unflatten(1, (n_states, self.n_prompts, n))
        for head, z_head, delta in zip(heads, z, change, strict=True):
            source = self.graph.head(layer, head)
            deltas[source] = delta
            if accept:
                self.z[layer][head, :, -n:] = z_head[0]
                self.current[source, :, -n:] += delta[0]

    def _gathered(
        self,
        layer: int,
        part: int,
        heads: list[int],
        n_states: int,
        fresh: dict[tuple[int, int], Tensor],
        n: int,
    ) -> Float[Tensor, "heads state batch pos d_head"]:
        """Return queries, keys or values of heads at the last n positions, changed or not."""
        kept = self.qkv[layer][part, :, :, -n:]
        if not any((part, head) in fresh for head in heads):
            return kept[heads][:, None]
        gathered = kept.new_empty(len(heads), n_states, *kept.shape[1:])
        for row, head in zip(gathered, heads, strict=True):
            y = fresh.get((part, head))
            if y is None:
                row[:] = kept[head]
                continue
            row[:, :, n - y.shape[2] :] = y
            if y.shape[2] < n:
                row[:, :, : n - y.shape[2]] = kept[head][:, : n - y.shape[2]]
        return gathered

    def _mlp(
        self,
        layer: LayerPlan,
        plan: Plan,
        states: States,
        deltas: dict[int, Tensor],
        accept: bool,
    ) -> None:
        mlp = self.folded.layers[layer.layer].mlp
        assert layer.mlp is not None
        assert mlp is not None
        x = self._read(layer.mlp, layer.mlp_wide, plan, states, deltas, accept)
        source = self.graph.mlp(layer.layer)
        kept = self.current[source][:, -x.shape[2] :]
        written = mlp((x * self.folded.scale(x)).flatten(0, 2)).view_as(x)
        deltas[source] = written - kept
        if accept:
            kept[:] = written[0]

    def bytes_per_state(self, plan: Plan) -> int:
        """Estimate the working memory of a state: its input, changes, and scratch of a layer."""
        rows = self.n_prompts * self.positions(plan.wide)
        width = self.current.shape[-1]
        n_heads = max((len(p.wide) + len(p.narrow) for p in plan.layers), default=0)
        scores = n_heads * (2 * self.n_positions + 4 * width // self.graph.n_heads + width)
        hidden = 12 * width  # MLP activations, four times as wide, and two temporary copies
        values = width * (plan.n_changed + 4) + scores + hidden
        return rows * values * self.current.element_size()
