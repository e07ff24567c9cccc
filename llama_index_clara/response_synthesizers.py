"""A response synthesizer whose generator reads nodes as memory tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices import prompt_helper
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from clara_core.common.suggest import nearest, parameters, refuse_unknown
from llama_index_clara._messages import evidence_account
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
        account = self._started(query_str, text_chunks, clara_account)
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:  # read at every call, because chat engines change it
            answer = self._stream(account, query_str, response_kwargs)
        elif account.texts:
            answer = self._reader(account).predict(self._template, query_str=query_str, **response_kwargs)
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
        account = self._started(query_str, text_chunks, clara_account)
        answer: RESPONSE_TEXT_TYPE
        if self._streaming:
            answer = self._astream(account, query_str, response_kwargs)
        elif account.texts:
            answer = await self._reader(account).apredict(self._template, query_str=query_str, **response_kwargs)
        else:
            answer = self._empty_response
        dispatcher.event(GetResponseEndEvent())
        return answer

    def _started(self, query_str: str, text_chunks: Sequence[str], account: _Account | None) -> _Account:
        """The account to answer from, which is made of the texts if there is none; sends the start event."""
        account = account or _Account([text for text in text_chunks if text.strip()])
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=account.texts))
        return account

    # As in LlamaIndex, a stream begins to generate when it is first read.

    def _stream(self, account: _Account, query_str: str, kwargs: dict[str, Any]) -> Generator[str, None, None]:
        if account.texts:
            yield from self._reader(account).stream(self._template, query_str=query_str, **kwargs)
        else:
            yield self._empty_response
        account.update()

    async def _astream(self, account: _Account, query_str: str, kwargs: dict[str, Any]) -> AsyncGenerator[str, None]:
        if not account.texts:
            yield self._empty_response
            return
        stream: Any = await self._reader(account).astream(self._template, query_str=query_str, **kwargs)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece
        account.update()

    # --- what the answer stands on -----------------------------------------------------------------------

    def _reader(self, account: _Account) -> ClaraLLM:
        """The LLM with the texts of an account, to which it adds its answers."""
        changes = {"citations": self._citations} if self._citations and account.nodes else {}
        return self.llm.reading(account.texts).recording(account.answers, **changes)

    def _account(self, nodes: Iterable[NodeWithScore]) -> _Account:
        """An account of the nodes with text, which are read; others stay among the sources."""
        texts = [(node, text) for node in nodes if (text := text_of(node, self._metadata_mode)).strip()]
        return _Account([text for _, text in texts], [node for node, _ in texts])

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
            cited = _cited(answer)
            order = list(cited)
            response.source_nodes = [
                NodeWithScore(node=account.nodes[place].node, score=score) for place, score in cited.items()
            ]
        elif len(account.nodes) < len(response.source_nodes):
            places = {node.node.node_id: at for at, node in enumerate(account.nodes)}
            order = [places.get(node.node.node_id, -1) for node in response.source_nodes]
        if self._inline and not answer.abstained:
            response.response = _with_marks(answer, order)
        return response


@dataclass(eq=False)
class _Account:
    """Collects the answers of a call and adds their evidence to the metadata of the response.

    Attributes:
        texts: The texts that are read, in order.
        nodes: Their nodes; none if the texts were given as such.
        answers: The answers of the LLM.
        metadata: Metadata of the response.
    """

    texts: list[str]
    nodes: list[NodeWithScore] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    metadata: dict[str, Any] | None = None

    def update(self) -> None:
        """Add the evidence to the metadata."""
        if self.metadata is None or not self.answers:
            return
        found = evidence_account(self.answers[-1])
        for citation in found.get("citations") or ():
            citation["node_id"] = self.nodes[citation["document"]].node.node_id
        if found:
            self.metadata["clara"] = found


def _cited(answer: Answer) -> dict[int, float]:
    """The documents that support an answer, in order of first use, each with its best score."""
    best: dict[int, float] = {}
    for one in sorted(answer.citations or (), key=lambda one: (one.start, -one.score)):
        best[one.document] = max(one.score, best.get(one.document, one.score))
    return best


def _with_marks(answer: Answer, sources: Sequence[int]) -> str:
    """The text with ``[n]`` after each cited part, where n counts the sources (indexes of documents) from 1."""
    number = {document: at for at, document in enumerate(sources, start=1)}
    marks: dict[int, set[int]] = {}
    for one in answer.citations or ():
        if one.document in number:
            marks.setdefault(one.end, set()).add(number[one.document])
    text = answer.text
    for end in sorted(marks, reverse=True):
        # before the full stop of a sentence
        place = end - 1 if text[end - 1 : end] in (".", "!", "?") else end
        text = text[:place] + " " + "".join(f"[{one}]" for one in sorted(marks[end])) + text[place:]
    return text


def _helpers() -> dict[str, Any]:
    """Prompt helpers, which are not used; without them LlamaIndex would make some from the LLM's metadata."""
    kinds = {"prompt_helper": "PromptHelper", "chat_prompt_helper": "ChatPromptHelper"}
    known = parameters(BaseSynthesizer)  # the oldest supported version has only the first
    return {name: getattr(prompt_helper, kind)() for name, kind in kinds.items() if name in known}


def _checked(template: BasePromptTemplate) -> BasePromptTemplate:
    if "query_str" not in template.template_vars or "context_str" in template.template_vars:
        raise ValueError(
            "text_qa_template must contain {query_str} and no {context_str}: nodes are read as memory tokens, at the "
            f"place that the checkpoint was trained on; got the variables {template.template_vars}"
        )
    return template
