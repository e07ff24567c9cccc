"""The query reasoner as a retriever over documents that are held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from pydantic import ConfigDict, Field

from langchain_clara._engine import DEFAULT_MODEL, EngineFields
from langchain_clara._index import DocumentIndex, with_score

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Memory, Ranked


class ClaraRetriever(BaseRetriever, EngineFields):
    """Finds documents by what the question asks for, on their memory tokens.

    Documents are compressed when they are added. The ones that a search returns carry their text,
    their id, and in ``metadata["relevance_score"]`` the cosine of question and document (a Python
    float in [-1, 1], the best window of a long document). A reranker or a chat model of the same
    model knows their memory already.

    Example:
        ```python
        retriever = ClaraRetriever.from_documents(documents, model="pocket", k=4)
        retriever.invoke("When was the bridge opened?")
        retriever.invoke("When was the bridge opened?", k=2)
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    k: int = Field(default=4, ge=1)
    """Documents to return."""
    score_threshold: float | None = None
    """Documents with a lower score are left out; None keeps the best `k` whatever their score."""
    index: DocumentIndex = Field(default_factory=DocumentIndex, exclude=True, repr=False)
    """The documents; copies of this retriever that the framework makes share it."""

    @classmethod
    def from_documents(cls, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **options: Any) -> Self:
        """A retriever over documents, which are compressed now.

        Args:
            documents: They are copied, not kept.
            ids: One a document; else the documents' own, else ids made from the text.
            **options: The fields of this class, such as ``model=`` and ``k=``.
        """
        retriever = cls(**options)
        retriever.add_documents(documents, ids=ids)
        return retriever

    @classmethod
    async def afrom_documents(
        cls, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **options: Any
    ) -> Self:
        """`from_documents`, awaitable."""
        retriever = cls(**options)
        await retriever.aadd_documents(documents, ids=ids)
        return retriever

    def add_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """Compress and keep more documents; one whose id is known replaces the other.

        Returns:
            list: The ids, in order.
        """
        documents, keys = _listed(documents, ids)
        if not documents:
            return []
        memories = self.shared_engine.remember([document.page_content for document in documents])
        return self.index.put(documents, memories, keys)

    async def aadd_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """`add_documents`, awaitable."""
        documents, keys = _listed(documents, ids)
        if not documents:
            return []
        engine = await self.ashared_engine()
        memories = await engine.aremember([document.page_content for document in documents])
        return self.index.put(documents, memories, keys)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        k, floor = self._limits(k, score_threshold)
        documents, memories = self.index.snapshot()
        if not documents:
            return []
        engine = self.shared_engine
        ranked = engine.rank(query, memories, top_k=k)
        return _found(engine, ranked, documents, memories, floor)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        score_threshold: float | None = None,
    ) -> list[Document]:
        k, floor = self._limits(k, score_threshold)
        documents, memories = self.index.snapshot()
        if not documents:
            return []
        engine = await self.ashared_engine()
        ranked = await engine.arank(query, memories, top_k=k)
        return _found(engine, ranked, documents, memories, floor)

    def _limits(self, k: int | None, score_threshold: float | None) -> tuple[int, float | None]:
        k = self.k if k is None else k
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return k, self.score_threshold if score_threshold is None else score_threshold

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        return LangSmithRetrieverParams(
            ls_retriever_name="clara",
            ls_embedding_provider="clara",
            ls_embedding_model=self.model or DEFAULT_MODEL,
        )


def _listed(documents: Iterable[Document], ids: Sequence[str] | None) -> tuple[list[Document], list[str | None]]:
    """The documents as a list, and the id that each one brings along."""
    documents = list(documents)
    if ids is None:
        return documents, [document.id for document in documents]
    if len(ids) != len(documents):
        raise ValueError(f"one id a document is needed: got {len(ids)} ids for {len(documents)} documents")
    return documents, list(ids)


def _found(
    engine: ClaraEngine,
    ranked: Sequence[Ranked],
    documents: Sequence[Document],
    memories: Sequence[Memory],
    floor: float | None,
) -> list[Document]:
    """Copies of the documents of a ranking, with scores."""
    kept = [hit for hit in ranked if floor is None or hit.score >= floor]
    for hit in kept:
        # What is read next is looked up by its text; in a large corpus it may have been forgotten
        # there.
        engine.cache.put(memories[hit.index])
    return [with_score(documents[hit.index], hit.score) for hit in kept]
