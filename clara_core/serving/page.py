"""One page to ask a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState


def page_routes(state: ServerState) -> APIRouter:
    """The page."""
    return APIRouter()
