"""Self-contained HTML pages: templates, style, scripts and data in one file that fetches nothing.

A template is read from the ``templates`` folder of a package, and may extend or include those of
this one. Every value is escaped (`jinja2` with autoescape); control characters and marks that
reorder text are written out. The page's own policy forbids every request.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evaluations.core.record import plain
from sat_interp._util import escape
from sat_interp._util.files import write_atomically

HERE = "evaluations.tables"


@dataclass(frozen=True)
class Fragment:
    """A part of a page with its own style and scripts.

    Attributes:
        replaces: names of the figures that are not shown beside it.
    """

    body: Markup
    style: Markup = Markup("")
    script: Markup = Markup("")
    replaces: tuple[str, ...] = ()


def render(package: str, name: str, **values: Any) -> Markup:
    """Fill a template.

    Args:
        package: the package in whose folder ``templates`` it lies.
        values: by the names the template uses; all but `Markup` are escaped.

    Raises:
        jinja2.UndefinedError: a name without a value.
    """
    return Markup(_environment(package).get_template(name).render(values))


def source(package: str, *names: str) -> Markup:
    """The text of files in a package's ``templates`` as it is, such as of scripts."""
    folder = files(package) / "templates"
    return Markup("\n").join(Markup((folder / name).read_text(encoding="utf-8")) for name in names)


def write(path: str | Path, package: str, name: str, fragment: Fragment, **values: Any) -> Path:
    """Fill a template that extends ``page.html``, and write the page.

    Args:
        fragment: its style and scripts, and as its body what stands before the scripts: data.
        values: ``title``, and what the template uses.

    Raises:
        OSError: it cannot be written.
    """
    shared = Fragment(Markup(), source(HERE, "page.css"), source(HERE, "page.js"))
    text = render(package, name, fragments=[shared, fragment], data=fragment.body, **values)
    return write_atomically(path, text)


def data_script(identity: str, data: Any, packed: bool = False) -> Markup:
    """Data as JSON in an element that a script finds by its id.

    Args:
        packed: whether the JSON is gzipped, as base64; the script reads it with ``unpacked``.
    """
    text = json.dumps(plain(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8
    if packed:
        text = base64.b64encode(gzip.compress(encoded, compresslevel=6, mtime=0)).decode()
    else:
        # "</script>" and "<!--" would end or change the element; in JSON they lie in strings,
        # where the escape means the same character
        text = encoded.decode().replace("<", "\\u003c")
    kind = "application/gzip" if packed else "application/json"
    return Markup(f'<script type="{kind}" id="{escape.html(identity)}">{text}</script>\n')


@cache
def _environment(package: str) -> jinja2.Environment:
    folders = [jinja2.PackageLoader(one) for one in dict.fromkeys((package, HERE))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    return escape.printable(value) if type(value) is str else value
