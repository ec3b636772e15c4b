from __future__ import annotations

import dataclasses

import pytest
import torch

from evaluations.cli import main
from evaluations.core.model_source import load_model
from evaluations.core.record import read_records
from evaluations.core.runner import run_one
from evaluations.core.spec import Measurement
from evaluations.suite.sae.budget import fitted
from evaluations.suite.sae.config import PRESETS, SaeConfig
from evaluations.suite.sae.evaluation import evaluate, fit
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.toy import toy_spec

DEMO = PRESETS["demo"]


@pytest.mark.parametrize(
    ("text_tokens", "budget"),
    # in steps of 1,024: 20 x 49,999 = 999,980 makes 976 of them, 20 x 820 = 16,400 makes 16
    [(10**9, 1_000_000), (50_000, 1_000_000), (49_999, 999_424), (2_048, 40_960), (820, 16_384)],
)
def test_the_budget_is_at_most_20_passes_over_the_text_in_whole_batches(text_tokens, budget):
    found = fitted(DEMO, 128, text_tokens)
    assert found == dataclasses.replace(DEMO, tokens=budget)
    assert found.tokens <= 20 * text_tokens
    assert fitted(found, 128, text_tokens) == found


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_limited(name):
    found = fitted(PRESETS[name], 128, 1_000_000)
    most = 20_000_000 // found.batch_tokens * found.batch_tokens
    assert found.tokens == min(PRESETS[name].tokens, most)


@pytest.mark.parametrize("context", [128, 100, 4])
def test_a_text_that_does_not_fill_a_buffer_is_refused_with_the_length_that_would(context):
    with pytest.raises(UserError, match="it takes at least") as told:
        fitted(DEMO, context, 10)
    words = str(told.value).split("at least ")[1]
    least = int(words.split(",")[0])
    assert fitted(DEMO, context, least).tokens >= 128 * context
    with pytest.raises(UserError, match="no autoencoder can be trained"):
        fitted(DEMO, context, least - 1)
    assert f"--tokens {fitted(DEMO, context, least).tokens} for more passes" in words


def test_a_given_autoencoder_asks_for_no_text():
    given = dataclasses.replace(DEMO, given="ab" * 8)
    assert fitted(given, 128, 1) == given


def test_text_that_is_large_enough_keeps_the_identity(make_model, make_data, corpus, tiny):
    model, n = make_model(), len(corpus.tokens)
    large, small = (dataclasses.replace(tiny, tokens=20 * n + more) for more in (0, 1))
    data, plain = make_data(limit_budget=True), make_data()
    assert fit(model, data, large) == large
    assert fit(model, plain, small) == small
    assert fit(model, data, small).tokens == 20 * n // 32 * 32


def test_the_runner_records_the_configuration_that_was_used(
    model_directory, make_data, tiny, corpus, tmp_path
):
    seen = []

    def ask(model, data, config):
        seen.append(config.tokens)
        return Measurement([])

    loaded, used = load_model(str(model_directory)), 20 * len(corpus.tokens) // 32 * 32
    large = dataclasses.replace(tiny, tokens=10**6)
    exact = dataclasses.replace(tiny, tokens=used)
    asked = toy_spec("sae", SaeConfig, ask, fit=fit)
    record, was_done = run_one(asked, loaded, make_data(limit_budget=True), large, tmp_path)
    assert (record.config["tokens"], was_done, seen) == (used, False, [used])
    again, was_done = run_one(asked, loaded, make_data(), exact, tmp_path)
    assert (again.config_hash, was_done) == (record.config_hash, True)


def test_autoencoders_of_one_pass_are_fitted_together(make_model, make_data, tiny, corpus):
    model = make_model().to(torch.float32, print_details=False)
    both = [dataclasses.replace(tiny, tokens=10**6, sparsity=one) for one in (0.1, 1.0)]
    data = make_data(limit_budget=True, together=both)
    result = evaluate(model, data, fit(model, data, both[0]))
    used = 20 * len(corpus.tokens) // 32 * 32
    assert result.extra["training"]["tokens"] == used
    assert result.extra["budget"] == {"tokens": used, "passes": used / len(corpus.tokens)}
    assert not any("times over" in phrase for phrase in result.extra["health"])
    assert len(list(data.directory.iterdir())) == 2


# The command -----------------------------------------------------------------------------------


@pytest.fixture
def command(make_model, stories_file, tmp_path, monkeypatch, capsys):
    """``sat-eval sae`` on 8 short stories, with a preset of small buffers."""
    model = make_model().to(torch.float32, print_details=False)
    directory = save_pretrained(model, tmp_path / "tiny")

    def run(*arguments, prompts=4, preset=100_000):
        small = dataclasses.replace(
            DEMO,
            tokens=preset,
            batch_tokens=32,
            buffer_prompts=prompts,
            norm_batches=4,
            expansion=2,
        )
        monkeypatch.setitem(PRESETS, "demo", small)
        code = main(
            [
                "sae",
                str(directory),
                "--data",
                str(stories_file),
                "--l1",
                "0.1",
                "--out",
                str(tmp_path / "out"),
                "--resamples",
                "20",
                *arguments,
            ]
        )
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split()), read_records(tmp_path / "out")[0]

    return run


def test_a_small_text_gets_a_smaller_budget_which_is_told(command):
    code, told, (record,) = command()
    assert code == 0, told
    used = 20 * record.data["train_tokens"] // 32 * 32
    assert record.config["tokens"] == record.extra["budget"]["tokens"] == used
    assert 19 < record.extra["budget"]["passes"] <= 20
    assert f"read more than once: tiny ({used:,} tokens, " in told
    _, told, again = command("--tokens", str(used))
    assert "were there already" in told
    assert len(again) == 1


def test_a_named_budget_is_obeyed(command):
    code, told, (record,) = command("--tokens", "6400")
    assert code == 0, told
    assert record.config["tokens"] == record.extra["training"]["tokens"] == 6400
    assert "passes over a small text" in told


def test_a_text_that_is_large_enough_gets_the_presets_budget(command):
    code, told, (record,) = command(preset=320)
    assert code == 0, told
    assert record.config["tokens"] == 320


def test_too_small_a_text_is_refused_in_one_line(command):
    code, told, records = command(prompts=1000)
    assert (code, records) == (2, [])
    assert told.count("error:") == 1
    assert "no autoencoder can be trained on a text of" in told
    assert "Traceback" not in told
