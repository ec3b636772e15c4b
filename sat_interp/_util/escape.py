"""Names of models, files and metrics, and tokens, written safely in each kind of output.

A name may hold anything: control sequences of a terminal, HTML, formulas of a spreadsheet, commands
of LaTeX. Each writer passes every text through its function here, whole cells included: in the
writer's language the result shows the text and does nothing else.
"""

from __future__ import annotations

import functools
import html as stdlib_html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

LONGEST_LABEL = 60
"""Characters of a name in a figure."""

# Marks that change the direction of text, so that it is shown in another order.
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_HIDDEN = re.compile(
    f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff{_DIRECTIONS}]"
)


def printable(text: object) -> str:
    r"""Write the text in one line, with control characters written out: ESC as ``\x1b``."""
    return _HIDDEN.sub(lambda match: repr(match[0])[1:-1], str(text))


def terminal(text: object, style: str = "") -> Text:
    """For a rich table or console: as it is, without markup or names of emoji."""
    from rich.text import Text

    return Text(printable(text), style=style)


_MARKDOWN = {
    "\\": "\\\\",
    "`": "\\`",
    "*": "\\*",
    "|": "\\|",
    "~": "\\~",
    "$": "\\$",
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "](": "]&#40;",
    "][": "]&#91;",
}
_MARKDOWN_SIGNS = re.compile(
    "|".join(map(re.escape, sorted(_MARKDOWN, key=len, reverse=True))) + r"|(?<!\w)_|_(?!\w)"
)


def markdown(text: object) -> str:
    """For GitHub's Markdown: no HTML, link, emphasis, code, formula or end of a table's cell."""
    return _MARKDOWN_SIGNS.sub(lambda match: _MARKDOWN.get(match[0], "\\_"), printable(text))


def html(text: object) -> str:
    """For HTML, also within an attribute's quotes."""
    return stdlib_html.escape(printable(text), quote=True)


def csv(value: object) -> object:
    """A cell of CSV: a text that a spreadsheet would run as a formula gets an apostrophe before it.

    Numbers stay numbers.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


_LATEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "#": "\\#",
    "_": "\\_",
    "{": "\\{",
    "}": "\\}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "''",
    "↓": "$\\downarrow$",
    "↑": "$\\uparrow$",
    "†": "$\\dagger$",
    "−": "$-$",
    "±": "$\\pm$",
    "–": "--",
    "×": "$\\times$",
    "§": "\\S{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "≈": "$\\approx$",
    "≤": "$\\leq$",
    "≥": "$\\geq$",
    "…": "\\ldots{}",
}
_LATEX_SIGNS = re.compile("|".join(map(re.escape, _LATEX)) + "|[\u0180-\U0010ffff]")


def latex(text: object) -> str:
    """For LaTeX with any engine: characters beyond the Latin ones as ``U+1F600``."""
    return _LATEX_SIGNS.sub(
        lambda match: _LATEX.get(match[0]) or f"U+{ord(match[0]):04X}", printable(text)
    )


def figure(text: object) -> str:
    """A label of a figure: no formula, no character without a glyph, not longer than has room.

    A label that begins with an underscore is left out of matplotlib's legends: it gets a space.
    """
    known = _glyphs()
    shown = "".join(item if ord(item) in known else "\ufffd" for item in printable(text))
    if len(shown) > LONGEST_LABEL:
        shown = f"{shown[: LONGEST_LABEL - 1]}…"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters of the font that figures are drawn in."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
