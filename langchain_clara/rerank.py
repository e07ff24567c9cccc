"""Reranks the candidates of any retriever with the query reasoner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableParallel,
    RunnablePassthrough,
    RunnableSerializable,
)
from pydantic import Field

from langchain_clara._engine import EngineFields
from langchain_clara._entries import with_score
from langchain_clara._messages import as_retriever, listed_documents

if TYPE_CHECKING:
    from clara_core import Ranked


_QUESTION: Final = ("question", "query", "input")
_DOCUMENTS: Final = ("documents", "context")


class ClaraRerank(RunnableSerializable[dict[str, Any], list[Document]], BaseDocumentCompressor, EngineFields):
    """Sorts documents by how well they answer the question, and keeps the best.

    Memories are found by the document's text. A text that is in the engine's cache (from a retriever, a store or an
    earlier question) is not compressed again, so reranking known documents costs one pass over the question. The
    result has copies of the documents, with the cosine in ``metadata["relevance_score"]``, a Python float in [-1, 1].

    It can be the `base_compressor` of a `ContextualCompressionRetriever`, or a step of a chain.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'
        ```

    Key init args:
        top_n: int | None
            Number of documents to keep; None keeps all.
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        from langchain_clara import ClaraRerank

        rerank = ClaraRerank(model="pocket", top_n=3)
        ```

    Usage:
        ```python
        rerank.compress_documents(documents, "When was the bridge opened?")
        best_three = rerank.as_runnable(any_retriever)  # question -> its candidates, reranked
        best_three = {"documents": any_retriever, "question": RunnablePassthrough()} | rerank  # the same
        ```

    Async:
        ```python
        await rerank.acompress_documents(documents, "When was the bridge opened?")
        ```
    """

    top_n: int | None = Field(default=3, ge=1)
    """Number of documents to keep; None keeps all."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rank documents by the question.

        Args:
            documents: The candidates; they are not changed.
            query: The question.
            callbacks: Ignored: this call makes no model call of LangChain's.

        Returns:
            list: Copies of the best `top_n`, best first.

        Raises:
            TypeError: The candidates are not a list of Documents, or the question is not a string.
        """
        if not _candidates(documents, query):
            return []
        engine = self.shared_engine
        memories = engine.remember([document.page_content for document in documents])
        return _ordered(documents, engine.rank(query, memories, top_k=self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """`compress_documents`, awaitable."""
        if not _candidates(documents, query):
            return []
        engine = await self.ashared_engine()
        memories = await engine.aremember([document.page_content for document in documents])
        return _ordered(documents, await engine.arank(query, memories, top_k=self.top_n))

    def invoke(self, input: dict[str, Any], config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:  # noqa: A002
        """Rerank as a step of a chain.

        Args:
            input: The question ("question", "query" or "input") and the candidates ("documents" or "context").
            config: Configuration of the run.
            **kwargs: Not used.
        """
        return self._call_with_config(lambda given: self.compress_documents(*_read(given)), input, config)

    async def ainvoke(
        self,
        input: dict[str, Any],  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`invoke`, awaitable."""

        async def rerank(given: dict[str, Any]) -> list[Document]:
            return await self.acompress_documents(*_read(given))

        return await self._acall_with_config(rerank, input, config)

    def as_runnable(self, retriever: Runnable[str, list[Document]]) -> Runnable[str, list[Document]]:
        """A runnable that retrieves candidates and reranks them.

        Args:
            retriever: A retriever, another runnable or a function from a question to documents.

        Returns:
            Runnable: From a question to the best `top_n` of the retriever's documents, sync and async.
        """
        return RunnableParallel(documents=as_retriever(retriever), question=RunnablePassthrough()) | self


def _read(given: object) -> tuple[Sequence[Document], str]:
    """The candidates and the question in the input of a chain."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"ClaraRerank takes a dict with the question and the documents, got {type(given).__name__}; "
            "use rerank.as_runnable(retriever)"
        )
    question = next((given[key] for key in _QUESTION if key in given), None)
    documents = next((given[key] for key in _DOCUMENTS if key in given), None)
    if question is None or documents is None:
        raise ValueError(
            f"ClaraRerank takes the question as one of {_QUESTION} and the documents as one of {_DOCUMENTS}, "
            f"got {tuple(given)}"
        )
    return documents, question


def _candidates(documents: Sequence[Document], query: str) -> Sequence[Document]:
    """The documents, after checking that they are a list of Documents and the question is a string."""
    if not isinstance(query, str):
        raise TypeError(f"the question must be a string, got {type(query).__name__}: {query!r:.60}")
    for index, document in enumerate(listed_documents(documents)):
        if not isinstance(document, Document):
            raise TypeError(f"documents[{index}] must be a Document, got {type(document).__name__}")
    return documents


def _ordered(documents: Sequence[Document], ranked: Sequence[Ranked]) -> list[Document]:
    return [with_score(documents[hit.index], hit.score) for hit in ranked]
