"""Middleware for every request: checks the host, the key, the size and the time limit, and writes the log line.

It is plain ASGI, so that it sees when a client disconnects and can cancel the work.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clara_core.engine.remote.wire import FINGERPRINT, REQUEST_ID
from clara_core.serving.config import LOOPBACK_NAMES
from clara_core.serving.failures import Refused, envelope, failure, refused_of
from clara_core.serving.observe import log_request

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState

log = logging.getLogger(__name__)

HEALTH: Final = ("/health", "/health/live", "/health/ready")
METRICS: Final = "/metrics"
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"

_SAFE_ID: Final = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")
_CSP: Final = "default-src 'none'; frame-ancestors 'none'"
_GONE: Final = 499


class Gate:
    """Checks requests before an application answers them.

    Args:
        app: The application behind the checks.
        state: State of the server.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app = app
        self.state = state
        own = LOOPBACK_NAMES if state.config.loopback else (state.config.host,)
        self._hosts = {name.lower() for name in (*own, *LOOPBACK_NAMES, *state.config.allowed_hosts)}
        self._checks_hosts = state.config.loopback or bool(state.config.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Passage(self, scope, receive, send).pass_through()
        else:
            await send({"type": "websocket.close", "code": 1008})

    def check(self, scope: Scope, headers: Headers) -> str | None:
        """Check the headers of a request, and return the label of its key; None if no key is needed.

        Raises:
            Refused: A check fails.
        """
        if self._checks_hosts and _host(headers) not in self._hosts:
            self.state.metrics.refused.labels("host").inc()
            raise Refused(
                "forbidden",
                f"the host {_host(headers)[:100]!r} is not allowed; allow it with --allowed-host",
            )
        label = self._known(scope, headers)
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            # A page of another site can send a form without a CORS preflight, but not JSON.
            if kind not in (JSON, NDJSON):
                raise Refused("unsupported_media_type", f"send the header Content-Type: {JSON}, got {kind[:60]!r}")
        expected = headers.get(FINGERPRINT)
        own = self.state.fingerprint
        if expected is not None and own is not None and expected != own:
            raise Refused(
                "fingerprint_mismatch", f"the client expects the model {expected[:12]}, the server runs {own[:12]}"
            )
        return label

    def _known(self, scope: Scope, headers: Headers) -> str | None:
        path = scope["path"]
        if not self.state.keys or path in HEALTH or (path == METRICS and self.state.config.open_metrics):
            return None
        key = self.state.keys.find(_secret(headers))
        if key is None:
            self.state.metrics.refused.labels("key").inc()
            raise Refused(
                "invalid_api_key",
                "a key is needed: send the header Authorization: Bearer KEY (a browser: any name, the key as password)",
            )
        scope["clara.read_only"] = key.read_only
        return key.label


class _Passage:
    """One request, from its headers to the end of its response."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.state = gate, gate.state
        self.scope, self.receive, self.send = scope, receive, send
        self.headers = Headers(scope=scope)
        given = self.headers.get(REQUEST_ID, "")
        self.id = given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
        scope["clara.id"] = self.id
        self.status = 0
        self.kind = ""
        self.label: str | None = None
        self.admitted: int | None = None
        self.whole = False  # the body has arrived
        self.began = time.monotonic()

    async def pass_through(self) -> None:
        """Check and answer the request, then log it."""
        try:
            try:
                self.label = self.gate.check(self.scope, self.headers)
                body = await self._body()
                if self.scope["method"] == "POST":
                    self.state.admit(len(body))
                    self.admitted = len(body)
                await self._answer(body)
            except Refused as exc:
                await self._refuse(exc)
        finally:
            if self.admitted is not None:
                self.state.release(self.scope, self.admitted)
            self._note()

    async def _body(self) -> bytes:
        """Read the whole body.

        Raises:
            Refused: The body is too large or too slow, or the client disconnected.
        """
        limits = self.state.config.limits
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_seconds):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise Refused("invalid_request", "the client left before its request was whole")
                    size += len(message.get("body", b""))
                    if size > limits.body_bytes:
                        raise self._too_large()
                    parts.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        self.whole = True
                        return b"".join(parts)
        except TimeoutError:
            self.state.metrics.refused.labels("body").inc()
            raise Refused(
                "timeout", f"the body of the request did not arrive within {limits.body_seconds:g} s"
            ) from None

    def _too_large(self) -> Refused:
        self.state.metrics.refused.labels("body").inc()
        return Refused(
            "body_too_large", f"a request has at most {self.state.config.limits.body_bytes} bytes; send several"
        )

    async def _answer(self, body: bytes) -> None:
        """Run the app until it has answered, the client disconnects, or the time limit is reached."""
        task = asyncio.ensure_future(self.gate.app(self.scope, _replay(body), self._sent))
        watch = asyncio.create_task(self._gone())
        try:
            await asyncio.wait({task, watch}, timeout=self._seconds(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            why = None if task.done() else "disconnect" if watch.done() else "deadline"
            watch.cancel()
            error = await _ended(task)
        if why == "disconnect":
            self.state.metrics.cancelled.labels(why).inc()
            self.status = _GONE
        elif why == "deadline":
            self.state.metrics.cancelled.labels(why).inc()
            await self._refuse(Refused("timeout", f"the request was not answered within {self._seconds():g} s"))
        elif error is not None:
            await self._refuse(refused_of(error, self.id))

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def _seconds(self) -> float:
        most = self.state.config.limits.seconds
        try:
            return min(most, max(0.0, float(self.headers["x-clara-timeout"])))
        except (KeyError, ValueError):
            return most

    async def _sent(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [(name.encode(), value.encode()) for name, value in self._own_headers(message["headers"]).items()]
            self.kind = Headers(raw=message["headers"]).get("content-type", "").partition(";")[0]
            message = {**message, "headers": [*message["headers"], *headers]}
        await self.send(message)

    def _own_headers(self, given: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
        """Headers that are added to every response."""
        own = {REQUEST_ID: self.id, "x-content-type-options": "nosniff"}
        if not any(name == b"content-security-policy" for name, _ in given):
            own["content-security-policy"] = _CSP
        if not self.whole:
            # Otherwise the server would go on reading from a client that keeps sending.
            own["connection"] = "close"
        if self.state.fingerprint is not None:
            own[FINGERPRINT] = self.state.fingerprint
        if self.status == 401:
            # Basic authentication makes a browser ask its user for the key; programs send a bearer token.
            of_page = self.scope["path"] == "/" or self.scope["path"].startswith("/static/")
            own["www-authenticate"] = 'Basic realm="clara"' if of_page else "Bearer"
        return own

    async def _refuse(self, refused: Refused) -> None:
        """Send an error: as the response, or as the last event of a stream that has begun."""
        if self.status == 0:
            await failure(refused)(self.scope, self.receive, self._sent)
            return
        body = b""
        if self.kind == EVENTS:
            body = b"data: " + json.dumps(envelope(refused.code, refused.message)).encode() + b"\n\n"
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def _note(self) -> None:
        seconds = time.monotonic() - self.began
        route = template(self.scope)
        self.state.metrics.requests.labels(route, str(self.status)).inc()
        self.state.metrics.seconds.labels(route).observe(seconds)
        log_request(
            id=self.id,
            method=self.scope["method"],
            route=route,
            status=self.status,
            ms=round(seconds * 1000, 1),
            key=self.label,
            bytes=self.admitted,
            trace=self.headers.get("traceparent", "")[:64] or None,
            **self.scope.get("clara.facts", {}),
        )


def template(scope: Scope) -> str:
    """The route pattern of a request. Paths would give metrics an unbounded number of label values."""
    return str(getattr(scope.get("route"), "path", "unknown"))


async def _ended(task: asyncio.Future[Any]) -> BaseException | None:
    """Cancel a task unless it is done, wait for it, and return its exception."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return None
    except Exception as exc:  # noqa: BLE001 - the client gets it as a response
        return exc
    return None


def _replay(body: bytes) -> Receive:
    """A receive channel that gives the body once. The gate itself watches for a disconnect."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _host(headers: Headers) -> str:
    """Name in the Host header, without the port."""
    host = headers.get("host", "").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _secret(headers: Headers) -> str:
    """The key of a request: a bearer token, the password of basic authentication, or the header x-api-key."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key", "")
