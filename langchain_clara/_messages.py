"""Converts messages and documents to the engine's conversation, and the engine's answers to messages.

What `ChatClara` cannot read or do is refused here, before any model runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.vectorstores import VectorStore

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.answer_options import EVIDENCE, confidence_account
from clara_core.engine.logprobs import logprobs_account
from clara_core.model.chat_format import Turn, alternating

if TYPE_CHECKING:
    from clara_core import Answer
    from clara_core.engine.sampling import Chunk

OPTIONS: Final = ("max_tokens", "temperature", "top_p", "seed", *EVIDENCE)
"""Options of a call besides ``documents`` and ``stop``."""
NO_TOOLS: Final = (
    "ChatClara cannot call tools or return structured output, which agents request as a tool: CLaRa was trained to "
    "answer in plain text from documents. Use another model as the agent, with a ClaraRetriever as its tool "
    "(langchain_core.tools.create_retriever_tool), or give an agent of ChatClara its documents without tools "
    "(ClaraContextMiddleware)"
)
NO_SCHEMA: Final = (
    "ChatClara cannot return structured output: CLaRa was trained to answer in plain text. Parse its text with an "
    "output parser such as PydanticOutputParser, or give the answer to a model with structured output"
)
_TOOLS: Final = ("tools", "tool_choice", "functions", "function_call", "response_format")
DOCUMENT_BLOCKS: Final = ("text-plain", "document", "search_result")
_TITLE_KEYS: Final = ("title", "source")
_HOW = "give the text itself, as a text-plain block or a Document"
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
}
# Blocks in answers of other models that this model ignores.
_SILENT_BLOCKS: Final = frozenset({"reasoning", "thinking", "redacted_thinking"})


# --- messages ---------------------------------------------------------------------------------------


def read_messages(
    messages: Iterable[BaseMessage], documents: Sequence[Document | str] | None = None
) -> tuple[list[Turn], list[ReadDocument]]:
    """The turns and documents of a conversation that is to be answered.

    System texts come first, as one turn. Consecutive turns of the same role are joined by a line break, because chat
    templates require alternating roles. In a conversation without a human turn, the system turn is the question.
    Documents that are repeated in a later message are read once.

    Args:
        messages: The conversation; its last message is the human's.
        documents: Documents given beside the messages, instead of as content blocks in them.

    Raises:
        ValueError: There is nothing to answer; documents are given both ways; or the messages contain images, tools
            or other content that cannot be read.
    """
    turns, found = _read_all(messages, counted=False)
    given = [read_document(document) for document in listed_documents([] if documents is None else documents)]
    if given and found:
        raise ValueError(
            f"documents are given both as documents= ({len(given)}) and as content blocks ({len(found)}); use one way"
        )
    return alternating(turns), given or found


def read_history(messages: Iterable[BaseMessage]) -> tuple[list[Turn], list[ReadDocument]]:
    """The turns and documents of any part of a history, to count its tokens.

    It may end with the model or a tool, and be empty. Content that `ChatClara` would refuse to answer counts as text:
    results of tools as the user's, calls of tools as the model's. Media have no text and do not count.
    """
    return _read_all(messages, counted=True)


def _read_all(messages: Iterable[BaseMessage], *, counted: bool) -> tuple[list[Turn], list[ReadDocument]]:
    """The turns in order, and the documents among their content blocks, each text once."""
    turns: list[Turn] = []
    found: dict[str, ReadDocument] = {}
    for message in messages:
        role = _role(message, counted=counted)
        blocks = [message.content] if isinstance(message.content, str) else message.content
        texts = []
        for block in blocks:
            try:
                read = block if isinstance(block, str) else _read_block(block)
            except ValueError:
                if not counted:
                    raise
                continue
            if isinstance(read, str):
                texts.append(read)
            else:
                found.setdefault(read.text, read)
        if isinstance(message, AIMessage):  # `_role` refuses calls in a conversation to be answered
            texts += [f"{call['name']}({call['args']})" for call in (*message.tool_calls, *message.invalid_tool_calls)]
        turns.append({"role": role, "content": "".join(texts)})
    return turns, list(found.values())


def _role(message: BaseMessage, *, counted: bool) -> str:
    """The role of a message; if it is only counted, that of the user for everything unknown."""
    if not counted and isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise ValueError("the conversation contains tool calls, and ChatClara has no tools; leave them out")
    kind = message.role if isinstance(message, ChatMessage) else message.type
    role = _ROLES.get(kind.removesuffix("MessageChunk").lower(), "user" if counted else None)
    if role is None:
        raise ValueError(
            f"ChatClara has no tools and reads system, human and ai messages, got {type(message).__name__} ({kind!r})"
        )
    return role


def _read_block(block: Mapping[str, Any]) -> str | ReadDocument:
    """The text or document of a content block.

    Raises:
        ValueError: It is neither.
    """
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind in DOCUMENT_BLOCKS:
        return document_from_block(block)
    if kind in _SILENT_BLOCKS:
        return ""
    mime = f" ({block['mime_type']})" if block.get("mime_type") else ""
    raise ValueError(
        f"ChatClara reads text and documents of text, got a content block of type {kind!r}{mime}; "
        f"documents are blocks of type {', '.join(DOCUMENT_BLOCKS)}, or documents="
    )


def last_human(messages: Sequence[BaseMessage]) -> int:
    """Index of the last message of the human; -1 if there is none."""
    return max((index for index, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)


# --- documents --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document for the model to read.

    Attributes:
        text: The text to compress and read.
        id: The document's id, if it has one.
        title: Name of the document in `response_metadata`.
    """

    text: str
    id: str | None = None
    title: str | None = None

    def account(self) -> dict[str, Any]:
        """The entry of the document in `response_metadata`."""
        named = {"id": self.id, "title": self.title}
        return {name: value for name, value in named.items() if value is not None}


def block_from_document(document: Document | str) -> dict[str, Any]:
    """The content block ``text-plain`` of a document: its text, id and title.

    The block's id is that of the document, or none: a generated id would prevent hits in LangChain's cache.
    """
    read = read_document(document)
    return {"type": "text-plain", "mime_type": "text/plain", "text": read.text, **read.account()}


def listed_documents(documents: object, name: str = "documents") -> Sequence[Document | str]:
    """Return the documents unchanged, after checking that they can be iterated repeatedly.

    A fallback, a retry, the next input of a batch and the next call of a bound model all get the same object, and
    LangChain's cache identifies calls by its printed form. An iterator would be empty there.

    Raises:
        TypeError: It is a single document, or not a list.
    """
    if isinstance(documents, str | bytes | Document | Mapping):
        raise TypeError(f"{name} must be a list of Documents, got one {type(documents).__name__}; put it into a list")
    if not isinstance(documents, Sequence):
        hint = "; list(...) makes one, which can be read again" if isinstance(documents, Iterable) else ""
        raise TypeError(f"{name} must be a list of Documents, got {type(documents).__name__}{hint}")
    return documents


def as_retriever(source: object, name: str = "retriever") -> Runnable[str, list[Document]]:
    """Check that an object turns a question into documents: a retriever, another runnable, or a function.

    Raises:
        TypeError: It is none of these, for example a store.
    """
    if isinstance(source, Runnable) or callable(source):
        return coerce_to_runnable(source)
    hint = "; use store.as_retriever()" if isinstance(source, VectorStore) else ""
    raise TypeError(f"{name} must be a retriever or a function, got {type(source).__name__}{hint}")


def read_document(document: Document | str) -> ReadDocument:
    """Text, id and title (metadata "title", else "source") of one document."""
    if isinstance(document, str):
        return ReadDocument(document)
    if not isinstance(document, Document):
        raise TypeError(f"a document must be a Document or a string, got {type(document).__name__}")
    titles = (document.metadata.get(key) for key in _TITLE_KEYS)
    title = next((str(title) for title in titles if title is not None), None)
    return ReadDocument(document.page_content, document.id, title)


def document_from_block(block: Mapping[str, Any]) -> ReadDocument:
    """The document in a content block of a type in `DOCUMENT_BLOCKS`.

    Raises:
        ValueError: The block refers to a file or contains something other than text.
    """
    id_, title = block.get("id"), block.get("title")
    if block["type"] == "text-plain":
        text = block.get("text")
        if not isinstance(text, str):
            raise ValueError(f"a text-plain block without text cannot be read; {_HOW}")
        return ReadDocument(text, id_, title)
    if block["type"] == "search_result":
        return ReadDocument(_joined(block.get("content"), "search_result"), id_, title or block.get("source"))
    source = block.get("source")
    if not isinstance(source, Mapping):
        raise ValueError(f"a document block needs a source, got {source!r}; {_HOW}")  # noqa: TRY004
    if source.get("type") == "text":
        return ReadDocument(_joined(source.get("data"), "document"), id_, title)
    if source.get("type") == "content":
        return ReadDocument(_joined(source.get("content"), "document"), id_, title)
    raise ValueError(f"a document block with a source of type {source.get('type')!r} cannot be read; {_HOW}")


def _joined(content: Any, kind: str) -> str:
    """The text of content that is a string or a list of text blocks."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            shown = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"a {kind} block may hold text only, got {shown!r}; {_HOW}")
    return "\n".join(parts)


# --- options of a call ------------------------------------------------------------------------------


def check_call(call: Mapping[str, Any]) -> None:
    """Refuse options that no call can take.

    Raises:
        TypeError: An unknown option, or an iterator instead of a list.
        ValueError: Tools, or a response format.
    """
    known = (*OPTIONS, "stop", "documents")
    for name, value in call.items():
        if name in _TOOLS and value:
            raise ValueError(f"{name}= cannot be used: {NO_SCHEMA if name == 'response_format' else NO_TOOLS}")
        if name not in (*known, *_TOOLS, "stream"):
            refuse_unknown("a call of ChatClara", [name], known)
    if call.get("documents") is not None:
        listed_documents(call["documents"])
    if isinstance(call.get("stop"), Iterator):
        raise TypeError(f"stop must be a list of strings, got {type(call['stop']).__name__}")


# --- answers ----------------------------------------------------------------------------------------


def chat_result(answer: Answer, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]) -> ChatResult:
    """An answer of the model `model`, from the documents that it read, with the engine options of the call."""
    account = _account(answer, model, read, options)
    if answer.logprobs is not None:
        account["logprobs"] = logprobs_account(answer.logprobs)
    message = AIMessage(content=answer.text, usage_metadata=_usage(answer), response_metadata=account)
    return ChatResult(generations=[ChatGeneration(message=message)])


def chat_chunk(
    piece: Chunk, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]
) -> ChatGenerationChunk:
    """A piece of an answer. Only the last one has the counts, because merging adds them up.

    Merging joins lists, so each piece has its own log-probabilities.
    """
    logged = {} if piece.logprobs is None else {"logprobs": logprobs_account(piece.logprobs)}
    if piece.answer is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=piece.text, response_metadata=logged))
    message = AIMessageChunk(
        content=piece.text,
        usage_metadata=_usage(piece.answer),
        response_metadata=_account(piece.answer, model, read, options) | logged,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _account(answer: Answer, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_metadata`: counts, the documents, and the evidence if the options request any."""
    documents = [document.account() for document in read]
    for document, score in zip(documents, answer.attribution or (), strict=False):
        document["score"] = score
    account: dict[str, Any] = {
        "model_name": model,
        "model_provider": "clara",
        "finish_reason": answer.finish_reason,
        "memory_tokens": answer.memory_tokens,
        "source_tokens": answer.source_tokens,
        "windows_left_out": answer.windows_left_out,
        "saved_tokens": answer.source_tokens - answer.memory_tokens,
        "documents": documents,
    }
    if options["citations"] or options["min_confidence"] is not None or options["read"] != "memory":
        account |= confidence_account(answer)
    if answer.citations is not None:
        account["citations"] = [asdict(citation) for citation in answer.citations]
    return account


def _usage(answer: Answer) -> UsageMetadata:
    read = answer.prompt_tokens + answer.memory_tokens
    written = answer.completion_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
