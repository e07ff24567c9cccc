"""Memories on a server: the text is here, and the tensors are fetched when they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clara_core.data.memory import Memory

if TYPE_CHECKING:
    from torch import Tensor

Facts = tuple[tuple[tuple[int, int], ...], int]
"""Character spans of the windows, and the number of text tokens in them."""


class Fetched:
    """Fetches the memories of one call, all of them together when the first one is read.

    `facts` fetches spans and numbers of tokens, without tensors; `whole` fetches whole memories.
    """

    def __init__(
        self,
        texts: Sequence[str],
        facts: Callable[[Sequence[str]], list[Facts]],
        whole: Callable[[Sequence[str]], list[Memory]],
    ) -> None:
        self._texts = list(dict.fromkeys(texts))
        self._ask_facts, self._ask_whole = facts, whole
        self._facts: dict[str, Facts] = {}
        self._whole: dict[str, Memory] = {}
        self._lock = threading.Lock()

    def facts(self, text: str) -> Facts:
        """Spans and number of tokens of one text."""
        with self._lock:
            if text in self._whole:
                return self._whole[text].spans, self._whole[text].source_tokens
            if not self._facts:
                self._facts = dict(zip(self._texts, self._ask_facts(self._texts), strict=True))
            return self._facts[text]

    def whole(self, text: str) -> Memory:
        """One memory with its tensor."""
        with self._lock:
            if not self._whole:
                self._whole = dict(zip(self._texts, self._ask_whole(self._texts), strict=True))
            return self._whole[text]

    def missing(self) -> list[str]:
        """Texts whose tensors have not been fetched."""
        return [] if self._whole else self._texts

    def fill(self, memories: Sequence[Memory]) -> None:
        """Store the memories of all texts."""
        with self._lock:
            self._whole = dict(zip(self._texts, memories, strict=True))


class RemoteMemory(Memory):
    """A `Memory` of a server's engine. Ranking and answering send only its text.

    Reading `tokens` fetches the tensors of all memories of the same call; reading `spans`, `n_windows` or
    `source_tokens` fetches only these numbers, also for all of them.
    """

    __slots__ = ("_fetched",)

    def __init__(self, text: str, fingerprint: str, fetched: Fetched) -> None:
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "fingerprint", fingerprint)
        object.__setattr__(self, "_fetched", fetched)

    @property
    def tokens(self) -> Tensor:
        """Memory tokens ``[n_windows, n_mem, hidden]`` on the CPU, in the server's dtype."""
        return self.fetched.whole(self.text).tokens

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Character span of each window."""
        return self.fetched.facts(self.text)[0]

    @property
    def source_tokens(self) -> int:
        """Number of text tokens in the windows."""
        return self.fetched.facts(self.text)[1]

    @property
    def n_windows(self) -> int:
        """Number of windows of the document."""
        return len(self.spans)

    def __reduce__(self) -> tuple[Any, ...]:
        whole = self.fetched.whole(self.text)
        return Memory, (whole.tokens, whole.text, whole.spans, whole.source_tokens, whole.fingerprint)

    @property
    def fetched(self) -> Fetched:
        """The fetcher that this memory shares with the others of its call."""
        found: Fetched = object.__getattribute__(self, "_fetched")
        return found
