"""The questions that were read last: an answer with evidence need not read again what the search before it has read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.checkpoint.config import Role

_MOST: Final = 64  # questions; of a 7B at rate 16, 8 MiB


class RecentQuestions:
    """Memory tokens of questions, by question and role. Thread-safe."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[tuple[str, Role], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, question: str, role: Role) -> Tensor | None:
        """Memory tokens ``[n_mem, hidden]`` of a question that was read a short time ago."""
        with self._lock:
            return self._tokens.get((question, role))

    def note(self, questions: Sequence[str], role: Role, future: Future[Tensor]) -> None:
        """Keep what a request will give, ``[questions, n_mem, hidden]``."""

        def done(future: Future[Tensor]) -> None:
            if future.cancelled() or future.exception() is not None:
                return
            with self._lock:
                for question, tokens in zip(questions[-_MOST:], future.result()[-_MOST:], strict=True):
                    self._tokens[question, role] = tokens.clone()  # a view would keep the whole batch
                    self._tokens.move_to_end((question, role))
                while len(self._tokens) > _MOST:
                    self._tokens.popitem(last=False)

        future.add_done_callback(done)
