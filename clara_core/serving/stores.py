"""The stores of a server by their names: searched, read and, where the server allows it, written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState


def store_routes(state: ServerState) -> APIRouter:
    """The routes of one server."""
    return APIRouter(prefix="/v1/stores", tags=["stores"])
