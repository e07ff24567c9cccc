"""Reranks the nodes of any retriever with the query reasoner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field

from llama_index_clara._engine import EngineFields
from llama_index_clara._nodes import text_of

if TYPE_CHECKING:
    from clara_core import Ranked

dispatcher = get_dispatcher(__name__)


class RerankedNode(NodeWithScore):
    """A node with the score of the reranker and its previous score.

    Attributes:
        retrieval_score: Score by the retriever, or None.
    """

    retrieval_score: float | None = None


class ClaraRerank(EngineFields, BaseNodePostprocessor):
    """Sorts nodes by how well they answer the question, and keeps the best.

    Memories are found by the node's text, so reranking known nodes costs one pass over the question, and a node whose
    text was changed is compressed again. Scores are cosines in [-1, 1]. The nodes themselves are not changed.

    Example:
        ```python
        engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[ClaraRerank(top_n=5)])
        ```
    """

    top_n: int = Field(default=3, ge=1, description="Nodes to keep.")
    keep_retrieval_score: bool = Field(
        default=False,
        description="Return RerankedNode objects with the old score. It is not written into the metadata, where it "
        "would change the node's hash and appear in prompts.",
    )

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._reranking(nodes, query_bundle) as (question, texts, best):
            ranked = self.engine.rank(question, self.engine.remember(texts.values())) if texts else []
            best.extend(self._best(nodes, list(texts), ranked))
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        with self._reranking(nodes, query_bundle) as (question, texts, best):
            ranked: Sequence[Ranked] = []
            if texts:
                engine = await self.aengine()
                ranked = await engine.arank(question, await engine.aremember(texts.values()))
            best.extend(self._best(nodes, list(texts), ranked))
        return best

    @contextmanager
    def _reranking(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None
    ) -> Iterator[tuple[str, dict[int, str], list[NodeWithScore]]]:
        """Send the events of a reranking.

        Yields:
            tuple: The question, the texts of the nodes that have one, by index, and a list for the result.
        """
        if query_bundle is None:
            raise ValueError("ClaraRerank needs the question: give query_bundle= or query_str=")
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        question = query_bundle.query_str
        payload: dict[str, object] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: question,
            EventPayload.TOP_K: self.top_n,
        }
        best: list[NodeWithScore] = []
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield question, {index: text for index, node in enumerate(nodes) if (text := text_of(node)).strip()}, best
            event.on_end(payload={EventPayload.NODES: best})
        dispatcher.event(ReRankEndEvent(nodes=best))

    def _best(self, nodes: list[NodeWithScore], readable: list[int], ranked: Sequence[Ranked]) -> list[NodeWithScore]:
        """The best `top_n` nodes; nodes without text come last, because they cannot be ranked."""
        scores = {readable[hit.index]: hit.score for hit in ranked}
        scores |= {index: -1.0 for index in range(len(nodes)) if index not in scores}
        return [self._scored(nodes[index], score) for index, score in islice(scores.items(), self.top_n)]

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        if self.keep_retrieval_score:
            return RerankedNode(node=found.node, score=score, retrieval_score=found.score)
        return NodeWithScore(node=found.node, score=score)
