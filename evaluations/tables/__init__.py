"""Tables of records: what they show, and writers for terminal, Markdown, LaTeX, CSV and HTML.

Figures are in `evaluations.tables.draw`, which imports matplotlib.
"""

from evaluations.tables.names import stem
from evaluations.tables.table import (
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
from evaluations.tables.terminal import show, terminal
from evaluations.tables.view import Column, Layout, Row, make_table, make_tables, rows

__all__ = [
    "Cell",
    "Column",
    "Heading",
    "Layout",
    "Row",
    "Table",
    "csv_text",
    "glossary",
    "html",
    "latex",
    "make_table",
    "make_tables",
    "markdown",
    "rows",
    "show",
    "stem",
    "terminal",
    "write",
]
