"""Search by words, to compare with and to find candidates by: BM25 over texts in memory (`bm25s`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Words of any script; Chinese and Japanese, which put no spaces between words, by single characters.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


class Bm25:
    """Texts ranked by BM25: words in lower case, without English stop words.

    Args:
        texts: The texts.

    Raises:
        ImportError: bm25s is not installed.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)
        bm25s = load_bm25s()
        self._stop = frozenset(bm25s.stopwords.STOPWORDS_EN)
        words = [self._words(text) for text in self._texts]
        self._known = {word for text in words for word in text}
        self._index: Any = bm25s.BM25()
        if self._known:  # texts without any word cannot be indexed
            self._index.index(words, show_progress=False)

    def search(self, question: str, k: int) -> list[str]:
        """The texts that share words with the question, best first, at most `k`."""
        scores = self._scores(question)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._texts[at] for at in best if scores[at] > 0]

    def rank(self, questions: Sequence[str]) -> list[list[int]]:
        """All texts for each question, best first; equal scores keep the order given."""
        return [np.argsort(-self._scores(question), kind="stable").tolist() for question in questions]

    def _scores(self, question: str) -> Any:
        """Of each text, ``[texts]``."""
        words = [word for word in self._words(question) if word in self._known]
        return self._index.get_scores(words) if words else np.zeros(len(self._texts), np.float32)

    def _words(self, text: str) -> list[str]:
        return [word for word in _WORD.findall(text.casefold()) if word not in self._stop]


def load_bm25s() -> Any:
    """The module `bm25s`.

    Raises:
        ImportError: It is not installed; says how to do so.
    """
    try:
        import bm25s
        import bm25s.stopwords
    except ImportError as exc:
        raise ImportError("search by BM25 needs bm25s: pip install 'clara-rag[train]'") from exc
    return bm25s
