"""Errors of the place that keeps documents, in words that say what they mean for the store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from clara_core.store.backend import Backend

_TRIES: Final = 3  # of a call that reads, when what it reads goes while it does

C = TypeVar("C", bound=type[Any])
T = TypeVar("T")


class _HasBackend(Protocol):
    _backend: Backend


@contextmanager
def explained(backend: Backend) -> Iterator[None]:
    """Say of an error of the place what it means.

    Raises:
        StoreError: A file is broken, or could not be read or written.
    """
    try:
        yield
    except BaseException as exc:
        if (meant := backend.explain(exc)) is None:
            raise
        raise meant from exc


def explaining(*methods: str, reading: bool) -> Callable[[C], C]:
    """For a class with a ``_backend``: some of its methods explain errors.

    Args:
        methods: Their names.
        reading: They only read: done again where a file is gone, since others may drop an old version of it meanwhile.
    """

    def decorated(cls: C) -> C:
        for name in methods:
            setattr(cls, name, _explaining(getattr(cls, name), _TRIES if reading else 1))
        return cls

    return decorated


def _explaining(method: Callable[..., Any], tries: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: _HasBackend, *args: Any, **kwargs: Any) -> Any:
        result = again(self._backend, lambda: method(self, *args, **kwargs), tries)
        return _each(self._backend, result) if isinstance(result, Iterator) else result

    return wrapper


def again(backend: Backend, work: Callable[[], T], tries: int = _TRIES) -> T:
    """Do what reads the latest version; again where a file is gone, since others may have dropped it meanwhile."""
    for left in reversed(range(tries)):
        try:
            with explained(backend):
                return work()
        except Exception as exc:
            if not left or "not found" not in str(exc.__cause__).lower():
                raise
    raise AssertionError


def _each(backend: Backend, values: Iterator[Any]) -> Iterator[Any]:
    with explained(backend):
        yield from values
