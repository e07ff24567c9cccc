"""Lines that say once what was chosen for the user: a model or a rate that nobody named.

They are no warnings. They go to the log (``clara_core.common.announce``, level INFO), and where no log takes them, to
standard error if somebody is there to read it: at a terminal or in a notebook, and not in a service.
"""

from __future__ import annotations

import logging
import sys
import threading

log = logging.getLogger(__name__)

_said: set[str] = set()
_lock = threading.Lock()


def announce(line: str) -> None:
    """Say a line, the first time in this process."""
    with _lock:
        if line in _said:
            return
        _said.add(line)
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", line)
    elif _watched():
        sys.stderr.write(f"clara: {line}\n")


def announce_again() -> None:
    """Forget what was said: a new command of the command line begins."""
    with _lock:
        _said.clear()


def _watched() -> bool:
    # `ps1` is there in an interactive Python and in a notebook, whose standard error is no terminal.
    return sys.stderr is not None and (sys.stderr.isatty() or hasattr(sys, "ps1"))
