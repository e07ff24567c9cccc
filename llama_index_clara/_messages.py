"""Converts what `ClaraLLM` reads to the engine's conversation, and the engine's answers to LlamaIndex's responses.

What it cannot read or do is refused here, before any model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NoReturn

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    DocumentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.prompts import BasePromptTemplate

from clara_core.engine.answer_options import confidence_account
from clara_core.model.chat_format import Turn, alternating

if TYPE_CHECKING:
    from clara_core import Answer
    from clara_core.engine.logprobs import TokenLogprob

NO_TOOLS: Final = (
    "ClaraLLM cannot call tools: it is trained to answer briefly from documents. Give the agent a general LLM with "
    "function calling, and CLaRa as its tool: QueryEngineTool.from_defaults(ClaraQueryEngine(retriever))"
)
NO_STRUCTURE: Final = (
    "ClaraLLM cannot write JSON: it is trained to answer briefly in plain text. Give this step a general LLM, which "
    "may read the answer of ClaraSynthesizer"
)
_TOOLS: Final = frozenset({"tools", "tool_choice", "tool_required", "functions", "function_call"})
_STRUCTURE: Final = frozenset({"response_format", "output_cls"})
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}
# content of other models in a history that this model ignores
_SILENT_BLOCKS: Final = frozenset({"thinking", "citation", "cache"})
_TEXT_TYPES: Final = ("text/", "application/json", "application/xml", "application/x-ndjson", "application/yaml")
_HOW: Final = "give the text itself: DocumentBlock(data=text.encode()), a CitableBlock, or ClaraLLM.reading(documents)"


def read_messages(messages: Sequence[ChatMessage], system_prompt: str | None = None) -> tuple[list[Turn], list[str]]:
    """The alternating turns of a conversation, and the texts of its documents.

    Documents are `DocumentBlock` and `CitableBlock`; one that is repeated in a later message is read once. Thoughts,
    citations and cache points of other models are ignored.

    Args:
        messages: The conversation; its last message is the user's.
        system_prompt: First turn, if no message is a system message.

    Raises:
        ValueError: There is nothing to answer, or the messages contain tools, images or other content that cannot
            be read.
    """
    turns: list[Turn] = []
    documents: dict[str, None] = {}
    for message in messages:
        role, text, brought = _role(message), message.content or "", _documents(message)
        documents |= dict.fromkeys(brought)
        if text or not brought:  # documents alone are not a question
            turns.append({"role": role, "content": text})
    if documents and not turns:
        raise ValueError("the conversation contains documents and no question: add the question as text")
    if system_prompt and turns and all(turn["role"] != "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system_prompt})
    return alternating(turns), list(documents)


def _role(message: ChatMessage) -> str:
    role = str(getattr(message.role, "value", message.role))
    if role in ("tool", "function") or message.additional_kwargs.get("tool_calls"):
        raise ValueError(f"the conversation contains a tool message. {NO_TOOLS}")
    if role not in _ROLES:
        raise ValueError(f"ClaraLLM reads {', '.join(_ROLES)} messages, got one of the role {role!r}")
    return _ROLES[role]


def _documents(message: ChatMessage) -> list[str]:
    """Texts of the documents in the blocks of a message; refuses blocks that cannot be read."""
    found: list[str] = []
    for block in message.blocks:
        if isinstance(block, DocumentBlock):
            found.append(_text(block))
        elif isinstance(block, CitableBlock):
            found.append("\n".join(_text(part) for part in block.content))
        elif isinstance(block, ToolCallBlock):
            raise ValueError(f"the conversation calls the tool {block.tool_name!r}. {NO_TOOLS}")  # noqa: TRY004
        elif not isinstance(block, TextBlock) and block.block_type not in _SILENT_BLOCKS:
            raise ValueError(f"ClaraLLM reads text and documents of text, got a block of type {block.block_type!r}")
    return found


def _text(block: Any) -> str:
    """The text of a block.

    Raises:
        ValueError: It is not text, or refers to a file, which is not opened because conversations may come from
            outside.
    """
    if isinstance(block, TextBlock):
        return block.text
    if not isinstance(block, DocumentBlock):
        raise ValueError(f"a document may hold text only, got a block of type {block.block_type!r}; {_HOW}")  # noqa: TRY004
    name, kind = f"the document {block.title!r}", block.document_mimetype
    if not block.data:
        where = block.path or block.url
        raise ValueError(f"{name} {f'points at {str(where)!r}, which is not opened' if where else 'is empty'}; {_HOW}")
    if kind is not None and not kind.startswith(_TEXT_TYPES):
        raise ValueError(f"{name} is {kind}, and only text can be read; {_HOW}")
    try:
        text: str = block.resolve_document().read().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{name} is not text in UTF-8; {_HOW}") from exc
    return text


# --- answers --------------------------------------------------------------------------------------------


def logprobs_of(tokens: Sequence[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """A list for each token: the token itself, then its alternatives."""
    if tokens is None:
        return None
    return [[_logprob(token), *map(_logprob, token.top)] for token in tokens]


def _logprob(token: TokenLogprob) -> LogProb:
    return LogProb(token=token.token, logprob=token.logprob, bytes=list(token.bytes))


def evidence_account(answer: Answer) -> dict[str, Any]:
    """The evidence of an answer besides its text; empty if none was requested."""
    if answer.citations is None and answer.confidence is None and not answer.abstained:
        return {}
    return {
        **confidence_account(answer),
        "attribution": None if answer.attribution is None else list(answer.attribution),
        "citations": None if answer.citations is None else [asdict(one) for one in answer.citations],
    }


def chat_response(completion: CompletionResponse) -> ChatResponse:
    """The answer as a turn of a conversation, with citations as blocks after the text."""
    blocks = [TextBlock(text=completion.text), *map(_block, (completion.raw or {}).get("citations") or ())]
    role, extra = MessageRole.ASSISTANT, completion.additional_kwargs
    message = ChatMessage(role=role, blocks=blocks, additional_kwargs=extra)
    return ChatResponse(message=message, raw=completion.raw, delta=completion.delta, logprobs=completion.logprobs)


def _block(citation: dict[str, Any]) -> CitationBlock:
    places = ("document", "window", "start", "end", "text_start", "text_end")
    return CitationBlock(
        cited_content=TextBlock(text=citation["text"]),
        source=str(citation["document"]),
        title="",
        additional_location_info={name: citation[name] for name in places},
    )


# --- what is refused ------------------------------------------------------------------------------------


def refuse_options(call: Mapping[str, Any]) -> None:
    """Refuse options of a call that request tools or structured output."""
    if _TOOLS & call.keys():
        raise NotImplementedError(NO_TOOLS)
    if _STRUCTURE & call.keys():
        raise NotImplementedError(NO_STRUCTURE)


def refuse_json(prompt: BasePromptTemplate) -> None:
    """Refuse a prompt whose answer is parsed as JSON, such as those of selectors and question generators."""
    from llama_index.core.output_parsers import PydanticOutputParser
    from llama_index.core.output_parsers.selection import SelectionOutputParser
    from llama_index.core.question_gen.output_parser import SubQuestionOutputParser

    parser = prompt.output_parser
    if isinstance(parser, PydanticOutputParser | SelectionOutputParser | SubQuestionOutputParser):
        raise NotImplementedError(f"the prompt parses its answer with {type(parser).__name__}. {NO_STRUCTURE}")


def _refused(message: str) -> Callable[..., NoReturn]:
    def refused(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(message)

    return refused


class Refusals:
    """The methods of a LlamaIndex LLM that the generator does not support. Must be the first of the bases."""

    structured_predict = stream_structured_predict = as_structured_llm = _refused(NO_STRUCTURE)
    astructured_predict = astream_structured_predict = structured_predict
    predict_and_call = apredict_and_call = _refused(NO_TOOLS)
    chat_with_tools = achat_with_tools = stream_chat_with_tools = astream_chat_with_tools = _refused(NO_TOOLS)
