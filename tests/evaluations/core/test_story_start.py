"""Which token stands before a story: BOS for other people's models, end-of-text for ours."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluations.core.activations import gather
from evaluations.core.excerpts import GatherConfig
from evaluations.core.model_source import ModelSource, load_model
from evaluations.core.models import prepared
from evaluations.core.text import evaluation_text
from evaluations.core.units import find_units
from evaluations.suite.gates.picture import picture
from evaluations.suite.lm.config import LanguageConfig
from evaluations.suite.lm.evaluation import evaluate as language_model
from evaluations.suite.n2g.config import N2gConfig
from evaluations.suite.n2g.evaluation import N2gData, _explainer
from evaluations.suite.n2g.substitutes import Neighbours
from evaluations.suite.n2g.vocabulary import Vocabulary
from evaluations.suite.sae.evaluation import SaeData
from evaluations.suite.sae.evaluation import evaluate as sparse_autoencoder
from evaluations.tasks.registry import make_task
from sat_interp import SelfAblatingTransformer, SelfAblationConfig
from sat_interp._util.errors import UserError
from sat_interp.data.corpus import load_corpus
from sat_interp.data.sources import parse_data
from sat_interp.data.tokenizer import story_start
from sat_interp.io.pretrained import save_pretrained
from sat_interp.model.shape import gpt_neo_config
from tests.evaluations.conftest import STORIES
from tests.evaluations.golden import stories
from tests.evaluations.suite.sae.conftest import TINY

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def two_marks():
    """A byte-level tokenizer with <s> and </s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator([*stories(), *STORIES], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def llama(two_marks, tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(two_marks),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).eval()
    directory = tmp_path_factory.mktemp("llama")
    model.save_pretrained(directory)
    two_marks.save_pretrained(directory)
    return directory, model


@pytest.fixture
def read(llama, stories_file):
    loaded = load_model(str(llama[0]), device="cpu")
    return loaded, evaluation_text(loaded.tokenizer, str(stories_file))


@torch.inference_mode()
def test_lm_is_what_hugging_face_says_after_bos(llama, read):
    loaded, text = read
    nats = count = 0
    for story in STORIES:
        ids = [BOS, *loaded.tokenizer.encode(story, add_special_tokens=False), EOS]
        row = torch.tensor([ids])
        losses = -llama[1](row[:, :-1]).logits.log_softmax(-1)[0].gather(1, row[0, 1:, None])
        nats, count = nats + float(losses.sum()), count + len(losses)
    result = language_model(loaded.model, text, LanguageConfig(resamples=0, activation_stories=3))
    found = next(one for one in result.metrics if one.name == "loss")
    assert (found.value, found.n) == (pytest.approx(nats / count, rel=1e-5), count)
    told = text.describe()
    assert (told["story_start"], told["story_start_id"]) == ("<s>", BOS)


def test_activations_are_read_after_bos(read, tmp_path):
    loaded, text = read
    units = find_units(loaded.model)
    found = gather(loaded.model, text, units, GatherConfig(width=8), "llama", tmp_path)
    rows = []
    for story in range(len(text)):
        tokens = torch.tensor([[BOS, *text.corpus.story(story).tolist()]])
        _, cache = loaded.model.run_with_cache(tokens)
        rows.append(cache["blocks.1.mlp.hook_post"][0, 1:])
    torch.testing.assert_close(found.statistics[1].mean, torch.cat(rows).mean(0))
    vocabulary = Vocabulary.of(loaded.tokenizer)
    data = N2gData(text, vocabulary, Neighbours.of(text, vocabulary), tmp_path, "llama")
    assert _explainer(loaded.model, data, N2gConfig(), units, 1, found).reader.start_token == BOS


def test_autoencoders_are_trained_and_measured_after_bos(read, stories_file, tmp_path):
    loaded, text = read
    corpus = load_corpus(parse_data(str(stories_file)), "train", loaded.tokenizer)
    data = SaeData(corpus, text, tmp_path, {"name": "llama"})
    result = sparse_autoencoder(loaded.model, data, TINY)
    told = json.loads((tmp_path / result.extra["sae"]["directory"] / "cfg.json").read_text())
    assert (told["metadata"]["prepend_bos"], told["metadata"]["bos_token_id"]) == (True, BOS)
    clean = next(one.value for one in result.metrics if one.name == "loss_clean")
    lm = language_model(loaded.model, text, LanguageConfig(resamples=0, activation_stories=0))
    assert clean == pytest.approx(next(one.value for one in lm.metrics if one.name == "loss"))


def test_prompts_begin_with_the_same_token(read):
    prompts = make_task("ioi-tinystories", read[0].tokenizer, 4)
    assert {int(row[0]) for batch in prompts.batches for row in batch.clean} == {BOS}
    assert prompts.describe()["story_start"] == "<s>"
    bare = make_task("ioi-tinystories", read[0].tokenizer, 4, bos=False)
    assert bare.describe()["story_start"] is None


def test_ours_begin_with_end_of_text_everywhere(two_marks, stories_file, tmp_path):
    torch.manual_seed(0)
    cfg = gpt_neo_config(n_layers=1, d_model=8, n_heads=2, d_vocab=len(two_marks), n_ctx=64)
    gates = SelfAblationConfig(variant="local", k_attention=2, k_neurons=2)
    model = SelfAblatingTransformer(cfg, gates)
    directory = save_pretrained(model, tmp_path / "ours")
    two_marks.save_pretrained(directory)
    whole = SelfAblatingTransformer.from_pretrained(directory)
    assert whole.to_tokens("Tom")[0, 0] == EOS
    for loaded in (
        load_model(str(directory), device="cpu"),
        ModelSource.of(str(directory)).outline,
        prepared(model, "mine", two_marks, "cpu"),
    ):
        text = evaluation_text(loaded.tokenizer, str(stories_file))
        assert text.start == EOS
        assert text.describe()["story_start"] == "</s>"
        task = make_task("ioi-tinystories", loaded.tokenizer, 2)
        assert int(task.batches[0].clean[0, 0]) == EOS
    assert picture(model, text, 0, 5)["tokens"][0] == "</s>"
    assert two_marks.bos_token_id == BOS  # the caller's own is left as it is


@pytest.mark.parametrize(
    ("stated", "start"),
    [(BOS, BOS), (5, 5), (None, EOS), (10**6, EOS), (True, EOS), ("1", EOS), (-1, EOS)],
)
def test_without_bos_of_its_own_a_tokenizer_has_the_one_that_the_configuration_states(
    stated, start, two_marks, llama, stories_file, tmp_path
):
    directory = tmp_path / "no-bos"
    llama[1].save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["bos_token_id"]  # transformers' default, of which nothing is made, is 1
    if stated is not None:
        config["bos_token_id"] = stated
    (directory / "config.json").write_text(json.dumps(config))
    backend = two_marks.backend_tokenizer
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    if isinstance(stated, bool | str):  # no number, as transformers says too
        with pytest.raises(UserError, match="bos_token_id"):
            load_model(str(directory), device="cpu")
        return
    loaded = load_model(str(directory), device="cpu")
    assert evaluation_text(loaded.tokenizer, str(stories_file)).start == start


def test_a_tokenizer_that_names_end_of_text_as_its_bos_keeps_it(two_marks, llama, tmp_path):
    llama[1].save_pretrained(tmp_path)  # its configuration states <s>
    PreTrainedTokenizerFast(
        tokenizer_object=two_marks.backend_tokenizer, bos_token="</s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    assert story_start(load_model(str(tmp_path), device="cpu").tokenizer) == EOS
    assert story_start(ModelSource.of(str(tmp_path)).outline.tokenizer) == EOS
