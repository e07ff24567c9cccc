"""Converts log-probabilities and citations of an answer to LangChain's forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.block_translators import register_translator

from clara_core.engine.answer_options import confidence_account
from langchain_clara._documents import ReadDocument, listed_documents

if TYPE_CHECKING:
    from langchain_core.messages.content import ContentBlock

    from clara_core import Answer
    from clara_core.engine.logprobs import TokenLogprob


def logprobs_account(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities in the shape of OpenAI's chat completions."""
    return {"content": [_entry(token) for token in tokens], "refusal": None}


def evidence_account(answer: Answer, options: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `response_metadata` about an answer besides its text; empty if none were requested.

    Args:
        answer: The answer.
        options: The engine options of the call.
    """
    found: dict[str, Any] = {}
    if (
        options.get("citations")
        or options.get("min_confidence") is not None
        or options.get("read", "memory") != "memory"
    ):
        found = confidence_account(answer)
    if answer.citations is not None:
        found["citations"] = [asdict(citation) for citation in answer.citations]
    return found


def documents_account(answer: Answer, read: Sequence[ReadDocument]) -> list[dict[str, Any]]:
    """Id and title of each document that was read, and its score if there is one."""
    accounts: list[dict[str, Any]] = [dict(document.account()) for document in read]
    for account, score in zip(accounts, answer.attribution or (), strict=False):
        account["score"] = score
    return accounts


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
        found.append(Document(page_content=document.page_content, id=document.id, metadata=metadata))
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


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.bytes),
        "top_logprobs": [{"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)} for one in token.top],
    }


# LangChain's hook for integrations: `message.content_blocks` calls the translator of the model provider. Nothing is
# loaded.
register_translator("clara", translate, translate)
