"""The connection to a server: requests with retries, errors as the exceptions that they were, no redirects."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx

from clara_core.common.errors import FingerprintMismatch, ServerError, ServerOverloaded, ServerUnreachable
from clara_core.engine.remote.wire import CODES, FINGERPRINT

KEY_VARIABLE: Final = "CLARA_API_KEY"

_TRIES: Final = 4
_PATIENCE: Final = 30.0  # seconds of waiting between tries, in all
_MOST_BYTES: Final = 1 << 30  # of a reply
_TIMEOUT: Final = httpx.Timeout(600, connect=5, pool=600)
_SILENCE: Final = httpx.Timeout(60, connect=5, pool=600)  # between two pieces of a stream; the server pings
_LIMITS: Final = httpx.Limits(max_connections=32, max_keepalive_connections=32)
_BUSY: Final = (429, 503)
_GATEWAY: Final = (502, 504)


class Connection:
    """Requests to one server. Safe under threads and on several event loops.

    Args:
        url: Where the server is; a ``/v1`` at its end is passed over.
        key: Sent as a bearer token; never shown.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._headers = {"content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._client = httpx.Client(timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False)
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        self.fingerprint: str | None = None
        """Of the model, once it is known; a reply of another one is refused."""

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def close(self) -> None:
        """Close what is idle; the next request connects again."""
        self._client.close()
        self._client = httpx.Client(timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False)

    # --- whole replies -----------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """What the server says at a path, as JSON."""
        return _json(self._send("GET", path, None, repeatable=True))

    def post(self, path: str, payload: Mapping[str, Any], *, repeatable: bool = True) -> Any:
        """Send JSON, and read JSON."""
        return _json(self._send("POST", path, _body(payload), repeatable=repeatable))

    def fetch(self, path: str, payload: Mapping[str, Any]) -> bytes:
        """Send JSON, and read bytes."""
        return self._send("POST", path, _body(payload), repeatable=True)

    def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """Send bytes that may be sent again, and read JSON."""
        return _json(self._send("POST", path, body, repeatable=True, headers=headers))

    @contextmanager
    def lines(self, path: str) -> Iterator[Iterator[Any]]:
        """What the server says at a path, as JSON line by line."""
        with self._client.stream("GET", self.url + path, headers=self._sent(None)) as response:
            if not response.is_success:
                raise error_of(response, b"".join(_bounded(response.iter_bytes())), self.url)
            self._check(response)
            yield (_json(line.encode()) for line in response.iter_lines() if line)

    async def aget(self, path: str) -> Any:
        """Awaitable `get`."""
        return _json(await self._asend("GET", path, None))

    async def apost(self, path: str, payload: Mapping[str, Any]) -> Any:
        """Awaitable `post`."""
        return _json(await self._asend("POST", path, _body(payload)))

    async def afetch(self, path: str, payload: Mapping[str, Any]) -> bytes:
        """Awaitable `fetch`."""
        return await self._asend("POST", path, _body(payload))

    def _send(
        self, method: str, path: str, body: bytes | None, *, repeatable: bool, headers: Mapping[str, str] | None = None
    ) -> bytes:
        tries = _Tries(self.url, repeatable=repeatable)
        while True:
            try:
                with self._client.stream(
                    method, self.url + path, content=body, headers=self._sent(headers)
                ) as response:
                    reply = b"".join(_bounded(response.iter_bytes()))
            except httpx.TransportError as exc:
                pause = tries.pause_after(exc)
            else:
                if response.is_success:
                    self._check(response)
                    return reply
                pause = tries.pause_after_reply(response, reply)
            time.sleep(pause)

    async def _asend(self, method: str, path: str, body: bytes | None) -> bytes:
        tries = _Tries(self.url, repeatable=True)
        while True:
            try:
                async with self._here().stream(
                    method, self.url + path, content=body, headers=self._sent(None)
                ) as response:
                    reply = await _abounded(response.aiter_bytes())
            except httpx.TransportError as exc:
                pause = tries.pause_after(exc)
            else:
                if response.is_success:
                    self._check(response)
                    return reply
                pause = tries.pause_after_reply(response, reply)
            await asyncio.sleep(pause)

    # --- streams -----------------------------------------------------------------------------------------

    @contextmanager
    def events(self, path: str, payload: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a stream. Tried again until it begins, and never after that; leaving it closes it."""
        tries = _Tries(self.url, repeatable=False)
        while True:
            stream = self._client.stream(
                "POST", self.url + path, content=_body(payload), headers=self._sent(_STREAM), timeout=_SILENCE
            )
            try:
                response = stream.__enter__()
            except httpx.TransportError as exc:
                time.sleep(tries.pause_after(exc))
                continue
            if response.is_success:
                break
            try:
                reply = b"".join(_bounded(response.iter_bytes()))
            finally:
                stream.__exit__(None, None, None)
            time.sleep(tries.pause_after_reply(response, reply))
        try:
            self._check(response)
            yield _said(response.iter_lines(), self.url)
        finally:
            stream.__exit__(None, None, None)

    @asynccontextmanager
    async def aevents(self, path: str, payload: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Asynchronous `events`."""
        tries = _Tries(self.url, repeatable=False)
        while True:
            stream = self._here().stream(
                "POST", self.url + path, content=_body(payload), headers=self._sent(_STREAM), timeout=_SILENCE
            )
            try:
                response = await stream.__aenter__()
            except httpx.TransportError as exc:
                await asyncio.sleep(tries.pause_after(exc))
                continue
            if response.is_success:
                break
            try:
                reply = await _abounded(response.aiter_bytes())
            finally:
                await stream.__aexit__(None, None, None)
            await asyncio.sleep(tries.pause_after_reply(response, reply))
        try:
            self._check(response)
            yield _asaid(response.aiter_lines(), self.url)
        finally:
            await stream.__aexit__(None, None, None)

    # --- within ------------------------------------------------------------------------------------------

    def _here(self) -> httpx.AsyncClient:
        """The client of the event loop that runs: connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False)
            self._clients[loop] = client
        return client

    def _sent(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        own = {} if self.fingerprint is None else {FINGERPRINT: self.fingerprint}
        return {**self._headers, **own, **(headers or {})}

    def _check(self, response: httpx.Response) -> None:
        told = response.headers.get(FINGERPRINT)
        if self.fingerprint is not None and told is not None and told != self.fingerprint:
            raise FingerprintMismatch(
                f"the server at {self.url} runs the model {told[:12]} now, and it was {self.fingerprint[:12]}: "
                "call unload() on the engine to go on with the new one, and compress documents again"
            )


_STREAM: Final = {"accept": "text/event-stream"}


def key_from_environment() -> str | None:
    """The key of the server, where the environment names one."""
    return os.environ.get(KEY_VARIABLE) or None


class _Tries:
    """How often a request is made again, and after how long."""

    def __init__(self, url: str, *, repeatable: bool) -> None:
        self._url = url
        self._repeatable = repeatable
        self._left = _TRIES - 1
        self._until = time.monotonic() + _PATIENCE

    def pause_after(self, exc: httpx.TransportError) -> float:
        """Seconds to wait after a failure to talk to the server; raises where it is not tried again."""
        never_sent = isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        broken = isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
        pause = self._pause(None) if never_sent or (broken and self._repeatable) else None
        if pause is None:
            raise ServerUnreachable(
                f"the server at {self._url} does not answer ({type(exc).__name__}: {exc}); check the address, and "
                "whether `clara serve` runs there"
            ) from exc
        return pause

    def pause_after_reply(self, response: httpx.Response, reply: bytes) -> float:
        """Seconds to wait after an error of the server; raises it where it is not tried again."""
        status = response.status_code
        again = status in _BUSY or (status in _GATEWAY and self._repeatable)
        if response.headers.get("x-should-retry") == "false":
            again = False
        pause = self._pause(_seconds(response)) if again else None
        if pause is None:
            raise error_of(response, reply, self._url)
        return pause

    def _pause(self, told: float | None) -> float | None:
        if self._left == 0:
            return None
        self._left -= 1
        pause = told if told is not None else 0.5 * 2 ** (_TRIES - 2 - self._left)
        pause *= 1 + random.random() / 4  # so that those who were refused together do not come back together
        return pause if time.monotonic() + pause < self._until else None


def error_of(response: httpx.Response, reply: bytes, url: str) -> Exception:
    """The exception that a reply stands for."""
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


def _body(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()


def _json(reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except (ValueError, RecursionError) as exc:
        raise ServerError(f"the server sent no JSON that can be read: {reply[:100]!r}") from exc


def _bounded(parts: Iterator[bytes]) -> Iterator[bytes]:
    read = 0
    for part in parts:
        read += len(part)
        _check_size(read)
        yield part


async def _abounded(parts: AsyncIterator[bytes]) -> bytes:
    kept: list[bytes] = []
    read = 0
    async for part in parts:
        read += len(part)
        _check_size(read)
        kept.append(part)
    return b"".join(kept)


def _check_size(read: int) -> None:
    if read > _MOST_BYTES:
        raise ServerError(f"the server sent more than {_MOST_BYTES} bytes")


def _said(lines: Iterator[str], url: str) -> Iterator[dict[str, Any]]:
    """The events in the lines of a stream; comments keep the connection alive and say nothing."""
    try:
        for line in lines:
            if (event := _event(line, url)) is not None:
                yield event
    except httpx.TransportError as exc:
        raise _broken(url, exc) from exc


async def _asaid(lines: AsyncIterator[str], url: str) -> AsyncIterator[dict[str, Any]]:
    try:
        async for line in lines:
            if (event := _event(line, url)) is not None:
                yield event
    except httpx.TransportError as exc:
        raise _broken(url, exc) from exc


def _broken(url: str, exc: Exception) -> ServerUnreachable:
    return ServerUnreachable(f"the stream of the server at {url} broke off ({type(exc).__name__}: {exc}); ask again")


def _event(line: str, url: str) -> dict[str, Any] | None:
    if not line.startswith("data:"):
        return None
    told = _json(line[5:].encode())
    if not isinstance(told, dict):
        raise ServerError(f"the server sent an event that is no object: {line[:100]!r}")
    if "error" in told:
        error = told["error"] if isinstance(told["error"], dict) else {}
        kind = CODES.get(str(error.get("code")), (500, ServerError))[1]
        raise kind(str(error.get("message", f"the server at {url} failed")))
    return told
