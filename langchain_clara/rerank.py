"""The query reasoner as a reranker of any retriever's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import ConfigDict, Field

from langchain_clara._engine import EngineFields
from langchain_clara._index import with_score

if TYPE_CHECKING:
    from clara_core import Ranked


class ClaraRerank(BaseDocumentCompressor, EngineFields):
    """Puts documents in the order in which they answer the question, and keeps the best.

    Memory is found by the document's text: one that was compressed before (by a retriever, a
    store, an earlier question) costs nothing, so that reranking known documents costs one
    question. The documents returned are copies with the cosine of question and document in
    ``metadata["relevance_score"]``, a Python float in [-1, 1].

    Example:
        ```python
        rerank = ClaraRerank(top_n=3)
        best = rerank.compress_documents(documents, "When was the bridge opened?")
        chain = rerank.as_runnable(any_retriever)  # question -> its candidates, reranked
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    top_n: int | None = Field(default=3, ge=1)
    """Documents to keep; None keeps all of them."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rank documents by the question.

        Args:
            documents: The candidates; they are not changed.
            query: The question.
            callbacks: Taken for the interface's sake: no model call of the framework is made here.

        Returns:
            list: Copies of the best `top_n`, best first.
        """
        if not documents:
            return []
        engine = self.shared_engine
        memories = engine.remember([document.page_content for document in documents])
        return _ordered(documents, engine.rank(query, memories, top_k=self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, awaitable."""
        if not documents:
            return []
        engine = await self.ashared_engine()
        memories = await engine.aremember([document.page_content for document in documents])
        return _ordered(documents, await engine.arank(query, memories, top_k=self.top_n))

    def as_runnable(self, retriever: Runnable[str, list[Document]]) -> Runnable[str, list[Document]]:
        """A retriever's candidates, reranked, as one step of a chain.

        Args:
            retriever: Anything that turns a question into documents.

        Returns:
            Runnable: From a question to the best `top_n` of the retriever's documents, sync and
                async.
        """

        def find(question: str, config: RunnableConfig) -> list[Document]:
            return self.compress_documents(retriever.invoke(question, config), question, config.get("callbacks"))

        async def afind(question: str, config: RunnableConfig) -> list[Document]:
            candidates = await retriever.ainvoke(question, config)
            return await self.acompress_documents(candidates, question, config.get("callbacks"))

        return RunnableLambda(find, afind, name=type(self).__name__)


def _ordered(documents: Sequence[Document], ranked: Sequence[Ranked]) -> list[Document]:
    return [with_score(documents[hit.index], hit.score) for hit in ranked]
