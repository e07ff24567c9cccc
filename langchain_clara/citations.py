"""The citations of an answer: as documents, and as annotations of its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.block_translators import register_translator

from langchain_clara._messages import listed_documents

if TYPE_CHECKING:
    from langchain_core.messages.content import ContentBlock


def cited_documents(message: AIMessage, documents: Sequence[Document | str]) -> list[Document]:
    """The documents that support an answer, best first.

    Args:
        message: An answer of `ChatClara` with ``citations=True``.
        documents: The documents that the answer was read from, in the same order; a text that occurred twice in
            content blocks counts once.

    Returns:
        list: Copies with ``citation_score`` in their metadata; ids are kept.

    Raises:
        ValueError: The message has no citations, or was answered from other documents.
    """
    citations = message.response_metadata.get("citations")
    if citations is None:
        raise ValueError("the message has no citations; ask with citations=True, of ChatClara or of a call")
    listed = listed_documents(documents)
    best: dict[int, float] = {}
    for citation in citations:
        place = citation["document"]
        if place >= len(listed):
            raise ValueError(f"the message cites its document {place}, but there are {len(listed)}")
        best[place] = max(best.get(place, 0.0), citation["score"])
    found = []
    for place, score in best.items():
        one = listed[place]
        document = Document(one) if isinstance(one, str) else one
        metadata = {**document.metadata, "citation_score": score}
        found.append(document.model_copy(update={"metadata": metadata}))
    return found


def translate(message: AIMessage | AIMessageChunk) -> list[ContentBlock]:
    """The text as a standard block, with its citations as annotations.

    Raises:
        NotImplementedError: The message has no citations or no text, so LangChain's own conversion is right.
    """
    metadata = message.response_metadata
    citations = metadata.get("citations")
    if citations is None or metadata.get("abstained") or not isinstance(message.content, str):
        raise NotImplementedError
    documents = metadata.get("documents", [])
    annotations = [_annotation(one, documents[one["document"]] if documents else {}) for one in citations]
    block = {"type": "text", "text": message.content, "annotations": annotations}
    return [cast("ContentBlock", block)]


def _annotation(citation: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """LangChain's standard citation, without a generated id, which would make equal answers unequal in its cache."""
    title = document.get("title")
    named = {"title": title, "url": title if str(title).startswith(("http://", "https://")) else None}
    extras = {
        "document_id": document.get("id"),
        "document_index": citation["document"],
        "score": citation["score"],
        "start_char_index": citation["text_start"],
        "end_char_index": citation["text_end"],
        "verbatim": citation["verbatim"],
    }
    return {
        "type": "citation",
        **{name: value for name, value in named.items() if value is not None},
        "start_index": citation["start"],
        "end_index": citation["end"],
        "cited_text": citation["text"],
        "extras": {name: value for name, value in extras.items() if value is not None},
    }


# LangChain's hook for integrations: `message.content_blocks` calls the translator of the model provider. Nothing is
# loaded.
register_translator("clara", translate, translate)
