"""MkDocs hooks: what a page shows of records, commands and modules is read when it is built.

A page asks for it in a line of its own:

    <!-- table: builtin lm -->           an evaluation's tables, from the records in results/builtin
    <!-- columns: builtin lm -->         what the columns of these tables mean
    <!-- paper: builtin table1 -->       a table of ``sat-eval report``
    <!-- terminal: builtin lm -->        the tables as a terminal of 100 columns shows them
    <!-- figure: builtin acdc curves Some words -->      a figure of the records; . is the main one
    <!-- figure: answer verdict . Some words -->         that of ``sat-eval verdict``
    <!-- options: acdc -->               the options of an evaluation
    <!-- help: sat-eval acdc -->         what ``--help`` prints
    <!-- frame: builtin perplexity -->   rows of ``results_frame``
    <!-- verdict: answer -->            the verdict of a study, from studies/answer.yaml
    <!-- public: sat_interp -->          the documentation of a package's public names
    <!-- map: evaluations -->            a line for each module, from its docstring

and, inside a sentence, for one figure of one record with its interval:

    {{ builtin demo:baseline lm perplexity 2 }}

A request that cannot be met fails the build.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
WIDTH = 100
REQUEST = re.compile(r"^( *)<!-- (\w+): (.+?) -->$", re.MULTILINE)
REMOTE = re.compile(
    r'<script type="module">(?:(?!</script>).)*https://.*?</script>|<script src=""> </script>',
    re.DOTALL,
)
VALUE = re.compile(r"\{\{ (\S+) (\S+(?: \[\w+\])?) (\w+) (\w+) (\d) \}\}")


KEPT = re.compile(r"(<!-- begin (\w+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
"""What README.md, which nothing builds, keeps of a request between two marks."""


def filled(text: str) -> str:
    """Return a text with what its marked requests ask for: ``python docs/hooks.py`` writes it."""
    return KEPT.sub(
        lambda match: match[1] + REQUESTS[match[2]](*match[3].split()) + "\n" + match[4], text
    )


def on_files(files: Any, config: Any) -> Any:
    """Make the front page of README.md, whose links are those of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r"\[(\S+)\]\([A-Z]\S+\)", r"`\1`", text)  # files beside the documentation
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace every request of a page by what it asks for."""

    def met(match: re.Match[str]) -> str:
        kind, words = match[2], match[3].split()
        if kind not in REQUESTS:
            raise PluginError(f"{page.file.src_uri}: nothing is known of {match[0]}")
        try:
            return textwrap.indent(REQUESTS[kind](*words), match[1])
        except (LookupError, TypeError, OSError, SystemExit) as error:
            raise PluginError(f"{page.file.src_uri}: {match[0]}: {error!r}") from error

    def drawn(match: re.Match[str]) -> str:
        """A figure becomes a file of the site, and the page an image."""
        study, evaluation, name, *words = match[1].split()
        path = f"figures/{study}-{evaluation}-{name.strip('.').replace('/', '-') or 'main'}.png"
        if path not in {file.src_uri for file in files}:
            content = figure(study, evaluation, "" if name == "." else name)
            files.append(File.generated(config, path, content=content))
        up = "../" * page.file.src_uri.count("/")
        return f"[![{' '.join(words)}]({up}{path})]({up}{path})"

    markdown = re.sub(r"^<!-- figure: (.+?) -->$", drawn, markdown, flags=re.MULTILINE)
    return VALUE.sub(lambda match: value(*match.groups()), REQUEST.sub(met, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Leave out what a converted notebook would fetch: it draws no diagrams."""
    return REMOTE.sub("", html)


@functools.cache
def records(study: str) -> tuple[Any, ...]:
    """Every record of a folder of results/, whole."""
    from evaluations.core.record import read_record, record_files

    found = [read_record(path) for path in record_files(RESULTS / study)]
    return tuple(sorted(found, key=lambda record: record.started))


def of(study: str, evaluation: str) -> list[Any]:
    """Return the records of an evaluation.

    Raises:
        LookupError: there is none.
    """
    found = [record for record in records(study) if record.evaluation == evaluation]
    if not found:
        raise LookupError(f"results/{study} holds no record of {evaluation}")
    return found


def room(evaluation: str) -> Any:
    """Return the module with the tables and figures of an evaluation."""
    from evaluations.registry import find_spec

    return find_spec(evaluation).report


@functools.cache
def tables(study: str, evaluation: str) -> list[Any]:
    """Return an evaluation's tables of the records."""
    made: list[Any] = room(evaluation).tables(of(study, evaluation))
    return made


@functools.cache
def report_tables(study: str) -> dict[str, Any]:
    """Return the tables of ``sat-eval report`` by name."""
    from evaluations.comparison.collection import report

    made = report(out=RESULTS / study)
    return {table.name: table for table in [*made.tables, *made.details]}


DEFAULTS_NOT_SHOWN = (None, (), "", dataclasses.MISSING)


def options(evaluation: str) -> str:
    """Return the options of an evaluation: names, defaults, and the docstrings of their fields."""
    from evaluations.core.options import RunOptions
    from evaluations.registry import find_spec
    from sat_interp._util.commandline import field_docstrings

    spec = find_spec(evaluation)
    rows = []
    for kind in (spec.options, *spec.shared, RunOptions):
        texts = field_docstrings(kind)
        for one in dataclasses.fields(kind):
            name = one.name.replace("_", "-")
            default = "" if one.default in DEFAULTS_NOT_SHOWN else f" Default: {one.default}."
            rows.append((f"`--{name}`", texts[one.name] + default))
    return listed("Option", rows)


def table(study: str, evaluation: str, place: str = "") -> str:
    """Return an evaluation's tables as Markdown: all, or the one at a place."""
    from evaluations.tables import markdown

    made = tables(study, evaluation)
    return "\n".join(map(markdown, [made[int(place)]] if place else made))


def terminal(study: str, evaluation: str, place: str = "0") -> str:
    """Return an evaluation's table as a terminal shows it."""
    from rich.console import Console

    from evaluations.tables import show

    shown = Console(file=io.StringIO(), width=WIDTH)
    show([tables(study, evaluation)[int(place)]], shown)
    lines = shown.file.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
    return fenced("\n".join(line.rstrip() for line in lines))


def columns(study: str, evaluation: str) -> str:
    """Return what the columns of an evaluation's tables mean."""
    from evaluations.tables import glossary

    meaning = glossary(tables(study, evaluation))
    return listed("Column", [(head.title, text) for head, text in meaning.items()])


def paper(study: str, name: str) -> str:
    """Return a table of ``sat-eval report`` as Markdown."""
    from evaluations.tables import markdown

    return markdown(report_tables(study)[name])


def verdict(study: str) -> str:
    """Return the page of ``sat-eval verdict``, below a heading of the second level."""
    from evaluations.comparison.verdict_page import blocks_of, every_table

    values, made = read_study_verdict(study)
    return "\n\n".join(blocks_of(made, every_table(values, made, study_of(study)), level=3))


@functools.cache
def read_study_verdict(study: str) -> tuple[Any, Any]:
    """Return the values and the verdicts of a study."""
    from evaluations.comparison.verdict import read_verdict

    return read_verdict(str(RESULTS / study), study_of(study))


def study_of(name: str) -> Any:
    """Return a study from its file."""
    from sat_interp.training.study import read_study

    return read_study(ROOT / "studies" / f"{name}.yaml")


def value(study: str, model: str, evaluation: str, metric: str, digits: str) -> str:
    """Return one figure with its interval, as tables write it."""
    from evaluations.tables.view import with_interval

    named = [record for record in of(study, evaluation) if record.model.get("name") == model]
    found = named[-1].metric(metric) if named else None
    if found is None or found.value is None:
        raise PluginError(f"results/{study} has no {metric} of {model}")
    return with_interval(found.value, found.interval, int(digits))


def frame(study: str, metric: str) -> str:
    """Return the rows of ``results_frame`` with a metric."""
    from evaluations.core.frame import results_frame

    rows = results_frame(RESULTS / study).query("metric == @metric")
    return fenced(rows[["model", "value", "low", "high", "n"]].to_string(index=False))


def command_help(program: str, *words: str) -> str:
    """Return what a command prints when it is asked for help."""
    import evaluations.cli
    import sat_interp.cli

    main = {"sat-eval": evaluations.cli.main, "sat-train": sat_interp.cli.main}[program]
    printed = io.StringIO()
    os.environ["COLUMNS"] = str(WIDTH)
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return fenced(printed.getvalue().strip())


def public_names(package: str) -> str:
    """Return what mkdocstrings turns into the documentation of a package's public names."""
    import importlib

    module = importlib.import_module(package)
    values = {name: getattr(module, name) for name in module.__all__}
    ours = {name: one for name, one in values.items() if one.__module__.startswith(package)}
    return "\n\n".join(documented(name, one) for name, one in ours.items())


def documented(name: str, value: Any) -> str:
    """Return the request for a name's docstring; evaluations have pages of their own."""
    from evaluations.registry import SPECS

    summaries = {spec.name: spec.summary for spec in SPECS}
    if value.__module__ == "evaluations" and name in summaries:
        text = f"`evaluations.{name}(models, **options)` returns a `Result`."
        return (
            f"### {name}\n\n{summaries[name]}\n\n{text} [Options](evaluations/{name}.md#options)."
        )
    return f"::: {value.__module__}.{value.__qualname__}"


def module_map(package: str) -> str:
    """Return a line for each module of a package: its path and what its docstring says first."""
    rows = []
    for path in sorted((ROOT / package).rglob("*.py"), key=_place):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        inside = path.relative_to(ROOT / package).parts
        name = "/".join(inside)
        if inside[-1] == "__init__.py":
            name = "/".join(inside[:-1]) + "/" if len(inside) > 1 else f"{package}/"
        if said:
            rows.append((f"`{name}`", said.splitlines()[0]))
    return listed("Module", rows)


def _place(path: Path) -> tuple[str, ...]:
    """A folder's own line first, then its modules, then its folders."""
    *folders, name = path.parts
    return (*(f"~{folder}" for folder in folders), "" if name == "__init__.py" else name)


def figure(study: str, evaluation: str, name: str) -> bytes:
    """Return a figure of an evaluation's records as PNG: ``masks/1`` is the second of ``masks``."""
    content = io.BytesIO()
    drawn = (
        verdict_figure(study) if evaluation == "verdict" else room_figure(study, evaluation, name)
    )
    drawn.savefig(content, format="png", dpi=130)
    return content.getvalue()


def room_figure(study: str, evaluation: str, name: str) -> Any:
    """Return a figure of an evaluation's records.

    Raises:
        PluginError: the evaluation has no figure of that name.
    """
    key, _, place = name.partition("/")
    figures = room(evaluation).FIGURES
    if key not in figures:
        raise PluginError(f"{evaluation} has the figures {sorted(figures)}, not {key!r}")
    return figures[key](of(study, evaluation))[int(place or 0)]


def verdict_figure(study: str) -> Any:
    """Return the figure of ``sat-eval verdict``."""
    from evaluations.comparison.verdict_page import draw_verdict

    return draw_verdict(read_study_verdict(study)[1])


def listed(heading: str, rows: list[tuple[str, str]]) -> str:
    """Return a table of two columns: names as they are, and what they mean."""
    from sat_interp._util import escape

    lines = [f"| {name} | {escape.markdown(' '.join(text.split()))} |" for name, text in rows]
    return "\n".join([f"| {heading} | |", "| :-- | :-- |", *lines])


def fenced(text: str) -> str:
    """Return text as a block of code."""
    return f"```text\n{text}\n```"


REQUESTS: dict[str, Callable[..., str]] = {
    "table": table,
    "columns": columns,
    "options": options,
    "terminal": terminal,
    "paper": paper,
    "verdict": verdict,
    "frame": frame,
    "help": command_help,
    "map": module_map,
    "public": public_names,
}


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
