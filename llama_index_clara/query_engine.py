"""A query engine that retrieves, reranks and answers with memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import Document

from clara_core.common.suggest import parameters, refuse_unknown
from clara_core.engine.options import OPTIONS, given_options
from llama_index_clara.llms import ClaraLLM
from llama_index_clara.response_synthesizers import ClaraSynthesizer
from llama_index_clara.retrievers import ClaraRetriever

if TYPE_CHECKING:
    from clara_core import Engine

_SYNTHESIZER_OPTIONS: Final = (*parameters(ClaraSynthesizer), *ClaraLLM.model_fields)


class ClaraQueryEngine(RetrieverQueryEngine):
    """A `RetrieverQueryEngine` that answers from memories and uses a single model.

    Args:
        retriever: Any retriever; with a `ClaraRetriever`, its engine is used.
        response_synthesizer: A synthesizer, instead of the options below.
        node_postprocessors: Postprocessors such as `ClaraRerank`.
        callback_manager: As in LlamaIndex.
        **options: The arguments of `ClaraSynthesizer`: ``llm=``, or ``engine=``, or ``model=`` and its options;
            ``streaming=``, ``text_qa_template=``, ``max_tokens=`` and so on.

    Example:
        ```python
        retriever = ClaraRetriever.from_documents(documents, model="pocket", similarity_top_k=20)
        engine = ClaraQueryEngine(retriever, node_postprocessors=[ClaraRerank(model="pocket")])
        print(engine.query("When was the bridge opened?"))
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
        refuse_unknown(type(self).__name__, options, [*parameters(ClaraQueryEngine), *_SYNTHESIZER_OPTIONS])
        if not isinstance(retriever, BaseRetriever):
            raise TypeError(
                f"retriever must be a retriever, such as ClaraRetriever(store) or index.as_retriever(), got "
                f"{type(retriever).__name__}"
            )
        if response_synthesizer is None:
            if isinstance(retriever, ClaraRetriever) and not {"llm", "engine", "model"} & set(options):
                options["engine"] = retriever.engine
            response_synthesizer = ClaraSynthesizer(callback_manager=callback_manager, **options)
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
        """Create the engine with LlamaIndex's argument names; never reads `Settings.llm`."""
        if response_synthesizer is None and llm is not None:
            options["llm"] = llm
        return cls(retriever, response_synthesizer, node_postprocessors, callback_manager, **options)

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        similarity_top_k: int | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        engine: Engine | None = None,
        llm: ClaraLLM | None = None,
        **options: Any,
    ) -> Self:
        """Create an engine over documents, which are split and compressed now.

        Args:
            documents: The documents; they are not changed.
            similarity_top_k: Number of nodes to read, or to give to the postprocessors; None: as many as the model
                reads well (`Engine.answer_top_k`), and 5 with postprocessors.
            node_postprocessors: Postprocessors such as `ClaraRerank`.
            engine: The engine of all parts.
            llm: Instead of `engine`, the LLM that answers; all parts use its engine.
            **options: ``model=`` and its options, for all parts, and the arguments of `ClaraSynthesizer`.

        Raises:
            UnknownOption: No part has the option.
            ValueError: More than one of engine, llm and model is given.
        """
        owner = f"{cls.__name__}.from_documents"
        refuse_unknown(owner, options, [*parameters(cls.from_documents), *_SYNTHESIZER_OPTIONS])
        which = {name: options.pop(name) for name in OPTIONS if name in options}
        both = [*(["engine"] if engine is not None else []), *given_options(which)]
        if llm is not None and both:
            raise ValueError(f"give llm= or {both[0]}=, not both: an llm has its own engine")
        found = ClaraLLM(engine=llm.engine if llm is not None else engine, **which).engine
        if similarity_top_k is None:
            similarity_top_k = 5 if node_postprocessors else found.answer_top_k
        retriever = ClaraRetriever.from_documents(documents, engine=found, similarity_top_k=similarity_top_k)
        if llm is not None:
            options["llm"] = llm
        return cls(retriever, node_postprocessors=node_postprocessors, **options)

    def with_retriever(self, retriever: BaseRetriever) -> ClaraQueryEngine:
        """A copy of this engine with another retriever."""
        return type(self)(retriever, self._response_synthesizer, self._node_postprocessors, self.callback_manager)
