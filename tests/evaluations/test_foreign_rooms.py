"""Causal tracing and lenses on Hugging Face directories of other families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

import evaluations
from evaluations.cli import main
from evaluations.suite.trace.curves import TOO_SMALL
from sat_interp._util.errors import UserError
from tests.evaluations.conftest import STORIES

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
FAMILIES = {
    "GPT-2": GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "Llama, grouped": LlamaConfig(**SMALL, num_key_value_heads=2),
    "GPT-NeoX, sequential": GPTNeoXConfig(**SMALL, use_parallel_residual=False),
}
FACTS = [
    {"subject": name, "attribute": other, "prompt": f"{name} gave the {thing} to"}
    for name in ("Tom", "Anna")
    for other in ("Anna", "Tom")
    for thing in ("ball", "cat", "ball to Tom. Anna gave the cat", "cat to Anna. Tom gave the ball")
]


@pytest.fixture
def written(tokenizer, tmp_path, monkeypatch) -> Path:
    """A working directory with stories and facts."""
    monkeypatch.chdir(tmp_path)
    stories = [f"{first} {second}" for first in STORIES for second in STORIES]
    lines = (json.dumps({"text": story}) for story in stories)
    (tmp_path / "stories.jsonl").write_text("\n".join(lines))
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    return tmp_path


def saved(config, tokenizer, directory: Path) -> None:
    torch.manual_seed(0)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_lenses_of_other_families(family, tokenizer, written):
    saved(FAMILIES[family], tokenizer, written / "model")
    found = evaluations.lens(
        "model",
        data="stories.jsonl",
        fit_windows=16,
        held_windows=12,
        window=10,
        first=2,
        tuned_steps=3,
        evaluations=8,
        edit_prompts=5,
        directions=2,
        resamples=20,
    ).record
    for kind in ("logit", "tuned", "oca", "shared", "mean", "resample"):
        area = found.metric(f"area_{kind}")
        assert 0 < area.interval.low <= area.value <= area.interval.high
    rows = [one for one in found.extra["layers"] if one["lens"] == "oca"]
    assert [one["layer"] for one in rows] == [0, 1]
    assert found.metric("area_oca_minus_tuned").value is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_tracing_of_other_families(family, tokenizer, written):
    """They know nothing, so that corruption costs nothing: what follows is null, not wrong."""
    saved(FAMILIES[family], tokenizer, written / "model")
    found = evaluations.trace(
        "model",
        facts="facts.json",
        answer="own",
        windows=(1,),
        evaluations=4,
        draws=1,
        resamples=20,
    )
    assert found.record.metric("facts_traced").value == len(FACTS)
    assert {one["kind"] for one in found.record.extra["curves"]} == {"attn", "mlp"}
    effect = found.record.metric("aie_gnt_mlp_last_w1")
    assert effect.value is None
    assert effect.reasons == {TOO_SMALL: effect.n}
    with pytest.raises(UserError, match="trace has nothing to draw of these records"):
        found.plot()


@pytest.mark.parametrize("room", ["lens", "trace"])
def test_parallel_blocks_are_refused_by_the_name_of_the_architecture(
    room, tokenizer, written, capsys
):
    saved(GPTNeoXConfig(**SMALL), tokenizer, written / "model")
    data = {"lens": ["--data", "stories.jsonl"], "trace": ["--facts", "facts.json"]}
    assert main([room, "model", *data[room], "--out", "res"]) == 2
    told = capsys.readouterr().err
    assert "GPTNeoXForCausalLM has parallel blocks" in " ".join(told.split())
    assert "Traceback" not in told
