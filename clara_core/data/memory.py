"""The memory of a compressed document, and a cache of memories by text."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

GIGABYTE = 1 << 30


@dataclass(frozen=True, eq=False, slots=True)
class Memory:
    """A compressed document.

    Attributes:
        tokens: ``[n_windows, n_mem, hidden]`` on the CPU, in the engine's dtype.
        text: The unchanged text of the document.
        spans: Character span ``(start, end)`` of each window; without gaps unless the text was truncated.
        source_tokens: Text tokens in the windows.
        fingerprint: Fingerprint of the engine that made it; only engines with the same one can read it.
    """

    tokens: Tensor
    text: str
    spans: tuple[tuple[int, int], ...]
    source_tokens: int
    fingerprint: str

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory tokens."""
        return int(self.tokens.nbytes)

    def vectors(self) -> NDArray[np.float32]:
        """The memory tokens as one flat vector a window: ``[n_windows, n_mem * hidden]``."""
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
        """Restore a memory from the result of `vectors`, with `n_mem` memory tokens a window; copies the array."""
        import torch

        tokens = torch.from_numpy(vectors.copy()).view(len(spans), n_mem, -1)
        return cls(tokens, text, spans, source_tokens, fingerprint)


class MemoryCache:
    """A thread-safe LRU cache of memories by text.

    Args:
        max_bytes: Most bytes of memory tokens and texts together; a memory that is larger by itself is not cached.
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
        """The memory of exactly this text, or None if it is not cached."""
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
        """Cache a memory, and evict the least recently used ones until the limit holds.

        Args:
            memory: The memory.
            replace: Whether to replace a cached memory of the same text. It may be more exact than one that was stored
                in fewer bits.
        """
        size = _size(memory)
        if size > self.max_bytes:
            return
        key = content_key(memory.text, memory.fingerprint)
        with self._lock:
            if not replace and key in self._entries:
                self._entries.move_to_end(key)
                return
            replaced = self._entries.pop(key, None)
            self.nbytes += size - (_size(replaced) if replaced else 0)
            self._entries[key] = memory
            while self.nbytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.nbytes -= _size(oldest)

    def lookup(self, texts: Sequence[str], fingerprint: str) -> dict[str, Memory | None]:
        """Each distinct text with its memory, or None if it is not cached."""
        return {text: self.get(text, fingerprint) for text in dict.fromkeys(texts)}

    def complete(self, texts: Sequence[str], known: dict[str, Memory | None], made: Sequence[Memory]) -> list[Memory]:
        """Cache the new memories, and return the memories of all texts in order."""
        for memory in made:
            self.put(memory)
            known[memory.text] = memory
        return [found for text in texts if (found := known[text]) is not None]

    def unlock(self) -> None:
        """Replace the lock after a fork, since the thread that held it may not exist in the child process."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Remove all memories and reset the counters."""
        with self._lock:
            self._entries.clear()
            self.nbytes = self.hits = self.misses = 0


def content_key(text: str, fingerprint: str) -> str:
    """Hash of a text and the fingerprint of an engine."""
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(b"\0")
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _size(memory: Memory) -> int:
    return memory.nbytes + sys.getsizeof(memory.text)
