"""Conversations as chat templates want them: one system turn, then user and assistant in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Turn = dict[str, str]


def merge_turns(turns: Sequence[Mapping[str, str]]) -> list[Turn]:
    """At most one system turn, then user and assistant in turn, the user first.

    Strict templates (Mistral's) refuse everything else. System texts come first, as one turn; turns of the same role
    in a row become one, joined by a line break; an empty user turn is put in front of an assistant that begins. System
    turns alone become the user's. The conversation may end with any turn, so this is also what a part of a history is
    counted by.

    Args:
        turns: ``{"role": "system" | "user" | "assistant", "content": text}``; they are not altered.
    """
    system = ""
    merged: list[Turn] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role == "system":
            system = _lines(system, content)
        elif merged and merged[-1]["role"] == role:
            merged[-1]["content"] = _lines(merged[-1]["content"], content)
        else:
            merged.append({"role": role, "content": content})
    if not merged:
        return [{"role": "user", "content": system}] if turns else []
    if merged[0]["role"] == "assistant":
        merged.insert(0, {"role": "user", "content": ""})
    return [{"role": "system", "content": system}, *merged] if system else merged


def alternating(turns: Sequence[Mapping[str, str]]) -> list[Turn]:
    """`merge_turns` of a conversation that is to be answered: the last turn is the user's.

    Raises:
        ValueError: There is nothing to answer.
    """
    if not turns:
        raise ValueError("there is no message to answer")
    merged = merge_turns(turns)
    if merged[-1]["role"] == "assistant":
        raise ValueError("the last message is the model's own; a message of the user can be answered")
    return merged


def _lines(first: str, second: str) -> str:
    """Two texts under each other; one without text (documents alone) leaves no empty line."""
    return "\n".join(text for text in (first, second) if text)
