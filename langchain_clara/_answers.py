"""Converts answers of the engine, with their evidence, to LangChain's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.block_translators import register_translator
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from clara_core.engine.answer_options import confidence_account
from clara_core.engine.logprobs import logprobs_account
from langchain_clara._messages import ReadDocument, listed_documents

if TYPE_CHECKING:
    from langchain_core.messages.content import ContentBlock

    from clara_core import Answer
    from clara_core.engine.sampling import Chunk


def chat_result(answer: Answer, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]) -> ChatResult:
    """An answer of the model `model`, from the documents that it read, with the engine options of the call."""
    account = _account(answer, model, read, options)
    if answer.logprobs is not None:
        account["logprobs"] = logprobs_account(answer.logprobs)
    message = AIMessage(content=answer.text, usage_metadata=_usage(answer), response_metadata=account)
    return ChatResult(generations=[ChatGeneration(message=message)])


def chat_chunk(
    piece: Chunk, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]
) -> ChatGenerationChunk:
    """A piece of an answer. Only the last one has the counts, because merging adds them up.

    Merging joins lists, so each piece has its own log-probabilities.
    """
    logged = {} if piece.logprobs is None else {"logprobs": logprobs_account(piece.logprobs)}
    if piece.answer is None:
        return ChatGenerationChunk(message=AIMessageChunk(content=piece.text, response_metadata=logged))
    message = AIMessageChunk(
        content=piece.text,
        usage_metadata=_usage(piece.answer),
        response_metadata=_account(piece.answer, model, read, options) | logged,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message)


def _account(answer: Answer, model: str, read: Sequence[ReadDocument], options: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_metadata`: counts, the documents, and the evidence if the options request any."""
    documents: list[dict[str, Any]] = [dict(document.account()) for document in read]
    for document, score in zip(documents, answer.attribution or (), strict=False):
        document["score"] = score
    account: dict[str, Any] = {
        "model_name": model,
        "model_provider": "clara",
        "finish_reason": answer.finish_reason,
        "memory_tokens": answer.memory_tokens,
        "source_tokens": answer.source_tokens,
        "windows_left_out": answer.windows_left_out,
        "saved_tokens": answer.source_tokens - answer.memory_tokens,
        "documents": documents,
    }
    if options["citations"] or options["min_confidence"] is not None or options["read"] != "memory":
        account |= confidence_account(answer)
    if answer.citations is not None:
        account["citations"] = [asdict(citation) for citation in answer.citations]
    return account


def _usage(answer: Answer) -> UsageMetadata:
    read = answer.prompt_tokens + answer.memory_tokens
    written = answer.completion_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


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


# LangChain's hook for integrations: `message.content_blocks` calls the translator of the model provider. Nothing is
# loaded.
register_translator("clara", translate, translate)
