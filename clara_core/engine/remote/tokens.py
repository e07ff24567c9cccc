"""The tokenizer of a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clara_core.engine.checks import Message
from clara_core.engine.remote.http import Connection

TOKENS = "/v1/clara/tokens"


class RemoteTokenizer:
    """The calls of `EngineTokenizer`; each is a request to the server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def count(self, text: str) -> int:
        return int(self._ask("count", text))

    def count_plain(self, text: str) -> int:
        return int(self._ask("count_plain", text))

    def encode_plain(self, text: str) -> list[int]:
        return [int(id_) for id_ in self._ask("ids", text)]

    def windows(self, text: str, *, first_only: bool = False, reserve: int = 0) -> list[tuple[int, int]]:
        spans = self._ask("windows", text, first_only=first_only, reserve=reserve)
        return [(int(start), int(end)) for start, end in spans]

    def chat_prompt(self, messages: Sequence[Message], n_windows: int) -> list[int]:
        payload = {"what": "prompt", "messages": list(messages), "n_windows": n_windows}
        return [int(id_) for id_ in self._connection.post(TOKENS, payload)["results"][0]]

    def _ask(self, what: str, text: str, **options: Any) -> Any:
        return self._connection.post(TOKENS, {"what": what, "texts": [text], **options})["results"][0]
