"""LlamaIndex messages as the engine's conversation: turns that alternate, and documents to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    TextBlock,
    ToolCallBlock,
)

from clara_core.model.chat_format import Turn, alternating
from llama_index_clara._refusals import NO_TOOLS

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}
# What other models leave in a history and what says nothing to this one.
_SILENT_BLOCKS: Final = frozenset({"thinking", "citation", "cache"})
_TEXT_TYPES: Final = ("text/", "application/json", "application/xml", "application/x-ndjson", "application/yaml")
_HOW: Final = "give the text itself: DocumentBlock(data=text.encode()), a CitableBlock, or ClaraLLM.reading(documents)"


def read_messages(messages: Sequence[ChatMessage], system_prompt: str | None = None) -> tuple[list[Turn], list[str]]:
    """What a conversation says, its turns alternating, and the texts of the documents in it.

    Documents are `DocumentBlock` and `CitableBlock`; one that comes up again in a later message is read once. Thoughts,
    citations and cache points of other models are passed over.

    Args:
        messages: The conversation; its last message is the user's.
        system_prompt: Stands first where no message is a system message.

    Raises:
        ValueError: Nothing to answer; tools, images and other content that cannot be read.
    """
    turns: list[Turn] = []
    documents: dict[str, None] = {}
    for message in messages:
        role, text, brought = _role(message), message.content or "", _documents(message)
        documents |= dict.fromkeys(brought)
        if text or not brought:  # documents alone ask nothing
            turns.append({"role": role, "content": text})
    if documents and not turns:
        raise ValueError("the conversation holds documents and no question: add what to answer as text")
    if system_prompt and turns and all(turn["role"] != "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system_prompt})
    return alternating(turns), list(documents)


def _role(message: ChatMessage) -> str:
    role = str(getattr(message.role, "value", message.role))
    if role in ("tool", "function") or message.additional_kwargs.get("tool_calls"):
        raise ValueError(f"the conversation holds a message of tools. {NO_TOOLS}")
    if role not in _ROLES:
        raise ValueError(f"ClaraLLM reads {', '.join(_ROLES)} messages, got one of the role {role!r}")
    return _ROLES[role]


def _documents(message: ChatMessage) -> list[str]:
    """Texts of the documents among the blocks of a message; refuses what cannot be read."""
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
    """The text that a block is, or holds.

    Raises:
        ValueError: It is not text, or points at a file: a conversation may come from outside, and opens nothing here.
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
