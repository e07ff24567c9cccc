"""Tests whether a call blocks the event loop, by cause and effect instead of by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

PATIENCE = 60.0  # seconds after which a loop counts as blocked; only a failing test waits that long


class LoopWitness:
    """Makes slow steps wait until the event loop has run once, and one thread of its default pool, too.

    A call that blocks the loop while it waits for such a step can never end by itself, however fast the machine is. A
    call that does not block the loop passes, however busy the machine is. The same is true for calls that occupy the
    threads of the loop's default pool, which all code shares.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.passed = 0
        self.failures: list[str] = []
        self._thread = threading.get_ident()

    def wait(self) -> None:
        """Return when the loop has run; record a failure if it does not."""
        if threading.get_ident() == self._thread:
            self.failures.append("a slow step ran on the thread of the loop")
            return
        came_round = asyncio.run_coroutine_threadsafe(asyncio.to_thread(lambda: None), self.loop)
        try:
            came_round.result(PATIENCE)
        except TimeoutError:
            self.failures.append(f"the loop, or its pool of threads, stood still for {PATIENCE:.0f} s")
        else:
            self.passed += 1

    def around(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Wrapper for `tests.engines.wrapped`: wait, then make the original call."""
        self.wait()
        return original(*args, **kwargs)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Replacement for monkeypatch: wait, then make the call."""

        def waits(*args: Any, **kwargs: Any) -> Any:
            self.wait()
            return call(*args, **kwargs)

        return waits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert not self.failures, self.failures[0]
            assert self.passed, "no slow step was reached: this test looked at nothing"
