"""Options made of dataclasses: what is read, what help says, and errors of one line."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import pytest
import yaml

from sat_interp._util.commandline import build, option_parser, parse_options
from sat_interp._util.errors import UserError


@dataclass(frozen=True)
class Base:
    """Settings that another dataclass inherits."""

    seed: int = 0
    """Seed of the
    samples."""


@dataclass(frozen=True)
class Example(Base):
    """One setting of each kind."""

    task_name: str = "ioi"
    """Task to run."""

    threshold: float | None = None
    """Smallest effect; 5 % of the largest by default."""

    weight: float | str = 1.0
    """Weight, or a schedule."""

    method: Literal["acdc", "eap"] = "acdc"
    """Search method."""

    scores: tuple[Literal["f1", "auc"], ...] = ("f1",)
    """Scores to report."""

    sizes: tuple[int, ...] = (1, 2)
    """Sizes of the sample."""

    force_again: bool = False
    """Measure again."""

    use_cache: bool = True
    """Keep activations."""


@dataclass(frozen=True)
class Run:
    """Settings that every command has."""

    out: str
    """Directory of the records."""

    seed: int = 42
    """A seed that the first dataclass has already declared."""


def command(prog: str | None = "tool"):
    parser = option_parser(
        Example,
        Run,
        prog=prog,
        description="Measure.",
        examples="examples:\n  tool --out here",
        sections={"lm": [Base]},
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Models to measure.")
    return parser


def tool():
    """A command with subcommands."""
    parser = option_parser(prog="tool")
    parser.add_subcommands(required=True).add_subcommand("go", command(None), help="Go.")
    return parser


def test_every_field_is_an_option_and_underscores_are_hyphens():
    line = "m1 m2 --out=d --task_name gt --threshold 0.5 --weight 0@1 --method=eap --scores auc,f1"
    line += " --sizes 3 --force-again --no-use_cache --lm.seed 3"
    options = parse_options(command(), line.split())
    assert build(Example, options) == Example(
        seed=0,
        task_name="gt",
        threshold=0.5,
        weight="0@1",
        method="eap",
        scores=("auc", "f1"),
        sizes=(3,),
        force_again=True,
        use_cache=False,
    )
    assert build(Run, options) == Run("d", 0)
    assert build(Base, options["lm"]) == Base(3)
    assert options["models"] == ["m1", "m2"]
    assert "config" not in options


def test_defaults_are_those_of_the_dataclass():
    assert build(Example, parse_options(command(), ["m", "--out", "d"])) == Example()


def test_subcommands_have_their_options_under_their_name():
    options = parse_options(tool(), ["go", "m", "--out", "d", "--task-name", "x"])
    assert options["subcommand"] == "go"
    assert options["go"]["task_name"] == "x"
    assert "config" not in options["go"]


def test_printed_options_are_read_back(capsys, tmp_path):
    given = ["m", "--out=d", "--sizes=3,4", "--no-use-cache", "--lm.seed=5", "--method=eap"]
    with pytest.raises(SystemExit) as ended:
        parse_options(command(), [*given, "--print_config"])
    assert ended.value.code == 0
    (file := tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load(file.read_text())["lm"] == {"seed": 5}
    assert parse_options(command(), ["--config", str(file)]) == parse_options(command(), given)


def test_help_has_docstrings_and_types_in_words(capsys):
    with pytest.raises(SystemExit):
        parse_options(command(), ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Measure. examples: tool --out here",
        "--seed N Seed of the samples. (whole number, default: 0)",
        "--threshold X Smallest effect; 5 % of the largest by default. (number)",
        "--weight X Weight, or a schedule. (number or text, default: 1.0)",
        "--method {acdc,eap} Search method. (default: acdc)",
        "Sizes of the sample. (whole numbers, separated by commas, default: 1,2)",
        "--force-again Measure again. --use-cache, --no-use-cache Keep "
        "activations. (default: true)",
        "--out TEXT Directory of the records. (required, text)",
        "options of lm: --lm.seed N",
    ):
        assert part in text
    for word in ("null", "_name", "type:", "Literal", " int"):
        assert word not in text.replace("Print", "")


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(command(), ["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tool {metadata.version('sat-interp')}\n"


MISTAKES = {
    "--task-nam=x": "unknown option --task-nam: did you mean --task-name?",
    "--task_nam=x": "unknown option --task-nam: did you mean --task-name?",
    "--lm.sed=3": "unknown option --lm.sed: did you mean --lm.seed?",
    "--zzzz": "unknown option --zzzz: tool --help lists the options",
    "--seed=half": "--seed must be a whole number, not 'half'",
    "--seed=1.5": "--seed must be a whole number, not '1.5'",
    "--seed=1e3": "--seed must be a whole number, not '1000.0'",
    "--lm.seed=x": "--lm.seed must be a whole number, not 'x'",
    "--threshold=low": "--threshold must be a number, not 'low'",
    "--method=eapp": "unknown method 'eapp': did you mean 'eap'? choices: acdc, eap",
    "--scores=f1,f2": "--scores must be any of f1, auc, separated by commas, not 'f1,f2'",
    "--sizes=1,b": "--sizes must be whole numbers, separated by commas, not '1,b'",
    "--seed": "--seed needs a value",
    "--force-again=3": "--force-again takes no value",
    "--use-cache=3": "--use-cache takes no value",
    "--config": "--config needs a value",
    "--config=nowhere.yaml": "nowhere.yaml: no such file",
    "--config=/": "/ is not a YAML mapping of options: it is not a regular file",
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("parser", [command, tool])
def test_a_mistake_is_one_line(mistake, parser):
    start = ["go"] if parser is tool else []
    with pytest.raises(UserError) as error:
        parse_options(parser(), [*start, "m", "--out=d", mistake])
    assert str(error.value).replace("tool go", "tool") == MISTAKES[mistake]


@pytest.mark.parametrize("start", [[], ["go"]])
def test_what_is_missing_is_named(start):
    with pytest.raises(UserError, match="^missing --out and MODEL$"):
        parse_options(tool() if start else command(), start)


def test_a_stray_word_and_an_unknown_command_are_named():
    with pytest.raises(UserError, match=r"^unexpected argument 'stray'$"):
        parse_options(option_parser(Base, prog="tool"), ["stray"])
    with pytest.raises(
        UserError, match=r"^unknown command 'goo': did you mean 'go'\? choices: go$"
    ):
        parse_options(tool(), ["goo", "m"])
    with pytest.raises(UserError, match=r"^name a command: go$"):
        parse_options(tool(), [])


FILES = {
    "task_nam: x": "{file}: unknown setting task_nam: did you mean task_name?",
    "lm: {sed: 3}": "{file}: unknown setting lm.sed: did you mean lm.seed?",
    "use_cache: 3": "{file}: a flag must be true or false, not 3",
    "force_again: 3": "{file}: a flag must be true or false, not 3",
    "zzzz: 1": "{file}: unknown setting zzzz",
    "seed: half": "--seed must be a whole number, not 'half'",
    "sizes: [1, b]": "--sizes must be whole numbers, separated by commas",
    "- 3": "{file} is not a YAML mapping of options",
    "seed: [3": "{file} is not a YAML mapping of options: it is not valid YAML",
}


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize("start", [[], ["go"]])
def test_a_mistake_in_a_file_is_one_line(content, start, tmp_path: Path):
    (file := tmp_path / "run.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        parse_options(tool() if start else command(), [*start, "m", "--out=d", f"--config={file}"])
    assert str(error.value).startswith(FILES[content].format(file=file))
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Mixed:
    """Options of several types."""

    count: int | Literal["all"] = 3
    """Number of neurons, or all."""

    place: Path | None = None
    """Directory."""

    names: tuple[str, ...] = ()
    """Names."""


def test_an_option_of_two_types_is_shown_and_refused_with_both(capsys):
    parser = option_parser(Mixed)
    with pytest.raises(SystemExit):
        parse_options(parser, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--count N|all" in text
    assert "(whole number or all, default: 3)" in text
    assert "--place PATH" in text
    assert "default: )" not in text
    with pytest.raises(UserError, match="--count must be a whole number or all, not 'some'"):
        parse_options(parser, ["--count", "some"])
    assert parse_options(parser, ["--count", "all"])["count"] == "all"
