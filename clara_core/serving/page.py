"""The web page on which a person asks a question. All of its files are in this package."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from clara_core.serving.failures import Refused

_FOLDER: Final = Path(__file__).parent / "static"
_TYPES: Final = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Trusted types make a browser refuse scripts that write HTML instead of text into the page.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


def page_routes() -> APIRouter:
    """Routes of the page at ``/`` and its files, which are read once."""
    router = APIRouter(tags=["page"])
    files = {path.name: _response(path) for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    index = files.pop("index.html")

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return index

    @router.get("/static/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in files:
            raise Refused("not_found", f"the page has no file {name[:64]!r}")
        return files[name]

    return router


def _response(path: Path) -> Response:
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "referrer-policy": "no-referrer"}
    return Response(path.read_bytes(), headers=headers, media_type=_TYPES[path.suffix])
