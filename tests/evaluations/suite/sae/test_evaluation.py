from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from sae_lens import SAE

from evaluations.cli import main
from evaluations.core.record import read_records
from evaluations.suite.sae import evaluation, search, train
from evaluations.suite.sae.evaluation import evaluate, open_sae
from sat_interp._util.errors import UserError
from sat_interp.io.pretrained import save_pretrained


@pytest.fixture
def model(make_model):
    return make_model("local").to(torch.float32, print_details=False)


def value(result, name):
    return next(metric.value for metric in result.metrics if metric.name == name)


def test_a_record_says_what_was_trained_and_how_it_went(model, make_data, tiny):
    data = make_data()
    result = evaluate(model, data, tiny)
    told = result.extra
    assert told["sae"]["hook"] == "blocks.0.hook_mlp_out"
    assert told["sae"]["d_sae"] == 64
    assert "% per 10 % of training" in told["convergence"] or "no longer" in told["convergence"]
    assert told["training"]["tokens"] == 1280
    assert len(told["training"]["curve"]["ce_score"]) == 20
    assert told["training"]["curve"]["ce_score"][-1][1] is not None
    assert sum(told["density"]["features"]) + told["density"]["dead"] == 64
    assert len(told["replicates"]["l0"]) == 50
    assert value(result, "loss_fall") is not None
    # what plain SAELens reads from the directory has the L0 the record states
    sae = SAE.load_from_disk(data.directory / told["sae"]["directory"])
    active, tokens = 0, 0
    for story in range(len(data.text)):
        end = data.text.corpus.end_of_text
        read = torch.tensor([[end, *data.text.corpus.story(story).tolist()]])[:, : model.cfg.n_ctx]
        x = model.run_with_cache(read)[1]["blocks.0.hook_mlp_out"]
        active += int((sae.encode(x) > 0).sum())
        tokens += read.numel()
    assert value(result, "l0") == pytest.approx(active / tokens, rel=1e-3)


def test_what_is_trained_is_not_trained_again(model, make_data, tiny, monkeypatch):
    one, two = tiny, dataclasses.replace(tiny, sparsity=1.0)
    data = make_data(together=[one, two])
    first = evaluate(model, data, one)
    assert sorted(path.name for path in data.directory.iterdir()) == sorted(
        [data.place(model, one).name, data.place(model, two).name]
    )
    trained = []
    monkeypatch.setattr(
        evaluation, "train", lambda model, corpus, targets, *rest: trained.append(list(targets))
    )
    evaluate(model, data, two)
    again = evaluate(model, make_data(), dataclasses.replace(one, resamples=20))
    assert trained == []
    assert value(again, "l0") == value(first, "l0")
    evaluate(model, make_data(force=True), one)
    assert trained == [[data.place(model, one)]]
    for other in (dataclasses.replace(one, seed=1), dataclasses.replace(one, lr=0.5)):
        assert data.place(model, other) != data.place(model, one)
    assert make_data(model={"name": "x", "weights": "cd"}).place(model, one) != data.place(
        model, one
    )
    renamed = make_data(model={"name": "x", "weights": "ab"})
    assert renamed.place(model, one) == data.place(model, one)


def test_measuring_otherwise_does_not_train_again(model, make_data, tiny, monkeypatch, text):
    data = make_data()
    whole = evaluate(model, data, tiny)
    cfg = json.loads((data.place(model, tiny) / "cfg.json").read_text())
    assert cfg["metadata"]["l0"] == value(whole, "l0")
    assert cfg["metadata"]["l0_measured_on"]["n_stories"] == len(text)
    monkeypatch.setattr(evaluation, "train", lambda *arguments: pytest.fail("trained again"))
    fewer = make_data(text=text.sample(2, seed=0))
    found = evaluate(model, fewer, dataclasses.replace(tiny, resamples=3))
    assert found.extra["sae"]["weights"] == whole.extra["sae"]["weights"]
    assert value(found, "dead_features") > value(whole, "dead_features")
    assert value(found, "dead_in_training") == value(whole, "dead_in_training")
    named = dataclasses.replace(tiny, hook="blocks.0.hook_mlp_out")
    assert evaluate(model, make_data(), named).extra["sae"] == whole.extra["sae"]
    assert fewer.content != data.content  # two records, one autoencoder
    cfg = json.loads((data.place(model, tiny) / "cfg.json").read_text())
    assert cfg["metadata"]["l0"] == value(whole, "l0")


def test_other_training_text_trains_another(model, make_data, tiny, corpus):
    shorter = dataclasses.replace(corpus, offsets=corpus.offsets[:-1])
    other = dataclasses.replace(corpus, tokens=corpus.tokens[::-1].copy())
    places = {make_data(corpus=one).place(model, tiny) for one in (corpus, shorter, other)}
    assert len(places) == 3


def test_an_autoencoder_is_found_when_the_model_was_called_otherwise(
    model, make_data, tiny, tmp_path
):
    before = make_data(directory=tmp_path / "old-name-abcd" / "sae")
    evaluate(model, before, tiny)
    after = make_data(directory=tmp_path / "new-abcd" / "sae")
    assert after.place(model, tiny) == before.place(model, tiny)
    elsewhere = make_data(directory=tmp_path / "new-ffff" / "sae")
    assert elsewhere.place(model, tiny) != before.place(model, tiny)


def test_dead_in_training_is_of_the_last_tenth(model, make_data, tiny):
    data = make_data()
    strong = dataclasses.replace(tiny, sparsity=50.0, lr=0.05)
    result = evaluate(model, data, strong)
    told = json.loads((data.place(model, strong) / "training.json").read_text())
    assert told["dead_over_tokens"] == 4 * 32  # of 40 steps
    assert value(result, "dead_in_training") == told["dead_in_training"] / 64 > 0
    assert any("dead on the evaluation text" in phrase for phrase in result.extra["health"])


def test_a_wanted_l0_is_searched_for_once(model, make_data, tiny, monkeypatch):
    wanted = dataclasses.replace(tiny, sparsity=None, target_l0=28.0)
    data = make_data()
    found = evaluate(model, data, wanted)
    told = found.extra["search"]
    assert found.extra["sae"]["sparsity"] == told["coefficient"]
    assert found.extra["sae"]["label"].endswith("(found, target L0 28)")
    plain = dataclasses.replace(tiny, sparsity=told["coefficient"])
    assert found.extra["sae"]["directory"] == data.place(model, plain).name
    assert not list(data.directory.glob(".*"))
    monkeypatch.setattr(evaluation, "train", lambda *arguments: pytest.fail("trained again"))
    again = evaluate(model, make_data(), wanted)
    assert value(again, "l0") == value(found, "l0")
    assert (
        evaluate(model, make_data(), plain).extra["sae"]["weights"]
        == (found.extra["sae"]["weights"])
    )


def test_a_sweep_that_was_cut_off_goes_on_where_it_was(model, make_data, tiny, monkeypatch):
    one, two, three = (dataclasses.replace(tiny, sparsity=value) for value in (0.1, 0.5, 1.0))
    data = make_data(together=[one, two, three])
    evaluate(model, make_data(), one)  # what is there already takes no part
    monkeypatch.setattr(train, "STATE_SECONDS", 0.0)
    calls = []

    def score(*arguments, stop=15):
        calls.append(stop)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(evaluation, "ce_loss_score", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, two)
    evaluate(model, data, two)
    assert len(calls) < 2 * 20 + 10  # not twice as many, as from the beginning
    assert len(list(data.directory.iterdir())) == 3
    assert not list(data.directory.glob(".training-*"))


def test_a_given_autoencoder_is_measured_as_it_is(model, make_data, tiny, make_model):
    data = make_data()
    trained = evaluate(model, data, tiny)
    given = make_data(given=data.place(model, tiny))
    found = evaluate(model, given, dataclasses.replace(tiny, given="ab" * 8))
    assert value(found, "l0") == value(trained, "l0")
    elsewhere = dataclasses.replace(tiny, given="ab" * 8, hook="blocks.0.mlp.hook_post")
    with pytest.raises(UserError, match=r"reads 16 dimensions, but .*hook_post .* has 64"):
        evaluate(model, given, elsewhere)


def test_what_is_no_autoencoder_is_refused_in_one_line(tmp_path, model, make_data, tiny):
    with pytest.raises(UserError, match="is not a SAELens directory: it has no cfg.json"):
        open_sae(tmp_path, "cpu")
    data = make_data()
    evaluate(model, data, tiny)
    place = data.place(model, tiny)
    (place / "sae_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="SAELens cannot open") as told:
        open_sae(place, "cpu")
    assert "\n" not in str(told.value)


# The command -----------------------------------------------------------------------------------


@pytest.fixture
def command(make_model, stories_file, tmp_path, monkeypatch, capsys):
    model = make_model().to(torch.float32, print_details=False)
    directory = save_pretrained(model, tmp_path / "tiny")
    # the demo's buffer of 128 windows would take longer than the test should
    small = dataclasses.replace(
        evaluation_preset("demo"),
        tokens=2560,
        batch_tokens=32,
        buffer_prompts=8,
        norm_batches=4,
        expansion=2,
    )
    monkeypatch.setitem(presets(), "demo", small)

    def run(*arguments):
        code = main(
            [
                "sae",
                str(directory),
                "--data",
                str(stories_file),
                "--out",
                str(tmp_path / "out"),
                "--resamples",
                "20",
                *arguments,
            ]
        )
        told = capsys.readouterr()
        return code, told.out + told.err

    run.out = tmp_path / "out"
    return run


def presets():
    from evaluations.suite.sae.config import PRESETS

    return PRESETS


def evaluation_preset(name):
    return presets()[name]


def test_a_sweep_leaves_records_directories_tables_and_a_figure(command):
    code, told = command("--l1", "0.01,0.1")
    assert code == 0, told
    assert "2 records" in told
    records, problems = read_records(command.out / next(iter(command.out.glob("tiny-*"))).name)
    assert [record.config["sparsity"] for record in records] != []
    assert {record.config["sparsity"] for record in records} == {0.01, 0.1}
    # the directories' own files are no records, and are told apart from damaged ones by the reader
    assert all("sae" in path.parts for path in problems)
    for record in records:
        place = next(command.out.glob(f"tiny-*/sae/{record.extra['sae']['directory']}"))
        assert SAE.load_from_disk(place).cfg.d_sae == 32
    for ending in (".md", ".csv", ".png", ".svg"):
        (path,) = command.out.glob(f"sae-tiny-??????{ending}")
        assert path.stat().st_size > 0
    code, told = command("--l1", "0.1")
    assert code == 0
    assert "1 were there already" in told


def test_a_useless_default_is_followed_by_a_search(command, caplog, monkeypatch):
    monkeypatch.setattr(search, "WIDENINGS", 0)
    code, told = command("--control", "untrained")
    assert code == 0, told
    records, _ = read_records(command.out)
    plain = [one for one in records if one.config["target_l0"] is None]
    assert {one.model["name"] for one in plain} == {"tiny", "tiny [untrained]"}
    assert "not converged" in told
    failed = [one for one in caplog.messages if "the follow-up measurement failed" in one]
    assert len(records) - 2 + len(failed) == 2


def test_a_named_coefficient_is_followed_by_none(command):
    code, told = command("--l1", "50")
    assert code == 0, told
    assert "†" in told
    assert len(read_records(command.out)[0]) == 1


def test_held_out_stories_are_not_trained_on(command):
    assert command("--l1", "1")[0] == 0
    records, _ = read_records(command.out)
    assert records[0].data["split"] == "validation"
    assert records[0].data["n_stories"] < 8


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--hook", "blocks.0.hook_mlp"), "hook point"),
        (("--tokens", "50"), "--tokens 50 is less than one buffer"),
        (("--l1", "1,two"), "--l1 must be numbers, separated by commas"),
        (("--l1=-1",), "--l1 must be at least 0"),
        (("--l1", "nan"), "--l1 must be at least 0"),
        (("--l1", "inf"), "--l1 must be at least 0"),
        (("--target_l0", "0"), "--target-l0 must be above 0"),
        (("--architecture", "topk", "--target_l0", "4"), "--target-l0 does not apply to topk"),
        (("--control", "untranied"), "untrained"),
        (("--k", "4"), "--k does not apply to standard"),
        (("--architecture", "topk", "--l1", "4"), "--l1 does not apply to topk"),
        (("--architecture", "topk", "--k", "2.5"), "--k must be a whole number"),
        (("--sae", "nowhere"), "is not a SAELens directory"),
        (("--preset", "papre"), "preset"),
    ],
)
def test_bad_input_gives_one_line_and_exit_2(command, arguments, match):
    code, told = command(*arguments)
    assert code == 2
    lines = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert match in lines[0]
    assert "Traceback" not in told


def test_other_architectures_by_their_names(command):
    for kind in ("topk", "gated"):
        code, told = command(
            "--architecture", kind, *(["--k", "3"] if kind == "topk" else ["--l1", "5"])
        )
        assert code == 0, told
    records, _ = read_records(command.out)
    labels = {record.extra["sae"]["label"] for record in records}
    assert labels == {"topk k 3", "gated L1 5"}
    assert json.loads(records[0].to_json())["evaluation"] == "sae"
