"""The threads with which torch computes on a CPU.

Each thread that runs a large operation gets helpers from OpenMP, which stay until it ends. GNU's OpenMP lets helpers
wait actively for the next operation only while there are no more of them than processors; otherwise each operation
first wakes them up, which takes longer than many operations. So in a process with a model, only the thread that
runs its passes should have helpers. Imports no torch.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import LibController

T = TypeVar("T")


class _Limit(threading.local):
    usual = 0  # threads of an operation without the limit; 0: there is none


_limit = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the torch operations of the calling thread without helpers; other threads keep theirs."""
    libraries = _openmp()
    before, outer = [library.num_threads for library in libraries], _limit.usual
    _limit.usual = outer or max(before, default=1)
    for library in libraries:
        library.set_num_threads(1)
    try:
        yield
    finally:
        _limit.usual = outer
        for library, count in zip(libraries, before, strict=True):
            library.set_num_threads(count)


def usual_threads() -> int:
    """How many threads a torch operation of the calling thread has outside of `one_thread`."""
    return _limit.usual or max((library.num_threads for library in _openmp()), default=1)


def in_own_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, with which its helpers end.

    An interrupt ends the call at once; the thread then goes on to its end.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:  # noqa: BLE001 - the caller gets it
            future.set_exception(exc)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="clara-load")
    thread.start()
    result = future.result()
    thread.join()
    return result


def _openmp() -> tuple[LibController, ...]:
    """The libraries of OpenMP in this process, if torch is in use."""
    if "torch" not in sys.modules:
        return ()
    import torch

    torch.get_num_threads()  # the first operation of a thread sets its number, which would end a limit
    return _found()


@cache
def _found() -> tuple[LibController, ...]:
    from threadpoolctl import ThreadpoolController

    return tuple(ThreadpoolController().select(user_api="openmp").lib_controllers)
