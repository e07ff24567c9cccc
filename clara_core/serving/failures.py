"""Error responses: OpenAI's envelope, and the same message under `detail` for other clients."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from clara_core.engine.options import sentence
from clara_core.engine.remote.wire import CODES, code_of

log = logging.getLogger(__name__)

_FINAL: Final = ("fingerprint_mismatch", "internal", "out_of_memory", "store_error")  # a retry does not help
_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large", 415: "unsupported_media_type"}
_TYPES: Final = {4: "invalid_request_error", 5: "server_error"}


class Refused(Exception):
    """A request is refused.

    Args:
        code: One of `CODES`.
        message: What is wrong and what to do.
        param: Name of the field that is wrong.
        retry_after: Seconds after which the client should retry.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.retry_after = code, message, param, retry_after


def envelope(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """JSON object of an error."""
    kind = _TYPES[CODES[code][0] // 100]
    return {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}


def failure(refused: Refused) -> Response:
    """HTTP response of an error."""
    headers: dict[str, str] = {}
    if refused.retry_after is not None:
        headers["retry-after"] = str(refused.retry_after)
    if refused.code in _FINAL:
        headers["x-should-retry"] = "false"
    body = json.dumps(envelope(refused.code, refused.message, refused.param), ensure_ascii=True)
    return Response(body, CODES[refused.code][0], headers, "application/json")


def refused_of(exc: BaseException, request_id: str) -> Refused:
    """The error that a client gets for an exception. Messages of foreign exceptions go to the log only."""
    if isinstance(exc, Refused):
        return exc
    if isinstance(exc, ValidationError):
        return invalid(exc)
    code = code_of(exc)
    if code == "internal":
        log.error("request %s failed", request_id, exc_info=exc)
        return Refused("internal", f"the server failed; its log says why under the request {request_id}")
    log.debug("request %s was refused", request_id, exc_info=exc)
    return Refused(code, str(exc), retry_after=1 if code == "engine_unavailable" else None)


def invalid(exc: ValidationError | RequestValidationError) -> Refused:
    """The error for an invalid body, with one sentence for each of the first five faults."""
    faults = exc.errors()
    said = [_fault(fault) for fault in faults[:5]]
    return Refused("invalid_request", "; ".join(dict.fromkeys(said)), param=_place(faults[0]))


def _fault(fault: Mapping[str, Any]) -> str:
    place = _place(fault)
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a known field; leave it out"
    if fault["type"] == "missing":
        return f"{place} is missing"
    text = sentence(fault)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _place(fault: Mapping[str, Any]) -> str | None:
    return ".".join(str(part) for part in fault["loc"]) or None


def install(app: FastAPI) -> None:
    """Install handlers that turn every exception of an app into an error response."""

    async def of_framework(request: Request, exc: Exception) -> Response:
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        code = _OF_STATUS.get(status, "invalid_request" if status < 500 else "internal")
        path = request.url.path[:200]
        return failure(Refused(code, f"{request.method} {path}: {getattr(exc, 'detail', 'the server failed')}"))

    async def of_body(request: Request, exc: Exception) -> Response:
        return failure(invalid(exc) if isinstance(exc, RequestValidationError) else Refused("internal", str(exc)))

    async def of_ours(request: Request, exc: Exception) -> Response:
        return failure(refused_of(exc, str(request.scope.get("clara.id", ""))))

    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(RequestValidationError, of_body)
    for kind in (Refused, ValidationError, *dict.fromkeys(kind for _, kind in CODES.values())):
        app.add_exception_handler(kind, of_ours)
    app.add_exception_handler(TypeError, of_ours)
