"""HTTP connection to a server: requests with retries, errors as exceptions, no redirects."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx

from clara_core.common.errors import FingerprintMismatch, ServerError, ServerOverloaded, ServerUnreachable
from clara_core.engine.remote.wire import CODES, FINGERPRINT, json_from_wire, json_to_wire

KEY_VARIABLE: Final = "CLARA_API_KEY"

_TRIES: Final = 4
_PATIENCE: Final = 30.0  # seconds after which no further try begins
_MOST_BYTES: Final = 1 << 30  # largest reply
_TIMEOUT: Final = httpx.Timeout(600, connect=5, pool=600)
_STREAM_TIMEOUT: Final = httpx.Timeout(60, connect=5, pool=600)  # between two lines of a stream; the server pings
_SETTINGS: Final[Mapping[str, Any]] = {
    "timeout": _TIMEOUT,
    "limits": httpx.Limits(max_connections=32, max_keepalive_connections=32),
    "follow_redirects": False,
}
_STREAM: Final = {"accept": "text/event-stream"}
_BUSY: Final = (429, 503)
_GATEWAY: Final = (502, 504)


@dataclass(frozen=True, slots=True)
class Call:
    """A request for one reply."""

    path: str
    # what to POST: values to send as JSON, or bytes as they are; None: GET the path
    payload: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # headers besides those of the connection
    repeatable: bool = True  # whether it may be sent again after the server has begun the work
    parsed: bool = True  # whether the reply is JSON; otherwise its bytes are the result

    def cancel(self) -> None:
        """Does nothing: a call that nobody awaits is not sent."""

    def result(self, reply: bytes) -> Any:
        """The result from the bytes of the reply."""
        return json_from_wire(reply) if self.parsed else reply


class Connection:
    """Requests to one server. It is safe to use from threads and from several event loops.

    Args:
        url: Address of the server; a ``/v1`` at its end is ignored.
        key: Key of the server, sent as a bearer token and never shown; None: no key.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._process = os.getpid()
        self._client = httpx.Client(**_SETTINGS)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self.fingerprint: str | None = None
        """Fingerprint of the server's model, once it is known; replies of another model are refused."""

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def close(self) -> None:
        """Close idle connections; the next request connects again."""
        self._here().close()
        self._client = httpx.Client(**_SETTINGS)

    # --- whole replies -----------------------------------------------------------------------------------

    def ask(self, call: Call) -> Any:
        """Send a call and read its reply."""
        tries, request = _Tries(self.url, repeatable=call.repeatable), self._request(call)
        while True:
            with tries, self._here().stream(**request) as response:
                reply = _bounded(response.iter_bytes())
                if tries.succeeded(response, reply):
                    self._check(response)
                    return call.result(reply)
            time.sleep(tries.pause)

    async def aask(self, call: Call) -> Any:
        """Awaitable `ask`."""
        tries, request = _Tries(self.url, repeatable=call.repeatable), self._request(call)
        while True:
            with tries:
                async with self._ahere().stream(**request) as response:
                    reply = await _abounded(response.aiter_bytes())
                    if tries.succeeded(response, reply):
                        self._check(response)
                        return call.result(reply)
            await asyncio.sleep(tries.pause)

    @contextmanager
    def lines(self, path: str) -> Iterator[Iterator[Any]]:
        """GET a path, and parse each line of the reply as JSON."""
        with self._here().stream(**self._request(Call(path))) as response:
            if not response.is_success:
                raise error_of(response, _bounded(response.iter_bytes()), self.url)
            self._check(response)
            yield (json_from_wire(line.encode()) for line in response.iter_lines() if line)

    # --- streams -----------------------------------------------------------------------------------------

    @contextmanager
    def events(
        self, path: str, payload: Mapping[str, Any]
    ) -> Iterator[tuple[Iterator[dict[str, Any]], Callable[[], None]]]:
        """POST JSON, and yield the events of the stream in reply, and a function that ends the connection at once.

        It is retried only before the stream begins, and closed on exit.
        """
        tries = _Tries(self.url, repeatable=False)
        request = self._request(Call(path, payload, _STREAM), _STREAM_TIMEOUT)
        with ExitStack() as stack:
            while True:
                with tries:
                    response = stack.enter_context(self._here().stream(**request))
                    if response.is_success or tries.succeeded(response, _bounded(response.iter_bytes())):
                        break
                stack.close()
                time.sleep(tries.pause)
            self._check(response)
            yield _events(response.iter_lines(), self.url), lambda: _hang_up(response)

    @asynccontextmanager
    async def aevents(self, path: str, payload: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Asynchronous `events`, without the function: cancelling the task ends the connection."""
        tries = _Tries(self.url, repeatable=False)
        request = self._request(Call(path, payload, _STREAM), _STREAM_TIMEOUT)
        async with AsyncExitStack() as stack:
            while True:
                with tries:
                    response = await stack.enter_async_context(self._ahere().stream(**request))
                    if response.is_success or tries.succeeded(response, await _abounded(response.aiter_bytes())):
                        break
                await stack.aclose()
                await asyncio.sleep(tries.pause)
            self._check(response)
            yield _aevents(response.aiter_lines(), self.url)

    # --- clients and headers -----------------------------------------------------------------------------

    def _here(self) -> httpx.Client:
        """The client of this process; after a fork, two processes on one connection would read each other's replies."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._client = httpx.Client(**_SETTINGS)
            self._clients = WeakKeyDictionary()
        return self._client

    def _ahere(self) -> httpx.AsyncClient:
        """The client of the running event loop; a connection belongs to the loop that opened it."""
        self._here()
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(**_SETTINGS)
        return client

    def _request(self, call: Call, timeout: httpx.Timeout = _TIMEOUT) -> dict[str, Any]:
        """Arguments of httpx for a call."""
        own = {} if self.fingerprint is None else {FINGERPRINT: self.fingerprint}
        return {
            "method": "GET" if call.payload is None else "POST",
            "url": self.url + call.path,
            "content": json_to_wire(call.payload) if isinstance(call.payload, Mapping) else call.payload,
            "headers": {**self._headers, **own, **call.headers},
            "timeout": timeout,
        }

    def _check(self, response: httpx.Response) -> None:
        found = response.headers.get(FINGERPRINT)
        if self.fingerprint is not None and found is not None and found != self.fingerprint:
            raise FingerprintMismatch(
                f"the server at {self.url} now runs the model {found[:12]} instead of {self.fingerprint[:12]}: "
                "call unload() on the engine to use the new one, and compress documents again"
            )


def key_from_environment() -> str | None:
    """The key of the server from the environment variable `KEY_VARIABLE`; None if it is not set."""
    return os.environ.get(KEY_VARIABLE) or None


class _Tries(AbstractContextManager["_Tries"]):
    """Retries of a request: enter it for each try; if it exits without an exception or success, wait `pause` and retry.

    Args:
        url: Address of the server, for messages.
        repeatable: Whether the request may be repeated after the server may have begun the work.
    """

    def __init__(self, url: str, *, repeatable: bool) -> None:
        self._url = url
        self._repeatable = repeatable
        self._left = _TRIES - 1
        self._until = time.monotonic() + _PATIENCE
        self.pause = 0.0
        """Seconds to wait before the next try."""

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> bool:
        """Suppress a transport error if there is another try; otherwise raise `ServerUnreachable`."""
        if not isinstance(exc, httpx.TransportError):
            return False
        never_sent = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        broken = isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
        if not (never_sent or (broken and self._repeatable)) or not self._again(None):
            raise ServerUnreachable(
                f"the server at {self._url} does not answer ({type(exc).__name__}: {exc}); check the address, and "
                "whether `clara serve` runs there"
            ) from exc
        return True

    def succeeded(self, response: httpx.Response, reply: bytes) -> bool:
        """Whether a reply is a success; raises the server's error if there is no further try."""
        status = response.status_code
        if response.is_success:
            return True
        again = status in _BUSY or (status in _GATEWAY and self._repeatable)
        if response.headers.get("x-should-retry") == "false" or not again or not self._again(_seconds(response)):
            raise error_of(response, reply, self._url)
        return False

    def _again(self, asked: float | None) -> bool:
        """Whether there is another try; sets `pause`, to the seconds that the server asked for if it did."""
        if self._left == 0:
            return False
        self._left -= 1
        pause = asked if asked is not None else 0.5 * 2 ** (_TRIES - 2 - self._left)
        self.pause = pause * (1 + random.random() / 4)  # jitter, so that clients do not retry at the same time
        return time.monotonic() + self.pause < self._until


def error_of(response: httpx.Response, reply: bytes, url: str) -> Exception:
    """The exception for an error reply."""
    status = response.status_code
    try:
        error = json.loads(reply)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        code, message = "", f"the server at {url} answered {status}: {reply[:200]!r}"
        if 300 <= status < 400:
            message = f"the server at {url} answered {status}; redirects are not followed, give the address itself"
    kind = CODES[code][1] if code in CODES else ServerOverloaded if status in _BUSY else ServerError
    exc = kind(message)
    if isinstance(exc, ServerOverloaded):
        exc.retry_after = _seconds(response)
    return exc


def _seconds(response: httpx.Response) -> float | None:
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _bounded(parts: Iterator[bytes]) -> bytes:
    read = bytearray()
    for part in parts:
        read += part
        _check_size(len(read))
    return bytes(read)


async def _abounded(parts: AsyncIterator[bytes]) -> bytes:
    read = bytearray()
    async for part in parts:
        read += part
        _check_size(len(read))
    return bytes(read)


def _check_size(read: int) -> None:
    if read > _MOST_BYTES:
        raise ServerError(f"the server sent more than {_MOST_BYTES} bytes")


def _events(lines: Iterator[str], url: str) -> Iterator[dict[str, Any]]:
    """The events in the lines of a stream; comments, which keep the connection alive, are skipped."""
    try:
        for line in lines:
            if (event := _event(line, url)) is not None:
                yield event
    except httpx.TransportError as exc:
        raise _broken(url, exc) from exc


async def _aevents(lines: AsyncIterator[str], url: str) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in lines:
            if (event := _event(line, url)) is not None:
                yield event
    except httpx.TransportError as exc:
        raise _broken(url, exc) from exc


def _hang_up(response: httpx.Response) -> None:
    """Shut down the connection of a reply, also while another thread waits for data from it."""
    stream = response.extensions.get("network_stream")
    connected = None if stream is None else stream.get_extra_info("socket")
    if connected is not None:
        with suppress(OSError):  # the server has closed it already
            connected.shutdown(socket.SHUT_RDWR)


def _broken(url: str, exc: Exception) -> ServerUnreachable:
    return ServerUnreachable(
        f"the stream from the server at {url} was interrupted ({type(exc).__name__}: {exc}); ask again"
    )


def _event(line: str, url: str) -> dict[str, Any] | None:
    if not line.startswith("data:"):
        return None
    event = json_from_wire(line[5:].encode())
    if not isinstance(event, dict):
        raise ServerError(f"the server sent an event that is not an object: {line[:100]!r}")
    if "error" in event:
        error = event["error"] if isinstance(event["error"], dict) else {}
        kind = CODES.get(str(error.get("code")), (500, ServerError))[1]
        raise kind(str(error.get("message", f"the server at {url} failed")))
    return event
