"""An HTTP client that limits the duration and the size of whole replies.

``httpx`` limits each read of a socket, not the reply: without these limits, a server that sends a
byte every half second would block it forever, and an endless reply would fill the memory.
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
"""Maximum size in bytes of the current reply, unpacked."""

SMALL_ERROR = 1 << 16
"""Bytes read of a reply with an error status."""

TOO_SLOW, TOO_LARGE = "reply too slow", "reply too large"
_PACKED = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""``wbits`` of zlib by name of the encoding."""


class BadReplyError(Exception):
    """A reply that is too slow, too large or in a bad encoding; its text is the reason."""


class _DeadlineError(Exception):
    """The time for a reply has elapsed."""


def make_client(timeout: float) -> Any:
    """Return a client for ``openai.OpenAI(http_client=...)``.

    Its ``send`` returns whole replies or raises :class:`BadReplyError`. Redirects are not followed.

    Args:
        timeout: seconds from the request to the end of the reply.
    """
    import openai

    base = openai.DefaultHttpxClient
    library = next(c.__module__.split(".")[0] for c in base.__mro__ if c.__name__ == "Client")
    http: Any = importlib.import_module(library)

    class BoundedClient(base):  # type: ignore[misc, valid-type]
        def send(self, request: Any, **options: Any) -> Any:
            options |= {"stream": True, "follow_redirects": False}
            with deadline.within(timeout):
                try:
                    response = super().send(request, **options)
                except _DeadlineError:
                    raise http.ReadTimeout("no reply in time", request=request) from None
                body = _body(response, http.TimeoutException)
            headers = {"content-type": "application/json"}  # the body is unpacked already
            if "retry-after" in response.headers:
                headers["retry-after"] = response.headers["retry-after"]
            return http.Response(
                response.status_code, headers=headers, content=body, request=request
            )

    deadline = _Deadline()
    client = BoundedClient(timeout=timeout, headers={"Accept-Encoding": "identity"})
    for transport in (client._transport, *client._mounts.values()):
        pool: Any = getattr(transport, "_pool", None)
        if hasattr(pool, "_network_backend"):  # limits the time of headers, too
            pool._network_backend = _TimedBackend(pool._network_backend, deadline)
    return client


def _body(response: Any, time_out: type[Exception]) -> bytes:
    """Return the whole body, unpacked, or the start of an error's body.

    Raises:
        BadReplyError: the reply is too slow, too large or in a bad encoding.
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
    except (time_out, _DeadlineError):
        reason = TOO_SLOW
    except BadReplyError as error:
        reason = str(error)
    finally:
        with contextlib.suppress(Exception):
            response.close()
    if reason and not is_error:
        raise BadReplyError(reason)
    return bytes(body[:limit])


def _unpacked(response: Any, limit: int) -> Iterator[bytes]:
    """Yield the unpacked parts of the body, each of about ``limit`` bytes at most."""
    encodings = response.headers.get("content-encoding", "identity").lower().split(",")
    names = [name.strip() for name in encodings if name.strip() not in ("", "identity")]
    if not names:
        yield from response.iter_raw()
        return
    if len(names) > 1 or names[0] not in _PACKED:
        raise BadReplyError("reply in an unknown encoding")
    unpack = zlib.decompressobj(_PACKED[names[0]])
    try:
        for part in response.iter_raw():
            yield unpack.decompress(part, limit + 1)
            if unpack.unconsumed_tail:
                raise BadReplyError(TOO_LARGE)
    except zlib.error:
        raise BadReplyError("reply in a broken encoding") from None


class _Deadline(threading.local):
    """Time by which the reply of the current thread's request must be complete."""

    until: float | None = None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Set the deadline to some seconds from now."""
        self.until = time.monotonic() + seconds
        try:
            yield
        finally:
            self.until = None

    def left(self, timeout: float | None) -> float | None:
        """Return the seconds to wait, at most the library's own timeout."""
        if self.until is None:
            return timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise _DeadlineError
        return left if timeout is None else min(left, timeout)


class _TimedStream:
    """A network stream with a deadline."""

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
    """A network backend whose streams have a deadline."""

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
