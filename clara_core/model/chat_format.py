"""Merges the turns of a conversation as chat templates require: one system turn, then user and assistant in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Turn = dict[str, str]


def merge_turns(turns: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Merge turns to at most one system turn, then user and assistant in turn, the user first.

    Strict templates (Mistral's) refuse everything else. All system texts become the first turn. Adjacent turns of one
    role are joined by a line break. If the assistant begins, an empty user turn is inserted. System turns alone become
    a user turn. The conversation may end with any turn, so parts of a history can be counted, too.

    Args:
        turns: ``{"role": "system" | "user" | "assistant", "content": text}``; they are not changed.
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
    """`merge_turns` of a conversation to be answered, whose last turn must be the user's.

    Raises:
        ValueError: There is no turn, or the last one is the assistant's.
    """
    if not turns:
        raise ValueError("there is no message to answer: give at least one of the user")
    merged = merge_turns(turns)
    if merged[-1]["role"] == "assistant":
        raise ValueError("the last message is the model's own (role assistant); end with a message of the user")
    return merged


def _lines(first: str, second: str) -> str:
    """Join two texts by a line break; an empty one adds no line."""
    return "\n".join(text for text in (first, second) if text)
