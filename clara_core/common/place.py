"""Where a store is, as it was meant at the moment when it was named."""

from __future__ import annotations

import os

IN_MEMORY = "memory://"


def absolute(uri: str | os.PathLike[str]) -> str:
    """An address as it is; a folder with its whole path: ``~`` is the home folder."""
    place = os.fspath(uri)
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 - as text
