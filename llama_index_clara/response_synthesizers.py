"""A response synthesizer whose generator reads nodes as memory tokens."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from clara_core.common.suggest import nearest, parameters, refuse_unknown
from llama_index_clara._evidence import cited_nodes, cited_order, response_evidence, with_marks
from llama_index_clara._nodes import checked, text_of
from llama_index_clara.llms import ClaraLLM

if TYPE_CHECKING:
    from clara_core import Answer

dispatcher = get_dispatcher(__name__)

QUESTION_TEMPLATE: Final = PromptTemplate("{query_str}")
"""The question alone; the checkpoint has its own prompt around it."""
_TEMPLATE: Final = "text_qa_template"


class ClaraSynthesizer(BaseSynthesizer):
    """Passes nodes to the generator as memories, in one call.

    Memories are found by a node's text (with the metadata that an embedding model sees). A node that was never
    compressed, or whose text was changed, is compressed now; its embedding is not used. Nodes without text are not read
    but stay among the sources.

    Args:
        llm: A `ClaraLLM`; by default it is made from ``engine=`` or ``model=`` and its options.
        streaming: Whether answers are streams.
        text_qa_template: Prompt with ``{query_str}``. It has no ``{context_str}``, because nodes are not read as text.
        empty_response: Answer if there are no nodes with text.
        citations: Whether ``response.metadata["clara"]`` gives the node that supports each part of the answer. For a
            stream it is set when the stream has ended.
        sources: ``all`` returns the nodes unchanged; ``cited`` returns copies of the cited nodes, in order of first
            use, with their share in the answer as score (not in streams).
        inline_citations: Write ``[n]`` after each cited part, where ``source_nodes[n - 1]`` is its node (not in
            streams).
        metadata_mode: The metadata in the text that is read. With modes other than `EMBED`, nodes are compressed again.
        callback_manager: As in LlamaIndex.
        output_cls: Not supported: the generator writes short answers and no JSON.
        multimodal: Not supported: the generator reads text only.
        engine: See `ClaraLLM`.
        **options: See `ClaraLLM`, such as ``model=`` and ``max_tokens=``.

    Example:
        ```python
        query_engine = index.as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm))
        ```
    """

    def __init__(
        self,
        llm: ClaraLLM | None = None,
        *,
        streaming: bool = False,
        text_qa_template: BasePromptTemplate | None = None,
        empty_response: str | None = None,
        citations: bool | Literal["attention"] = False,
        sources: Literal["all", "cited"] = "all",
        inline_citations: bool = False,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        callback_manager: CallbackManager | None = None,
        output_cls: type | None = None,
        multimodal: bool = False,
        engine: Any = None,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, options, [*parameters(ClaraSynthesizer), *ClaraLLM.model_fields])
        if output_cls is not None or multimodal:
            raise ValueError("ClaraSynthesizer reads and writes text only: leave out output_cls= and multimodal=")
        if llm is not None and not isinstance(llm, ClaraLLM):
            raise TypeError(f"ClaraSynthesizer needs a ClaraLLM, which can read memories, got {type(llm).__name__}")
        if llm is not None and (engine is not None or options):
            raise ValueError(f"give llm= or {next(iter(options), 'engine')}=, not both: an llm has its own engine")
        if sources not in ("all", "cited"):
            raise ValueError(f"sources must be 'all' or 'cited', got {sources!r}{nearest(sources, ('all', 'cited'))}")
        self._citations = citations or sources == "cited" or inline_citations
        self._sources, self._inline = sources, inline_citations
        super().__init__(
            llm=llm or ClaraLLM(engine=engine, **options),
            callback_manager=callback_manager,
            streaming=streaming,
            empty_response=empty_response,
            **_helpers(),
        )
        self._metadata_mode = MetadataMode(metadata_mode)
        self._template = _checked(text_qa_template or QUESTION_TEMPLATE)

    @property
    def llm(self) -> ClaraLLM:
        """The LLM that answers."""
        llm = self._llm
        if not isinstance(llm, ClaraLLM):
            raise TypeError(f"ClaraSynthesizer needs a ClaraLLM, got {type(llm).__name__}")
        return llm

    def _get_prompts(self) -> PromptDictType:
        return {_TEMPLATE: self._template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if _TEMPLATE in prompts:
            self._template = _checked(prompts[_TEMPLATE])

    # --- what the framework calls ------------------------------------------------------------------------

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer from nodes."""
        nodes = list(checked(nodes, NodeWithScore, "nodes"))
        account = self._account(nodes)
        response = super().synthesize(query, nodes, additional_source_nodes, clara_account=account, **response_kwargs)
        return self._accounted(response, account)

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """`synthesize`, awaitable."""
        nodes = list(checked(nodes, NodeWithScore, "nodes"))
        account = self._account(nodes)
        response = await super().asynthesize(
            query, nodes, additional_source_nodes, clara_account=account, **response_kwargs
        )
        return self._accounted(response, account)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        clara_account: _Account | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """Answer from texts, or from the nodes of an account: a string, or a generator if streaming."""
        texts = self._texts(query_str, text_chunks, clara_account)
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:  # read at every call, because chat engines change it
            answer = self._stream(texts, query_str, response_kwargs, clara_account)
        elif texts:
            answer = self._reader(texts, clara_account).predict(self._template, query_str=query_str, **response_kwargs)
        else:
            answer = self._empty_response
        dispatcher.event(GetResponseEndEvent())
        return answer

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        clara_account: _Account | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response`, awaitable; an asynchronous generator if streaming."""
        texts = self._texts(query_str, text_chunks, clara_account)
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:
            answer = self._astream(texts, query_str, response_kwargs, clara_account)
        elif texts:
            answer = await self._reader(texts, clara_account).apredict(
                self._template, query_str=query_str, **response_kwargs
            )
        else:
            answer = self._empty_response
        dispatcher.event(GetResponseEndEvent())
        return answer

    def _texts(self, query_str: str, text_chunks: Sequence[str], account: _Account | None) -> list[str]:
        """The texts to read; sends the start event."""
        if account is None:
            texts = [text for text in text_chunks if text.strip()]
        else:
            texts = [text_of(node, self._metadata_mode) for node in account.nodes]
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=texts))
        return texts

    # As in LlamaIndex, a stream begins to generate when it is first read.

    def _stream(
        self, texts: list[str], query_str: str, kwargs: dict[str, Any], account: _Account | None
    ) -> Generator[str, None, None]:
        if texts:
            yield from self._reader(texts, account).stream(self._template, query_str=query_str, **kwargs)
        else:
            yield self._empty_response
        if account is not None:
            account.update()

    async def _astream(
        self, texts: list[str], query_str: str, kwargs: dict[str, Any], account: _Account | None
    ) -> AsyncGenerator[str, None]:
        if not texts:
            yield self._empty_response
            return
        stream: Any = await self._reader(texts, account).astream(self._template, query_str=query_str, **kwargs)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece
        if account is not None:
            account.update()

    # --- what the answer stands on -----------------------------------------------------------------------

    def _reader(self, texts: list[str], account: _Account | None) -> ClaraLLM:
        """The LLM with these texts; its answers are added to the record."""
        reader = self.llm.reading(texts)
        if account is None:
            return reader
        changes = {"citations": True} if self._citations else {}
        return reader.recording(account.answers, **changes)

    def _account(self, nodes: Sequence[NodeWithScore]) -> _Account:
        """An account of the nodes with text, which are read; others stay among the sources."""
        return _Account([node for node in nodes if text_of(node, self._metadata_mode).strip()])

    def _accounted(self, response: RESPONSE_TYPE, account: _Account) -> RESPONSE_TYPE:
        """Add the evidence to the response; for a stream when it has ended."""
        if response.metadata is None:
            response.metadata = {}
        account.metadata = response.metadata
        if not isinstance(response, Response):
            return response
        account.update()
        if not account.answers or account.answers[-1].citations is None:
            return response
        answer = account.answers[-1]
        order = list(range(len(account.nodes)))
        if self._sources == "cited":
            response.source_nodes, order = cited_nodes(answer, account.nodes), cited_order(answer)
        elif len(account.nodes) < len(response.source_nodes):
            places = {node.node.node_id: at for at, node in enumerate(account.nodes)}
            order = [places.get(node.node.node_id, -1) for node in response.source_nodes]
        if self._inline and not answer.abstained:
            response.response = with_marks(answer, order)
        return response


@dataclass(eq=False)
class _Account:
    """Collects the answers of a call and adds their evidence to the metadata of the response.

    Attributes:
        nodes: The nodes that are read, in order.
        answers: The answers of the LLM.
        metadata: Metadata of the response.
    """

    nodes: list[NodeWithScore]
    answers: list[Answer] = field(default_factory=list)
    metadata: dict[str, Any] | None = None

    def update(self) -> None:
        """Add the evidence to the metadata."""
        if self.metadata is not None and self.answers:
            found = response_evidence(self.answers[-1], self.nodes)
            if found:
                self.metadata["clara"] = found


def _helpers() -> dict[str, Any]:
    """An unused prompt helper; without it LlamaIndex would make one from the LLM's metadata."""
    known = inspect.signature(BaseSynthesizer.__init__).parameters
    helpers: dict[str, Any] = {"prompt_helper": PromptHelper()}
    if "chat_prompt_helper" in known:
        from llama_index.core.indices.prompt_helper import ChatPromptHelper

        helpers["chat_prompt_helper"] = ChatPromptHelper()
    return helpers


def _checked(template: BasePromptTemplate) -> BasePromptTemplate:
    if "query_str" not in template.template_vars or "context_str" in template.template_vars:
        raise ValueError(
            "text_qa_template must contain {query_str} and no {context_str}: nodes are read as memory tokens, at the "
            f"place that the checkpoint was trained on; got the variables {template.template_vars}"
        )
    return template
