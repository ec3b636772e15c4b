from __future__ import annotations

import io
import re

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from sat_interp._util import escape

NAMES = [
    "my_model_v2",
    "50%-pruned & tuned",
    "a|b",
    "x<b>y",
    "#1 $k$ {4} ~ ^",
    "[bold]k4[/bold]",
    "modèle \U0001f600",
    'a,b"c',
    "=cmd|' /C calc'!A0",
    "+1",
    "-1+2",
    "@sum",
    "\tx",
    "\rx",
    "[x](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "cost$a{$b",
    "$a",
    "_x",
    "a\nb",
    "**win**",
    "‮evil",
    "a\\",
    "[/]",
    ":smile:",
    "漢字",
    "</script>",
    "`code`",
    "~~x~~",
    "a\u2028b",
    "[a][b]",
    "\x00",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_writer_lets_a_control_character_through(name):
    for write in (
        escape.printable,
        escape.markdown,
        escape.html,
        escape.csv,
        escape.latex,
        escape.figure,
        lambda text: escape.terminal(text).plain,
    ):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029‮]", write(name))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_terminal_shows_the_name_itself(name):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(escape.terminal(name), highlight=False, soft_wrap=True)
    assert console.file.getvalue().rstrip("\n") == escape.printable(name)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_markdown_has_no_html_link_or_emphasis(name):
    text = escape.markdown(name)
    assert not re.search(r"[<>]|\]\(|\]\[", text)
    assert not re.search(r"(?<!\\)[|*`~$]", text.replace("\\\\", ""))
    assert not re.search(r"&(?!amp;|lt;|gt;|#4[0]?;|#91;)", text)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_html_has_no_tag_and_ends_no_attribute(name):
    assert not re.search(r"[<>\"']", escape.html(name))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1+2", "@sum", "\t=1", "\r=1"], ids=ascii)
def test_csv_holds_no_formula_and_numbers_stay(name):
    assert str(escape.csv(name)).startswith("'")
    assert escape.csv(-1.5) == -1.5
    assert escape.csv(None) is None
    assert escape.csv("local-k4") == "local-k4"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_latex_escapes_all_it_reads_as_commands(name):
    text = escape.latex(name)
    left = re.sub(r"\\(text\w+\{\}|[&%$#_{}])", "", text)
    assert not re.search(r"[\\&%$#_{}~^]", left)
    assert max(map(ord, text)) < 0x180


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_figure_draws_every_name_and_lists_it_in_its_legend(name):
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], label=escape.figure(name))
    axes.set_title(escape.figure(name))
    assert len(axes.legend().get_texts()) == 1
    figure.savefig(io.BytesIO(), format="svg")


def test_a_figures_labels_are_short():
    assert len(escape.figure("x" * 5000)) == escape.LONGEST_LABEL
