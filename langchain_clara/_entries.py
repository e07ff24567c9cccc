"""Documents as a store keeps them: copies by id, with what their memory needs beside its numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document

from langchain_clara._engine import SCORE_KEY

if TYPE_CHECKING:
    from clara_core import Memory

Filter: TypeAlias = Mapping[str, Any] | Callable[[Document], bool]
"""What a search may return: a dict as in `clara_core.filters`, or a function of the document (with its id)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document that is kept.

    Attributes:
        document: A copy, with its id.
        spans, source_tokens, fingerprint: Of its memory, where there is one.
    """

    document: Document
    spans: tuple[tuple[int, int], ...] = ()
    source_tokens: int = 0
    fingerprint: str = ""

    @classmethod
    def of(cls, document: Document, id_: str, memory: Memory | None) -> Entry:
        """The entry of a document under an id."""
        kept = document.model_copy(update={"id": id_, "metadata": deepcopy(document.metadata)})
        if memory is None:
            return cls(kept)
        return cls(kept, memory.spans, memory.source_tokens, memory.fingerprint)

    def copy(self) -> Document:
        """The document, for callers to do with as they like."""
        return self.document.model_copy(update={"metadata": deepcopy(self.document.metadata)})


def listed(documents: Iterable[Document], ids: Sequence[str | None] | None) -> tuple[list[Document], list[str | None]]:
    """Documents as a list, and the id that each one brings along: of `ids`, else its own.

    Raises:
        ValueError: The numbers differ.
        TypeError: Something is not a Document, or one stands where several belong.
    """
    documents = several(documents, "documents", "Documents")
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            got = type(document).__name__
            hint = "; texts go to from_texts or add_texts" if isinstance(document, str) else ""
            raise TypeError(f"documents[{index}] must be a Document, got {got}{hint}")
    if ids is None:
        return documents, [document.id for document in documents]
    ids = several(ids, "ids", "strings")
    if len(ids) != len(documents):
        raise ValueError(f"one id a document is needed: got {len(ids)} ids for {len(documents)} documents")
    return documents, [document.id if id_ is None else id_ for document, id_ in zip(documents, ids, strict=True)]


def with_texts(texts: Iterable[str], metadatas: Iterable[dict[str, Any]] | None) -> list[Document]:
    """Documents of texts; `texts` may be a generator.

    Raises:
        ValueError: The numbers differ.
        TypeError: Something is not a string, or one stands where several belong.
    """
    texts = several(texts, "texts", "strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            got = type(text).__name__
            hint = "; Documents go to from_documents or add_documents" if isinstance(text, Document) else ""
            raise TypeError(f"texts[{index}] must be a string, got {got}{hint}")
    metadatas = [{} for _ in texts] if metadatas is None else several(metadatas, "metadatas", "dicts")
    if len(metadatas) != len(texts):
        raise ValueError(f"one metadata a text is needed: got {len(metadatas)} for {len(texts)} texts")
    return [Document(text, metadata=metadata) for text, metadata in zip(texts, metadatas, strict=True)]


def several(items: object, name: str, what: str) -> list[Any]:
    """The items as a list. Strings, Documents and dicts can be walked through, but stand for one item each.

    Raises:
        TypeError: It is one item, or nothing that can be walked through.
    """
    if isinstance(items, str | bytes | Document | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"{name} must be a list of {what}, got one {type(items).__name__}; put it into a list")
    return list(items)


def complete_ids(documents: Sequence[Document], ids: Sequence[str | None], taken: Callable[[str], bool]) -> list[str]:
    """An id for each document: the given one, else one made from the text.

    A made id is the same in every process, so that answers cached under it are found again. Equal texts get
    different ones.
    """
    used = {id_ for id_ in ids if id_ is not None}
    complete: list[str] = []
    for document, given in zip(documents, ids, strict=True):
        id_ = given
        if id_ is None:
            made = (made_id(document.page_content, seen) for seen in count())
            id_ = next(name for name in made if name not in used and not taken(name))
            used.add(id_)
        complete.append(id_)
    return complete


def acceptor(condition: Filter | None) -> Callable[[Document], bool] | None:
    """A filter as a function of documents.

    Raises:
        TypeError, ValueError: It is no filter; see `check_filter`.
    """
    if condition is None:
        return None
    if callable(condition):
        return condition
    from clara_core.filters import check_filter, matches

    check_filter(condition)
    rules = condition
    return lambda document: matches(rules, document.metadata)


def checked(condition: Filter | None) -> Filter | None:
    """A filter, before anything is computed for its sake.

    Raises:
        TypeError, ValueError: It is no filter; see `check_filter`.
    """
    acceptor(condition)
    return condition


def with_score(document: Document, score: float) -> Document:
    """A copy of the document with the score, a Python float, in its metadata."""
    metadata = {**deepcopy(document.metadata), SCORE_KEY: float(score)}
    return document.model_copy(update={"metadata": metadata})


def made_id(text: str, seen: int) -> str:
    """The id of a text that was given none; `seen` tells equal texts apart."""
    return hashlib.sha256(f"{seen}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
