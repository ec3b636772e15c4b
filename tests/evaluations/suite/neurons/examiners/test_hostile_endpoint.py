"""An endpoint that misbehaves in sixty ways: one unit is lost, and nothing is paid for twice."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import sqlite3
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from evaluations.suite.neurons.examiners import completion as completions
from evaluations.suite.neurons.examiners import openai as openai_examiner
from evaluations.suite.neurons.examiners import prompts
from evaluations.suite.neurons.examiners.base import (
    Explanation,
    Question,
    ShownExcerpt,
    Simulation,
    Unscored,
)
from evaluations.suite.neurons.examiners.openai import OpenAIConfig, OpenAIExaminer
from evaluations.suite.neurons.examiners.replies import Replies, request_key
from evaluations.suite.neurons.examiners.spending import Budget, Price, most_tokens
from sat_interp._util.errors import UserError
from tests.evaluations.suite.neurons.server import (
    KEY,
    FakeClock,
    completion,
    obedient,
    piece,
    serving,
)

SAID = Explanation("dogs")
TOKENS = ("The", " dog")
GOOD = json.dumps(completion("dogs")).encode()
PROMPT = prompts.explanation([ShownExcerpt((" bad",), (10,))])
MOST = (most_tokens(PROMPT) * 0.15 + PROMPT.max_tokens * 0.60) / 1e6
"""Dollars that the question below can cost."""
CHUNK = b"x" * 65536


def question(word: str) -> Question:
    return Question("0.1", (ShownExcerpt((f" {word}",), (10,)),))


def with_usage(**usage: Any) -> bytes:
    """A good answer that is said to have taken so much; numbers are written as they are given."""
    whole = {**completion("dogs"), "usage": usage}
    return json.dumps(whole).replace('"1e999"', "1e999").encode()


def head(length: int | None = None, status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def plain(body: bytes, **headers: str) -> list[bytes]:
    return [head(len(body), **headers), body]


def logprobs(**fields: Any) -> bytes:
    """An answer to a simulation whose first level has other fields."""
    odd = {**piece("0"), **fields}
    text = json.dumps(completion("The\t0\n dog\t4", [piece("The"), piece("\t"), odd]))
    return text.replace('"1e999"', "1e999").encode()


def dripping(start: bytes, each: bytes) -> Callable[[], Iterator[bytes]]:
    def send() -> Iterator[bytes]:
        yield start
        while True:
            time.sleep(0.05)
            yield each

    return send


def endless(start: bytes, each: bytes) -> Callable[[], Iterator[bytes]]:
    def send() -> Iterator[bytes]:
        yield start
        while True:
            yield each

    return send


def deep(opened: str, closed: str = "", levels: int = 200_000) -> bytes:
    return (opened * levels + closed * levels).encode()


BOMB = gzip.compress(b" " * (64 << 20))

# What is sent, the reason that is told, and whether it is kept: what did not arrive is not.
KEPT: dict[str, tuple[Any, str]] = {
    "body a byte at a time": (dripping(head(100_000), b" "), "reply too slow"),
    "body without a length, a byte at a time": (dripping(head(), b"{"), "reply too slow"),
    "chunked, a byte at a time": (
        dripping(head(Transfer_Encoding="chunked"), b"1\r\n \r\n"),
        "reply too slow",
    ),
    "answer, then silence": (dripping(head(len(GOOD) + 1000) + GOOD, b""), "reply too slow"),
    "endless body": (endless(head(), CHUNK), "reply too large"),
    "endless blanks": (endless(head(), b" " * 65536), "reply too large"),
    "endless chunks": (
        endless(head(Transfer_Encoding="chunked"), b"10000\r\n" + CHUNK + b"\r\n"),
        "reply too large",
    ),
    "a large body": (plain(b'"' + b"x" * (4 << 20) + b'"'), "reply too large"),
    "gzip bomb": (plain(BOMB, Content_Encoding="gzip"), "reply too large"),
    "deflate bomb": (
        plain(zlib.compress(b" " * (64 << 20)), Content_Encoding="deflate"),
        "reply too large",
    ),
    "gzip that is none": (plain(GOOD, Content_Encoding="gzip"), "reply in a broken encoding"),
    "brotli": (plain(GOOD, Content_Encoding="br"), "reply in an unknown encoding"),
    "gzip of gzip": (
        plain(gzip.compress(gzip.compress(GOOD)), Content_Encoding="gzip, gzip"),
        "reply in an unknown encoding",
    ),
    "deep lists": (plain(deep("[", "]")), "reply nested too deeply"),
    "deep mappings": (plain(deep('{"a":', levels=100_000)), "reply nested too deeply"),
    "lone surrogate": (plain(json.dumps(completion("dogs \ud800")).encode()), "broken characters"),
    "other half": (plain(json.dumps(completion("\udfff dogs")).encode()), "broken characters"),
    "lone surrogate as an end": (
        plain(json.dumps(completion("dogs", finish_reason="\ud800")).encode()),
        "broken characters",
    ),
    "negative usage": (
        plain(with_usage(prompt_tokens=-1_000_000, completion_tokens=5)),
        "impossible usage",
    ),
    "negative usage written": (
        plain(with_usage(prompt_tokens=5, completion_tokens=-7)),
        "impossible usage",
    ),
    "huge usage": (
        plain(with_usage(prompt_tokens=10**12, completion_tokens=10**12)),
        "impossible usage",
    ),
    "usage beyond floats": (
        plain(with_usage(prompt_tokens=10**400, completion_tokens=1)),
        "impossible usage",
    ),
    "infinite usage": (
        plain(with_usage(prompt_tokens=float("inf"), completion_tokens=1)),
        "impossible usage",
    ),
    "usage of 1e999": (
        plain(with_usage(prompt_tokens="1e999", completion_tokens=1)),
        "impossible usage",
    ),
    "usage that is no number": (
        plain(with_usage(prompt_tokens=float("nan"), completion_tokens=1)),
        "impossible usage",
    ),
    "half a token": (plain(with_usage(prompt_tokens=1.5, completion_tokens=1)), "impossible usage"),
    "usage in words": (
        plain(with_usage(prompt_tokens="ten", completion_tokens=1)),
        "impossible usage",
    ),
    "usage true": (plain(with_usage(prompt_tokens=True, completion_tokens=1)), "impossible usage"),
    "usage as a list": (
        plain(json.dumps({**completion("dogs"), "usage": [1, 2]}).encode()),
        "impossible usage",
    ),
}
LOST: dict[str, tuple[Any, str]] = {
    "headers a byte at a time": (dripping(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"), "time-out"),
    "silence": (dripping(b"", b""), "time-out"),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\nX-A: ", CHUNK), "connection"),
    "no HTTP": ([b"\x00\x01\x02 hello\r\n\r\n"], "connection"),
    "closed at once": ([], "connection"),
    "cut body": ([head(1000), GOOD[:50]], "connection"),
    "a number": (plain(b"1" * 6000), "malformed reply"),
    "null": (plain(b"null"), "malformed reply"),
    "no bytes": (plain(b""), "malformed reply"),
    "not UTF-8": (plain(b"\xff\xfe" * 100), "malformed reply"),
    "choices as a mapping": (plain(b'{"choices": {"a": 1}}'), "malformed reply"),
    "a message of nothing": (plain(b'{"choices": [{"message": null}]}'), "malformed reply"),
    "content as a number": (
        plain(b'{"choices": [{"message": {"content": 5}}]}'),
        "malformed reply",
    ),
    "an endless error": (endless(head(status=500), CHUNK), "500"),
    "an error a byte at a time": (dripping(head(1000, status=503), b" "), "503"),
    "a bomb as an error": (plain(BOMB, status=500, Content_Encoding="gzip"), "500"),
    "an error of deep lists": (plain(deep("["), status=500), "500"),
    "a server in brotli with an error": (plain(GOOD, status=502, Content_Encoding="br"), "502"),
}
# An answer with this in place of its levels' probabilities.
LEVELS = {
    "log-probability of 1e308": {"logprob": 1e308, "top_logprobs": []},
    "of infinity": {"logprob": "1e999", "top_logprobs": []},
    "of nothing": {"logprob": None, "top_logprobs": []},
    "no number": {"logprob": float("nan"), "top_logprobs": []},
    "above 0": {"logprob": 2.0, "top_logprobs": []},
    "true": {"logprob": True, "top_logprobs": []},
    "in words": {"logprob": "x", "top_logprobs": []},
    "another's of 1e308": {"top_logprobs": [{"token": "0", "logprob": 1e308, "bytes": None}]},
    "others that are none": {"top_logprobs": [1, 2]},
    "bytes as a number": {"bytes": 10**10},
    "bytes above 255": {"bytes": [300]},
    "bytes in words": {"bytes": "zeros"},
}


class RawServer:
    """Answers a request with ``bad`` in it by raw bytes, any other as it should."""

    def __init__(self) -> None:
        self.answer: Any = []
        self.bad = 0
        self.good = 0
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = json.loads(body)
        handler.close_connection = True
        if " bad" not in request["messages"][-1]["content"]:
            self.good += 1
            handler.wfile.write(b"".join(plain(json.dumps(obedient(request)).encode())))
            return
        self.bad += 1
        sent = self.answer() if callable(self.answer) else self.answer
        for part in sent:
            handler.wfile.write(part)
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_WR)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with serving(RawServer()) as found:
        yield found


@pytest.fixture
def make(server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)

    def make(**config: Any) -> OpenAIExaminer:
        settings = OpenAIConfig(**{"concurrency": 3, "timeout": 0.3, "retries": 1, **config})
        return openai_examiner.make("gpt-4o-mini", settings, tmp_path / "r.sqlite", FakeClock())

    return make


ASKED = [question("one"), question("bad"), question("two")]


@pytest.mark.parametrize("name", [*KEPT, *LOST])
def test_a_reply_that_cannot_be_used_costs_one_unit(name: str, make, server: RawServer):
    is_kept = name in KEPT
    server.answer, reason = {**KEPT, **LOST}[name]
    wanted = [SAID, Unscored(reason if is_kept else f"no answer: {reason}"), SAID]
    examiner = make(max_spend=1.0)
    before = time.monotonic()
    assert examiner.explain(ASKED) == wanted
    assert time.monotonic() - before < 5
    assert server.bad == (1 if is_kept else 2)  # tried once more
    dollars = examiner.usage()["dollars"]
    each = (1000 * 0.15 + 100 * 0.60) / 1e6
    assert 2 * each - 1e-12 <= dollars <= 2 * each + 2 * MOST + 1e-12
    if is_kept:
        own = each if reason == "broken characters" else MOST  # where its usage can be believed
        assert dollars == pytest.approx(2 * each + own)
        assert make().explain(ASKED) == wanted
        assert (server.bad, server.good) == (1, 2)


@pytest.mark.parametrize("name", LEVELS)
def test_probabilities_that_cannot_be_cost_one_unit(name: str, make, server: RawServer):
    server.answer = plain(logprobs(**LEVELS[name]))
    asked = [Simulation(SAID, (TOKENS,)), Simulation(SAID, ((" bad", " dog"),))]
    for _ in range(2):
        good, bad = make().simulate(asked)
        assert good == (pytest.approx((0, 5)),)
        assert bad == Unscored("impossible log-probabilities")
    assert (server.bad, server.good) == (1, 1)


def test_a_reply_with_more_tokens_than_asked_for_is_used_and_charged_the_most(
    make, server: RawServer
):
    server.answer = plain(with_usage(prompt_tokens=500, completion_tokens=100_000))
    examiner = make(max_spend=2.5 * MOST)
    assert examiner.explain([question("bad")]) == [SAID]
    assert examiner.usage()["dollars"] == pytest.approx(MOST)


def test_the_memory_of_an_endless_reply_is_bounded(make, server: RawServer):
    server.answer = endless(head(), CHUNK)
    examiner = make(timeout=20.0)
    tracemalloc.start()
    try:
        assert examiner.explain([question("bad")]) == [Unscored("reply too large")]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_an_endpoint_that_gives_nothing_of_use_ends_the_run(make, server: RawServer):
    server.answer = KEPT["negative usage"][0]
    with pytest.raises(UserError, match=r"does not answer \(impossible usage, 20 requests"):
        make().explain([question(f"bad{n}") for n in range(60)])
    assert server.bad < 25


def test_a_redirect_is_not_followed(make, server: RawServer):
    server.answer = [head(0, status=307, Location="http://127.0.0.1:1/v1/chat/completions")]
    with pytest.raises(UserError, match=r"elsewhere \(307\): set OPENAI_BASE_URL"):
        make().explain([question("bad")])


def test_a_message_of_an_endpoint_holds_no_control_characters(make, server, caplog):
    body = json.dumps({"error": {"message": "\x1b[2J no \n no"}}).encode()
    server.answer = plain(body, status=400)
    assert make().explain([question("bad")]) == [Unscored("no answer: 400")]
    assert "\x1b" not in caplog.text.replace("\\x1b", "")


def test_an_answer_in_gzip_is_read(make, server: RawServer):
    for name in ("gzip", "x-gzip"):
        server.answer = plain(gzip.compress(GOOD), Content_Encoding=name)
        assert make().explain([question(f"bad{name}")]) == [SAID]
    server.answer = plain(zlib.compress(GOOD), Content_Encoding="deflate")
    assert make().explain([question("bad")]) == [SAID]


TAMPERED = {
    "text": "no blob",
    "number": 5,
    "nothing": None,
    "not packed": b"plain",
    "cut": zlib.compress(b'{"text": "cats"}')[:-6],
    "a bomb": zlib.compress(b" " * (64 << 20)),
    "no JSON": zlib.compress(b"{"),
    "not UTF-8": zlib.compress(b'"\xff"'),
    "deep": zlib.compress(deep("[", "]")),
    **{
        name: zlib.compress(json.dumps(value).encode())
        for name, value in {
            "a list": [],
            "null": None,
            "empty": {},
            "a part": {"text": "cats"},
            "text as a number": {"text": 5, "finish": "stop", "levels": []},
            "a surrogate": {"text": "\ud800", "finish": "stop", "levels": []},
            "levels as a mapping": {"text": "cats", "finish": "stop", "levels": {}},
            "more": {"text": "cats", "finish": "stop", "levels": [], "more": 1},
            "a level of two": {"text": "1", "finish": "stop", "levels": [[0, "1"]]},
            "a level elsewhere": {"text": "1", "finish": "stop", "levels": [[7, "1", {}]]},
            "a level before": {"text": "1", "finish": "stop", "levels": [[-1, "1", {}]]},
            "a level of 11": {"text": "1", "finish": "stop", "levels": [[0, "11", {}]]},
            "another level of 11": {
                "text": "1",
                "finish": "stop",
                "levels": [[0, "1", {"11": -1.0}]],
            },
            "1e308": {"text": "1", "finish": "stop", "levels": [[0, "1", {"1": 1e308}]]},
            "no number": {"text": "1", "finish": "stop", "levels": [[0, "1", {"1": "x"}]]},
            "a finish": {"text": "cats", "finish": None, "levels": []},
            "messages refused": {"refused": "messages"},
            "a refused list": {"refused": ["logprobs"]},
            "failed as a number": {"failed": 1},
            "failed at length": {"failed": "x" * 1000},
        }.items()
    },
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_row_that_no_run_wrote_is_deleted_and_asked_again(
    name: str, make, server: RawServer, tmp_path: Path, caplog
):
    assert make().explain([question("one")]) == [SAID]
    with sqlite3.connect(tmp_path / "r.sqlite") as database:
        database.execute("UPDATE replies SET reply = ?", (TAMPERED[name],))
    database.close()
    tracemalloc.start()
    try:
        assert make().explain([question("one")]) == [SAID]
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()
    assert server.good == 2
    assert "requested again" in caplog.text
    assert make().explain([question("one")]) == [SAID]
    assert server.good == 2  # the row was written anew


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON replies BEGIN DELETE FROM replies; END",
        "CREATE VIEW v AS SELECT 1",
    ],
)
def test_a_database_that_acts_by_itself_is_refused(statement: str, tmp_path: Path):
    Replies(tmp_path / "r.sqlite").close()
    with sqlite3.connect(tmp_path / "r.sqlite") as database:
        database.execute(statement)
    database.close()
    with pytest.raises(UserError, match="move the file away"):
        Replies(tmp_path / "r.sqlite")


def test_no_amount_of_money_is_given_back():
    budget = Budget(Price(1.0, 1.0), 1.0)
    for spent in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cannot cost"):
            budget.settle(0.0, spent)


def test_thoughts_in_parts_of_their_own_are_no_answer():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "cats"}]},
        {"type": "reasoning", "text": "[0, 1]"},
        {"type": "text", "text": "dogs"},
    ]
    body = {"choices": [{"message": {"content": parts, "reasoning_content": "cats"}}]}
    assert completions.read_reply(json.dumps(body))[0]["text"] == "dogs"
    assert request_key({}) != request_key([])
