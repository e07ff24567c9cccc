"""A LangChain retriever that searches memories: those of a store, or those of another retriever's candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables import Runnable
from langchain_core.vectorstores import VectorStore
from pydantic import Field, field_validator, model_validator

from clara_core.common.suggest import parameters, refuse_unknown
from clara_core.engine.options import given_options, option_values
from clara_core.retrieval.ranking import RERANK, fuse_ranks, memory_relevance
from langchain_clara._engine import EngineFields
from langchain_clara._entries import Filter, acceptor, with_score, with_texts
from langchain_clara.embeddings import ClaraEmbeddings
from langchain_clara.vectorstores import ClaraVectorStore

if TYPE_CHECKING:
    from clara_core import Engine, Ranked


class ClaraRetriever(BaseRetriever, EngineFields):
    """Finds the documents that answer a question by comparing memories.

    The results are copies with their full text and id. ``metadata["relevance_score"]`` measures how well they answer
    the question: a Python float in [0, 1] in every mode, in the order of the search. Their memories are in the
    engine's cache, for a reranker or chat model of the same model.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'
        ```

    Key init args:
        k: int
            Number of documents to return.
        filter: dict | Callable[[Document], bool] | None
            Which documents may be returned; see `clara_core.retrieval.filters`.
        mode: "memory" | "text" | "hybrid" | None
            How the store is searched; None is ``hybrid``.
        rerank: int
            How many of the best documents of ``hybrid`` are ranked again by whether they hold an answer.
        score_threshold: float | None
            Lowest relevance, in [0, 1].
        vectorstore: ClaraVectorStore | None
            An existing store to search.
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        retriever = ClaraRetriever.from_documents(documents, model="pocket", k=4)
        retriever = ClaraRetriever.from_texts(["The stone bridge was opened in 1907."], model="pocket")
        retriever = ClaraRetriever(vectorstore=store, k=4)
        retriever = ClaraRetriever.from_retriever(bm25, k=4, base_weight=0.5)  # reranks the candidates of any other
        ```

    Usage:
        ```python
        retriever.invoke("When was the bridge opened?")
        retriever.invoke("When was the bridge opened?", k=2, filter={"town": "Aln"}, score_threshold=0.3)
        ```

    Async:
        ```python
        await retriever.ainvoke("When was the bridge opened?")
        ```
    """

    k: int = Field(default=4, ge=1)
    """Number of documents to return."""
    filter: Any = None
    """Which documents may be returned: a dict, or a function of a document; None allows all."""
    score_threshold: float | None = None
    """Lowest relevance of a result; None returns the best `k` with any relevance."""
    mode: Literal["memory", "text", "hybrid"] | None = None
    """Search the store by memory, by words, or by both; None is ``hybrid``. Not used with `base`."""
    rerank: int = Field(default=RERANK, ge=0)
    """How many of the best documents of ``hybrid`` are ranked again by whether they hold an answer to the question;
    0 keeps the order of the search. It costs about a millisecond a document. Not used with `base`."""
    vectorstore: ClaraVectorStore | None = Field(default=None, exclude=True, repr=False)
    """The store of the documents, shared by copies of this retriever; created if it is not given."""
    base: Runnable[str, list[Document]] | None = Field(default=None, exclude=True, repr=False)
    """A retriever of candidates, instead of a store."""
    base_weight: float = Field(default=0.0, ge=0, le=1)
    """Weight of the base's own order in the result (reciprocal rank fusion): 0 is none, 0.5 is half."""

    @field_validator("vectorstore", mode="before")
    @classmethod
    def _check_vectorstore(cls, value: Any) -> Any:
        if value is None or isinstance(value, ClaraVectorStore):
            return value
        got = type(value).__name__
        hint = "ClaraVectorStore(uri=...) opens a folder"
        if isinstance(value, VectorStore):
            hint = (
                "to rerank the results of another store, use ClaraRetriever.from_retriever(store.as_retriever()); to "
                "search memories, put the documents into a ClaraVectorStore"
            )
        # Pydantic reports a ValueError, but not a TypeError, as an error of the field.
        raise ValueError(f"vectorstore must be a ClaraVectorStore, got {got}; {hint}")

    @field_validator("base", mode="before")
    @classmethod
    def _check_base(cls, value: Any) -> Any:
        if value is None or isinstance(value, Runnable):
            return value
        got = type(value).__name__
        hint = "wrap a function in RunnableLambda" if callable(value) else "documents go to from_documents"
        if isinstance(value, VectorStore):
            hint = "use store.as_retriever()"
        raise ValueError(f"base must be a retriever, got {got}; {hint}")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.base is not None and self.vectorstore is not None:
            raise ValueError("give base= or vectorstore=, not both: documents come from one of them")
        if self.base_weight and self.base is None:
            raise ValueError("base_weight= is the weight of the order of base=, and there is no base")
        values = option_values(self)
        options = {name: values[name] for name in given_options(values)}
        if self.engine is not None:
            options["engine"] = self.engine
        if self.vectorstore is not None:
            # The framework copies a retriever by its fields; then both are given, and equal.
            embedding = self.vectorstore.embeddings
            other = [name for name, value in options.items() if getattr(embedding, name, None) != value]
            if other:
                raise ValueError(f"give vectorstore= or {other[0]}=, not both: a store has its own model and options")
        elif self.base is None:
            self.vectorstore = ClaraVectorStore(**options)
        acceptor(self.filter)
        return self

    # --- making one ------------------------------------------------------------------------------

    @classmethod
    def from_documents(cls, documents: Iterable[Document], *, ids: Sequence[str] | None = None, **options: Any) -> Self:
        """Create a retriever over documents, which are compressed now.

        Args:
            documents: The documents; they are copied.
            ids: An id for each document; by default the documents' own, else ids made from the text.
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

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:
        """Create a retriever over texts, which are compressed now.

        Args:
            texts: Any number of texts, for example from a generator.
            metadatas: A metadata dict for each text.
            ids: An id for each text; by default ids made from the text.
            **options: The fields of this class, such as ``model=`` and ``k=``.
        """
        return cls.from_documents(with_texts(texts, metadatas), ids=ids, **options)

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:
        """`from_texts`, awaitable."""
        return await cls.afrom_documents(with_texts(texts, metadatas), ids=ids, **options)

    @classmethod
    def from_retriever(cls, base: Runnable[str, list[Document]], **options: Any) -> Self:
        """Create a retriever that reranks the candidates of another one and returns the best.

        Candidates are compressed at first use and then cached, so that known candidates cost one pass over the
        question. The base determines the number of candidates.

        Args:
            base: A retriever, or another runnable from a question to documents.
            **options: The fields of this class, such as ``model=``, ``k=`` and ``base_weight=``.
        """
        return cls(base=base, **options)

    def add_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """Compress and add documents; a document with a known id replaces the stored one.

        Returns:
            list: The ids, in order.
        """
        return self._store().add_documents(documents, ids=ids)

    async def aadd_documents(self, documents: Iterable[Document], *, ids: Sequence[str] | None = None) -> list[str]:
        """`add_documents`, awaitable."""
        return await self._store().aadd_documents(documents, ids=ids)

    # --- finding ---------------------------------------------------------------------------------

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        **call: Any,
    ) -> list[Document]:
        k, condition, score_threshold, how = self._limits(**call)
        if self.base is None:
            found = self._store().similarity_search_with_relevance_scores(query, k, filter=condition, **how)
            return _above(score_threshold, found)
        candidates = _accepted(self.base.invoke(query, {"callbacks": run_manager.get_child()}), condition)
        if not candidates:
            return []
        engine = self.shared_engine
        memories = engine.remember([document.page_content for document in candidates])
        return _above(score_threshold, self._ordered(candidates, engine.rank(query, memories)), k)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        **call: Any,
    ) -> list[Document]:
        k, condition, score_threshold, how = self._limits(**call)
        if self.base is None:
            search = self._store().asimilarity_search_with_relevance_scores
            return _above(score_threshold, await search(query, k, filter=condition, **how))
        candidates = _accepted(await self.base.ainvoke(query, {"callbacks": run_manager.get_child()}), condition)
        if not candidates:
            return []
        engine = await self.ashared_engine()
        memories = await engine.aremember([document.page_content for document in candidates])
        return _above(score_threshold, self._ordered(candidates, await engine.arank(query, memories)), k)

    def _limits(
        self,
        *,
        k: int | None = None,
        filter: Filter | None = None,  # noqa: A002
        score_threshold: float | None = None,
        mode: str | None = None,
        rerank: int | None = None,
        **unknown: Any,
    ) -> tuple[int, Filter | None, float | None, dict[str, Any]]:
        """The options of a call, else those of this object."""
        if unknown:
            refuse_unknown(f"a call of {type(self).__name__}", unknown, parameters(self._limits))
        k = self.k if k is None else k
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        condition = self.filter if filter is None else filter
        threshold = self.score_threshold if score_threshold is None else score_threshold
        how = {"mode": mode or self.mode, "rerank": self.rerank if rerank is None else rerank}
        return k, condition, threshold, how

    def _ordered(self, candidates: Sequence[Document], ranked: Sequence[Ranked]) -> list[tuple[Document, float]]:
        """Candidates with their scores, in the order of the reranking or of both rankings fused."""
        scores = {hit.index: memory_relevance(hit.score) for hit in ranked}
        order = list(scores)
        if self.base_weight:
            fused = fuse_ranks([range(len(candidates)), order], [self.base_weight, 1 - self.base_weight])
            order = [index for index, _ in fused]
        return [(candidates[index], scores[index]) for index in order]

    def _store(self) -> ClaraVectorStore:
        if self.vectorstore is None:
            raise TypeError("this retriever reranks the candidates of another one and keeps no documents itself")
        return self.vectorstore

    # --- what it is ------------------------------------------------------------------------------

    @cached_property
    def shared_engine(self) -> Engine:
        """The engine of the store if there is one, else that of the fields.

        Raises:
            TypeError: The store keeps vectors of another embedding.
        """
        if self.vectorstore is None:
            return super().shared_engine
        embedding = self.vectorstore.embeddings
        if not isinstance(embedding, ClaraEmbeddings):
            raise TypeError(f"the store of this retriever searches with {type(embedding).__name__} and has no engine")
        return embedding.shared_engine

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = LangSmithRetrieverParams(ls_retriever_name="clara")
        embedding = None if self.vectorstore is None else self.vectorstore.embeddings
        if embedding is not None and not isinstance(embedding, ClaraEmbeddings):
            return {**params, "ls_vector_store_provider": "clara", "ls_embedding_provider": type(embedding).__name__}
        name = self.model_label if embedding is None else embedding.model_label
        if embedding is not None:
            params["ls_vector_store_provider"] = "clara"
        return {**params, "ls_embedding_provider": "clara", "ls_embedding_model": name}


def _accepted(candidates: Sequence[Document], condition: Filter | None) -> list[Document]:
    """The candidates that pass the filter."""
    accept = acceptor(condition)
    return [document for document in candidates if accept is None or accept(document)]


def _above(
    score_threshold: float | None, pairs: Sequence[tuple[Document, float]], k: int | None = None
) -> list[Document]:
    """Copies of the first `k` documents with a sufficient score, with their scores."""
    kept = [pair for pair in pairs if score_threshold is None or pair[1] >= score_threshold]
    return [with_score(document, score) for document, score in kept[:k]]
