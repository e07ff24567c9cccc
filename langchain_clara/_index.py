"""Documents of one retriever with their memories, in this process's memory."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

from langchain_core.documents import Document

from langchain_clara._engine import SCORE_KEY

if TYPE_CHECKING:
    from clara_core.memory import Memory

# One for all indexes: it is held for the swap of a reference, and an index without a lock can be
# copied.
_SWAP = threading.Lock()


class DocumentIndex:
    """Documents by id. Readers see a whole state, whatever is being added meanwhile."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Document, Memory]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Document]:
        return iter([document for document, _ in self._entries.values()])

    def snapshot(self) -> tuple[list[Document], list[Memory]]:
        """All documents and, in the same order, their memories."""
        entries = list(self._entries.values())
        return [document for document, _ in entries], [memory for _, memory in entries]

    def put(self, documents: Sequence[Document], memories: Sequence[Memory], ids: Sequence[str | None]) -> list[str]:
        """Keep copies of documents; one whose id is here already takes the other's place.

        Args:
            documents: They are copied.
            memories: One a document.
            ids: One a document; where None, an id is made from the text.

        Returns:
            list: The ids, in the order of the documents.
        """
        with _SWAP:
            entries = dict(self._entries)
            same_text = Counter(document.page_content for document, _ in entries.values())
            given: list[str] = []
            for document, memory, id_ in zip(documents, memories, ids, strict=True):
                key = id_ if id_ is not None else _made_id(document.page_content, same_text[document.page_content])
                same_text[document.page_content] += 1
                kept = document.model_copy(update={"id": key, "metadata": deepcopy(document.metadata)})
                entries[key] = (kept, memory)
                given.append(key)
            self._entries = entries
        return given


def with_score(document: Document, score: float) -> Document:
    """A copy of the document with the score in its metadata."""
    metadata = {**deepcopy(document.metadata), SCORE_KEY: float(score)}
    return document.model_copy(update={"metadata": metadata})


def _made_id(text: str, seen: int) -> str:
    """An id that is the same in every process, so that answers cached under it are found again.

    `seen` is how many equal texts there are already.
    """
    return hashlib.sha256(f"{seen}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
