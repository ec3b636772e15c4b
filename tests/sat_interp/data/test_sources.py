"""Sources of text: what each kind of file gives, which stories are held out, what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sat_interp._util.errors import UserError
from sat_interp.data import readers, sources
from sat_interp.data.hub import HubSource
from sat_interp.data.readers import read_stories
from sat_interp.data.sources import DataSource, absolute_paths, parse_data

META = [{"lang": "en", "text": "in"}, {"lang": "en", "text": None}, None]
STORIES = ["A cat sat.\n\nIt slept.", "Zoë ran, \U0001f600!", "  spaces kept \n"]


def write_jsonl(path: Path, stories: list[Any], column: str = "text") -> Path:
    lines = "".join(json.dumps({"id": 1, column: story}) + "\n" for story in stories)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


def everything(source: DataSource) -> list[str]:
    return [*source.texts("train"), *source.texts("validation")]


@pytest.fixture
def grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar whose stories say where they come from."""

    def stories(split: str = "train", seed: int = 0) -> Iterator[str]:
        return (f"{split} {seed} {number}" for number in count())

    monkeypatch.setattr(sources.grammar, "stories", stories)
    monkeypatch.setattr(sources.grammar, "GRAMMAR_VERSION", "test-1")


# -- the built-in corpus


def test_demo_takes_as_many_stories_as_asked(grammar: None) -> None:
    source = parse_data("demo:3")
    assert source.kind == "demo"
    assert list(source.texts("train")) == ["train 0 0", "train 0 1", "train 0 2"]
    assert list(source.texts("train")) == ["train 0 0", "train 0 1", "train 0 2"]
    held_out = list(source.texts("validation"))
    assert (len(held_out), held_out[0]) == (1_000, "validation 0 0")
    assert sum(1 for _ in parse_data("demo").texts("train")) == 50_000


def test_demo_is_named_by_version_size_and_split(
    grammar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    three, four = parse_data("demo:3"), parse_data("demo:4")
    identities = {s.content_id(p) for s in (three, four) for p in ("train", "validation")}
    assert len(identities) == 3  # validation does not depend on the number of training stories
    assert three.content_id("train") == parse_data("demo:3").content_id("train")
    before = three.content_id("train")
    monkeypatch.setattr(sources.grammar, "GRAMMAR_VERSION", "test-2")
    assert three.content_id("train") != before


def test_the_real_grammar_fits() -> None:
    source = parse_data("demo:5")
    assert len(set(everything(source))) > 900
    assert list(source.texts("train")) == list(source.texts("train"))


# -- local files


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL", "a.parquet"])
def test_rows_come_back_as_they_were_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": STORIES, "id": [1, 2, 3]}), path)
    else:
        write_jsonl(path, STORIES)
    assert list(read_stories(path, "text")) == STORIES
    assert sorted(everything(parse_data(str(path)))) == sorted(STORIES)


@pytest.mark.parametrize(
    ("content", "stories"),
    [
        ("One.\n\nStill one.\n<|endoftext|>\nTwo.\n<|endoftext|>", ["One.\n\nStill one.", "Two."]),
        ("One<|endoftext|>Two", ["One", "Two"]),
        ("One.\nStill one.\n\n \n\nTwo.\n", ["One.\nStill one.", "Two."]),
        ("One.\r\nStill one.\r\n\r\nTwo.", ["One.\nStill one.", "Two."]),
        ("One.\nTwo.\nThree.\n\n\n", ["One.", "Two.", "Three."]),
        ("\ufeffOne.\n", ["One."]),
        ("\n \n", []),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_txt_file_is_parted_by_mark_blank_lines_or_lines(
    content: str,
    stories: list[str],
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert list(read_stories(path, "text")) == stories


def test_a_story_longer_than_any_is_refused_not_cut_nor_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_CHUNK", 10)
    monkeypatch.setattr(readers, "_OVERLAP", 10)
    path = tmp_path / "a.txt"
    path.write_text("x" * 95)
    assert list(read_stories(path, "text")) == ["x" * 95]
    monkeypatch.setattr(readers, "_LONGEST", 60)
    with pytest.raises(UserError, match="holds a story of more than 60 characters"):
        list(read_stories(path, "text"))


QUOTED = ('Tom said, "Hi!"\n\nHe ran.', "Anna sat.", "One, two.")


def csv_rows(*stories: str, quoting: int = csv.QUOTE_ALL, heading: str = "") -> str:
    buffer = io.StringIO()
    if heading:
        buffer.write(f"{heading}\n")
    writer = csv.writer(buffer, quoting=quoting, lineterminator="\n")
    writer.writerows([story] for story in stories)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        csv_rows(*QUOTED),
        csv_rows(*QUOTED, heading="text"),
        csv_rows(*QUOTED, quoting=csv.QUOTE_MINIMAL, heading="text"),
        csv_rows(*QUOTED).replace("\n", "\r\n"),
        csv_rows(*QUOTED).rstrip("\n"),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_csv_rows_in_a_txt_file_are_recognised_and_said(
    content: str,
    chunk: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if content.startswith('"'):  # a row without quotes is never longer than a chunk
        monkeypatch.setattr(readers, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    for _ in range(2):
        assert list(read_stories(path, "text")) == list(QUOTED)
    assert [record.message for record in caplog.records] == [
        f"{path} holds CSV rows: each is read as a story, without its quotes"
    ]


@pytest.mark.parametrize(
    ("content", "stories"),
    [
        ('"Hi!"\n"Ho!"\n\n"Bye."\n"Bye."\n', ['"Hi!"\n"Ho!"', '"Bye."\n"Bye."']),
        ('"Hi!" said Tom.\n\n"Ho!"\n', ['"Hi!" said Tom.', '"Ho!"']),
        ('"Hi!\n\nHo!\n', ['"Hi!', "Ho!"]),
        ('"One story only, ""quoted"" here."\n', ['"One story only, ""quoted"" here."']),
        ('"1","One."\n"2","Two."\n', ['"1","One."', '"2","Two."']),
        ("No quotes\nat all\n", ["No quotes", "at all"]),
    ],
)
def test_quotes_of_the_stories_themselves_are_kept(
    content: str, stories: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content)
    assert list(read_stories(path, "text")) == stories
    assert not caplog.records


def test_a_blank_line_may_hold_any_white_space(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.\nStill one.\n\u00a0\nTwo.\n\u3000\t\nThree.")
    assert list(read_stories(path, "text")) == ["One.\nStill one.", "Two.", "Three."]


def test_null_is_an_empty_story_and_half_surrogates_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n\n{"text": "a\\ud83db"}\n')
    assert list(read_stories(path, "text")) == ["", "a\ufffdb"]


def test_columns_and_several_files(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", ["one", "two"], "story")
    second = write_jsonl(tmp_path / "b.jsonl.gz", ["three"], "story")
    source = parse_data(f"{first}, {second}:story")
    assert source.kind == "files"
    assert sorted(everything(source)) == ["one", "three", "two"]
    with pytest.raises(UserError, match="several columns"):
        parse_data(f"{first}:text,{second}:story")


def test_a_directory_knows_its_validation_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train-1.jsonl", ["a", "b"])
    write_jsonl(tmp_path / "data" / "train-2.jsonl.gz", ["c"])
    write_jsonl(tmp_path / "data" / "test.jsonl", ["t"])
    (tmp_path / "README.md").write_text("no story")
    (tmp_path / ".hidden.txt").write_text("no story")
    source = parse_data(str(tmp_path))
    assert list(source.texts("train")) == ["a", "b", "c"]
    assert list(source.texts("validation")) == ["t"]
    write_jsonl(tmp_path / "data" / "mini_valid.jsonl", ["v"])
    source = parse_data(str(tmp_path))
    assert list(source.texts("train")) == ["a", "b", "c"]
    assert list(source.texts("validation")) == ["v"]


# -- holding out


def test_one_story_in_a_hundred_is_held_out_wherever_it_stands(tmp_path: Path) -> None:
    stories = [f"story {number}" for number in range(3_000)]
    forward = parse_data(str(write_jsonl(tmp_path / "a.jsonl", stories + stories[:500])))
    train, held_out = list(forward.texts("train")), list(forward.texts("validation"))
    assert 15 <= len(set(held_out)) <= 50
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(stories + stories[:500])
    backward = parse_data(str(write_jsonl(tmp_path / "b.jsonl", stories[::-1])))
    assert set(backward.texts("validation")) == set(held_out)


@pytest.mark.parametrize("n", [2, 3, 10, 60])
def test_a_small_corpus_still_holds_one_out(n: int, tmp_path: Path) -> None:
    stories = [f"tale {number}" for number in range(n)] * 2 + ["", "  "]
    source = parse_data(str(write_jsonl(tmp_path / "a.jsonl", stories)))
    train, held_out = list(source.texts("train")), list(source.texts("validation"))
    assert len(set(held_out)) >= 1
    assert len({text for text in train if text.strip()}) >= 1
    assert not set(train) & set(held_out)
    assert {"", "  "} <= set(train)


def test_a_single_story_cannot_be_divided(tmp_path: Path) -> None:
    source = parse_data(str(write_jsonl(tmp_path / "a.jsonl", ["only", "only"])))
    with pytest.raises(UserError, match="only one story"):
        list(source.texts("train"))


def test_explicit_validation_leaves_training_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"s {number}" for number in range(300)])
    other = write_jsonl(tmp_path / "b.jsonl", ["v"])
    source = parse_data(str(path), validation=str(other))
    assert len(list(source.texts("train"))) == 300
    assert list(source.texts("validation")) == ["v"]
    assert source.content_id("train") != parse_data(str(path)).content_id("train")
    with pytest.raises(UserError, match="both training and validation"):
        parse_data(str(path), validation=f"{other},{path}")


def test_validation_may_be_demo(tmp_path: Path, grammar: None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    source = parse_data(str(path), validation="demo")
    assert list(source.texts("train")) == ["x"]
    assert list(islice(source.texts("validation"), 1)) == ["validation 0 0"]


def test_content_is_known_by_bytes_not_by_place(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here = write_jsonl(tmp_path / "a.jsonl", STORIES)
    there = write_jsonl(tmp_path / "other" / "b.jsonl", STORIES)
    identity = parse_data(str(here)).content_id("train")
    assert parse_data(str(there)).content_id("train") == identity
    assert parse_data(str(here)).content_id("validation") != identity
    assert parse_data(f"{here}:id").content_id("train") != identity
    write_jsonl(here, [*STORIES, "one more"])
    assert parse_data(str(here)).content_id("train") != identity


def test_texts_stream(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl.gz"
    line = json.dumps({"text": "word " * 2_000}).encode() + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(2_000):  # 20 MB of text
            file.write(line)
    source = parse_data(str(path), validation="demo")
    tracemalloc.start()
    try:
        assert sum(len(text) for text in source.texts("train")) == 20_000_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# -- the hub


def saved(path: Path, **splits: list[str]) -> str:
    tables = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    datasets.DatasetDict(tables).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_dataset_brings_its_own_validation(split: str, tmp_path: Path) -> None:
    source = parse_data(saved(tmp_path / "d", train=["a", "b"], **{split: ["v"]}))
    assert source.kind == "hub"
    assert list(source.texts("train")) == ["a", "b"]
    assert list(source.texts("train")) == ["a", "b"]
    assert list(source.texts("validation")) == ["v"]
    assert source.content_id("train") != source.content_id("validation")
    assert source.content_id("train") == parse_data(str(tmp_path / "d")).content_id("train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dataset_of_one_split_is_divided(split: str, tmp_path: Path) -> None:
    rows = [f"row {number}" for number in range(2_500)]
    source = parse_data(saved(tmp_path / "d", **{split: rows}))
    held_out = list(source.texts("validation"))
    assert held_out
    assert sorted([*source.texts("train"), *held_out]) == sorted(rows)


def test_a_single_dataset_saved_by_itself(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"story": ["a", "b", None]}).save_to_disk(tmp_path / "d")
    source = parse_data(f"{tmp_path / 'd'}:story")
    assert sorted(everything(source)) == ["", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "column", "stories"),
    [
        ({"meta": META, "x": ["a", "b", "c"]}, "meta.text", ["in", "", ""]),
        ({"a": [{"b": {"n": 1, "text": "deep"}}]}, "a.b.text", ["deep"]),
        ({"story": [{"text": "no"}], "story.text": ["yes"]}, "story.text", ["yes"]),
        ({"a.b": [{"text": "dotted"}], "a": [{"x": 1}]}, "a.b.text", ["dotted"]),
    ],
)
def test_fields_inside_a_saved_datasets_columns_are_named_with_dots(
    columns: dict[str, list[Any]], column: str, stories: list[str], tmp_path: Path
) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "d")
    source = HubSource("d", dataset=str(tmp_path / "d"), column=column)
    assert list(source.read_part("all")) == stories
    assert list(parse_data(f"{tmp_path / 'd'}:{column}").read_part("all")) == stories


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ({"meta": [{"text": "a"}]}, "text", "unknown column 'text'.*meta, meta.text"),
        ({"meta": [{"text": "a"}]}, "meta.txt", "did you mean 'meta.text'"),
        ({"meta": [{"text": "a"}]}, "meta", "column 'meta' does not hold text"),
        ({"meta": [{"n": 1}]}, "meta.n", "column 'meta.n' does not hold text"),
        ({"l": [[{"text": "a"}]]}, "l.text", "unknown column 'l.text'"),
        ({"a": [{"b.c": "x"}], "a.b": [{"c": "y"}]}, "a.b.c", "has 2 columns 'a.b.c'"),
    ],
)
def test_other_fields_of_a_saved_dataset_are_refused_in_one_line(
    columns: dict[str, list[Any]], column: str, message: str, tmp_path: Path
) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match=message) as caught:
        list(parse_data(f"{tmp_path / 'd'}:{column}").texts("train"))
    assert "\n" not in str(caught.value)


def test_names_configurations_and_columns_reach_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, config: str | None) -> datasets.DatasetDict:
        asked.append((name, config))
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "story": ["c", "d"], "n": [1, 2]})
        return datasets.DatasetDict({"train": rows, "validation": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(parse_data("tinystories").texts("train")) == ["a", "b"]
    assert list(parse_data("owner/name@small:story").texts("train")) == ["c", "d"]
    assert list(parse_data("name:story").texts("validation")) == ["c", "d"]
    assert asked == [("roneneldan/TinyStories", None), ("owner/name", "small"), ("name", None)]
    with pytest.raises(UserError, match="unknown column 'stroy': did you mean 'story'"):
        list(parse_data("name:stroy").texts("train"))
    with pytest.raises(UserError, match="'n' does not hold text"):
        list(parse_data("name:n").texts("train"))


def test_a_wrong_configuration_is_answered_with_the_right_ones(tmp_path: Path) -> None:
    for config in ("large", "small"):
        (tmp_path / config).mkdir()
        pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / config / "train.parquet")
    configs = "".join(
        f"- config_name: {config}\n  data_files: {config}/train.parquet\n"
        for config in ("large", "small")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for config in (None, "smal"):
        source = HubSource("name", dataset=str(tmp_path), config=config)
        with pytest.raises(UserError, match=r"'large', 'small'.*name@config:column") as caught:
            list(source.texts("train"))
        assert "\n" not in str(caught.value)


def test_splits_without_train_are_named(tmp_path: Path) -> None:
    source = parse_data(saved(tmp_path / "d", first=["a"], second=["b"]))
    with pytest.raises(UserError, match="unknown split 'train'.*first, second"):
        list(source.texts("train"))


@pytest.mark.parametrize("spec", ["tinystories", "owner/no-such-data", "dmo"])
def test_offline_a_dataset_is_one_line(spec: str) -> None:
    with pytest.raises(UserError, match="offline, or no such name") as caught:
        list(parse_data(spec).texts("train"))
    assert "\n" not in str(caught.value)
    assert ("did you mean 'demo'" in str(caught.value)) == (spec == "dmo")


# -- what is refused before anything is read


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no data given"),
        ("demo:0", "a number of stories"),
        ("demo:x", "a number of stories"),
        ("demo:-3", "a number of stories"),
        ("demo:", "a number of stories"),
        ("two words", "is not valid"),
        ("missing.txt", "no such file: missing.txt"),
        ("missing.jsonl.gz:story", "no such file: missing.jsonl.gz"),
        ("missing.csv", "no such file"),
        ("/no/such/directory", "no such file"),
        ("a.txt,b.txt", "no such file: a.txt"),
        (",", "no file to train on"),
    ],
)
def test_senseless_data_is_refused_at_once(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_data(spec)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nhello\n")
    with pytest.raises(UserError, match=r"only \.txt, \.jsonl, \.jsonl\.gz, \.parquet"):
        parse_data(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match="has no"):
        parse_data(str(tmp_path))
    write_jsonl(tmp_path / "test.jsonl", ["a"])
    with pytest.raises(UserError, match="named after validation"):
        parse_data(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ok"}\n{"text": oops}\n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": "\xff\xfe"}\n', r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1 is not an object"),
        ("a.jsonl", b'{"story": "x"}\n', r"a\.jsonl:1: unknown column 'text'; choices: story"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: column 'text' holds int, not text"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz is damaged after line 0"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9],
            "is damaged after line",
        ),
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.parquet", b"PAR1 no", "not a readable parquet file"),
    ],
)
def test_damaged_files_are_named_with_the_line(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(parse_data(str(tmp_path / name)).texts("train"))
    assert "\n" not in str(caught.value)


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"story": ["a", "b", None], "n": [1, 2, 3]}), path)
    assert list(read_stories(path, "story")) == ["a", "b", ""]
    with pytest.raises(UserError, match="unknown column 'stories': did you mean 'story'"):
        list(parse_data(f"{path}:stories").texts("train"))
    with pytest.raises(UserError, match="column 'n' holds int64, not text"):
        list(parse_data(f"{path}:n").texts("train"))


def parquet(path: Path, *columns: tuple[str, object]) -> Path:
    arrays = [pa.array(values) if isinstance(values, list) else values for _, values in columns]
    pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in columns]), path)
    return path


@pytest.mark.parametrize(
    ("columns", "column", "stories"),
    [
        ((("story", [{"text": "no"}]), ("story.text", ["yes"])), "story.text", ["yes"]),
        ((("meta", META), ("x", ["a", "b", "c"])), "meta.text", ["in", "", ""]),
        ((("a", [{"b": {"n": 1, "text": "deep"}}]),), "a.b.text", ["deep"]),
        ((("a.b", [{"text": "dotted"}]), ("a", [{"x": 1}])), "a.b.text", ["dotted"]),
        ((("id", [1]), ("id", [2]), ("text", ["yes"])), "text", ["yes"]),
        ((("l", [[{"text": "no"}]]), ("text", ["after a list"])), "text", ["after a list"]),
        ((("text", pa.array(["a"], pa.large_string())),), "text", ["a"]),
        ((("text", pa.array(["a", None], pa.string_view())),), "text", ["a", ""]),
        ((("text", pa.array(["a", "b", "a"]).dictionary_encode()),), "text", ["a", "b", "a"]),
    ],
)
def test_odd_parquet_columns_are_read(
    columns: tuple[tuple[str, object], ...], column: str, stories: list[str], tmp_path: Path
) -> None:
    path = parquet(tmp_path / "a.parquet", *columns)
    assert list(read_stories(path, column)) == stories


@pytest.mark.parametrize(
    ("columns", "column", "message"),
    [
        ((("text", ["a"]), ("text", ["b"])), "text", "has 2 columns 'text'"),
        ((("meta", [{"text": "a"}]),), "text", "did you mean|choices: meta, meta.text"),
        ((("meta", [{"text": "a"}]),), "meta", "column 'meta' holds struct<text: string>"),
        ((("text", [["a", "b"]]),), "text", "column 'text' holds list<"),
        ((("l", [[{"text": "a"}]]),), "l.text", "unknown column 'l.text'"),
        ((("text", [b"a"]),), "text", "holds binary, not text"),
        ((("text", [None]),), "text", "holds null, not text"),
        ((("text", pa.array([b"a"]).dictionary_encode()),), "text", "not text"),
    ],
)
def test_other_parquet_columns_are_refused_in_one_line(
    columns: tuple[tuple[str, object], ...], column: str, message: str, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "a.parquet", *columns)
    with pytest.raises(UserError, match=message) as caught:
        list(read_stories(path, column))
    assert "\n" not in str(caught.value)


def test_jsonl_fields_inside_objects_are_named_with_dots(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"meta": {"text": "in"}, "meta.text": "out"}\n{"meta": {"text": "in"}}\n')
    assert list(read_stories(path, "meta.text")) == ["out", "in"]
    path.write_text('{"meta": {"story": "in"}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:1: unknown column 'text'.* meta, meta\.story"):
        list(read_stories(path, "text"))
    path.write_text('{"a": {"b.c": "x"}, "a.b": {"c": "y"}}\n')
    with pytest.raises(UserError, match=r"has 2 fields 'a\.b\.c'"):
        list(read_stories(path, "a.b.c"))


def test_only_the_version_of_what_is_read_otherwise_changes_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "a.txt").write_text("One.\n\nTwo.")
    sources = [parse_data(str(tmp_path / name)) for name in ("a.jsonl", "a.txt")]
    known = [source.content_id("train") for source in sources]
    monkeypatch.setitem(readers.READER_VERSIONS, ".txt", 3)
    found = [source.content_id("train") for source in sources]
    assert found[0] == known[0]
    assert found[1] != known[1]


def test_what_is_no_regular_file_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="is not a regular file"):
        parse_data(str(tmp_path / "a.txt"))


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    source = parse_data(str(path))
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        source.content_id("train")


def test_unknown_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises((UserError, Exception), match="split"):
        parse_data("demo").texts("test")  # type: ignore[arg-type]


def test_paths_of_files_are_made_absolute_and_names_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    here = str(tmp_path)
    assert (
        absolute_paths("a.jsonl:story, ../b.txt") == f"{here}/a.jsonl:story,{tmp_path.parent}/b.txt"
    )
    assert absolute_paths("saved") == f"{here}/saved"
    assert absolute_paths(f"{here}/a.txt") == f"{here}/a.txt"
    for name in ("demo", "demo:30", "tinystories", "owner/name@config:column"):
        assert absolute_paths(name) == name
    (parted := tmp_path / "a,b").mkdir()
    monkeypatch.chdir(parted)
    assert absolute_paths("a.txt") == "a.txt"
