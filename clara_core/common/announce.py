"""Notices about defaults that were chosen for the user, such as a model or a rate, each shown once.

They go to the log (``clara_core.common.announce``, level INFO). If logging is not configured for them, they go to
standard error at a terminal or in a notebook, but not in a service.
"""

from __future__ import annotations

import logging
import sys
import threading

log = logging.getLogger(__name__)

_shown: set[str] = set()
_lock = threading.Lock()


def announce(line: str) -> None:
    """Show a line, unless it was shown before in this process."""
    with _lock:
        if line in _shown:
            return
        _shown.add(line)
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", line)
    elif _is_interactive():
        sys.stderr.write(f"clara: {line}\n")


def announce_again() -> None:
    """Show all lines again, for the next command of the command line."""
    with _lock:
        _shown.clear()


def _is_interactive() -> bool:
    # `ps1` exists in an interactive Python and in a notebook, whose standard error is not a terminal.
    return sys.stderr is not None and (sys.stderr.isatty() or hasattr(sys, "ps1"))
