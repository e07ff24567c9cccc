"""The version of the distribution, for all of its packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("clara-rag")
except PackageNotFoundError:  # run from a folder, without being installed
    __version__ = "0+unknown"
