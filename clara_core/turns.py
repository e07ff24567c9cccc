"""Conversations as chat templates want them: one system turn, then user and assistant in turn."""

from __future__ import annotations

from collections.abc import Sequence

Turn = dict[str, str]


def alternating(turns: Sequence[Turn]) -> list[Turn]:
    """At most one system turn, then user and assistant in turn, the user first and last.

    System texts come first, as one turn; turns of the same role in a row become one, joined by a line break. A
    conversation of system turns alone asks what they say.

    Args:
        turns: ``{"role": "system" | "user" | "assistant", "content": text}``.

    Raises:
        ValueError: There is nothing to answer.
    """
    if not turns:
        msg = "there is no message to answer"
        raise ValueError(msg)
    system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    merged: list[Turn] = []
    for turn in turns:
        if turn["role"] == "system":
            continue
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1]["content"] += "\n" + turn["content"]
        else:
            merged.append(dict(turn))
    if not merged:
        return [{"role": "user", "content": system}]
    if merged[-1]["role"] == "assistant":
        msg = "the last message is the model's own; a message of the user can be answered"
        raise ValueError(msg)
    if merged[0]["role"] == "assistant":
        merged.insert(0, {"role": "user", "content": ""})
    return [{"role": "system", "content": system}, *merged] if system else merged
