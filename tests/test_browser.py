"""What opens pages sees what goes wrong in them, and is missed where it must be there."""

from __future__ import annotations

import shutil

import pytest
from markupsafe import Markup

from evaluations.tables.page import Fragment, write
from tests.browser import chromium, drive


def test_errors_and_requests_of_a_page_are_seen(tmp_path):
    body = Fragment(Markup("<p>text</p>"))
    page = write(tmp_path / "page.html", "evaluations.tables", "page.html", body, title="A page")
    script = """
    setTimeout(() => { throw new Error("of the page"); });
    new Image().src = "https://example.org/a.png";
    await new Promise((done) => setTimeout(done, 200));
    return document.querySelector("p").textContent;
    """
    driven = drive(page, script)
    assert driven.value == "text"
    assert "of the page" in driven.errors[0]
    assert any("example.org" in request for request in driven.requests)


@pytest.mark.parametrize(("ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_without_a_browser_tests_are_skipped_but_never_under_ci(monkeypatch, ci, outcome):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="NO BROWSER") as raised:
        chromium()
    assert raised.type.__name__ == outcome
