"""Converts LangChain messages to the engine's conversation: alternating turns, and documents to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage

from clara_core.model.chat_format import Turn, alternating
from langchain_clara._documents import (
    DOCUMENT_BLOCKS,
    ReadDocument,
    document_from_block,
    read_documents,
)

_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant"}
_CHAT_ROLES: Final = {**_ROLES, "user": "user", "assistant": "assistant", "developer": "system"}
# Blocks in answers of other models that this model ignores.
_SILENT_BLOCKS: Final = frozenset({"reasoning", "thinking", "redacted_thinking"})


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
    turns, found = _read_all(messages, _role, _read_block)
    given = [] if documents is None else read_documents(documents)
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
    return _read_all(messages, _counted_role, _counted_block)


def _read_all(
    messages: Iterable[BaseMessage],
    role_of: Callable[[BaseMessage], str],
    read_block: Callable[[Mapping[str, Any]], str | ReadDocument],
) -> tuple[list[Turn], list[ReadDocument]]:
    """The turns in order, and the documents among their content blocks, each text once."""
    turns: list[Turn] = []
    found: dict[str, ReadDocument] = {}
    for message in messages:
        role = role_of(message)
        blocks = [message.content] if isinstance(message.content, str) else message.content
        texts = []
        for block in blocks:
            read = block if isinstance(block, str) else read_block(block)
            if isinstance(read, str):
                texts.append(read)
            else:
                found.setdefault(read.text, read)
        if isinstance(message, AIMessage):  # `role_of` refuses them in a conversation to be answered
            texts += [f"{call['name']}({call['args']})" for call in (*message.tool_calls, *message.invalid_tool_calls)]
        turns.append({"role": role, "content": "".join(texts)})
    return turns, list(found.values())


def _role(message: BaseMessage) -> str:
    """The role of a message in a conversation that is to be answered."""
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise ValueError("the conversation contains tool calls, and ChatClara has no tools; leave them out")
    kind, known = message.type, _ROLES
    if isinstance(message, ChatMessage):
        kind, known = message.role, _CHAT_ROLES
    role = known.get(kind.removesuffix("MessageChunk").lower())
    if role is None:
        raise ValueError(
            f"ChatClara has no tools and reads system, human and ai messages, got {type(message).__name__} ({kind!r})"
        )
    return role


def _counted_role(message: BaseMessage) -> str:
    """The role of a message for counting: the user's, unless it is the model's or a system message."""
    kind = message.role if isinstance(message, ChatMessage) else message.type
    return _CHAT_ROLES.get(kind.removesuffix("MessageChunk").lower(), "user")


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


def _counted_block(block: Mapping[str, Any]) -> str | ReadDocument:
    try:
        return _read_block(block)
    except ValueError:
        return ""
