"""One self-contained HTML file: templates, style, scripts and data in it, and nothing fetched.

Text from outside is put in by `escaped`, data by `data_script`; neither can end the element it
stands in. The page's own policy forbids every request, so that even a mistake could send none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from evaluations.core.record import plain
from sat_interp._util import escape
from sat_interp._util.files import write_atomically


def assemble(
    path: str | Path,
    title: str,
    body: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: str = "",
) -> Path:
    """Write a page.

    Args:
        body: HTML.
        styles, scripts: names of templates, after those that all pages share.
        data: what `data_script` made.

    Raises:
        OSError: it cannot be written.
    """
    values = {
        "title": escaped(title),
        "style": "\n".join(template(name) for name in ("page.css", *styles)),
        "body": body,
        "data": data,
        "script": "\n".join(template(name) for name in ("page.js", *scripts)),
    }
    return write_atomically(path, fill(template("page.html"), values))


def template(name: str) -> str:
    """The text of a file in ``templates``."""
    return (files("evaluations.comparison") / "templates" / name).read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with each ``{{name}}`` replaced; what is put in is not looked at again.

    Raises:
        KeyError: a name without a value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


def escaped(text: object) -> str:
    """Text as HTML, also within an attribute's quotes."""
    return escape.html(text)


def data_script(identity: str, data: Any) -> str:
    """Data as JSON in an element a script finds by ``identity``; not run, and read when needed."""
    text = json.dumps(plain(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # "</script>" and "<!--" in a token must not end or change the element; in JSON they lie in
    # strings, where the escape means the same character. A lone surrogate has no UTF-8.
    text = text.replace("<", "\\u003c").encode("utf-8", "replace").decode("utf-8")
    return f'<script type="application/json" id="{escaped(identity)}">{text}</script>\n'
