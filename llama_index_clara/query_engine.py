"""Retrieve, rerank and answer, all on memory tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import Document

from llama_index_clara._options import check_options
from llama_index_clara.llms import ClaraLLM
from llama_index_clara.response_synthesizers import ClaraSynthesizer
from llama_index_clara.retrievers import ClaraRetriever


class ClaraQueryEngine(RetrieverQueryEngine):
    """A `RetrieverQueryEngine` whose answers come from memories, with no other model in the house.

    Args:
        retriever: Any retriever; of a `ClaraRetriever` the engine is taken over.
        response_synthesizer: Where given, the options below belong to it and not here.
        node_postprocessors: Such as `ClaraRerank`.
        callback_manager: As everywhere in LlamaIndex.
        **options: The arguments of `ClaraSynthesizer`: ``llm=``, or ``engine=``, or ``model=`` and its options;
            ``streaming=``, ``text_qa_template=``, ``max_tokens=`` and so on.

    Example:
        ```python
        retriever = ClaraRetriever.from_documents(documents, model="pocket", similarity_top_k=20)
        engine = ClaraQueryEngine(retriever, node_postprocessors=[ClaraRerank(model="pocket")])
        print(engine.query("Who designed Tolmet Bridge?"))
        ```
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        response_synthesizer: BaseSynthesizer | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        check_options(type(self), options, ClaraSynthesizer, ClaraLLM)
        if not isinstance(retriever, BaseRetriever):
            raise TypeError(
                f"retriever must be a retriever, such as ClaraRetriever(store) or index.as_retriever(), got "
                f"{type(retriever).__name__}"
            )
        if response_synthesizer is None:
            response_synthesizer = _synthesizer(retriever, callback_manager, options)
        elif options:
            raise ValueError(f"give response_synthesizer= or {next(iter(options))}=, not both")
        super().__init__(retriever, response_synthesizer, node_postprocessors, callback_manager)

    @classmethod
    def from_args(  # type: ignore[override]
        cls,
        retriever: BaseRetriever,
        llm: ClaraLLM | None = None,
        response_synthesizer: BaseSynthesizer | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> Self:
        """The same as the constructor, in the words of LlamaIndex; never asks `Settings` for an LLM."""
        if response_synthesizer is None and llm is not None:
            options["llm"] = llm
        return cls(retriever, response_synthesizer, node_postprocessors, callback_manager, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        similarity_top_k: int = 5,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        engine: Any = None,
        model: str | None = None,
        **options: Any,
    ) -> Self:
        """An engine over documents, which are split and compressed now.

        Args:
            documents: They are not changed.
            similarity_top_k: Nodes to read, or to rerank.
            node_postprocessors: Such as `ClaraRerank`.
            engine: The engine of all parts.
            model: Or its name.
            **options: The arguments of `ClaraSynthesizer`.
        """
        which: dict[str, Any] = {} if model is None else {"model": model}
        retriever = ClaraRetriever.from_documents(documents, engine=engine, similarity_top_k=similarity_top_k, **which)
        return cls(retriever, node_postprocessors=node_postprocessors, **options)

    def with_retriever(self, retriever: BaseRetriever) -> ClaraQueryEngine:
        """The same engine over another retriever."""
        return type(self)(retriever, self._response_synthesizer, self._node_postprocessors, self.callback_manager)


def _synthesizer(
    retriever: BaseRetriever, callback_manager: CallbackManager | None, options: dict[str, Any]
) -> ClaraSynthesizer:
    if isinstance(retriever, ClaraRetriever) and not {"llm", "engine", "model"} & set(options):
        options = {**options, "engine": retriever.engine}
    return ClaraSynthesizer(callback_manager=callback_manager, **options)
