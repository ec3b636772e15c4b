"""Pages in headless Chromium: opened, driven by a script, and asked what they then show."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Before anything of the page: what goes wrong, and every request that its policy stopped.
WATCH = """<script>
const watched = {errors: [], requests: []};
addEventListener("error", (event) => watched.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => watched.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation",
  (event) => watched.requests.push(event.blockedURI));
</script>"""
DRIVE = """<script>
addEventListener("load", async () => {
  try { watched.value = await (async () => { %s })(); }
  catch (error) { watched.errors.push(String(error)); }
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  watched.requests.push(...fetched.filter((name) => !name.startsWith("data:")));
  const told = document.createElement("pre");
  told.id = "driven";
  told.textContent = JSON.stringify(watched);
  document.body.append(told);
});
</script>"""


@dataclass(frozen=True)
class Driven:
    """What a script gave back, what went wrong in the page, and what it tried to fetch."""

    value: Any
    errors: list[str]
    requests: list[str]


def chromium() -> str:
    """The browser; without one the test is skipped, but fails where CI is set."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found:
        return found
    message = f"NO BROWSER: none of {', '.join(NAMES)} is installed, so no page was opened"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def drive(page: Path, script: str, address: str = "", size: str = "1400,1000") -> Driven:
    """Open a page, run a script once it is loaded, and give back what it returns.

    Args:
        script: body of an asynchronous function; what it returns goes through JSON.
        address: what stands after # in the page's address.
    """
    browser = chromium()
    text = page.read_text(encoding="utf-8")
    assert "</head>" in text, "the page is no page"
    head, _, rest = text.partition("<head>")
    body, closing, end = rest.rpartition("</body>")
    driven = page.with_name(f"{page.stem}-driven.html")
    driven.write_text(f"{head}<head>{WATCH}{body}{DRIVE % script}{closing}{end}", encoding="utf-8")
    profile = page.with_name("profile")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        f"--window-size={size}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        driven.as_uri() + (f"#{address}" if address else ""),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r'<pre id="driven">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was not driven to its end: {done.stderr[-2000:]}"
    told = json.loads(html.unescape(found[1]))
    return Driven(told.get("value"), told["errors"], told["requests"])
