"""Functions as filters: applied to the results of a search, which is widened until enough documents are accepted.

Lance cannot evaluate a Python function, and applying it to every document would read them all. Each ranking is filtered
before two are fused, so a function finds the same documents as an equivalent dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

        def search(question: Tensor, wanted: int) -> list[Candidate]:
            return self.snapshot.nearest(question[None], wanted, allowed, exact=exact, oversample=oversample)[0]

        return [self._accepted(lambda wanted, own=question: search(own, wanted), k) for question in questions]  # type: ignore[misc]

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        unit = self.snapshot.matching(question, 1, allowed).unit
        return Matches(
            self._accepted(lambda wanted: self.snapshot.matching(question, wanted, allowed).candidates, k), unit
        )

    def _accepted(self, search: Callable[[int], Sequence[Candidate]], k: int) -> list[Candidate]:
        wanted = max(_NARROWEST, _WIDER * k)
        while True:
            found = search(wanted)
            self._judge(found)
            accepted = [each for each in found if self._known[each.row]]
            if len(accepted) >= k or len(found) < wanted:
                return accepted[:k]
            wanted *= _WIDER

    def _judge(self, found: Sequence[Candidate]) -> None:
        rows = sorted({each.row for each in found}.difference(self._known))
        if rows:
            there = self.snapshot.at_rows(np.array(rows, np.uint64), with_memories=False)
            self._known |= {row: bool(self.accept(record)) for row, (record, _) in there.items()}


def accepted_ids(records: Iterator[Record] | Sequence[Record], accept: Accept) -> list[str]:
    """Ids of the documents that a function accepts."""
    return [record.id for record in records if accept(record)]
