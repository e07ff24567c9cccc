"""Checks of arguments before anything is computed or sent; does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from clara_core.common.errors import FingerprintMismatch
from clara_core.common.suggest import nearest
from clara_core.data.memory import Memory

Overflow: TypeAlias = Literal["split", "error", "truncate"]
Message: TypeAlias = dict[str, str]
Conversations: TypeAlias = Sequence[tuple[Sequence[Message], Sequence[Memory]]]


def check_overflow(overflow: str) -> None:
    """Check the treatment of texts that are too long.

    Raises:
        ValueError: It is unknown; the message names the nearest known one.
    """
    known = get_args(Overflow)
    if overflow not in known:
        msg = f"overflow must be one of {', '.join(map(repr, known))}, got {overflow!r}{nearest(overflow, known)}"
        raise ValueError(msg)


def check_type(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Check the type of an option; True and False are not numbers.

    Raises:
        TypeError: It has another type.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}: {value!r:.60}")


def checked_texts(texts: Iterable[object], name: str = "texts") -> Iterator[str]:
    """Yield the texts, checking each one when it is reached.

    Raises:
        TypeError: `texts` is a single string, or an item is not a string.
    """
    _check_several(texts, Iterable, name, "strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a string, got {type(text).__name__}: {text!r:.60}")
        yield text


def checked_memories(memories: Iterable[object], fingerprint: Callable[[], str]) -> list[Memory]:
    """The memories as a list, each of them made by this model.

    Raises:
        FingerprintMismatch: A memory was made by another model.
        TypeError: An item is not a `Memory`.
    """
    _check_several(memories, Iterable, "memories", "Memory objects")
    checked: list[Memory] = []
    own = ""
    for index, memory in enumerate(memories):
        if not isinstance(memory, Memory):
            msg = f"memories[{index}] must be a Memory, got {type(memory).__name__}; make one with engine.compress"
            raise TypeError(msg)
        own = own or fingerprint()
        if memory.fingerprint != own:
            raise FingerprintMismatch(
                f"memories[{index}] was made by the model {memory.fingerprint[:12]}, this engine is {own[:12]}; "
                "compress its text again with this engine"
            )
        checked.append(memory)
    return checked


def user_turn(question: str, name: str = "question") -> list[Message]:
    """A question as a conversation of one turn.

    Raises:
        TypeError: The question is not a string.
    """
    check_type(name, question, str, "a string")
    return [{"role": "user", "content": question}]


def as_conversations(items: Iterable[object]) -> Conversations:
    """Questions with their documents as conversations of one turn.

    Raises:
        TypeError: An item is not a pair of a question and its memories.
    """
    conversations = []
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            msg = f"items[{index}] must be a pair (question, memories), got {type(item).__name__}: {item!r:.60}"
            raise TypeError(msg)
        conversations.append((user_turn(item[0], f"items[{index}][0]"), item[1]))
    return conversations


def check_messages(messages: Sequence[object]) -> None:
    """Check the form of a conversation.

    Raises:
        TypeError: `messages` is a single message, or an item is not a dict of strings.
        ValueError: A role is unknown.
    """
    _check_several(messages, Sequence, "messages", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            msg = f"messages[{index}] must be a dict of role and content, got {type(message).__name__}: {message!r:.60}"
            raise TypeError(msg)
        if message.get("role") not in ("system", "user", "assistant"):
            msg = f"messages[{index}] must have the role system, user or assistant, got {message.get('role')!r}"
            raise ValueError(msg)
        if not isinstance(message.get("content"), str):
            msg = f"messages[{index}] must have a string as content, got {type(message.get('content')).__name__}"
            raise TypeError(msg)


def _check_several(values: object, kind: type, name: str, what: str) -> None:
    if isinstance(values, Memory | str | bytes) or not isinstance(values, kind):
        one = "Memory" if isinstance(values, Memory) else type(values).__name__
        raise TypeError(f"{name} must be several {what}, got one {one}; put it into a list")
