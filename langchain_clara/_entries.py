"""Documents on their way into a store and back: with ids, checked, and as the filters of a search see them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from langchain_core.documents import Document

from langchain_clara._engine import SCORE_KEY

if TYPE_CHECKING:
    from clara_core.store import Hit, Record

Filter: TypeAlias = Mapping[str, Any] | Callable[[Document], bool]
"""What a search may return: a dict as in `clara_core.retrieval.filters`, or a function of the document and its id."""


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


def checked(condition: Filter | None) -> Filter | None:
    """A filter, before anything is computed for its sake.

    Raises:
        TypeError, ValueError: It is no filter; see `check_filter`.
    """
    if condition is not None and not callable(condition):
        from clara_core.retrieval.filters import check_filter

        check_filter(condition)
    return condition


def acceptor(condition: Filter | None) -> Callable[[Document], bool] | None:
    """A filter as a function of documents."""
    if (rules := checked(condition)) is None or callable(rules):
        return rules
    from clara_core.retrieval.filters import matches

    return lambda document: matches(rules, document.metadata)


def stored_filter(condition: Filter | None) -> Mapping[str, Any] | Callable[[Record], bool] | None:
    """A filter as the store takes it."""
    if condition is None or not callable(condition):
        return condition
    accept = condition
    return lambda record: accept(document_of(record))


def document_of(found: Record | Hit) -> Document:
    """A document of the store; it is the caller's own."""
    return Document(found.text, id=found.id, metadata=found.metadata)


def with_score(document: Document, score: float) -> Document:
    """A copy of the document with the score, a Python float, in its metadata."""
    metadata = {**deepcopy(document.metadata), SCORE_KEY: float(score)}
    return document.model_copy(update={"metadata": metadata})
