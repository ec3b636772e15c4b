"""A chat endpoint of our own that misbehaves on purpose."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, TypeVar

from evaluations.suite.neurons.examiners import prompts
from evaluations.suite.neurons.examiners.pace import Clock

Fields = dict[str, Any]
KEY = "sk-very-secret-0123456789"


@dataclass
class Answer:
    """What the server does with one request; nothing at all (``close``) if it is to hang up."""

    body: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    wait: threading.Event | None = None


def completion(text: str, pieces: list[Fields] | None = None, **choice: Any) -> Fields:
    logprobs = None if pieces is None else {"content": pieces, "refusal": None}
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "stop",
                "logprobs": logprobs,
                **choice,
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def refusal(status: int, message: str = "no", **error: Any) -> Answer:
    return Answer(json.dumps({"error": {"message": message, **error}}), status)


def piece(token: str, **alternatives: float) -> Fields:
    """A token of an answer, with the probabilities of what might have stood there."""
    top = [
        {"token": text.strip("_"), "logprob": math.log(p), "bytes": list(text.strip("_").encode())}
        for text, p in alternatives.items()
    ]
    return {"token": token, "logprob": 0.0, "bytes": list(token.encode()), "top_logprobs": top}


def obedient(request: Fields) -> Fields:
    """A model that does as it is told: ``dog`` is at 4, a quarter of the weight being on 8.

    It says every excerpt with ``dog`` in it fires, and every marked dog is marked rightly.
    """
    system, asked = (request["messages"][at]["content"] for at in (0, -1))
    _, _, rest = asked.partition("\n")
    if system.startswith(prompts.EXPLAIN.format(highest=10)):
        return completion("dogs")
    if system == prompts.DETECT:
        return completion(str([int("dog" in line) for line in rest.split("\n")]))
    if system == prompts.FUZZ:
        return completion(str([int("<< dog>>" in line) for line in rest.split("\n")]))
    tokens = rest.split("\n")
    levels = [4 if "dog" in token else 0 for token in tokens]
    if system.endswith(prompts.ANSWER["json"]):
        return completion(json.dumps(list(zip(tokens, levels, strict=True))))
    pieces = []
    for token, level in zip(tokens, levels, strict=True):
        odds = {"_4": 0.75, "_8": 0.25} if level else {"_0": 1.0}
        pieces += [piece(token), piece("\t"), piece(str(level), **odds), piece("\n")]
    text = "".join(part["token"] for part in pieces)
    return completion(text, pieces if request.get("logprobs") else None)


Script = Callable[[Fields, int], Fields | Answer]


class Server:
    """Keeps what it was asked; ``script`` says what to answer to the n-th request."""

    def __init__(self) -> None:
        self.script: Script = lambda request, n: obedient(request)
        self.requests: list[Fields] = []
        self.answered: list[Fields] = []
        self.keys: set[str] = set()
        self.url = ""
        self._lock = threading.Lock()

    def first(self, *answers: Answer) -> None:
        """Answer so to the first requests, and well to those after."""
        self.script = lambda request, n: answers[n] if n < len(answers) else obedient(request)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        request = json.loads(body)
        with self._lock:
            n = len(self.requests)
            self.requests.append(request)
            self.keys.add(handler.headers["Authorization"])
        answer = self.script(request, n)
        if isinstance(answer, dict):
            answer = Answer(json.dumps(answer))
        if answer.wait:
            answer.wait.wait(10)
        handler.close_connection = answer.close
        if answer.close:
            return
        data = answer.body.encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        with self._lock:
            self.answered.append(request)


class Answering(Protocol):
    """What answers requests; ``url`` is set while it is served."""

    url: str

    def handle(self, handler: BaseHTTPRequestHandler) -> None: ...


AnsweringT = TypeVar("AnsweringT", bound=Answering)


@contextmanager
def serving(server: AnsweringT) -> Iterator[AnsweringT]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                server.handle(self)
            except OSError:  # the client has hung up
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


class FakeClock(Clock):
    """Time that passes only by sleeping, and takes none."""

    def __init__(self) -> None:
        self.now, self.slept, self._lock = 0.0, list[float](), threading.Lock()

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            with self._lock:
                self.slept.append(seconds)
                self.now += seconds
