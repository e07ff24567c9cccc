"""Normalizes the address of a store."""

from __future__ import annotations

import os

IN_MEMORY = "memory://"


def absolute(uri: str | os.PathLike[str]) -> str:
    """The absolute path of a folder, with ``~`` expanded; a URI is unchanged."""
    place = os.fspath(uri)
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 - as text
