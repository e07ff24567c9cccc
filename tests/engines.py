"""Opens engines of tiny checkpoints, and observes their calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from clara_core import ClaraEngine
from clara_core.model.decoder import ClaraModel
from tests.tiny import Tiny

PASSAGES = (
    "Weldenia is a genus of flowering plants in the spiderwort family.",
    "The bridge over the river Aln was opened in 1907 and is 214 metres long.",
    "Short note.",
    "Captain Ada Quill sailed the Merganser from Bristol to Lisbon in nine days.",
    "富士山 is 3,776 m high; both are climbed in summer!",
    "The company Brandt & Sons makes clocks, barometers and maps.",
)


def open_engine(tiny: Tiny, **arguments: Any) -> ClaraEngine:
    """Open the engine of a tiny checkpoint, in float32 on the processor."""
    arguments = {"base_model": str(tiny.base), "dtype": "float32", "device": "cpu", **arguments}
    return ClaraEngine.from_pretrained(str(tiny.folder), **arguments)


@contextmanager
def wrapped(model: ClaraModel, name: str, wrap: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of a model by ``wrap(original, *args, **kwargs)`` inside the block."""
    original = getattr(model, name)
    setattr(model, name, lambda *args, **kwargs: wrap(original, *args, **kwargs))
    try:
        yield
    finally:
        delattr(model, name)


class Counter:
    """Counts the calls of a method of a model inside the block; `wait_for` waits for a number of them."""

    def __init__(self, model: ClaraModel, name: str) -> None:
        self.calls = 0
        self._changed = threading.Condition()
        self._scope = wrapped(model, name, self._count)

    def _count(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self.calls += 1
            self._changed.notify_all()
        return original(*args, **kwargs)

    def wait_for(self, calls: int, seconds: float = 120.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls >= calls, seconds), f"only {self.calls} calls"

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._scope.__exit__(*exc)
