"""Explains errors of a backend as `StoreError`, and repeats reads whose files were deleted meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from clara_core.store.backend import Backend

_TRIES: Final = 3  # attempts of a read whose files others delete meanwhile

Method = TypeVar("Method", bound=Callable[..., Any])
T = TypeVar("T")


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


def writes(method: Method, tries: int = 1) -> Method:
    """Decorate a method of a class with a ``_backend`` so that it explains errors, also of an iterator it returns."""

    @functools.wraps(method)
    def explaining(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = retry_read(self._backend, lambda: method(self, *args, **kwargs), tries)
        return _each(self._backend, result) if isinstance(result, Iterator) else result

    return cast("Method", explaining)


def reads(method: Method) -> Method:
    """`writes` for a method that only reads: it is repeated if others delete the version that it reads."""
    return writes(method, _TRIES)


def _each(backend: Backend, values: Iterator[Any]) -> Iterator[Any]:
    with explained(backend):
        yield from values
