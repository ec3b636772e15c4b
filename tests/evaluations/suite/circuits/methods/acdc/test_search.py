"""The fast engine keeps, edge for edge, what the plain sequential algorithm keeps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from evaluations.core.model_source import load_model
from evaluations.suite.circuits.forward import embed, run
from evaluations.suite.circuits.graph import Graph
from evaluations.suite.circuits.methods.acdc import search as module
from evaluations.suite.circuits.methods.acdc.engine import BatchState
from evaluations.suite.circuits.methods.acdc.folded import Folded
from evaluations.suite.circuits.methods.acdc.plan import PartialCircuit
from evaluations.suite.circuits.methods.acdc.search import acdc, settle
from evaluations.suite.circuits.patched import PromptBatch, circuit_kl, circuit_logits, prepare
from sat_interp._util.errors import UserError
from tests.evaluations.suite.circuits.tiny import SHAPES, prompts, tiny_model


def _sequential(
    model: HookedTransformer,
    graph: Graph,
    buckets: Sequence[PromptBatch],
    tau: float,
    order: Tensor,
) -> tuple[Tensor, Tensor, float]:
    """Algorithm 1 of Conmy et al., one whole forward pass per edge."""
    kept = torch.ones(graph.n_edges, dtype=torch.bool)
    steps = torch.zeros(graph.n_edges, dtype=torch.float64)
    reference = 0.0
    for edge in order.tolist():
        kept[edge] = False
        kl = circuit_kl(model, graph, buckets, kept)
        steps[edge] = kl - reference
        if steps[edge] < tau:
            reference = kl
        else:
            kept[edge] = True
    return kept, steps, reference


def _same(
    model: HookedTransformer,
    buckets: Sequence[PromptBatch],
    tau: float,
    seed: int | None = None,
    grouped: bool = False,
) -> tuple[int, int]:
    """Kept and tested edges, after comparing everything with the twin."""
    graph = Graph.of(model, grouped)
    order = graph.order(seed)
    kept, steps, kl = _sequential(model, graph, buckets, tau, order)
    ours = acdc(model, graph, buckets, tau, order)
    assert torch.equal(ours.kept, kept)
    torch.testing.assert_close(ours.steps, steps, atol=1e-10, rtol=1e-8)
    assert ours.kl == pytest.approx(kl, abs=1e-10)
    assert ours.margin == pytest.approx((steps - tau).abs()[ours.tested].min().item(), abs=1e-10)
    assert not (ours.kept & ~ours.tested).any()
    assert not ours.steps[~ours.tested].any()
    return ours.n_kept, ours.n_tested


@pytest.mark.parametrize(
    ("shape", "grouped"),
    [*((shape, False) for shape in SHAPES), ("grouped", True), ("multi-query, serial bias", True)],
)
def test_every_shape(shape, grouped):
    model = tiny_model(shape, seed=len(shape))
    graph = Graph.of(model, grouped)
    tau = 1e-4 if shape in ("soft caps", "clipped") else 0.004
    n_kept, n_tested = _same(model, prepare(model, graph, prompts((8,))), tau, grouped=grouped)
    assert 10 < n_kept < n_tested


@pytest.mark.parametrize("ablation", ["zero", "mean", "cf_mean", "constants"])
def test_every_replacement(ablation):
    model = tiny_model()
    graph = Graph.of(model)
    if ablation == "constants":
        ablation = torch.randn(graph.n_sources, 16, dtype=torch.float64)
    n_kept, n_tested = _same(model, prepare(model, graph, prompts((8,)), ablation), 0.05)
    assert 0 < n_kept < n_tested


@pytest.mark.parametrize("shape", ["gpt-2", "soft caps"])
def test_the_logit_difference_is_an_objective(shape):
    """Its distance from the whole model's in place of KL, in every step."""
    model = tiny_model(shape, seed=1)
    graph = Graph.of(model)
    prepared = prepare(model, graph, prompts((8,)), "mean")
    answers = torch.tensor([[1, 2], [3, 4], [5, 6]])
    (bucket,) = buckets = prepared.answered([answers])
    rows = torch.arange(3)
    kept, steps, reference = torch.ones(graph.n_edges, dtype=torch.bool), [], 0.0
    for edge in graph.order().tolist():
        kept[edge] = False
        logits = circuit_logits(model, graph, [bucket], kept)[0] - bucket.logits
        distance = (logits[rows, answers[:, 0]] - logits[rows, answers[:, 1]]).abs().mean().item()
        steps.append(distance - reference)
        if steps[-1] < 0.02:
            reference = distance
        else:
            kept[edge] = True
    ours = acdc(model, graph, buckets, 0.02)
    assert torch.equal(ours.kept, kept)
    assert ours.steps[graph.order()].tolist() == pytest.approx(steps, abs=1e-9)
    assert 0 < ours.n_kept < graph.n_edges


@pytest.mark.parametrize("shape", ["gpt-2", "rotary, parallel", "neo, local"])
def test_a_clean_mean_keeps_the_first_position(shape):
    """The fast engine, which skips that position, agrees with a twin built without the shortcut."""
    model = tiny_model(shape, seed=3)
    graph, batches = Graph.of(model), prompts((6, 9))
    runs = [run(model, graph, embed(model, batch.clean)) for batch in batches]
    mean = torch.cat([one.sources[:, :, 1:].flatten(1, 2) for one in runs], 1).mean(1)
    plain = []
    for one in runs:
        replacement = mean[:, None, None].repeat(1, *one.sources.shape[1:3], 1)
        replacement[:, :, 0] = one.sources[:, :, 0]
        plain.append(PromptBatch(one.sources, replacement, one.logits))
    ours = acdc(model, graph, prepare(model, graph, batches, "mean"), 0.05)
    kept, steps, kl = _sequential(model, graph, plain, 0.05, graph.order())
    assert torch.equal(ours.kept, kept)
    torch.testing.assert_close(ours.steps, steps, atol=1e-10, rtol=1e-8)
    assert ours.kl == pytest.approx(kl, abs=1e-10)
    assert 0 < ours.n_kept < ours.n_tested


@pytest.mark.parametrize("seed", range(4))
def test_random_models_thresholds_and_orders(seed):
    model = tiny_model(seed=100 + seed, n_layers=3, n_heads=2, initializer_range=0.3 + seed / 20)
    buckets = prepare(model, Graph.of(model), prompts((5 + seed, 8), n=1 + seed % 3, seed=seed))
    _same(model, buckets, 10 ** (-1 - seed / 2), seed)


def test_a_trained_model_on_text():
    loaded = load_model("demo:baseline", dtype="float64")
    graph = Graph.of(loaded.model)
    texts = [
        "Tom and Anna went to the park. Tom gave a ball to",
        "Lily and Ben went to the park. Ben gave a ball to",
    ]
    clean, corrupted = (
        torch.tensor([loaded.tokenizer.encode(t) for t in texts[::s]]) for s in (1, -1)
    )
    batch = prompts()[0]
    batch.clean, batch.corrupted = clean, corrupted
    buckets = prepare(loaded.model, graph, [batch])
    n_kept, n_tested = _same(loaded.model, buckets, 0.05)
    assert 3 < n_kept < n_tested <= graph.n_edges


def test_memory_bounds_the_batches_and_changes_nothing(monkeypatch):
    model = tiny_model()
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts((9,), n=7))
    sizes: list[tuple[int, int]] = []
    original = BatchState.kl

    def watched(self, plan, states, accept=False):
        sizes.append((len(states), len(states) * self.bytes_per_state(plan)))
        return original(self, plan, states, accept)

    monkeypatch.setattr(BatchState, "kl", watched)
    found = []
    for max_bytes in (2**26, 2**18, 1):
        sizes.clear()
        found.append(acdc(model, graph, buckets, 0.01, max_bytes=max_bytes))
        states = max(n for n, _ in sizes)
        assert (states > 1) == (max_bytes > 1)
        assert all(n == 1 or used <= max_bytes for n, used in sizes)
        assert torch.equal(found[-1].kept, found[0].kept)
        torch.testing.assert_close(found[-1].steps, found[0].steps)


def test_one_circuit_on_any_number_of_threads():
    model = tiny_model(n_layers=1, d_mlp=256)
    graph = Graph.of(model)
    batches = prompts((9,), n=100)  # enough for two threads to share
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(acdc(model, graph, prepare(model, graph, batches), 0.03))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].kept, found[1].kept)
    assert 0 < found[0].n_kept < graph.n_edges
    assert found[0].margin > 1e-9


def test_float32_keeps_what_float64_keeps_where_the_margin_is_wide():
    double, single = tiny_model(), tiny_model()
    single.to(torch.float32, print_details=False)
    graph = Graph.of(double)
    exact = acdc(double, graph, prepare(double, graph, prompts()), 0.02)
    rough = acdc(single, graph, prepare(single, graph, prompts()), 0.02)
    assert exact.margin > 1e-5
    assert torch.equal(exact.kept, rough.kept)
    torch.testing.assert_close(exact.steps, rough.steps, atol=1e-5, rtol=1e-4)


def test_a_lower_tau_keeps_more_from_the_same_activations():
    model = tiny_model()
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts())
    before = [bucket.clean.clone() for bucket in buckets]
    sweep = [acdc(model, graph, buckets, tau).n_kept for tau in (0.1, 0.01, 0.001)]
    assert sweep == sorted(sweep)
    assert sweep[0] < sweep[-1]
    assert all(torch.equal(a, b.clean) for a, b in zip(before, buckets, strict=True))


def test_float64_is_float64_throughout():
    """An attention scale of d_head = 3 is no power of two, so that float32 would show in it."""
    model = tiny_model(d_head=3)
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts((8,)))
    state = BatchState(graph, Folded.of(model), buckets[0])
    found = acdc(model, graph, buckets, 0.01)
    kept, steps, _ = _sequential(model, graph, buckets, 0.01, graph.order())
    assert torch.equal(found.kept, kept)
    torch.testing.assert_close(found.steps, steps, atol=1e-13, rtol=1e-11)
    for tensor in (state.current, state.replacement, *state.qkv, *state.z, *state.streams.values()):
        assert tensor.dtype == torch.float64
    attn = model.blocks[0].attn
    wanted = (attn.W_Q / attn.attn_scale * model.blocks[0].ln1.w[:, None]).mT
    torch.testing.assert_close(Folded.of(model).layers[0].weights[0], wanted, atol=0, rtol=1e-15)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("after", [1, 9, 14])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch, after):
    model = tiny_model()
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts())
    state = tmp_path / "deep" / "acdc.state"
    whole = acdc(model, graph, buckets, 0.01)
    visit, visited = module._Search.visit, []

    def stopping(self, destination, sources):
        if len(visited) == after:
            raise _Stop
        visited.append(destination)
        return visit(self, destination, sources)

    monkeypatch.setattr(module._Search, "visit", stopping)
    with pytest.raises(_Stop):
        acdc(model, graph, buckets, 0.01, state=state)
    with state.open("a") as file:
        file.write('{"destination": 3, "kept": [0')  # the power went while this was written

    def counting(self, destination, sources):
        visited.append(destination)
        return visit(self, destination, sources)

    monkeypatch.setattr(module._Search, "visit", counting)
    resumed = acdc(model, graph, buckets, 0.01, state=state)
    assert sorted(visited) == list(range(graph.n_destinations))  # nothing twice
    assert torch.equal(resumed.kept, whole.kept)
    assert torch.equal(resumed.tested, whole.tested)
    torch.testing.assert_close(resumed.steps, whole.steps, atol=1e-12, rtol=1e-9)
    assert resumed.kl == pytest.approx(whole.kl, abs=1e-12)
    assert resumed.margin == pytest.approx(whole.margin, abs=1e-12)
    assert not state.exists()


def test_the_state_of_another_run_is_not_gone_on_with(tmp_path, monkeypatch):
    model = tiny_model()
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts())
    state = tmp_path / "acdc.state"
    with monkeypatch.context() as patch:
        patch.setattr(module.Journal, "remove", lambda self: None)
        acdc(model, graph, buckets, 0.3, state=state)
    assert len(state.read_text().splitlines()) == 1 + graph.n_destinations
    fresh = acdc(model, graph, buckets, 0.01)
    assert torch.equal(acdc(model, graph, buckets, 0.01, state=state).kept, fresh.kept)


@pytest.mark.parametrize("tau", [0.0, -0.1, float("nan"), float("inf")])
def test_tau_must_be_positive(tau):
    with pytest.raises(UserError, match="must be a positive number"):
        acdc(tiny_model(), Graph(2, 4), [], tau)


def test_an_order_that_acdc_may_not_take_is_refused():
    model = tiny_model()
    graph = Graph.of(model)
    buckets = prepare(model, graph, prompts())
    order = graph.order()
    for wrong, message in (
        (order[:-1], "names every edge once"),
        (order.flip(0), "before what the node reads"),
        (
            torch.cat([order[1:3], order[:1], order[3:]])[torch.randperm(len(order))],
            "one after another|before what",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            acdc(model, graph, buckets, 0.1, wrong)


def test_only_what_changes_and_matters_is_planned():
    graph = Graph(3, 2)
    circuit = PartialCircuit(graph)
    final = graph.n_destinations - 1
    circuit.decide(final, [graph.head(2, 1), graph.mlp(0)])
    circuit.decide(graph.destination(2, "q", 1), [graph.head(1, 0)])
    circuit.decide(graph.destination(2, "v", 1), [graph.mlp(1)])
    assert not circuit.matters(graph.destination(2, "q", 0))
    assert not circuit.wants_all_positions(graph.destination(2, "q", 1))
    assert circuit.wants_all_positions(graph.destination(2, "v", 1))
    circuit.decide(graph.destination(1, "mlp"), [graph.head(1, 1)])
    # a1.h0 is read by a query alone: only at the last position; a1.h1 by values: everywhere.
    assert not circuit.wants_all_positions(graph.destination(1, "q", 0))
    assert circuit.wants_all_positions(graph.destination(1, "q", 1))
    plan = circuit.plan(graph.destination(1, "q", 0))
    assert [layer.layer for layer in plan.layers] == [1, 2]
    assert (plan.layers[0].wide, plan.layers[0].narrow, plan.layers[0].mlp) == ([], [0], None)
    assert plan.layers[1].narrow == [1]
    assert [read.sources for read in plan.layers[1].narrow_reads] == [[graph.head(1, 0)]]
    assert plan.layers[1].reads == []
    assert plan.final == [graph.head(2, 1)]
    assert plan.n_changed == 2


def test_a_batch_settles_up_to_its_first_wrong_guess():
    # steps 0.1, 0.1 | 1.0 wrong | then 0.1 and 2.0 on the wrong branch
    settled = settle(0.0, [0.1, 0.2, 1.2, 1.3, 3.3], [True] * 5, 0.5)
    assert settled.steps == pytest.approx([0.1, 0.1, 1.0])
    assert (settled.accepted, settled.kl) == (1, 0.2)
    assert settled.predictions == [True, False]
    # a candidate rightly thought kept does not move the reference
    settled = settle(0.0, [0.9, 0.1, 0.15], [False, True, True], 0.5)
    assert settled.steps == pytest.approx([0.9, 0.1, 0.05])
    assert (settled.accepted, settled.kl, settled.predictions) == (2, 0.15, [])
    # one wrongly thought kept is removed after all, and what follows was built without that
    settled = settle(0.0, [0.2, 0.1], [False, True], 0.5)
    assert (settled.steps, settled.accepted, settled.kl) == ([0.2], 0, 0.2)
    assert settled.predictions == [True]


def test_log_sum_exp_is_right_even_far_from_the_guess():
    model = tiny_model()
    folded = Folded.of(model)
    rows = torch.randn(5, 16, dtype=torch.float64)
    wanted = (rows @ folded.unembed + folded.unembed_bias).logsumexp(-1)
    for off in (0.0, 3.0, 2000.0, -2000.0):
        torch.testing.assert_close(folded.log_sum_exp(rows, wanted + off), wanted)


def test_ours_with_gates_is_searched_on_its_clean_stream(make_model):
    model = make_model("local", k_attention=3)
    batches = prompts((7,))
    buckets = prepare(model, Graph.of(model), batches)
    assert _same(model, buckets, 0.01)[0] > 0


def test_the_bar_says_where_the_search_is(capsys: pytest.CaptureFixture[str], monkeypatch):
    shown: list[str] = []
    show = tqdm.set_postfix_str
    monkeypatch.setattr(
        tqdm, "set_postfix_str", lambda self, text, **k: shown.append(text) or show(self)
    )
    model = tiny_model()
    graph = Graph.of(model)
    result = acdc(model, graph, prepare(model, graph, prompts()), 0.01)
    assert shown[0].startswith("output, 11 tested")
    assert shown[-1] == f"layer 0, {result.n_tested} tested, {result.n_kept} kept"
