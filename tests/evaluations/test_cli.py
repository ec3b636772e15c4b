from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from evaluations.cli import main
from evaluations.core.record import read_records
from sat_interp.data.tokenizer import train_bpe
from sat_interp.io.pretrained import save_pretrained
from tests.evaluations.conftest import STORIES

FAST = ["--resamples", "50", "--activation-stories", "3"]


@pytest.fixture
def evaluate(stories_file, tmp_path, monkeypatch, capsys):
    """Run ``sat-eval lm`` on the stories; returns exit code, stdout, stderr and records."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, data: bool = True):
        more = ["--data", str(stories_file)] if data else []
        code = main(["lm", *FAST, "--out", "res", *more, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err, read_records("res")[0]

    return run


def test_several_models_give_a_table_and_a_record_each(evaluate, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path / "base")
    save_pretrained(make_model("local"), tmp_path / "gated")
    code, out, err, records = evaluate("gated", "base")
    assert (code, err) == (0, "")
    assert {record.model["name"] for record in records} == {"base", "gated"}
    assert out.index("base") < out.index("gated")  # the baseline comes first
    for record in records:
        assert f"{record.metric('perplexity').value:,.2f}" in out
        assert record.data["n_stories"] == len(STORIES)
    assert "Perplexity ↓" in out
    assert "2 records in res" in out
    assert "2 were there already" in evaluate("gated", "base")[1]


def test_a_gpt2_of_hugging_faces_goes_through(evaluate, tokenizer, text, tmp_path):
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            vocab_size=len(tokenizer),
            initializer_range=0.3,
        )
    ).eval()
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, _, err, records = evaluate("gpt2")
    assert (code, err) == (0, "")
    (record,) = records
    nats, scored = 0.0, 0
    for story in range(len(text)):
        end = text.corpus.end_of_text
        ids = torch.tensor([[end, *text.corpus.story(story).tolist(), end]])
        # transformers' own loss: a mean over the tokens after the first
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        scored += ids.shape[1] - 1
    assert record.metric("loss").value == pytest.approx(nats / scored, rel=1e-4)
    assert record.metric("loss").n == scored
    assert record.metric("cut_tokens").value == 0


def test_the_default_text_is_what_was_held_out_in_training(
    evaluate, make_model, stories_file, tmp_path
):
    save_pretrained(make_model(), tmp_path / "run" / "model")
    config = {"config": {"data": str(stories_file)}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    code, _, _, (record,) = evaluate("run", data=False)
    assert code == 0
    assert record.data["split"] == "validation"
    assert record.data["n_stories"] < len(STORIES)


@pytest.mark.parametrize("name", ["./text/stories.jsonl", "copy.jsonl", "link.jsonl"])
def test_a_training_text_by_another_name_is_scored_where_it_was_held_out(
    evaluate, make_model, stories_file, tmp_path, name
):
    (tmp_path / "text").mkdir()
    for copy in ("text/stories.jsonl", "copy.jsonl"):
        (tmp_path / copy).write_bytes(stories_file.read_bytes())
    (tmp_path / "link.jsonl").symlink_to("text/stories.jsonl")
    save_pretrained(make_model(), tmp_path / "run" / "model")
    config = {"config": {"data": "text/stories.jsonl"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    save_pretrained(make_model("local"), tmp_path / "stranger")
    code, out, _, records = evaluate("stranger", "./run", "--data", name, data=False)
    assert code == 0
    # all of them, so that the figures can be compared
    assert [record.data["split"] for record in records] == ["validation", "validation"]
    assert len({record.data["content"] for record in records}) == 1
    assert records[0].data["n_stories"] < len(STORIES)
    assert "same tokens" not in out
    for record in records:
        assert record.data["spec"] == "stories.jsonl"
        assert record.model["spec"] in ("run", "stranger")
        assert str(tmp_path) not in record.to_json()
    (table,) = (tmp_path / "res").glob("lm-*.md")
    assert "stories.jsonl, validation split" in table.read_text()
    assert "text/stories" not in table.read_text()


def test_validation_data_of_the_training_is_used_for_all(
    evaluate, make_model, stories_file, tmp_path
):
    (tmp_path / "held.txt").write_text("Anna was sad in the park.", encoding="utf-8")
    save_pretrained(make_model(), tmp_path / "run" / "model")
    config = {"config": {"data": str(stories_file), "validation": str(tmp_path / "held.txt")}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    save_pretrained(make_model("local"), tmp_path / "stranger")
    code, _, _, records = evaluate("stranger", "run")
    assert code == 0
    assert [record.data["n_stories"] for record in records] == [1, 1]
    assert {record.data["validation"] for record in records} == {"held.txt"}


def test_a_training_text_that_has_gone_is_asked_for_and_known_by_its_name(
    evaluate, make_model, stories_file, tmp_path
):
    facts = {"data": stories_file.name}  # an exported model: its run is elsewhere
    save_pretrained(make_model(), tmp_path / "exported", card=facts)
    code, _, err, _ = evaluate("exported", data=False)
    assert code == 2
    assert "stories.jsonl) is not here: name text with --data" in err
    code, _, _, (record,) = evaluate("exported")
    assert code == 0
    assert record.data["split"] == "validation"


def test_a_strange_tokenizer_is_told_in_the_record(evaluate, make_model, tmp_path):
    save_pretrained(make_model(), tmp_path / "tiny")
    train_bpe(STORIES[:3], 270).save_pretrained(tmp_path / "tokens")
    assert "tokenizer_note" not in evaluate("tiny")[3][0].data
    code, _, _, records = evaluate("tiny", "--tokenizer", "tokens")
    assert code == 0
    noted = [record for record in records if "tokenizer_note" in record.data]
    assert len(noted) == 1
    assert noted[0].data["tokenizer"] in noted[0].data["tokenizer_note"]


def test_a_config_file_and_the_printed_configuration_agree(evaluate, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["lm", "x", "--seed", "5", "--force", "--print_config"])
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "seed: 5" in printed
    (tmp_path / "lm.yaml").write_text(printed.replace("- x", "- tiny"))
    code, _, err, _ = evaluate("--config", "lm.yaml")
    assert code == 2
    assert "tiny" in err


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from evaluations.cli import main\n"
        "try: main(['lm', '--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sat-eval lm demo:baseline demo:local-k4 demo:global-k4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere"),
        (["./nowhere/at/all"], "no such directory"),
        (["demo:baselin"], "did you mean 'demo:baseline'"),
        (["a-file"], "is a file"),
        (["empty"], "empty does not hold a model"),
        (["damaged"], "damaged"),
        ([], "MODEL"),
        (["tiny", "--stories", "0"], "--stories"),
        (["tiny", "--stories", "many"], "--stories must be a whole number, not 'many'"),
        (["tiny", "--resamples", "-1"], "resamples"),
        (
            ["tiny", "--dtype", "float8"],
            "unknown dtype 'float8': did you mean 'float64'?",
        ),
        (["tiny", "--device", "toaster"], "toaster"),
        (["tiny", "--sead", "1"], "--sead"),
        (["tiny", "--tokenizer", "gpt2"], "do not belong together"),
        (["tiny", "--tokenizer", "./nothing"], "nothing"),
        (["tiny", "--data", "missing.jsonl"], "missing.jsonl"),
        (["tiny", "--data", "empty.txt"], "no text"),
        (["tiny", "--data", "table.csv"], "table.csv"),
        (["tiny", "--data", "demo:x"], "demo:x"),
        (["tiny", "--validation", "missing.txt"], "missing.txt"),
        (["tiny", "--out", "a-file"], "a-file"),
        (["tiny", "nowhere"], "1 of 2 models failed: nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    evaluate, model_directory, tmp_path, arguments, told
):
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty.txt").write_text("  \n")
    (tmp_path / "table.csv").write_text("text\nx\n")
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model_directory.iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:100] if "safetensors" in path.name else content)
    code, _, err, _ = evaluate(*arguments, data="--data" not in arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


def test_an_unknown_command_is_one_line(capsys):
    assert main(["lmm"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "lmm" in err
