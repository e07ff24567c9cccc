"""A placeholder for documents in a prompt."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.prompts.message import BaseMessagePromptTemplate

from langchain_clara._messages import block_from_document, listed_documents


class DocumentsPlaceholder(BaseMessagePromptTemplate):
    """Inserts a list of Documents into a prompt, as content blocks of a human message.

    It works like `MessagesPlaceholder`. `ChatClara` reads the blocks as memory tokens; other models that support
    documents as content blocks read the same prompt as text. Documents are never formatted into the text of a message,
    so their content cannot imitate another part of the prompt.

    Example:
        ```python
        prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{input}")])
        chain = {"context": retriever, "input": RunnablePassthrough()} | prompt | ChatClara() | StrOutputParser()
        ```

    Args:
        variable_name: Variable of the prompt that holds the Documents (or strings).
        optional: Whether the variable may be missing; then there are no documents.
    """

    variable_name: str
    optional: bool = False

    def __init__(self, variable_name: str, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(variable_name=variable_name, optional=optional, **kwargs)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """False: LangChain loads only classes of its own packages from its JSON."""
        return False

    @property
    def input_variables(self) -> list[str]:
        """The variable, unless it is optional."""
        return [] if self.optional else [self.variable_name]

    def format_messages(self, **kwargs: Any) -> list[BaseMessage]:
        """One human message with a block for each document; no message if there are no documents.

        Raises:
            KeyError: The variable is missing.
            TypeError: The variable contains something other than Documents and strings.
        """
        documents = kwargs.get(self.variable_name, []) if self.optional else kwargs[self.variable_name]
        listed = listed_documents(documents, repr(self.variable_name))
        blocks: list[str | dict[Any, Any]] = [block_from_document(document) for document in listed]
        return [HumanMessage(content=blocks)] if blocks else []

    def pretty_repr(self, html: bool = False) -> str:
        """The placeholder in the printed prompt."""
        return f"=== Documents ===\n\n{{{self.variable_name}}}"
