"""Rankings to compare with: BM25 over the words of the same candidates, and gold passages put among those read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np


class Bm25:
    """Passages ranked by BM25 (`bm25s`): words in lower case, without English stop words.

    Args:
        texts: The passages.

    Raises:
        ImportError: bm25s is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._bm25s = load_bm25s()
        self._size = len(texts)
        self._index: Any = self._bm25s.BM25()
        words = self._bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
        self._known = any(words)  # passages without any word cannot be indexed
        if self._known:
            self._index.index(words, show_progress=False)

    def rank(self, questions: Sequence[str]) -> list[list[int]]:
        """All passages for each question, best first; equal scores keep the order given."""
        asked = self._bm25s.tokenize(list(questions), return_ids=False, show_progress=False)
        return [self._rank(words) for words in asked]

    def _rank(self, words: list[str]) -> list[int]:
        if not self._known or not words:
            return list(range(self._size))
        scores = self._index.get_scores(words)  # [passages]
        ranking: list[int] = np.argsort(-scores, kind="stable").tolist()
        return ranking


def load_bm25s() -> Any:
    """The module `bm25s`.

    Raises:
        ImportError: It is not installed; says how to do so.
    """
    try:
        import bm25s
    except ImportError as exc:
        raise ImportError("ranking by BM25 needs bm25s: pip install 'clara-rag[train]'") from exc
    return bm25s


def with_gold(ranked: Sequence[int], gold: Collection[int], k: int) -> list[int]:
    """The first `k` of a ranking, in which every gold passage has a place (the first `k` of them, if they are more).

    A gold passage that the ranking left out takes the place of the last one that is not gold. The order stays that of
    the ranking.
    """
    places = [place for place, index in enumerate(ranked) if index in gold][:k]
    others = [place for place, index in enumerate(ranked) if index not in gold]
    return [ranked[place] for place in sorted([*places, *others[: k - len(places)]])]
