"""The version of the distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clara-rag")
except PackageNotFoundError:  # not installed, but run from its source folder
    __version__ = "0+unknown"
