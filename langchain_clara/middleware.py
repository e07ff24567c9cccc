"""Retrieves documents for each question of an agent, which its model reads as memory tokens. Needs `langchain`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import Runnable

from langchain_clara._messages import DOCUMENT_BLOCKS, as_retriever, block_from_document, last_human

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError as exc:
    raise ImportError("ClaraContextMiddleware needs langchain: pip install 'clara-rag[agents]'") from exc


class ClaraContextMiddleware(AgentMiddleware[Any, Any, Any]):
    """Puts the documents that best match the last question before it, as content blocks.

    The agent's state keeps the conversation unchanged: documents retrieved for one question are not kept for the
    next. ``response_metadata["documents"]`` of the answer lists the documents that `ChatClara` read.

    Example:
        ```python
        agent = create_agent(ChatClara(), tools=[], middleware=[ClaraContextMiddleware(retriever)])
        agent.invoke({"messages": [("human", "When was the bridge opened?")]})
        ```

    Args:
        retriever: A retriever, another runnable or a function from a question to documents.
        k: Maximum number of documents; None passes all that the retriever returns.
    """

    tools: Sequence[Any] = ()

    def __init__(self, retriever: Runnable[str, list[Document]], k: int | None = None) -> None:
        super().__init__()
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.retriever, self.k = as_retriever(retriever), k

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Call the model with documents."""
        question = _question(request.messages)
        if question is None:
            return handler(request)
        return handler(self._with(request, self.retriever.invoke(question)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """`wrap_model_call`, awaitable."""
        question = _question(request.messages)
        if question is None:
            return await handler(request)
        return await handler(self._with(request, await self.retriever.ainvoke(question)))

    def _with(self, request: ModelRequest[Any], documents: Sequence[Document]) -> ModelRequest[Any]:
        blocks: list[str | dict[Any, Any]] = [block_from_document(document) for document in documents[: self.k]]
        if not blocks:
            return request
        place = last_human(request.messages)
        messages: list[AnyMessage] = list(request.messages)
        messages.insert(place, HumanMessage(content=blocks))
        return request.override(messages=messages)


def _question(messages: Sequence[AnyMessage]) -> str | None:
    """Text of the last human message; None if it has its own documents, or there is none."""
    place = last_human(messages)
    if place < 0:
        return None
    message = messages[place]
    kinds = {block.get("type") for block in message.content if isinstance(block, dict)}
    return None if kinds & set(DOCUMENT_BLOCKS) else message.text
