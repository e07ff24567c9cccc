"""Explains errors of a backend as `StoreError`, and repeats reads whose files were deleted meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from clara_core.store.backend import Backend

_TRIES: Final = 3  # attempts of a read whose files others delete meanwhile

C = TypeVar("C", bound=type[Any])
T = TypeVar("T")


class _HasBackend(Protocol):
    _backend: Backend


@contextmanager
def explained(backend: Backend) -> Iterator[None]:
    """Explain errors of the backend.

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
    """Decorate a class with a ``_backend`` so that some of its methods explain errors.

    Args:
        methods: Names of the methods.
        reading: Whether they only read. Reads are repeated if a file is missing, since others may delete an old
            version.
    """

    def decorated(cls: C) -> C:
        for name in methods:
            setattr(cls, name, _explaining(getattr(cls, name), _TRIES if reading else 1))
        return cls

    return decorated


def _explaining(method: Callable[..., Any], tries: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: _HasBackend, *args: Any, **kwargs: Any) -> Any:
        result = retry_read(self._backend, lambda: method(self, *args, **kwargs), tries)
        return _each(self._backend, result) if isinstance(result, Iterator) else result

    return wrapper


def retry_read(backend: Backend, work: Callable[[], T], tries: int = _TRIES) -> T:
    """Call a function that reads the latest version; repeat it if a file that it reads is deleted meanwhile."""
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
