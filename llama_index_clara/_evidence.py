"""Converts log-probabilities, citations and other evidence of an answer to LlamaIndex's forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitationBlock,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
)
from llama_index.core.schema import NodeWithScore

from clara_core.engine.answer_options import confidence_account

if TYPE_CHECKING:
    from clara_core import Answer
    from clara_core.engine.logprobs import TokenLogprob


def logprobs_of(tokens: Sequence[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """A list for each token: the token itself, then its alternatives."""
    if tokens is None:
        return None
    return [[_logprob(token), *map(_logprob, token.top)] for token in tokens]


def evidence_account(answer: Answer) -> dict[str, Any]:
    """The evidence of an answer besides its text; empty if none was requested."""
    if answer.citations is None and answer.confidence is None and not answer.abstained:
        return {}
    return {
        **confidence_account(answer),
        "attribution": None if answer.attribution is None else list(answer.attribution),
        "citations": None if answer.citations is None else [asdict(one) for one in answer.citations],
    }


def chat_response(completion: CompletionResponse) -> ChatResponse:
    """The answer as a turn of a conversation, with citations as blocks after the text."""
    text = TextBlock(text=completion.text)
    blocks = [text, *(_block(one) for one in (completion.raw or {}).get("citations") or ())]
    message = ChatMessage(
        role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=completion.additional_kwargs
    )  # fmt: skip
    return ChatResponse(
        message=message, raw=completion.raw, delta=completion.delta, logprobs=completion.logprobs
    )  # fmt: skip


def response_evidence(answer: Answer, nodes: Sequence[NodeWithScore]) -> dict[str, Any]:
    """The entry ``clara`` of a response's metadata: `evidence_account`, with the nodes' ids.

    Args:
        answer: The answer.
        nodes: The nodes that were read, in order.
    """
    found = evidence_account(answer)
    for citation in found.get("citations") or ():
        citation["node_id"] = nodes[citation["document"]].node.node_id
    return found


def cited_order(answer: Answer) -> list[int]:
    """The documents that support an answer, in order of first use."""
    citations = sorted(answer.citations or (), key=lambda one: (one.start, -one.score))
    return list(dict.fromkeys(one.document for one in citations))


def cited_nodes(answer: Answer, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
    """Copies of the nodes that support an answer, in order of first use, with their scores for it."""
    best = {at: max(one.score for one in answer.citations or () if one.document == at) for at in cited_order(answer)}
    return [NodeWithScore(node=nodes[at].node, score=score) for at, score in best.items()]


def with_marks(answer: Answer, sources: Sequence[int]) -> str:
    """The text with ``[n]`` after each cited part, where n counts the sources from 1.

    Args:
        answer: The answer.
        sources: The documents in the order of the sources.
    """
    number = {document: at for at, document in enumerate(sources, start=1)}
    marks: dict[int, list[int]] = {}
    for one in sorted(answer.citations or (), key=lambda one: number.get(one.document, 0)):
        if one.document in number and number[one.document] not in marks.setdefault(one.end, []):
            marks[one.end].append(number[one.document])
    text = answer.text
    for end in sorted(marks, reverse=True):
        # before the full stop of a sentence
        place = end - 1 if text[end - 1 : end] in (".", "!", "?") else end
        text = text[:place] + " " + "".join(f"[{one}]" for one in marks[end]) + text[place:]
    return text


def _block(citation: dict[str, Any]) -> CitationBlock:
    places = ("document", "window", "start", "end", "text_start", "text_end")
    return CitationBlock(
        cited_content=TextBlock(text=citation["text"]),
        source=str(citation.get("node_id", citation["document"])),
        title="",
        additional_location_info={name: citation[name] for name in places},
    )


def _logprob(token: TokenLogprob) -> LogProb:
    return LogProb(token=token.token, logprob=token.logprob, bytes=list(token.bytes))
