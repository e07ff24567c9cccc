"""Converts documents to content blocks of messages and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.vectorstores import VectorStore

DOCUMENT_BLOCKS: Final = ("text-plain", "document", "search_result")
_TITLE_KEYS: Final = ("title", "source")
_HOW = "give the text itself, as a text-plain block or a Document"


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document for the model to read.

    Attributes:
        text: The text to compress and read.
        id: The document's id, if it has one.
        title: Name of the document in `response_metadata`.
    """

    text: str
    id: str | None = None
    title: str | None = None

    def account(self) -> dict[str, str]:
        """The entry of the document in `response_metadata`."""
        named = {"id": self.id, "title": self.title}
        return {name: value for name, value in named.items() if value is not None}


def block_from_document(document: Document | str) -> dict[str, Any]:
    """The content block ``text-plain`` of a document: its text, id and title.

    The block's id is that of the document, or none: a generated id would prevent hits in LangChain's cache.
    """
    read = read_document(document)
    return {"type": "text-plain", "mime_type": "text/plain", "text": read.text, **read.account()}


def listed_documents(documents: object, name: str = "documents") -> Sequence[Document | str]:
    """Return the documents unchanged, after checking that they can be iterated repeatedly.

    A fallback, a retry, the next input of a batch and the next call of a bound model all get the same object, and
    LangChain's cache identifies calls by its printed form. An iterator would be empty there.

    Raises:
        TypeError: It is a single document, or not a list.
    """
    if isinstance(documents, str | bytes | Document | Mapping):
        raise TypeError(f"{name} must be a list of Documents, got one {type(documents).__name__}; put it into a list")
    if not isinstance(documents, Sequence):
        hint = "; list(...) makes one, which can be read again" if isinstance(documents, Iterable) else ""
        raise TypeError(f"{name} must be a list of Documents, got {type(documents).__name__}{hint}")
    return documents


def as_retriever(source: object, name: str = "retriever") -> Runnable[str, list[Document]]:
    """Check that an object turns a question into documents: a retriever, another runnable, or a function.

    Raises:
        TypeError: It is none of these, for example a store.
    """
    if isinstance(source, Runnable) or callable(source):
        return coerce_to_runnable(source)
    hint = "; use store.as_retriever()" if isinstance(source, VectorStore) else ""
    raise TypeError(f"{name} must be a retriever or a function, got {type(source).__name__}{hint}")


def read_documents(documents: Sequence[Document | str]) -> list[ReadDocument]:
    """The documents of ``documents=``.

    Raises:
        TypeError: It is not a list, or contains something other than documents and strings.
    """
    return [read_document(document) for document in listed_documents(documents)]


def read_document(document: Document | str) -> ReadDocument:
    """Text, id and title (metadata "title", else "source") of one document."""
    if isinstance(document, str):
        return ReadDocument(document)
    if not isinstance(document, Document):
        raise TypeError(f"a document must be a Document or a string, got {type(document).__name__}")
    titles = (document.metadata.get(key) for key in _TITLE_KEYS)
    title = next((str(title) for title in titles if title is not None), None)
    return ReadDocument(document.page_content, document.id, title)


def document_from_block(block: Mapping[str, Any]) -> ReadDocument:
    """The document in a content block of a type in `DOCUMENT_BLOCKS`.

    Raises:
        ValueError: The block refers to a file or contains something other than text.
    """
    id_, title = block.get("id"), block.get("title")
    if block["type"] == "text-plain":
        text = block.get("text")
        if not isinstance(text, str):
            raise ValueError(f"a text-plain block without text cannot be read; {_HOW}")
        return ReadDocument(text, id_, title)
    if block["type"] == "search_result":
        return ReadDocument(_joined(block.get("content"), "search_result"), id_, title or block.get("source"))
    source = block.get("source")
    if not isinstance(source, Mapping):
        raise ValueError(f"a document block needs a source, got {source!r}; {_HOW}")  # noqa: TRY004
    if source.get("type") == "text":
        return ReadDocument(_joined(source.get("data"), "document"), id_, title)
    if source.get("type") == "content":
        return ReadDocument(_joined(source.get("content"), "document"), id_, title)
    raise ValueError(f"a document block with a source of type {source.get('type')!r} cannot be read; {_HOW}")


def _joined(content: Any, kind: str) -> str:
    """The text of content that is a string or a list of text blocks."""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            shown = part.get("type") if isinstance(part, Mapping) else part
            raise ValueError(f"a {kind} block may hold text only, got {shown!r}; {_HOW}")
    return "\n".join(parts)
