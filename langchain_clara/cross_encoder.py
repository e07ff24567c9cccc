"""The query reasoner as a cross encoder, for pipelines that rerank by scores of pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.cross_encoders import BaseCrossEncoder

from langchain_clara._engine import EngineFields


class ClaraCrossEncoder(EngineFields, BaseCrossEncoder):
    """Scores pairs of a question and a text by the cosine of their memories.

    It replaces another cross encoder, for example in a `CrossEncoderReranker`. A text that is in the engine's cache is
    not compressed again, and a question is read once for all of its texts. `ClaraRerank` does the same in one step,
    has asynchronous methods, and adds the score to the document's metadata.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'
        ```

    Key init args:
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        from langchain_clara import ClaraCrossEncoder

        encoder = ClaraCrossEncoder(model="pocket")
        ```

    Usage:
        ```python
        encoder.score([("When was the bridge opened?", "The stone bridge was opened in 1907.")])
        reranker = CrossEncoderReranker(model=encoder, top_n=3)
        ```
    """

    def score(self, text_pairs: Iterable[tuple[str, str]]) -> list[float]:
        """Cosines of pairs (question, text), in order.

        Args:
            text_pairs: Any number of pairs; the questions may differ.

        Returns:
            list: Python floats in [-1, 1], higher is better; for a long text that of its best window.

        Raises:
            TypeError: An item is not a pair of strings.
        """
        pairs = _checked(text_pairs)
        if not pairs:
            return []
        from clara_core.retrieval.ranking import score_memories

        engine = self.shared_engine
        places: dict[str, list[int]] = {}  # indexes of the pairs of each question
        for index, (question, _) in enumerate(pairs):
            places.setdefault(question, []).append(index)
        queries = engine.reason(list(places))  # [questions, n_mem, hidden]
        memories = engine.remember([text for _, text in pairs])
        scores = [0.0] * len(pairs)
        for row, own in enumerate(places.values()):
            cosines = score_memories(queries[row : row + 1], [memories[index] for index in own])[0]  # [pairs of it]
            for index, cosine in zip(own, cosines.tolist(), strict=True):
                scores[index] = cosine
        return scores


def _checked(text_pairs: Any) -> list[tuple[str, str]]:
    if isinstance(text_pairs, str | bytes) or not isinstance(text_pairs, Iterable):
        raise TypeError(f"text_pairs must be a list of pairs (question, text), got {type(text_pairs).__name__}")
    pairs: list[tuple[str, str]] = list(text_pairs)
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TypeError(f"text_pairs[{index}] must be a pair of strings (question, text), got {pair!r:.80}")
    return pairs
