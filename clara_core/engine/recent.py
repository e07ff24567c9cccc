"""Memory tokens of recent questions, so that an answer with evidence does not encode again the question of a search."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.model.checkpoint.config import Role

_MOST: Final = 64  # questions; 8 MiB for a 7B model at rate 16


class RecentQuestions:
    """A cache of memory tokens by question and role. It is safe to use from threads."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[tuple[str, Role], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, question: str, role: Role) -> Tensor | None:
        """Memory tokens ``[n_mem, hidden]`` of a question; None if it is not in the cache."""
        with self._lock:
            return self._tokens.get((question, role))

    def note(self, questions: Sequence[str], role: Role, future: Future[Tensor]) -> None:
        """Store the result of a request, ``[questions, n_mem, hidden]``, once it is there."""

        def done(future: Future[Tensor]) -> None:
            if future.cancelled() or future.exception() is not None:
                return
            with self._lock:
                for question, tokens in zip(questions[-_MOST:], future.result()[-_MOST:], strict=True):
                    # A copy, because a view would keep the tensor of the whole batch alive.
                    self._tokens[question, role] = tokens.clone()
                    self._tokens.move_to_end((question, role))
                while len(self._tokens) > _MOST:
                    self._tokens.popitem(last=False)

        future.add_done_callback(done)
