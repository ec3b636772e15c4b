"""The documentation: built from nothing, without a network; every link, every command, a phone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from evaluations.registry import SPECS
from tests.browser import drive

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LONGEST_README = 9000
"""Bytes."""
PHONE = 390
"""Pixels across."""
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


class Addresses(HTMLParser):
    """What a page points to and fetches, and the names that can be pointed to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.names: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the addresses of a tag."""
        of = {name: text or "" for name, text in attrs}
        self.names |= {of[name] for name in ("id", "name") if name in of}
        if tag in ("a", "area") and "href" in of:
            self.links.append(of["href"])
        elif tag == "link" and "canonical" not in of.get("rel", ""):
            self.fetched.append(of.get("href", ""))
        elif "src" in of:
            self.fetched.append(of["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it; what MkDocs would only warn of fails the build."""
    if importlib.util.find_spec("mkdocs") is None:
        message = "the extra docs is not installed: make install-docs"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def blocks(page: Path, language: str) -> Iterator[str]:
    """The blocks of code of a language in a page."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[tuple[str, str]]:
    """Every command line of a program in the documentation, and its page."""
    found = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "results").rglob("README.md"))]:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(f"{program} "):
                    found.append((page.name, line))
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_every_page_is_there_with_all_it_asked_for(site):
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "tutorial.html", "lm.html", "first_look.html"} <= {p.name for p in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"&lt;!-- \w+: |<!-- \w+: \w+|\{\{ ", text), page
    assert "2.08" in (site / "evaluations" / "lm.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_link_is_dead_and_nothing_is_fetched_from_elsewhere(site):
    read = {page: Addresses(page) for page in site.rglob("*.html") if page.name != "404.html"}
    dead, remote = [], []
    for page, addresses in read.items():
        for link in [*addresses.links, *addresses.fetched]:
            if link.startswith("data:"):
                continue
            address = urlparse(link)
            if address.scheme in ("http", "https", "mailto"):
                remote += [(page.name, link)] if link in addresses.fetched else []
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            known = read[target].names if target in read else set()
            if not target.exists() or (address.fragment and unquote(address.fragment) not in known):
                dead.append((page.name, link))
    assert not remote
    assert not dead


@pytest.mark.slow
def test_pages_fit_a_phone(site):
    """In a frame as wide as a phone, wide tables scroll and the page does not."""
    pages = {}
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":
            continue
        base = f'<base href="{page.as_uri()}">'
        pages[str(page.relative_to(site))] = page.read_text(encoding="utf-8").replace(
            "<head>", f"<head>{base}", 1
        )
    frames = site / "phone.html"
    told = json.dumps(pages).replace("<", "\\u003c")
    frames.write_text(
        f"<html><head></head><body><script>const pages = {told};</script></body></html>"
    )
    script = f"""
      const widths = {{}};
      for (const [name, text] of Object.entries(pages)) {{
        const frame = document.createElement("iframe");
        frame.style = "border:0; height:800px; width:{PHONE}px";
        frame.srcdoc = text;
        document.body.append(frame);
        await new Promise((done) => frame.onload = done);
        const inside = frame.contentDocument.documentElement;
        const size = getComputedStyle(frame.contentDocument.querySelector("p")).fontSize;
        widths[name] = [inside.scrollWidth, frame.contentWindow.innerWidth, parseFloat(size)];
        frame.remove();
      }}
      return widths;"""
    driven = drive(frames, script, size="1000,1000")
    assert driven.value is not None, driven.errors
    assert driven.value.keys() == pages.keys()
    assert {n: w for n, w in driven.value.items() if w[0] > w[1] or w[2] < 14} == {}


@pytest.mark.slow
def test_a_page_opens_from_a_folder_and_its_search_finds_an_evaluation(site):
    script = """
      const query = document.querySelector(".md-search__input");
      query.focus();
      query.value = "perplexity";
      query.dispatchEvent(new Event("keyup", {bubbles: true}));
      query.dispatchEvent(new Event("input", {bubbles: true}));
      for (let tries = 0; tries < 40; tries++) {
        const found = [...document.querySelectorAll(".md-search-result__link")];
        if (found.length) return found.map((link) => link.getAttribute("href"));
        await new Promise((done) => setTimeout(done, 50));
      }
      return [];"""
    driven = drive(site / "index.html", script)
    assert any("evaluations/lm.html" in link for link in driven.value)
    assert driven.errors == []
    assert {urlparse(address).scheme for address in driven.requests} <= {"file"}


def test_every_evaluation_has_a_page_that_covers_what_a_reader_asks():
    for name in (spec.name for spec in SPECS):
        text = (DOCS / "evaluations" / f"{name}.md").read_text(encoding="utf-8")
        for heading in (
            "What is measured",
            "Output",
            "Controls",
            "How to read it",
            "What it cannot show",
            "Options",
        ):
            assert f"\n## {heading}\n" in text, (name, heading)


@pytest.mark.parametrize("program", ["sat-eval", "sat-train"])
def test_commands_in_the_documentation_are_commands(program, capsys):
    """Each is parsed with all its options, and prints its configuration in place of running."""
    import evaluations.cli
    import sat_interp.cli

    main = {"sat-eval": evaluations.cli.main, "sat-train": sat_interp.cli.main}[program]
    found = commands(program)
    assert len(found) > 4
    for page, line in found:
        words = shlex.split(line.split(" ; ")[0], comments=True)[1:]
        if program == "sat-train" and "--study" in words:
            continue  # a study has a configuration for each of its runs
        code = 0
        try:
            code = main([*words, "--print_config"])
        except SystemExit as end:
            code = int(end.code or 0)
        assert code == 0, (page, line, capsys.readouterr().err)


def test_the_readme_is_short_and_its_table_is_the_records(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= LONGEST_README
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("the extra docs is not installed")
    specification = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert specification
    assert specification.loader
    hooks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hooks)
    assert hooks.filled(text) == text, "python docs/hooks.py writes the table anew"
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_INTERP_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    found = list(blocks(ROOT / page, "python"))
    assert found
    for block in found:
        exec(compile(block, page, "exec"), names)
    left = {path.name for path in tmp_path.iterdir()} - {"results", "cache"}
    assert left <= {"perplexity.png"}  # what the page itself saves
