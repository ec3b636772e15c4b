"""One table, and its writers."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from evaluations.tables import (
    Cell,
    Heading,
    Table,
    csv_text,
    glossary,
    html,
    latex,
    markdown,
    write,
)

P = Heading("P", "lower", "What P is.")
TABLE = Table(
    "t_1",
    "T <1>",
    (Heading("Model"), P),
    [
        [Cell.label("model", "a & b"), Cell("1.0", "best", ("[0.5, 1.5]", "n=3"), {"p": 1 / 3})],
        [Cell.label("model", "=b"), Cell.none("p")],
    ],
    "A caption.",
    ["A note."],
    ["sat-eval lm b"],
)


def test_html_shows_the_best_the_commands_and_links_headings_to_the_glossary():
    text = html(TABLE)
    assert "<td class='best'>1.0 <span class='interval'>[0.5, 1.5] n=3</span></td>" in text
    assert "<td class='soft'>–</td>" in text
    assert "Not measured yet: <code>sat-eval lm b</code>" in text
    assert "<th title='What P is.'><a href='#column-p'>P\u00a0↓</a></th>" in text
    assert "T &lt;1&gt;" in text
    assert "A caption." in text
    assert "A note." in text
    assert glossary([TABLE, TABLE]) == {Heading("P"): "What P is."}


def test_markdown_has_a_note_a_line():
    assert markdown(TABLE).splitlines() == [
        "**T &lt;1&gt;**",
        "",
        "| Model | P ↓ |",
        "| :-- | --: |",
        "| a &amp; b | **1.0** [0.5, 1.5] n=3 |",
        "| =b | – |",
        "",
        "- A caption.",
        "- A note.",
        "- Not measured yet: sat-eval lm b",
    ]


def test_csv_is_exact_and_no_formula():
    assert csv_text(TABLE).splitlines() == ["model,p", "a & b,0.3333333333333333", "'=b,"]


def test_csv_keeps_whole_numbers_whole():
    rows = [[Cell.label("k", None)], [Cell.label("k", 4)]]
    assert csv_text(Table("t", "T", (Heading("k"),), rows)) == 'k\n""\n4\n'


def test_tables_of_the_same_rows_share_a_csv_file(tmp_path):
    other = Table("u", "U", (Heading("Model"),), [[Cell.label("model", "c")]])
    written = write([TABLE, TABLE, other], tmp_path, "x")
    assert [path.name for path in written] == ["x.md", "x.tex", "x.csv", "x-u.csv"]
    assert written[2].read_text() == csv_text(TABLE)
    assert write([], tmp_path, "x") == []


def test_latex_has_a_label_and_no_command():
    text = latex(TABLE)
    assert "\\caption{T \\textless{}1\\textgreater{}. A caption.}\\label{tab:t-1}" in text
    assert "A note." in text
    assert "sat-eval" not in text


def test_a_long_wide_table_is_several_in_latex_with_its_notes_once():
    value = Cell("0.25", details=("[0.20, 0.30]", "n=3"))
    rows = [[Cell(f"metric {place // 2}"), Cell("a model"), *[value] * 6] for place in range(60)]
    heads = tuple(Heading(f"a heading of {place} words") for place in range(8))
    text = latex(Table("t", "Long", heads, rows, notes=["A note."], n_labels=2))
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 5
    assert text.count("Long (continued)") == 4
    assert text.count("A note.") == 1
    assert "[0.20, 0.30]} \\\\ {\\scriptsize n=3}" in text  # below each other
    assert "\\resizebox" in text
    assert len(set(text.split("\\label{")[1:])) == 5


ODD = ("[a]", "*b", "a_b", "50 %", "$x^2$", "\\frac{1}", "{", "#&~", "†−±×≤é", "\U0001f600")


def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_line_break():
    rows = [[Cell.label("model", name)] for name in ODD]
    lines = latex(Table("t", "T", (Heading("Model"),), rows)).splitlines()
    assert "{}[a] \\\\" in lines
    assert "{}*b \\\\" in lines


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no TeX")
def test_latex_compiles(tmp_path):
    value = Cell("0.25", "best", ("[0.20, 0.30]", "n=3"))
    rows = [
        [Cell.label("model", f"{name} {place}"), *[value] * 7]
        for place in range(12)
        for name in ODD
    ]
    heads = (Heading("Model"), *(Heading(f"a heading [of] {name}", "lower") for name in ODD[:7]))
    odd = Table("odd_name", ODD[-1], heads, rows, "100 % [of] it.", ODD)
    text = "\n".join(map(latex, [TABLE, odd]))
    head = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n"
    body = f"\\begin{{document}}\n{text}\n\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(head + body)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
