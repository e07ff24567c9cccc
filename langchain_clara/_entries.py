"""Checks documents and their ids, and converts documents and filters for the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document

from clara_core.retrieval.filters import check_filter, matches
from langchain_clara._engine import SCORE_KEY

if TYPE_CHECKING:
    from clara_core.store import Hit, Record

Filter: TypeAlias = Mapping[str, Any] | Callable[[Document], bool]
"""A filter: a dict as in `clara_core.retrieval.filters`, or a function of the document and its id."""


def listed(documents: Iterable[Document], ids: Sequence[str | None] | None) -> tuple[list[Document], list[str | None]]:
    """Documents as a list, and the id given for each: from `ids`, else the document's own.

    Raises:
        ValueError: There are more or fewer ids than documents.
        TypeError: An item is not a Document, or a single one is given instead of several.
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
        raise ValueError(f"each document needs one id: got {len(ids)} ids for {len(documents)} documents")
    return documents, [document.id if id_ is None else id_ for document, id_ in zip(documents, ids, strict=True)]


def with_texts(texts: Iterable[str], metadatas: Iterable[dict[str, Any]] | None) -> list[Document]:
    """Documents with the given texts; `texts` may be a generator.

    Raises:
        ValueError: There are more or fewer metadatas than texts.
        TypeError: An item is not a string, or a single one is given instead of several.
    """
    texts = several(texts, "texts", "strings")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            got = type(text).__name__
            hint = "; Documents go to from_documents or add_documents" if isinstance(text, Document) else ""
            raise TypeError(f"texts[{index}] must be a string, got {got}{hint}")
    metadatas = [{} for _ in texts] if metadatas is None else several(metadatas, "metadatas", "dicts")
    if len(metadatas) != len(texts):
        raise ValueError(f"each text needs one metadata: got {len(metadatas)} for {len(texts)} texts")
    return [Document(text, metadata=metadata) for text, metadata in zip(texts, metadatas, strict=True)]


def several(items: object, name: str, what: str) -> list[Any]:
    """The items as a list. Strings, Documents and dicts are iterable but are single items, so they are refused.

    Raises:
        TypeError: It is a single item, or not iterable.
    """
    if isinstance(items, str | bytes | Document | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"{name} must be a list of {what}, got one {type(items).__name__}; put it into a list")
    return list(items)


def complete_ids(documents: Sequence[Document], ids: Sequence[str | None], taken: Callable[[str], bool]) -> list[str]:
    """An id for each document: the given one, else one made from the text.

    A made id is the same in every process, so that answers cached under it are found again. Equal texts get different
    ids.
    """
    from clara_core.store.records import made_id

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
    """A filter, checked like that of `stored_filter`, as a function of documents."""
    if condition is None or callable(condition):
        return condition
    check_filter(condition)
    return lambda document: matches(condition, document.metadata)


def stored_filter(condition: Filter | None) -> Mapping[str, Any] | Callable[[Record], bool] | None:
    """A filter in the form of the store; `check_filter` refuses an invalid one before anything is computed with it."""
    if callable(condition):
        return lambda record: condition(document_of(record))
    if condition is not None:
        check_filter(condition)
    return condition


def document_of(found: Record | Hit) -> Document:
    """A document of the store, as the caller's own copy."""
    return Document(found.text, id=found.id, metadata=found.metadata)


def with_score(document: Document, score: float) -> Document:
    """A copy of the document with the score, a Python float, in its metadata."""
    metadata = {**deepcopy(document.metadata), SCORE_KEY: float(score)}
    return document.model_copy(update={"metadata": metadata})
