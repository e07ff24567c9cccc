"""LangChain messages as the engine's conversation: turns that alternate, and documents to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage

from clara_core.turns import Turn, alternating
from langchain_clara._documents import (
    DOCUMENT_BLOCKS,
    ReadDocument,
    document_from_block,
    read_documents,
)

_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant"}
_CHAT_ROLES: Final = {**_ROLES, "user": "user", "assistant": "assistant", "developer": "system"}
# Blocks of an answer that other models leave in a history and that say nothing to this one.
_SILENT_BLOCKS: Final = frozenset({"reasoning", "thinking", "redacted_thinking"})


def read_messages(
    messages: Sequence[BaseMessage], documents: Iterable[Document | str] | None = None
) -> tuple[list[Turn], list[ReadDocument]]:
    """What a conversation says and which documents belong to it.

    System texts come first, as one turn; turns of the same role in a row become one, joined by a
    line break, since templates insist on alternation. A conversation without a human turn asks
    what its system turn says. Documents that come up again in a later message are read once.

    Args:
        messages: The conversation; its last message is the human's.
        documents: Given beside the messages, instead of as content blocks in them.

    Raises:
        ValueError: Nothing to answer; documents both ways; images, tools and other content that
            cannot be read.
    """
    turns: list[Turn] = []
    found: list[ReadDocument] = []
    seen: set[str] = set()
    for message in messages:
        text, brought = _read_content(message)
        turns.append({"role": _role(message), "content": text})
        found += [document for document in brought if document.text not in seen]
        seen |= {document.text for document in brought}
    given = [] if documents is None else read_documents(documents)
    if given and found:
        raise ValueError(
            f"documents came both as documents= ({len(given)}) and as content blocks ({len(found)}); use one way"
        )
    return alternating(turns), given or found


def _role(message: BaseMessage) -> str:
    if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
        raise ValueError("the conversation holds tool calls, and ChatClara has no tools; leave them out")
    kind, known = message.type, _ROLES
    if isinstance(message, ChatMessage):
        kind, known = message.role, _CHAT_ROLES
    role = known.get(kind.removesuffix("MessageChunk").lower())
    if role is None:
        raise ValueError(
            f"ChatClara has no tools and reads system, human and ai messages, got {type(message).__name__} ({kind!r})"
        )
    return role


def _read_content(message: BaseMessage) -> tuple[str, list[ReadDocument]]:
    """Text of a message, and the documents among its content blocks."""
    if isinstance(message.content, str):
        return message.content, []
    texts: list[str] = []
    documents: list[ReadDocument] = []
    for block in message.content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if isinstance(block, str):
            texts.append(block)
        elif kind == "text" and isinstance(block.get("text"), str):
            texts.append(block["text"])
        elif kind in DOCUMENT_BLOCKS:
            documents.append(document_from_block(block))
        elif kind not in _SILENT_BLOCKS:
            raise ValueError(_refusal(kind, block))
    return "".join(texts), documents


def _refusal(kind: object, block: Mapping[str, object]) -> str:
    mime = f" ({block['mime_type']})" if block.get("mime_type") else ""
    return (
        f"ChatClara reads text and documents of text, got a content block of type {kind!r}{mime}; "
        f"documents are blocks of type {', '.join(DOCUMENT_BLOCKS)}, or documents="
    )
