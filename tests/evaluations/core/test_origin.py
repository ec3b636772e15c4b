from __future__ import annotations

import dataclasses

import pytest

from evaluations.core.origin import Origin, origin_of_text, read_origin
from sat_interp.data.sources import file_names, parse_data
from sat_interp.training.config import TrainConfig
from sat_interp.training.report import Cost, model_card_facts


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("demo", "demo"),
        ("demo:300", "demo:300"),
        ("tinystories", "tinystories"),
        ("roneneldan/TinyStories:text", "roneneldan/TinyStories:text"),
        ("../some/dir/train.jsonl.gz", "train.jsonl.gz"),
        ("/a/train.jsonl:story, b/c.txt", "train.jsonl:story,c.txt"),
        ("/home/someone/corpus/", "corpus"),
    ],
)
def test_files_lose_their_directories_and_nothing_else(spec, name):
    assert file_names(spec) == name
    assert file_names(name) == name


def test_the_model_card_tells_no_directory():
    config = dataclasses.replace(TrainConfig(), data="/home/someone/train.jsonl.gz")
    facts = model_card_facts(config, "tiny", Cost(1, 6 * 192, 1.0), {"step": 1})
    assert facts["data"] == "train.jsonl.gz"


def test_a_part_of_the_training_text_is_known_and_other_text_is_not(stories_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Anna was sad in the park.", encoding="utf-8")
    both = Origin(data=f"{other},{stories_file}")
    assert origin_of_text([Origin(), both], parse_data(str(other))) is both
    assert origin_of_text([both], parse_data(str(stories_file))) is both
    assert origin_of_text([Origin(data=str(other))], parse_data(str(stories_file))) is None
    assert origin_of_text([Origin(data="demo")], parse_data("demo")) is None  # never trained on


def test_other_peoples_models_have_no_origin(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"data": "demo"}}')
    assert read_origin(tmp_path) == Origin()
