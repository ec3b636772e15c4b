from __future__ import annotations

import threading
import time

import pytest

from sat_interp._util.errors import UserError
from sat_interp.engine.job import End
from sat_interp.engine.run import Claims, run
from tests.sat_interp.engine.stubs import Scripted, Small

LOST = End("ended by signal 9", is_final=False)


def test_the_longest_job_is_first_and_one_waits_for_another(tmp_path):
    jobs = [Small("a", ["c"], estimate=9.0), Small("b", estimate=1.0), Small("c", estimate=5.0)]
    engine = Scripted()
    run(jobs, engine, Claims(tmp_path))
    assert engine.order == ["c", "a", "b"]
    assert {job.state for job in jobs} == {"done"}
    assert engine.is_closed


def test_a_lost_attempt_is_repeated_and_the_third_is_the_last(tmp_path):
    jobs = [Small("lost"), Small("again"), Small("wrong"), Small("well")]
    engine = Scripted({"lost": [LOST] * 5, "again": [LOST, LOST], "wrong": [End("no text")]})
    states = []
    run(jobs, engine, Claims(tmp_path), lambda job: states.append((job.name, job.state)))
    assert [engine.order.count(job.name) for job in jobs] == [3, 3, 1, 1]
    assert [job.state for job in jobs] == ["failed", "done", "failed", "done"]
    assert [job.reason for job in jobs] == [
        "ended by signal 9 (3 attempts)",
        "",
        "no text",
        "",
    ]
    assert states.count(("lost", "waiting")) == 2


def test_a_job_that_cannot_be_started_fails_alone(tmp_path):
    class Refusing(Scripted):
        def start(self, job):
            if job.name == "bad":
                raise UserError("no such model")
            super().start(job)

    jobs = [Small("bad"), Small("well")]
    run(jobs, Refusing(), Claims(tmp_path))
    assert [(job.state, job.reason) for job in jobs] == [("failed", "no such model"), ("done", "")]
    assert Claims(tmp_path).take(jobs[0])


def test_a_job_that_had_been_done_is_done_without_running(tmp_path):
    class Knowing(Scripted):
        def start(self, job):
            if job.name != "old":
                return super().start(job)
            job.was_finished = True
            return End()

    jobs, engine, states = [Small("old"), Small("new", ["old"])], Knowing(), []
    run(jobs, engine, Claims(tmp_path), lambda job: states.append((job.name, job.state)))
    assert engine.order == ["new"]
    assert states == [("old", "done"), ("new", "running"), ("new", "done")]
    assert Claims(tmp_path).take(jobs[0])


def test_two_drivers_share_the_jobs_and_each_waits_for_what_the_other_runs(tmp_path):
    """The second driver takes the job that is free first, and the other once it is free."""
    other, own = Claims(tmp_path), Claims(tmp_path)
    held = Small("a")
    assert other.take(held)
    assert own.is_held("a")
    assert not own.is_held("b")
    jobs, engine = [Small("a"), Small("b")], Scripted()
    thread = threading.Thread(target=run, args=(jobs, engine, own))
    thread.start()
    until = time.monotonic() + 5
    while engine.order != ["b"] and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    assert engine.order == ["b"]
    other.give_back(held)
    thread.join(5)
    assert engine.order == ["b", "a"]
    assert not own.is_held("a")


def test_the_engine_is_closed_and_the_claims_are_free_after_an_interruption(tmp_path):
    class Interrupted(Scripted):
        def ended(self):
            raise KeyboardInterrupt

    engine = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run([Small("a")], engine, Claims(tmp_path))
    assert engine.is_closed
    assert not Claims(tmp_path).is_held("a")
