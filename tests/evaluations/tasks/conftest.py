"""GPT-2's fingerprint takes a second, and these tests make tasks by the dozen."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluations.tasks.registry.fingerprint", lambda tokenizer: "not taken")
