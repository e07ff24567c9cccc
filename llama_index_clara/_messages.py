"""LlamaIndex messages as the engine's conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llama_index.core.base.llms.types import ChatMessage, TextBlock

from clara_core.turns import Turn, alternating

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}


def read_messages(messages: Sequence[ChatMessage]) -> list[Turn]:
    """What a conversation says, its turns alternating.

    Raises:
        ValueError: Nothing to answer; tools, images and other content that cannot be read.
    """
    return alternating([{"role": _role(message), "content": _text(message)} for message in messages])


def _role(message: ChatMessage) -> str:
    role = str(getattr(message.role, "value", message.role))
    if role not in _ROLES:
        raise ValueError(f"ClaraLLM has no tools and reads {', '.join(_ROLES)} messages, got one of the role {role!r}")
    return _ROLES[role]


def _text(message: ChatMessage) -> str:
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise ValueError(f"ClaraLLM reads text, got a block of type {block.block_type!r}")  # noqa: TRY004
    return message.content or ""
