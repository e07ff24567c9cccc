"""State of a running server: engine, stores, keys, health, and the requests in progress."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from clara_core.engine.requests import Limits as DeviceLimits
from clara_core.serving.config import Keys, ServeConfig
from clara_core.serving.failures import Refused
from clara_core.serving.observe import Metrics
from clara_core.store import MemoryStore

if TYPE_CHECKING:
    from starlette.types import Scope

    from clara_core import ClaraEngine

log = logging.getLogger(__name__)

_ROWS: Final = 4  # answers that may wait, for each row of the batch
_RECENT: Final = 64  # finished requests from which the rate is estimated
_ANSWERS: Final = "clara.answers"


class ServerState:
    """State of one server, created before the model is loaded."""

    def __init__(self, config: ServeConfig, engine: ClaraEngine) -> None:
        self.config = config
        self.engine = engine
        self.keys = Keys(config)
        self.metrics = Metrics(self)
        self.ready = False
        self.fingerprint: str | None = None  # kept after loading, because a dead engine would load the model again
        self.draining = False
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.answers = 0
        self.started = int(time.time())
        self._finished: deque[float] = deque(maxlen=_RECENT)
        self._stores: dict[str, MemoryStore] = {}
        self._lock = threading.Lock()

    # --- loading -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Load the weights and answer one question, so that the first client does not wait for either."""
        try:
            await asyncio.to_thread(self.engine.load)
            await asyncio.to_thread(lambda: [self.store(name) for name in self.config.stores])
            await self.engine.achat([{"role": "user", "content": "-"}], max_tokens=1)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 - `serve` raises it
            log.error("the server cannot start: %s", exc)  # noqa: TRY400 - the message is enough
            self.failure = exc
            self.failed.set()
            return
        self.fingerprint = self.engine.fingerprint
        self.ready = True
        log.info("ready: %r", self.engine)

    def store(self, name: str) -> MemoryStore:
        """A store of the configuration, opened at first use.

        Raises:
            Refused: The configuration has no store with this name.
        """
        if name not in self.config.stores:
            known = ", ".join(self.config.stores) or "none"
            raise Refused("store_not_found", f"there is no store {name[:64]!r} here; known: {known}", param="store")
        with self._lock:
            if name not in self._stores:
                writable = name in self.config.writable
                self._stores[name] = MemoryStore.open(self.config.stores[name], self.engine, read_only=not writable)
            return self._stores[name]

    # --- health ------------------------------------------------------------------------------------------

    def why_not_alive(self) -> str | None:
        """The reason why this process must be replaced, or None."""
        stats = self.engine.stats()
        if self.failure is not None:
            return f"the model could not be loaded: {self.failure}"
        if self.ready and not stats.alive:
            return "the engine's thread has ended"
        if stats.turn_seconds > self.config.limits.turn_seconds:
            return f"the model has not finished a turn for {stats.turn_seconds:.0f} s"
        return None

    def why_not_ready(self) -> str | None:
        """The reason why the server does not accept requests now, or None."""
        if self.draining:
            return "the server is stopping"
        if self.failure is None and not self.ready:
            return "the model is being loaded"
        return self.why_not_alive()

    # --- admission ---------------------------------------------------------------------------------------

    def admit(self, size: int) -> None:
        """Admit a request of `size` bytes.

        Raises:
            Refused: The model is loading, or a limit is reached.
        """
        limits = self.config.limits
        if not self.ready:
            raise Refused("loading", "the model is being loaded; try again", retry_after=5)
        if self.in_flight >= limits.requests:
            raise self.overloaded("requests", f"{self.in_flight} requests are being answered")
        if self.in_flight and self.bytes_in_flight + size > limits.waiting_bytes:
            raise self.overloaded("bytes", f"requests of {self.bytes_in_flight} bytes are being answered")
        self.in_flight += 1
        self.bytes_in_flight += size

    def admit_answers(self, scope: Scope, count: int = 1) -> None:
        """Admit answers, which count until the request is released. A request is always admitted if there is no other.

        Raises:
            Refused: Too many answers wait for the device.
        """
        rows, waiting = DeviceLimits.of(self.engine.device).rows, self.config.limits.waiting_answers
        most = rows + (_ROWS * rows if waiting is None else waiting)
        if self.answers and self.answers + count > most:
            raise self.overloaded("answers", f"{self.answers} answers are being written or wait for the device")
        self.answers += count
        scope[_ANSWERS] = count

    def release(self, scope: Scope, size: int) -> None:
        """Count a request as finished or cancelled."""
        self.in_flight -= 1
        self.bytes_in_flight -= size
        self.answers -= scope.get(_ANSWERS, 0)
        self._finished.append(time.monotonic())

    def overloaded(self, why: str, said: str) -> Refused:
        """The refusal of a request above a limit, with an estimate of the time until there is room."""
        self.metrics.refused.labels(why).inc()
        return Refused(
            "overloaded",
            f"the server is full: {said}; try again, or start another server",
            retry_after=self._pause(),
        )

    def _pause(self) -> int:
        if len(self._finished) < 2:
            return 1
        pace = (len(self._finished) - 1) / max(1e-3, time.monotonic() - self._finished[0])
        return max(1, min(30, round(self.in_flight / pace)))
