"""An HTTP client for one endpoint whose replies have an end: in time, in bytes, and unpacked.

``httpx`` bounds each read of a socket, not the whole reply: a server that sends a byte every half
second is waited for without end, and one that sends without end is held in memory.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
import zlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

LARGEST: ContextVar[int] = ContextVar("LARGEST", default=1 << 20)
"""Bytes of the reply that is waited for."""

SMALL_ERROR = 1 << 16
"""Bytes that are read of a reply that is an error."""

TOO_SLOW, TOO_LARGE = "reply too slow", "reply too large"
_PACKED = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""``wbits`` of zlib by the encoding's name."""


class UnfitReply(Exception):
    """A reply that began and is not to be waited for, or held; its text is the reason."""


class _OutOfTime(Exception):
    """The time for a reply is over, whatever still arrives."""


def make_client(timeout: float) -> Any:
    """Return a client of the library that ``openai`` uses, for ``openai.OpenAI(http_client=...)``.

    Its ``send`` returns whole replies, or raises :class:`UnfitReply`. Redirects are not followed.

    Args:
        timeout: seconds from the request to the end of its reply.
    """
    import openai

    base = openai.DefaultHttpxClient
    library = next(one.__module__.split(".")[0] for one in base.__mro__ if one.__name__ == "Client")
    http: Any = importlib.import_module(library)

    class BoundedClient(base):  # type: ignore[misc, valid-type]
        def send(self, request: Any, **options: Any) -> Any:
            options |= {"stream": True, "follow_redirects": False}
            with deadline.within(timeout):
                try:
                    response = super().send(request, **options)
                except _OutOfTime:
                    raise http.ReadTimeout("no reply in time", request=request) from None
                body = _body(response, http.TimeoutException)
            headers = {"content-type": "application/json"}  # whatever encoding it would name
            if "retry-after" in response.headers:
                headers["retry-after"] = response.headers["retry-after"]
            return http.Response(response.status_code, headers=headers, content=body,
                                 request=request)  # fmt: skip

    deadline = _Deadline()
    client = BoundedClient(timeout=timeout, headers={"Accept-Encoding": "identity"})
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):  # so that headers, too, have to arrive in time
            pool._network_backend = _TimedBackend(pool._network_backend, deadline)
    return client


def _body(response: Any, time_out: type[Exception]) -> bytes:
    """The whole body, unpacked; of an error as much of it as is needed.

    Raises:
        UnfitReply: it does not end in time, or is too large.
    """
    is_error = response.status_code >= 400
    limit = SMALL_ERROR if is_error else LARGEST.get()
    body, reason = bytearray(), ""
    try:
        for part in _unpacked(response, limit):
            body += part
            if len(body) > limit:
                reason = TOO_LARGE
                break
    except (time_out, _OutOfTime):
        reason = TOO_SLOW
    except UnfitReply as error:
        reason = str(error)
    finally:
        with contextlib.suppress(Exception):
            response.close()
    if reason and not is_error:
        raise UnfitReply(reason)
    return bytes(body[:limit])


def _unpacked(response: Any, limit: int) -> Iterator[bytes]:
    """The parts of the body as they arrive; none is much longer than ``limit`` when unpacked."""
    encodings = response.headers.get("content-encoding", "identity").lower().split(",")
    names = [name.strip() for name in encodings if name.strip() not in ("", "identity")]
    if not names:
        yield from response.iter_raw()
        return
    if len(names) > 1 or names[0] not in _PACKED:
        raise UnfitReply("reply in an unknown encoding")
    unpack = zlib.decompressobj(_PACKED[names[0]])
    try:
        for part in response.iter_raw():
            yield unpack.decompress(part, limit + 1)
            if unpack.unconsumed_tail:
                raise UnfitReply(TOO_LARGE)
    except zlib.error:
        raise UnfitReply("reply in a broken encoding") from None


class _Deadline(threading.local):
    """When the reply that this thread waits for has to be there."""

    until: float | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self.until = time.monotonic() + seconds
        try:
            yield
        finally:
            self.until = None

    def left(self, timeout: float | None) -> float | None:
        """Seconds that may be waited, given what the library would wait."""
        if self.until is None:
            return timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise _OutOfTime
        return left if timeout is None else min(left, timeout)


class _TimedStream:
    """A network stream that is read until a deadline."""

    def __init__(self, stream: Any, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return bytes(self._stream.read(max_bytes, self._deadline.left(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> _TimedStream:
        left = self._deadline.left(timeout)
        return _TimedStream(
            self._stream.start_tls(ssl_context, server_hostname, left), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _TimedBackend:
    """A network backend whose streams are read until a deadline."""

    def __init__(self, backend: Any, deadline: _Deadline) -> None:
        self._backend, self._deadline = backend, deadline

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **options: Any
    ) -> _TimedStream:
        left = self._deadline.left(timeout)
        stream = self._backend.connect_tcp(host, port, timeout=left, **options)
        return _TimedStream(stream, self._deadline)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, **options: Any
    ) -> _TimedStream:
        left = self._deadline.left(timeout)
        stream = self._backend.connect_unix_socket(path, timeout=left, **options)
        return _TimedStream(stream, self._deadline)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)
