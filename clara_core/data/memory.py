"""What a document becomes: memory tokens beside its text, and a cache that finds them again by the text."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GIGABYTE = 1 << 30


@dataclass(frozen=True, eq=False, slots=True)
class Memory:
    """A compressed document.

    Attributes:
        tokens: ``[n_windows, n_mem, hidden]`` on the processor, in the engine's dtype.
        text: The document, exactly as it was given.
        spans: Character span ``(start, end)`` of each window; without gaps unless the text was truncated.
        source_tokens: Text tokens that the windows stand for.
        fingerprint: Of the engine that made it; only engines with the same one can read it.
    """

    tokens: Tensor
    text: str
    spans: tuple[tuple[int, int], ...]
    source_tokens: int
    fingerprint: str

    @property
    def n_windows(self) -> int:
        """Windows of the document."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory tokens."""
        return int(self.tokens.nbytes)

    def vectors(self) -> NDArray[np.float32]:
        """The memory tokens laid flat, one row a window: ``[n_windows, n_mem * hidden]``."""
        rows: NDArray[np.float32] = self.tokens.flatten(1).float().numpy()
        return rows

    @classmethod
    def from_vectors(
        cls,
        vectors: NDArray[np.float32],
        n_mem: int,
        text: str,
        spans: tuple[tuple[int, int], ...],
        source_tokens: int,
        fingerprint: str,
    ) -> Memory:
        """The memory that `vectors` laid flat, of `n_mem` memory tokens a window; the array is copied."""
        tokens = torch.from_numpy(vectors.copy()).view(len(spans), n_mem, -1)
        return cls(tokens, text, spans, source_tokens, fingerprint)


class MemoryCache:
    """Memories of recently used texts, least recently used out first. Safe under threads.

    Args:
        max_bytes: Bound on memory tokens and texts together; what is larger by itself is not kept.
    """

    def __init__(self, max_bytes: int = GIGABYTE) -> None:
        if max_bytes < 0:
            msg = f"max_bytes must be at least 0, got {max_bytes}"
            raise ValueError(msg)
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self.nbytes = 0
        self._entries: OrderedDict[str, Memory] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str, fingerprint: str) -> Memory | None:
        """The memory of exactly this text, if it is here."""
        key = content_key(text, fingerprint)
        with self._lock:
            memory = self._entries.get(key)
            if memory is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return memory

    def put(self, memory: Memory, *, replace: bool = True) -> None:
        """Keep a memory, and let the oldest go until the bound holds.

        Args:
            memory: To keep.
            replace: Where the text has one already: take this one instead, or leave the other (which may be more exact
                than one that was written in fewer bits).
        """
        size = _weight(memory)
        if size > self.max_bytes:
            return
        key = content_key(memory.text, memory.fingerprint)
        with self._lock:
            if not replace and key in self._entries:
                self._entries.move_to_end(key)
                return
            replaced = self._entries.pop(key, None)
            self.nbytes += size - (_weight(replaced) if replaced else 0)
            self._entries[key] = memory
            while self.nbytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.nbytes -= _weight(oldest)

    def lookup(self, texts: Sequence[str], fingerprint: str) -> dict[str, Memory | None]:
        """Each different text with its memory, or None where it has to be compressed."""
        return {text: self.get(text, fingerprint) for text in dict.fromkeys(texts)}

    def complete(self, texts: Sequence[str], known: dict[str, Memory | None], made: Sequence[Memory]) -> list[Memory]:
        """Keep what was made for the unknown texts, and give the memories of all texts in order."""
        for memory in made:
            self.put(memory)
            known[memory.text] = memory
        return [found for text in texts if (found := known[text]) is not None]

    def unlock(self) -> None:
        """In a process that was forked: whoever held the lock is not here."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget everything (the counters too)."""
        with self._lock:
            self._entries.clear()
            self.nbytes = self.hits = self.misses = 0


def content_key(text: str, fingerprint: str) -> str:
    """Hash of the exact text and of what would compress it."""
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(b"\0")
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _weight(memory: Memory) -> int:
    return memory.nbytes + sys.getsizeof(memory.text)  # up to four bytes a character
