"""The examiner behind an endpoint, asked of one that misbehaves on purpose."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evaluations.suite.neurons.examiners import endpoint
from evaluations.suite.neurons.examiners import openai as openai_examiner
from evaluations.suite.neurons.examiners.base import (
    Explanation,
    Marked,
    Question,
    ShownExcerpt,
    Simulation,
    Trial,
    Unscored,
)
from evaluations.suite.neurons.examiners.openai import OpenAIConfig, OpenAIExaminer
from evaluations.suite.neurons.examiners.pace import retry_after
from evaluations.suite.neurons.examiners.spending import find_price
from sat_interp._util.errors import UserError
from tests.evaluations.suite.neurons.server import (
    KEY,
    Answer,
    FakeClock,
    Server,
    completion,
    obedient,
    piece,
    refusal,
    serving,
)

TOKENS = ("The", " dog", " “", " ran", "\n")
QUESTION = Question("0.1", (ShownExcerpt(TOKENS, (0, 10, 0, 0, 0)),))
SAID = Explanation("dogs")
SIMULATION = Simulation(SAID, (TOKENS, (" a", " cat")))

Maker = Callable[..., OpenAIExaminer]


def question(n: int) -> Question:
    return Question(f"0.{n}", (ShownExcerpt((f" word{n}",), (10,)),))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as found:
        yield found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(
    server: Server, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Maker:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)

    def make(model: str = "gpt-4o-mini", **config: object) -> OpenAIExaminer:
        settings = OpenAIConfig(**{"concurrency": 3, "timeout": 20.0, **config})
        return openai_examiner.make(model, settings, tmp_path / "replies.sqlite", clock)

    return make


def test_every_question_of_the_interface(make: Maker, server: Server):
    examiner = make(judged=2)
    assert examiner.explain([QUESTION]) == [SAID]
    # expected values: 0.75 x 4 + 0.25 x 8
    assert examiner.simulate([SIMULATION]) == [
        (pytest.approx((0, 5, 0, 0, 0)), pytest.approx((0, 0)))
    ]
    three = Simulation(SAID, (TOKENS, (" a", " cat"), (" dog",)))
    assert examiner.detect([three]) == [(True, False, True)]
    marked = tuple(Marked(TOKENS, frozenset({place})) for place in (1, 2, 3))
    assert examiner.fuzz([Trial(SAID, marked)]) == [(True, False, False)]
    assert len(server.requests) == 1 + 2 + 2 + 2  # two excerpts to a judgement
    assert server.keys == {f"Bearer {KEY}"}
    assert {request["temperature"] for request in server.requests} == {0}
    assert examiner.usage() == {
        "sent": 7,
        "from_disk": 0,
        "tokens_in": 7000,
        "tokens_out": 700,
        "dollars": pytest.approx(7 * (1000 * 0.15 + 100 * 0.60) / 1e6),
        "simulated": {"probabilities": 2},
    }


def test_nothing_is_asked_twice(make: Maker, server: Server):
    first = make()
    asked = [question(n) for n in range(5)]
    assert first.explain(asked) == [SAID] * 5
    first.simulate([SIMULATION, SIMULATION])  # the same at the same time: one question
    assert len(server.requests) == 5 + 2
    again = make()
    assert again.explain(asked) == [SAID] * 5
    assert again.simulate([SIMULATION]) == first.simulate([SIMULATION])
    assert len(server.requests) == 7
    assert again.usage()["sent"] == 0
    assert again.usage()["dollars"] == 0
    make("gpt-4o").explain(asked[:1])  # another model is another question
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    "bad",
    [
        Answer("slow down", 429),
        Answer("", 500),
        Answer("<html>bad gateway</html>", 502),
        Answer('{"choices": [{"mess'),
        Answer("[]"),
        Answer('{"choices": []}'),
        Answer('{"error": {"message": "overloaded"}}'),
        Answer(close=True),
    ],
    ids=["429", "500", "502", "cut", "list", "empty", "error", "closed"],
)
def test_what_passes_is_asked_again_after_twice_as_long(
    bad: Answer, make: Maker, server: Server, clock: FakeClock
):
    server.first(bad, bad, bad)
    assert make().explain([QUESTION]) == [SAID]
    assert len(server.requests) == 4
    assert [0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(clock.slept)] == [True] * 3


def test_a_time_out_is_asked_again_and_may_have_been_charged(make: Maker, server: Server):
    over = threading.Event()
    server.first(Answer(wait=over, close=True))
    examiner = make(timeout=0.3)
    assert examiner.explain([QUESTION]) == [SAID]
    over.set()
    assert len(server.requests) == 2
    known = (1000 * 0.15 + 100 * 0.60) / 1e6
    assert examiner.usage()["dollars"] > known


def test_retry_after_is_honoured_by_everybody(make: Maker, server: Server, clock: FakeClock):
    server.first(Answer("slow down", 429, {"Retry-After": "70"}))
    assert make(concurrency=1).explain([question(0), question(1)]) == [SAID] * 2
    assert clock.now == pytest.approx(70)  # within which its own wait lies


def test_one_that_wants_to_be_left_alone_too_long_is_let_be(
    make: Maker, server: Server, clock: FakeClock
):
    server.first(Answer("tomorrow", 429, {"Retry-After": "86400"}))
    with pytest.raises(UserError, match="asks to wait 86,400 seconds"):  # no record of a part
        make().explain([QUESTION])
    assert (len(server.requests), clock.now) == (1, 0)


def test_retry_after_as_a_date_and_as_nonsense():
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 20 < retry_after({"retry-after": soon}) <= 30
    for said in ("", "soon", "-3", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00"):
        assert retry_after({"retry-after": said}) == 0


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Answer("", 429), "429"),
        (Answer("", 503), "503"),
        (Answer("{"), "malformed reply"),
        (Answer(close=True), "connection"),
    ],
)
def test_what_does_not_pass_is_unscored_and_asked_again_by_the_next_run(
    bad: Answer, reason: str, make: Maker, server: Server
):
    server.script = lambda request, n: bad if "word1" in str(request) else obedient(request)
    found = make(retries=2).explain([question(n) for n in range(3)])
    assert found == [SAID, Unscored(f"no answer: {reason}"), SAID]
    assert len(server.requests) == 2 + 3
    server.script = lambda request, n: obedient(request)
    assert make().explain([question(n) for n in range(3)]) == [SAID] * 3
    assert len(server.requests) == 2 + 3 + 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion("The\t0\n dog", finish_reason="length"), "truncated answer"),
        (completion("", finish_reason="content_filter"), "refused"),
        (completion("", message={"content": None, "refusal": "I cannot"}), "refused"),
        (completion(" \n"), "empty answer"),
        (completion("I would rather not."), "unparsable answer"),
        (completion("The\t0"), "tokens differ"),
    ],
)
def test_a_useless_answer_is_kept_and_its_unit_asked_no_further(
    answer: dict, reason: str, make: Maker, server: Server
):
    server.script = lambda request, n: answer
    assert make().simulate([SIMULATION]) == [Unscored(reason)]
    assert make().simulate([SIMULATION]) == [Unscored(reason)]
    assert len(server.requests) == 1  # neither the second excerpt, nor the first again


def test_levels_are_as_written_where_probabilities_are_missing(make: Maker, server: Server):
    server.script = lambda request, n: obedient({**request, "logprobs": False})
    examiner = make()
    assert examiner.simulate([SIMULATION]) == [((0, 4, 0, 0, 0), (0, 0))]
    assert examiner.usage()["simulated"] == {"as_written": 2}


def test_tokens_that_are_parts_of_characters_do_not_shift_the_levels(make: Maker, server: Server):
    quote = "“".encode()
    parts = [
        {**piece("\\xe2\\x80"), "bytes": list(quote[:2])},
        {**piece("\\x9c"), "bytes": [quote[2]]},
        piece("\t"),
        piece("0", _0=0.5, _6=0.5),
        piece("\n"),
        piece("b"),
        piece("\t"),
        piece("2", _2=0.5, **{" 2": 0.25, "_4": 0.25, "x": 0.1}),
    ]
    server.script = lambda request, n: completion("“\t0\nb\t2", parts)
    assert make().simulate([Simulation(SAID, (("“", "b"),))]) == [(pytest.approx((3, 2.5)),)]


@pytest.mark.parametrize("name", ["logprobs", "top_logprobs"])
def test_json_where_probabilities_are_refused(name: str, make: Maker, server: Server):
    def script(request: dict, n: int) -> dict | Answer:
        known = name not in request
        return obedient(request) if known else refusal(400, f"{name} is not supported", param=name)

    server.script = script
    examiner = make(concurrency=1)
    assert examiner.simulate([SIMULATION]) == [((0, 4, 0, 0, 0), (0, 0))]
    assert examiner.usage()["simulated"] == {"json": 2}
    assert len(server.requests) == 3  # refused once
    again = make(concurrency=1)
    assert again.simulate([SIMULATION]) == [((0, 4, 0, 0, 0), (0, 0))]
    assert len(server.requests) == 3
    assert again.usage()["sent"] == 0


def test_a_parameter_of_another_name_or_none(make: Maker, server: Server):
    def script(request: dict, n: int) -> dict | Answer:
        if "max_tokens" in request:
            return refusal(400, "Unsupported parameter: 'max_tokens'", param="max_tokens")
        if "temperature" in request:
            return refusal(400, "'temperature' does not support 0 with this model.")
        return obedient(request)

    server.script = script
    assert make(concurrency=1).explain([question(0), question(1)]) == [SAID] * 2
    assert len(server.requests) == 4
    assert server.requests[-1]["max_completion_tokens"] > 0


def test_a_request_that_is_refused_for_itself_is_unscored(
    make: Maker, server: Server, caplog: pytest.LogCaptureFixture
):
    server.script = lambda request, n: refusal(400, f"maximum context length, {KEY} max_tokens")
    assert make().explain([QUESTION]) == [Unscored("no answer: 400")]
    assert len(server.requests) == 1
    assert "maximum context length, ***" in caplog.text


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), "check OPENAI_API_KEY"),
        (refusal(403, "no"), "check OPENAI_API_KEY"),
        (refusal(404, "no such model"), "knows no model 'gpt-4o-mini'"),
        (refusal(429, "pay", code="insufficient_quota"), "no credit left"),
    ],
)
def test_what_no_waiting_mends_ends_the_run_in_one_line(
    bad: Answer, said: str, make: Maker, server: Server
):
    server.script = lambda request, n: bad if n >= 2 else obedient(request)
    with pytest.raises(UserError, match=said) as caught:
        make(concurrency=1).explain([question(n) for n in range(40)])
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) <= 4
    server.script = lambda request, n: obedient(request)
    assert make().explain([question(n) for n in range(4)]) == [SAID] * 4


def test_an_endpoint_that_never_answers_ends_the_run(make: Maker, server: Server):
    server.script = lambda request, n: Answer("", 500)
    with pytest.raises(UserError, match="does not answer"):
        make(retries=0).explain([question(n) for n in range(100)])
    assert endpoint.PATIENCE <= len(server.requests) < endpoint.PATIENCE + 5


def test_the_cap_is_never_exceeded(make: Maker, server: Server):
    # fewer than the prompt has bytes and the answer room: what is set aside must be the most
    usage = {"prompt_tokens": 300, "completion_tokens": 30}
    server.script = lambda request, n: {**obedient(request), "usage": usage}
    asked = [question(n) for n in range(40)]
    free = make()
    free.explain(asked[:1])
    cost = free.usage()["dollars"]
    examiner = make(max_spend=10.5 * cost, concurrency=8)
    found = examiner.explain(asked)
    paid = len(server.requests) - 1
    assert found.count(Unscored("spending cap")) == 39 - paid
    assert 0 < paid <= 10
    assert examiner.usage()["dollars"] == pytest.approx(paid * cost)
    assert make(max_spend=0.0).explain(asked[:1]) == [SAID]  # kept replies cost nothing


def test_a_reply_that_does_not_say_its_tokens_is_charged_the_most(make: Maker, server: Server):
    server.script = lambda request, n: {**obedient(request), "usage": None}
    examiner = make()
    examiner.explain([QUESTION])
    assert examiner.usage()["dollars"] > 0


def test_requests_a_minute(make: Maker, server: Server, clock: FakeClock):
    make(requests_per_minute=30, concurrency=1).explain([question(n) for n in range(4)])
    assert clock.now == pytest.approx(6)  # two seconds between each and the next


def test_the_estimate_is_near_what_is_asked(make: Maker, server: Server):
    examiner = make(judged=5)
    asked = [question(n) for n in range(100)]
    found = examiner.estimate(asked, simulated=10, detected=12, fuzzed=5)
    assert found.requests == 100 * (1 + 10 + 3 + 1)
    assert found.dollars == pytest.approx((found.tokens_in * 0.15 + found.tokens_out * 0.60) / 1e6)
    assert "1,500 requests" in str(found)
    assert not server.requests
    assert "price unknown" in str(make("my-model").estimate(asked, 1))
    assert make("gpt-4o-2024-08-06").estimate(asked, 1).dollars
    mine = make("my-model", price_in=1.0, price_out=0.0).estimate(asked, 1)
    assert mine.dollars == pytest.approx(mine.tokens_in / 1e6)
    assert examiner.estimate([], 10).requests == 0


CHILD = """
import sys
from pathlib import Path
from evaluations.suite.neurons.examiners import openai as openai_examiner
from tests.evaluations.suite.neurons.examiners.test_openai import question
config = openai_examiner.OpenAIConfig(concurrency=1)
examiner = openai_examiner.make("gpt-4o-mini", config, Path(sys.argv[1]))
examiner.explain([question(n) for n in range(12)])
"""


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(
    make: Maker, server: Server, tmp_path: Path
):
    reached, over = threading.Event(), threading.Event()

    def script(request: dict, n: int) -> dict | Answer:
        if n == 7:
            reached.set()
            return Answer(wait=over, close=True)
        return obedient(request)

    server.script = script
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "replies.sqlite")],
        cwd=Path(__file__).parents[5],
    )
    assert reached.wait(120)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    over.set()
    before = [json.dumps(request) for request in server.requests]
    server.script = lambda request, n: obedient(request)
    assert make().explain([question(n) for n in range(12)]) == [SAID] * 12
    after = [json.dumps(request) for request in server.requests[len(before) :]]
    assert len(before) == 8
    assert len(after) == 12 - 7
    assert not set(before[:7]) & set(after)  # the eighth was never answered


def test_the_key_is_nowhere(
    make: Maker,
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    server.first(Answer(KEY, 500), Answer(close=True))
    examiner = make()
    examiner.explain([QUESTION])
    examiner.simulate([SIMULATION])
    out, err = capfd.readouterr()
    assert caplog.records  # the client does log
    assert KEY not in caplog.text + out + err
    assert KEY not in json.dumps([examiner.describe(), examiner.usage()]) + repr(examiner)
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_the_description_is_the_same_all_along_and_holds_no_secret(
    make: Maker, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url.replace("//", "//me:hidden@"))
    examiner = make()
    before = examiner.describe()
    assert before["endpoint"] == server.url + "/"
    examiner.explain([QUESTION])
    assert examiner.describe() == before
    assert examiner.name == "gpt-4o-mini"


def test_what_is_missing_is_one_line(make: Maker, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="price_in and price_out"):
        make("my-model", max_spend=1.0)
    with pytest.raises(UserError, match="both"):
        make(price_in=1.0)
    with pytest.raises(UserError, match="requests_per_minute"):
        make(requests_per_minute=0.0)
    for name in ("concurrency", "judged", "timeout"):
        with pytest.raises(UserError, match=name):
            OpenAIConfig(**{name: 0})
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="set OPENAI_API_KEY"):
        make()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sat-interp\[examiner\]"):
        make()


def test_an_answer_in_parts_is_joined():
    parts = [{"type": "text", "text": "fires on "}, {"type": "text", "text": "names"}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    assert endpoint.read_reply(json.dumps(body))[0]["text"] == "fires on names"


def test_a_snapshot_has_its_own_price_where_it_is_known():
    assert find_price("gpt-4o-2024-08-06", None, None) == find_price("gpt-4o", None, None)
    old = find_price("gpt-4o-2024-05-13", None, None)
    assert old is not None
    assert old(1e6, 1e6) == 20.0


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("PRAGMA max_page_count = 1", "database or disk is full"),
        ("PRAGMA query_only = 1", "attempt to write a readonly database"),
    ],
)
def test_replies_that_cannot_be_kept_end_the_asking_and_those_before_stay(
    statement: str, reason: str, make: Maker, server: Server
):
    examiner = make(concurrency=1)
    asked = [question(n) for n in range(40)]
    assert examiner.explain(asked[:2]) == [SAID] * 2
    examiner._endpoint._replies._database.execute(statement)
    with pytest.raises(UserError, match=rf"replies\.sqlite: {reason}"):
        examiner.explain(asked)
    sent = len(server.requests)
    assert 2 < sent < len(asked)
    again = make()
    assert again.explain(asked) == [SAID] * len(asked)
    assert again.usage()["from_disk"] >= sent - 1  # only the reply that found no room is lost
