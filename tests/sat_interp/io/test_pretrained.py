"""A saved model is whole or refused by name, and comes back as it was."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import train_bpe, vocabulary_hash
from sat_interp.io import pretrained
from sat_interp.model.config import SelfAblationConfig
from sat_interp.model.shape import gpt_neo_config
from sat_interp.model.transformer import SelfAblatingTransformer

VARIANTS = ["none", "local", "global"]
load = SelfAblatingTransformer.from_pretrained


@pytest.fixture
def saved(make_model, tmp_path) -> Path:
    return make_model("local").save_pretrained(tmp_path / "model", {"seed": 3})


# Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gates", ["learned", "frozen", "random"])
def test_what_is_saved_comes_back(make_model, tokens, tmp_path, variant, gates):
    model = make_model(variant, gates=gates, k_attention=2, unit="head", temperature=0.7)
    model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.ablation == model.ablation
    assert loaded.cfg.to_dict() == model.cfg.to_dict()
    assert torch.equal(loaded(tokens), model(tokens))
    theirs = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(theirs[name], parameter)
        assert theirs[name].requires_grad == parameter.requires_grad
    if variant != "none":
        torch.manual_seed(0)
        ablated = model.eval().dual(tokens).ablated_logits
        torch.manual_seed(0)
        assert torch.equal(loaded.dual(tokens).ablated_logits, ablated)


def test_the_embedding_is_stored_once_and_no_buffer_at_all(make_model, tmp_path):
    model = make_model("global")
    model.save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    assert names == {name for name, _ in model.named_parameters()}
    assert "embed.W_E" in names
    assert not any(name.endswith(("W_U", "mask", "IGNORE")) for name in names)


def test_other_shapes_and_scales_come_back(tokens, tmp_path):
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=61, n_ctx=9, d_mlp=5)
    cfg.use_attn_scale, cfg.attn_scale, cfg.act_fn, cfg.eps = True, 1.5, "relu", 1e-3
    cfg.default_prepend_bos = False
    model = SelfAblatingTransformer(cfg)
    model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.cfg.default_prepend_bos is False


def test_stored_in_half_loaded_in_full(make_model, tokens, tmp_path):
    model = make_model("local").to(torch.float32)
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [
        sum(t.nbytes for t in load_file(tmp_path / name / "model.safetensors").values())
        for name in ("full", "half")
    ]
    assert sizes[1] * 2 == sizes[0]
    loaded = load(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.cfg.dtype == torch.float32
    assert torch.equal(loaded.W_E, model.W_E.half().float())
    assert torch.allclose(loaded(tokens), model(tokens), atol=0.1)


def test_a_model_saved_before_near_ties_existed_has_the_old_gradient(make_model, tmp_path):
    assert load(make_model("local").save_pretrained(tmp_path / "new")).ablation.near_ties == (
        "no_gradient"
    )
    made = make_model("local", near_ties="detached_floor").save_pretrained(tmp_path / "model")
    assert "near_ties" not in json.loads((made / "cfg.json").read_text())["ablation"]
    assert load(made).ablation.near_ties == "detached_floor"
    assert load("demo:local-k4").ablation.near_ties == "detached_floor"


def test_the_type_can_be_chosen(make_model, tmp_path):
    model = make_model("local")
    model.save_pretrained(tmp_path / "model")
    assert load(tmp_path / "model").W_E.dtype == torch.float64  # as it was trained
    loaded = load(tmp_path / "model", dtype=torch.float32)
    assert loaded.cfg.dtype == loaded.W_E.dtype == torch.float32


def test_the_tokenizer_travels_with_the_model(tmp_path):
    tokenizer = train_bpe(["Lily found a red ball."] * 9, 257 + 20)
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=len(tokenizer), n_ctx=12)
    model = SelfAblatingTransformer(cfg, tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "model")
    loaded = load(tmp_path / "model")
    text = "Lily found a ball"
    assert torch.equal(loaded.to_tokens(text), model.to_tokens(text))
    assert loaded.to_string(loaded.to_tokens(text, prepend_bos=False)[0]) == text


def test_loading_draws_nothing_and_comes_in_evaluation_mode(saved):
    before = torch.get_rng_state()
    assert not load(saved).training
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_twice_writes_the_same_weights(make_model, tmp_path):
    for name in ("a", "b"):
        make_model("local").save_pretrained(tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


# Directories ----------------------------------------------------------------------------------


def _hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_other_files_of_a_directory_stay(make_model, tokens, tmp_path):
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (clone / "notes.txt").write_text("mine")
    for seed in (0, 1):  # a first model, and its successor in the same place
        model = make_model("local", seed=seed)
        model.save_pretrained(clone)
        assert torch.equal(load(clone)(tokens), model(tokens))
    assert (clone / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
    assert (clone / "notes.txt").read_text() == "mine"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_readme_of_ones_own_stays(make_model, tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    make_model("none").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project"
    assert load(tmp_path).ablation.variant == "none"


def shuffled(tokenizer, directory):
    """The same tokens under other numbers."""
    file = directory / "tokenizer.json"
    rules = json.loads(file.read_text())
    vocabulary = rules["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    kept, others = tokens[:1], tokens[1:]
    rules["model"]["vocab"] = {token: i for i, token in enumerate([*kept, *reversed(others)])}
    file.write_text(json.dumps(rules))


def test_a_tokenizer_in_another_order_is_noticed(tmp_path, caplog):
    tokenizer = train_bpe(["Lily found a red ball."] * 9, 257 + 20)
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=len(tokenizer), n_ctx=12)
    SelfAblatingTransformer(cfg, tokenizer=tokenizer).save_pretrained(tmp_path)
    known = json.loads((tmp_path / "cfg.json").read_text())["tokenizer"]
    assert known == vocabulary_hash(tokenizer)
    assert known in (tmp_path / "README.md").read_text()
    assert load(tmp_path).tokenizer_hash == known
    assert not caplog.text
    shuffled(tokenizer, tmp_path)
    loaded = load(tmp_path)
    assert f"is not the one the model was trained with ({known})" in caplog.text
    assert len(loaded.tokenizer) == len(tokenizer)
    loaded.save_pretrained(tmp_path / "again")  # the wrong tokenizer does not become the right one
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["tokenizer"] == known


def test_a_tokenizer_that_cannot_be_saved_is_an_error_of_the_system(
    tmp_path, monkeypatch, make_model
):
    model = make_model()
    model.tokenizer = train_bpe(["Lily found a red ball."] * 9, 257 + 20)

    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(model.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        model.save_pretrained(tmp_path / "model")
    assert caught.value.errno == 28
    assert caught.value.filename


def test_the_tokenizer_of_the_model_before_does_not_stay(make_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    tokenizer = train_bpe(["Lily found a red ball."] * 9, 257 + 20)
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=len(tokenizer), n_ctx=12)
    SelfAblatingTransformer(cfg, tokenizer=tokenizer).save_pretrained(tmp_path)
    make_model("none").save_pretrained(tmp_path)
    assert load(tmp_path).tokenizer is None


def test_a_file_and_a_hugging_face_model_are_not_written_over(make_model, tmp_path):
    model = make_model("local")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="it is a file"):
        model.save_pretrained(tmp_path / "file")
    model.to_hf(tmp_path / "hf")
    before = _hashes(tmp_path / "hf")
    with pytest.raises(UserError, match="holds a Hugging Face model"):
        model.save_pretrained(tmp_path / "hf")
    assert _hashes(tmp_path / "hf") == before
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(UserError, match="holds a model of sat_interp"):
        model.to_hf(tmp_path / "ours")


@pytest.mark.parametrize("has_other_files", [False, True])
@pytest.mark.parametrize("writes_before", range(4))
def test_a_save_that_fails_leaves_a_whole_model_or_one_refused(
    make_model, tokens, monkeypatch, tmp_path, has_other_files, writes_before
):
    """The disk fills up after some of the files."""
    first = make_model("local", seed=0)
    target = first.save_pretrained(tmp_path / "model")
    if has_other_files:
        (target / "notes.txt").write_text("mine")
    left = writes_before

    def fill_up(real):
        def write(*arguments, **options):
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            left -= 1
            return real(*arguments, **options)

        return write

    monkeypatch.setattr(Path, "write_bytes", fill_up(Path.write_bytes))
    second = make_model("local", seed=1)
    failed = False
    try:
        second.save_pretrained(target)
    except OSError:
        failed = True
    monkeypatch.undo()
    assert failed == (writes_before < 3)  # weights, card, cfg.json
    try:
        loaded = load(target)
    except UserError as refusal:
        assert has_other_files  # noqa: PT017 (elsewhere the directory is swapped as a whole)
        assert "model.safetensors" in str(refusal)  # noqa: PT017
    else:
        expected = first if failed else second
        assert torch.equal(loaded(tokens), expected(tokens))


def test_processed_weights_and_overflow_are_not_saved(make_model, tmp_path):
    model = make_model("local")
    with torch.no_grad():
        model.W_E[0, 0] = 1e6
    with pytest.raises(UserError, match=r"embed\.W_E does not fit into float16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()
    model.process_weights_()
    with pytest.raises(UserError, match="processed"):
        model.save_pretrained(tmp_path / "processed")


# Damage ---------------------------------------------------------------------------------------


def _edit(name):
    """Change a saved model's cfg.json."""

    def wrap(change):
        def damage(directory: Path) -> None:
            config = json.loads((directory / "cfg.json").read_text())
            change(config)
            (directory / "cfg.json").write_text(json.dumps(config))

        DAMAGES[name] = damage
        return damage

    return wrap


def _rewrite(change):
    """Change the tensors; cfg.json no longer knows their hash, as after an edit on purpose."""

    def damage(directory: Path) -> None:
        config = json.loads((directory / "cfg.json").read_text())
        del config["weights"]
        (directory / "cfg.json").write_text(json.dumps(config))
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return damage


def _truncate(name: str, keep: float):
    def damage(directory: Path) -> None:
        size = (directory / name).stat().st_size
        os.truncate(directory / name, int(size * keep))

    return damage


def _flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (directory / "model.safetensors").write_bytes(content)


def _not_safetensors(directory: Path) -> None:
    config = json.loads((directory / "cfg.json").read_text())
    del config["weights"]
    (directory / "cfg.json").write_text(json.dumps(config))
    torch.save({"embed.W_E": torch.ones(2)}, directory / "model.safetensors")


DAMAGES = {
    "half the weights": _truncate("model.safetensors", 0.5),
    "no weights": _truncate("model.safetensors", 0),
    "one bit of the weights": _flip_a_bit,
    "a pickle": _not_safetensors,
    "weights gone": lambda directory: (directory / "model.safetensors").unlink(),
    "half of cfg.json": _truncate("cfg.json", 0.5),
    "empty cfg.json": _truncate("cfg.json", 0),
    "cfg.json is no mapping": lambda directory: (directory / "cfg.json").write_text("[1]"),
    "cfg.json is no text": lambda directory: (directory / "cfg.json").write_bytes(b"\xff\xfe{"),
    "a tensor missing": _rewrite(lambda tensors: tensors.pop("blocks.1.ln1.w")),
    "a tensor too many": _rewrite(lambda tensors: tensors.update(extra=torch.ones(1))),
    "a tensor's shape": _rewrite(lambda t: t.update({"ln_final.w": torch.ones(15)})),
    "half a tokenizer": lambda directory: (directory / "tokenizer.json").write_text('{"a'),
}
_edit("no shape")(lambda config: config.pop("shape"))
_edit("no format")(lambda config: config.pop("format_version"))
_edit("a later format")(lambda config: config.update(format_version=2))
_edit("a field missing")(lambda config: config["shape"].pop("n_layers"))
_edit("a field unknown")(lambda config: config["shape"].update(n_lairs=3))
_edit("a field of another type")(lambda config: config["shape"].update(d_model="16"))
_edit("another depth")(lambda config: config["shape"].update(n_layers=4))
_edit("another width")(lambda config: config["shape"].update(d_mlp=41))
_edit("an unknown variant")(lambda config: config["ablation"].update(variant="lokal"))
_edit("k of another type")(lambda config: config["ablation"].update(k_neurons="5"))
_edit("k too large")(lambda config: config["ablation"].update(k_neurons=400))
_edit("an unknown dtype")(lambda config: config["shape"].update(dtype="float3"))

SAYS = {
    "half the weights": r"model\.safetensors is damaged: .* truncated copy",
    "one bit of the weights": r"model\.safetensors is not the file cfg\.json was written with",
    "a pickle": r"not a safetensors file",
    "weights gone": r"model\.safetensors cannot be read \(No such file",
    "half of cfg.json": r"cfg\.json cannot be read as JSON",
    "a later format": r"has format 2, this sat_interp reads up to 1: pip install -U",
    "a tensor missing": r"lacks blocks\.1\.ln1\.w",
    "a tensor too many": r"holds extra",
    "a tensor's shape": r"ln_final\.w has shape \(15,\), cfg\.json asks for \(16,\)",
    "another depth": r"lacks blocks\.3\.attn\.W_K, .* and \d+ more",
    "an unknown dtype": r"float3",
    "k too large": r"choose k_neurons <= 40",
    "half a tokenizer": r"no tokenizer can be loaded from directory",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name_in_one_line(saved, damage):
    DAMAGES[damage](saved)
    with pytest.raises(UserError, match=SAYS.get(damage, "model.safetensors|cfg.json")) as refusal:
        load(saved)
    assert "\n" not in str(refusal.value)
    assert str(saved) in str(refusal.value)


def test_without_cfg_json_it_is_no_model(saved):
    (saved / "cfg.json").unlink()
    with pytest.raises(UserError, match=r"neither cfg\.json .* nor config\.json"):
        load(saved)


@pytest.mark.parametrize("device", ["no-such-device", "hpu:7"])
def test_a_device_that_is_not_there_is_one_line(saved, device):
    with pytest.raises(UserError, match=f"device '{device}' is not available") as refusal:
        load(saved, device=device)
    assert "\n" not in str(refusal.value)


def test_a_hash_that_was_taken_out_is_not_missed(saved, tokens):
    config = json.loads((saved / "cfg.json").read_text())
    del config["weights"]
    (saved / "cfg.json").write_text(json.dumps(config))
    load(saved)(tokens)


# The card, and the hub ------------------------------------------------------------------------


def test_cfg_json_holds_the_run_and_the_versions(make_model, tmp_path):
    facts = {"seed": 3, "clean_perplexity": float("nan"), "where": Path("a"), "n": torch.tensor(2)}
    make_model("local").save_pretrained(tmp_path / "model", facts)
    config = json.loads((tmp_path / "model" / "cfg.json").read_text())
    assert config["format_version"] == 1
    assert config["training"] == {"seed": 3, "clean_perplexity": None, "where": "a", "n": 2.0}
    assert config["ablation"]["k_neurons"] == 5
    assert config["shape"]["n_layers"] == 3
    assert config["versions"]["torch"] == torch.__version__


def test_the_facts_of_the_run_outlive_a_reload(saved, tmp_path):
    loaded = load(saved)
    assert loaded.card == {"seed": 3}
    copy.deepcopy(loaded).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["training"] == {"seed": 3}


class FakeHub:
    """Records what the hub's client is asked to do, and keeps the files."""

    calls: list[tuple[str, dict]] = []

    def __init__(self, token=None):
        self.calls.append(("login", {"token": token}))

    def create_repo(self, repo_id, **options):
        if repo_id.startswith("forbidden/"):
            raise huggingface_hub.errors.OfflineModeIsEnabled("403 Forbidden\nmore lines")
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, Path(self.store) / repo_id)


def test_push_to_hub(make_model, tokens, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(FakeHub, "store", tmp_path, raising=False)
    model = make_model("local")
    address = model.push_to_hub("me/gates", private=True, token="t", card={"seed": 4})
    assert address == "https://huggingface.co/me/gates"
    assert FakeHub.calls == [
        ("login", {"token": "t"}),
        ("create", {"repo_id": "me/gates", "private": True, "exist_ok": True}),
    ]
    assert torch.equal(load(tmp_path / "me" / "gates")(tokens), model(tokens))
    assert 'from_pretrained("me/gates")' in (tmp_path / "me" / "gates" / "README.md").read_text()
    with pytest.raises(UserError, match="403 Forbidden") as refusal:
        model.push_to_hub("forbidden/gates")
    assert "\n" not in str(refusal.value)


def test_push_to_hub_offline_is_one_line(make_model):
    with pytest.raises(UserError, match="did not take 'me/gates'") as refusal:
        make_model("none").push_to_hub("me/gates", token="t")
    assert "\n" not in str(refusal.value)


def test_a_model_without_gates_asks_for_none(tmp_path):
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=9, n_ctx=4)
    SelfAblatingTransformer(cfg, SelfAblationConfig()).save_pretrained(tmp_path / "m")
    assert not any("gates" in name for name in load_file(tmp_path / "m" / "model.safetensors"))


@pytest.mark.parametrize("swaps", [1, 2])
@pytest.mark.parametrize("read", ["read_weights", "_read_tokenizer"])
def test_a_model_replaced_while_it_is_read_is_read_anew(
    make_model, tokens, tmp_path, monkeypatch, swaps, read
):
    models = [make_model("local", seed=seed) for seed in range(swaps + 1)]
    target = models[0].save_pretrained(tmp_path / "run" / "best").parent
    left, real = iter(models[1:]), getattr(pretrained, read)

    def swap_and_read(*arguments):
        if model := next(left, None):
            model.save_pretrained(target / "best")
        return real(*arguments)

    monkeypatch.setattr(pretrained, read, swap_and_read)
    assert torch.equal(load(target)(tokens), models[-1](tokens))


def test_a_model_that_stays_damaged_is_read_once(saved, monkeypatch):
    _truncate("model.safetensors", 0.5)(saved)
    calls, real = [], pretrained.read_weights
    monkeypatch.setattr(
        pretrained, "read_weights", lambda *given: (calls.append(1), real(*given))[1]
    )
    with pytest.raises(UserError, match="is damaged"):
        load(saved)
    assert len(calls) == 1
