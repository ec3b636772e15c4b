"""Models and texts in memory through every evaluation, as a notebook has them."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import evaluations as ev
from evaluations.core.weights import weights_hash
from sat_interp._util.errors import UserError
from tests.evaluations.conftest import STORIES
from tests.evaluations.core.test_model_source import attention_only

Z = "blocks.*.attn.hook_z"
LENGTH = 8


@pytest.fixture(scope="module")
def toy():
    """A two-layer attention-only model with an untied unembedding and no tokenizer."""
    return attention_only()


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Random tokens, each sequence repeated once."""
    half = torch.randint(40, (130, LENGTH), generator=torch.Generator().manual_seed(1))
    return torch.cat([half, half], dim=1)


@pytest.fixture(scope="module")
def task(rows: torch.Tensor) -> list[dict[str, list[int]]]:
    """Induction in token ids; other tokens before the repetition are the corrupted prompt."""
    other = rows.roll(1, 0)
    return [
        {
            "clean": row[: LENGTH + 3].tolist(),
            "corrupt": [*other[number, :LENGTH].tolist(), *row[LENGTH : LENGTH + 3].tolist()],
            "answers": [int(row[3])],
            "wrong_answers": [int(row[5])],
        }
        for number, row in enumerate(rows[:40])
        if row[3] != row[5]
    ]


def test_lm(toy, rows):
    record = ev.lm(toy, data=rows, resamples=20).record
    with torch.inference_mode():
        losses = -toy(rows[:, :-1]).log_softmax(-1).gather(2, rows[:, 1:, None])
    assert record.metric("loss").value == pytest.approx(float(losses.mean()), rel=1e-5)
    assert record.metric("loss").n == rows[:, 1:].numel()
    assert record.metric("bits_per_byte").reasons == {"the text is token ids": 1}
    assert record.model["spec"] == record.data["spec"] == "in memory"
    assert record.model["name"] == "model"
    assert record.model["weights_hash"] == weights_hash(toy)
    assert record.data["tokenizer_note"] == "it has no tokenizer: its tokens are shown as numbers"


@pytest.mark.parametrize("method", ["acdc", "eap", "eap-ig"])
def test_circuits(toy, task, method):
    kept = {"tau": 1e-6} if method == "acdc" else {"edges": 12, "selection": "top"}
    result = ev.acdc(
        toy,
        task=task,
        prompts=16,
        held_out=8,
        method=method,
        random_circuits=2,
        null_draws=1,
        bootstrap=0,
        no_sweep=True,
        **kept,
    )
    assert result.record.data["n"] == 16
    assert result.record.metric("edges").value is not None
    (graph,) = result.graphs.values()
    assert graph.number_of_nodes()


def test_sae(toy, rows):
    result = ev.sae(
        toy,
        data=rows,
        hook="blocks.1.hook_attn_out",
        architecture="topk",
        k=4,
        tokens=8000,
        resamples=20,
    )
    assert result.record.metric("l0").value == pytest.approx(4, abs=0.5)
    assert result.record.extra["sae"]["d_in"] == toy.cfg.d_model


def test_neurons(toy, rows):
    result = ev.neurons(toy, data=rows, hook=Z, sample=3, resamples=20)
    details = result.details
    assert len(details) == 6
    assert details["explanation"].str.contains('" [0-9]+"').any()


def test_n2g(toy, rows):
    result = ev.n2g(toy, data=rows, hook=Z, neurons_per_layer=3, substitutes="neighbours")
    assert len(result.details) == 6


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("gates", {}, "has no gates"),
        ("neurons", {}, "attention only.*blocks.*attn.hook_z"),
        ("n2g", {}, "attention only.*blocks.*attn.hook_z"),
        ("sae", {"tokens": 8000}, "has no MLP"),
    ],
)
def test_what_its_shape_does_not_allow_is_refused_by_name(name, settings, reason, toy, rows):
    with pytest.raises(UserError, match=reason):
        getattr(ev, name)(toy, data=rows, **settings)


def test_a_model_without_a_tokenizer_needs_token_ids(toy):
    with pytest.raises(UserError, match="give the text as lists of token ids"):
        ev.lm(toy, data=STORIES)
    with pytest.raises(UserError, match="or prompts of token ids"):
        ev.acdc(toy)
    with pytest.raises(UserError, match="is not known: name text"):
        ev.lm(toy)


def test_several_models_in_memory(toy, rows, caplog):
    other = attention_only(seed=1)
    with caplog.at_level(logging.WARNING):
        result = ev.lm([toy, other], data=rows, resamples=20)
    names = [record.model["name"] for record in result.records]
    assert names == [f"model {weights_hash(one)[:8]}" for one in (toy, other)]
    named = ev.lm({"first": toy, "second": other}, data=rows.tolist(), resamples=20)
    assert [record.model["name"] for record in named.records] == ["first", "second"]
    assert [one.config_hash for one in named.records] == [one.config_hash for one in result.records]
    assert not caplog.records


def test_a_hugging_face_model_with_its_tokenizer(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=32,
        n_inner=24,
        vocab_size=len(tokenizer),
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    held, named = (
        ev.lm(given, data=STORIES, resamples=20, tokenizer=chosen).record
        for given, chosen in ((model, tokenizer), (tmp_path, None))
    )
    assert held.metric("loss").value == named.metric("loss").value
    assert held.config_hash == named.config_hash
    assert model.training
    neurons = ev.neurons(model, data=STORIES, tokenizer=tokenizer, sample=2, resamples=20)
    assert len(neurons.details) == 4
