"""Which directory a name stands for, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from sat_interp._util.errors import UserError
from sat_interp.io import locate
from sat_interp.model.transformer import SelfAblatingTransformer


def test_a_run_stands_for_its_best_model_else_its_last(make_model, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="without a saved model"):
        locate.find_model(run)
    make_model("none").save_pretrained(run / "model")
    assert locate.find_model(run) == run / "model"
    make_model("local").save_pretrained(run / "best")
    assert locate.find_model(str(run)) == run / "best"
    assert SelfAblatingTransformer.from_pretrained(run).ablation.variant == "local"


def test_bundled_models_have_names(monkeypatch, make_model, tmp_path):
    monkeypatch.setattr(locate, "__file__", str(tmp_path / "io" / "locate.py"))
    with pytest.raises(
        UserError, match="sat-train --preset builtin-local-k4 --out runs/local-k4"
    ) as refusal:
        locate.model_path("demo:local-k4")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="did you mean 'demo:local-k4'"):
        locate.model_path("demo:local-k5")
    make_model("global").save_pretrained(tmp_path / "models" / "global-k4")
    assert locate.model_path("demo:global-k4") == tmp_path / "models" / "global-k4"
    assert SelfAblatingTransformer.from_pretrained("demo:global-k4").ablation.variant == "global"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./absent", "no model directory"),
        ("/absent/model", "no model directory"),
        ("absent", "no model directory"),
        ("a/b/c", "no model directory"),
        ("nobody/nothing", "neither|cannot be loaded from the Hugging Face hub"),
        ("runs/absent", "cannot be loaded from the Hugging Face hub"),
    ],
)
def test_a_name_that_stands_for_nothing(name, message):
    with pytest.raises(UserError, match=message) as refusal:
        SelfAblatingTransformer.from_pretrained(name)
    assert "\n" not in str(refusal.value)


def test_files_and_foreign_directories_are_told_apart(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        locate.find_model(tmp_path / "weights.pt")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "gpt_neo"}')
    with pytest.raises(UserError, match="from_hf"):
        locate.find_model(tmp_path / "hf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither cfg\.json .* nor config\.json"):
        locate.find_model(tmp_path / "empty")


def _cached_repository(cache: Path) -> Path:
    """What the hub's client leaves on disk after a download of owner/name."""
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return repository / "snapshots" / ("a" * 40)


def test_offline_a_repository_comes_from_the_cache(make_model, tokens, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = make_model("local")
    model.save_pretrained(_cached_repository(tmp_path))
    loaded = SelfAblatingTransformer.from_pretrained("owner/name")
    assert (loaded(tokens) == model(tokens)).all()


def test_only_our_files_are_downloaded(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"has no cfg\.json"):
        SelfAblatingTransformer.from_pretrained("owner/name", revision="v2")
    assert asked["name"] == "owner/name"
    assert asked["revision"] == "v2"
    assert set(asked["allow_patterns"]) == set(locate.OUR_FILES)
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in locate.OUR_FILES)
