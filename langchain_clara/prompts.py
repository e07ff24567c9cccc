"""The piece of a prompt that holds documents."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.prompts.message import BaseMessagePromptTemplate

from langchain_clara._documents import block_from_document, listed_documents


class DocumentsPlaceholder(BaseMessagePromptTemplate):
    """Puts a list of Documents into a prompt, as content blocks of a human message.

    It is to documents what `MessagesPlaceholder` is to messages. `ChatClara` reads the blocks as
    memory tokens; a model that knows documents as content blocks reads the same prompt as text. No
    document becomes part of a text that is formatted, so nothing in a document can pose as
    something else.

    Example:
        ```python
        prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{input}")])
        chain = {"context": retriever, "input": RunnablePassthrough()} | prompt | ChatClara() | StrOutputParser()
        ```

    Args:
        variable_name: The prompt's variable that holds the Documents (or strings).
        optional: Whether the variable may be missing, which means no documents.
    """

    variable_name: str
    optional: bool = False

    def __init__(self, variable_name: str, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(variable_name=variable_name, optional=optional, **kwargs)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Only classes of LangChain's own packages can be loaded again from LangChain's JSON."""
        return False

    @property
    def input_variables(self) -> list[str]:
        """The variable, if the prompt cannot do without it."""
        return [] if self.optional else [self.variable_name]

    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """One human message with a block a document; no message where there are no documents.

        Raises:
            KeyError: The variable is missing.
            TypeError: The variable holds something else than Documents and strings.
        """
        documents = kwargs.get(self.variable_name, []) if self.optional else kwargs[self.variable_name]
        listed = listed_documents(documents, repr(self.variable_name))
        blocks: list[str | dict[Any, Any]] = [block_from_document(document) for document in listed]
        return [HumanMessage(content=blocks)] if blocks else []

    def pretty_repr(self, html: bool = False) -> str:
        """How the prompt shows it."""
        return f"=== Documents ===\n\n{{{self.variable_name}}}"
