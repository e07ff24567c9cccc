"""A chain that answers from compressed documents instead of pasting their text into the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import BaseOutputParser, StrOutputParser
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate, MessagesPlaceholder, format_document
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_clara._messages import last_human, listed_documents
from langchain_clara.prompts import DocumentsPlaceholder


def create_clara_documents_chain(
    llm: Runnable[Any, BaseMessage] | BaseChatModel,
    prompt: BasePromptTemplate[Any] | None = None,
    *,
    output_parser: BaseOutputParser[Any] | None = None,
    document_prompt: BasePromptTemplate[str] | None = None,
    document_variable_name: str = "context",
) -> Runnable[dict[str, Any], Any]:
    """Create a chain that answers from documents, as a replacement for `create_stuff_documents_chain`.

    Documents reach the model as content blocks, which `ChatClara` reads as memory tokens. The chain works in
    `create_retrieval_chain` and with the same prompts: a ``{context}`` in the text of a prompt stays empty, and the
    documents are put before the last human message, or at the `DocumentsPlaceholder` of the prompt.

    Example:
        ```python
        chain = create_retrieval_chain(retriever, create_clara_documents_chain(ChatClara()))
        chain.invoke({"input": "When was the bridge opened?"})["answer"]
        ```

    Args:
        llm: `ChatClara`, or another model that reads documents in messages.
        prompt: By default ``{input}`` and an optional ``chat_history``.
        output_parser: Parses the answer; by default the chain returns its text.
        document_prompt: Formats a document from its text and metadata. A changed text is compressed again, because
            the memory in a store is that of the original text.
        document_variable_name: Key of the documents in the input.

    Returns:
        Runnable: From ``{"context": documents, "input": question, ...}`` to the answer.

    Raises:
        KeyError: The input has no documents (when the chain is called).
    """
    used = _default_prompt(document_variable_name) if prompt is None else prompt

    def fill(values: dict[str, Any]) -> PromptValue:
        return _filled(used, _shown(values, document_variable_name, document_prompt), document_variable_name)

    chain: Runnable[dict[str, Any], Any] = RunnableLambda(fill) | llm | (output_parser or StrOutputParser())
    return chain.with_config(run_name="clara_documents_chain")


def _default_prompt(name: str) -> ChatPromptTemplate:
    history = MessagesPlaceholder("chat_history", optional=True)
    return ChatPromptTemplate.from_messages([history, DocumentsPlaceholder(name), ("human", "{input}")])


def _shown(values: Mapping[str, Any], name: str, document_prompt: BasePromptTemplate[str] | None) -> dict[str, Any]:
    """The input, with its documents formatted by `document_prompt`."""
    if name not in values:
        raise KeyError(f"the documents are missing: there is no {name!r} among {', '.join(map(repr, values))}")
    if document_prompt is None:
        return dict(values)
    listed = listed_documents(values[name], repr(name))
    documents = [Document(document) if isinstance(document, str) else document for document in listed]
    formatted = [
        Document(format_document(document, document_prompt), id=document.id, metadata=document.metadata)
        for document in documents
    ]
    return {**values, name: formatted}


def _filled(prompt: BasePromptTemplate[Any], values: dict[str, Any], name: str) -> PromptValue:
    """The prompt with the documents at its placeholder, else before its last human message."""
    parts = getattr(prompt, "messages", [])
    if any(isinstance(part, DocumentsPlaceholder) and part.variable_name == name for part in parts):
        return prompt.invoke(values)
    documents = DocumentsPlaceholder(name).format_messages(**values)
    messages = prompt.invoke({**values, name: ""}).to_messages()
    place = last_human(messages)
    place = len(messages) if place < 0 else place
    return ChatPromptValue(messages=[*messages[:place], *documents, *messages[place:]])
