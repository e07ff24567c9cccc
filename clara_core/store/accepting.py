"""Functions as filters: applied to the results of a search, which is widened until enough documents are accepted.

Lance cannot evaluate a Python function, and applying it to every document would read them all. Each ranking is filtered
before two are fused, so a function finds the same documents as an equivalent dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from torch import Tensor

from clara_core.store.backend import Candidate, Matches, Rows, Snapshot
from clara_core.store.records import Record

Accept = Callable[[Record], bool]

_WIDER: Final = 4  # factor by which a search is widened if too few were accepted
_NARROWEST: Final = 16  # smallest number of documents to search for


@dataclass(slots=True)
class Accepting:
    """The searches of a snapshot among documents that a function accepts; it is called once for each document."""

    snapshot: Snapshot
    accept: Accept
    _known: dict[int, bool] = field(default_factory=dict)

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:

        def accepted(question: Tensor) -> list[Candidate]:
            nearest = partial(self.snapshot.nearest, question, allowed=allowed, exact=exact, oversample=oversample)
            return self._accepted(lambda wanted: nearest(wanted)[0], k)

        return list(map(accepted, questions.split(1)))

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        unit = self.snapshot.matching(question, 1, allowed).unit
        return Matches(
            self._accepted(lambda wanted: self.snapshot.matching(question, wanted, allowed).candidates, k), unit
        )

    def _accepted(self, search: Callable[[int], Sequence[Candidate]], k: int) -> list[Candidate]:
        wanted = max(_NARROWEST, _WIDER * k)
        while True:
            found = search(wanted)
            if rows := sorted({each.row for each in found}.difference(self._known)):
                there = self.snapshot.at_rows(np.array(rows, np.uint64), with_memories=False)
                self._known |= {row: bool(self.accept(record)) for row, (record, _) in there.items()}
            accepted = [each for each in found if self._known[each.row]]
            if len(accepted) >= k or len(found) < wanted:
                return accepted[:k]
            wanted *= _WIDER
