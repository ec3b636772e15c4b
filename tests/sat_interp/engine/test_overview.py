from __future__ import annotations

import pytest

from sat_interp.engine.overview import counts, duration, overview, seconds_left
from tests.sat_interp.engine.stubs import Small


def test_the_overview_is_lines_where_there_is_no_terminal(capsys):
    jobs = [Small("one", estimate=10.0), Small("two", estimate=100.0)]
    with overview(jobs, 1) as update:
        jobs[0].state = "running"
        update(jobs[0])
        jobs[0].state, jobs[0].seconds = "done", 5.0
        update(jobs[0])
        jobs[1].state, jobs[1].reason = "failed", "no text"
        update(jobs[1])
    assert capsys.readouterr().err.splitlines() == [
        "one: running, about 10 s; 0 of 2 done, 1 running, about 2 min left",
        "one: done in 5 s; 1 of 2 done, 0 running, about 50 s left",
        "two: failed in 0 s: no text; 1 of 2 done, 0 running, 1 failed",
    ]


def test_the_same_text_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    jobs = [Small("one", estimate=10.0), Small("two [b]x[/b]")]
    with overview(jobs, 1) as update:
        jobs[1].state = "running"
        update(jobs[1])
        jobs[0].state, jobs[0].seconds = "done", 5.0
        update(jobs[0])
    shown = capsys.readouterr().err
    assert "one: done in 5 s" in shown
    assert "two [b]x[/b]: running" in shown
    assert "1 of 2 done, 1 running" in shown


def test_time_left_is_what_similar_jobs_took():
    done = [Small("lm 1", state="done", seconds=4.0), Small("lm 2", state="done", seconds=8.0)]
    left = [Small("lm 3"), Small("lm 4", state="running"), Small("sae 1", state="failed")]
    elapsed = {"lm 4": 1.0}
    jobs = [*done, *left]
    assert seconds_left(jobs, lambda job: elapsed.get(job.name, 0.0), 1) == 6 + 5
    assert seconds_left(jobs, lambda job: elapsed.get(job.name, 0.0), 2) == 6
    assert counts(jobs) == "2 of 5 done, 1 running, 1 failed"
    assert seconds_left([*jobs, Small("sae 2")], lambda job: 0.0, 1) is None


def test_estimates_are_corrected_by_what_was_measured():
    done = [Small("lm 1", estimate=10.0, state="done", seconds=30.0)]
    left = [Small("lm 2", estimate=20.0), Small("sae 1", estimate=100.0)]
    assert seconds_left([*done, *left], lambda job: 0.0, 1) == pytest.approx(60 + 300)
    assert seconds_left([*done, *left], lambda job: 0.0, 8) == pytest.approx(300)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (125, "2 min"), (3 * 3600 + 1800, "3.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
