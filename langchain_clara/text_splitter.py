"""Splits texts into pieces that fit the compressor's window, so that each piece is one memory of `n_mem` tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.documents import Document
from langchain_text_splitters import TextSplitter

from clara_core.common.suggest import parameters, refuse_unknown
from langchain_clara._engine import EngineFields
from langchain_clara._entries import listed, with_texts


class ClaraTextSplitter(TextSplitter):
    """Cuts texts into pieces that fit the compressor's window, at sentence ends, else between words.

    The pieces of a text joined together equal the text: nothing is lost, stripped or repeated. Tokens are counted with
    the model's own tokenizer; no weights are loaded.

    Example:
        ```python
        splitter = ClaraTextSplitter(model="pocket", add_start_index=True)
        pieces = splitter.split_documents(documents)
        ```

    Args:
        add_start_index: Store the start of each piece in its text, in characters, in ``metadata["start_index"]``.
        **options: ``model=`` and its options, or ``engine=``; see `EngineFields`.
    """

    def __init__(self, *, add_start_index: bool = False, **options: Any) -> None:
        refuse_unknown(type(self).__name__, options, {*EngineFields.model_fields, *parameters(type(self))})
        self._source = EngineFields(**options)
        super().__init__(
            chunk_overlap=0, length_function=self.count_tokens, add_start_index=add_start_index, strip_whitespace=False
        )

    def count_tokens(self, text: str) -> int:
        """Number of tokens of the window that a text takes."""
        return self._source.shared_engine.tokenizer.count(text)

    def split_text(self, text: str) -> list[str]:
        """The pieces of a text, in order; an empty text has none."""
        spans = self._source.shared_engine.tokenizer.windows(text) if text else []
        return [text[start:end] for start, end in spans]

    def create_documents(
        self, texts: Iterable[str], metadatas: Iterable[dict[Any, Any]] | None = None
    ) -> list[Document]:
        """The pieces of texts as documents, each with a copy of its text's metadata."""
        return self.split_documents(with_texts(texts, metadatas))

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """The pieces of documents; they do not have the ids of the documents."""
        given, _ = listed(documents, None)
        texts, metadatas = [document.page_content for document in given], [document.metadata for document in given]
        return super().create_documents(texts, metadatas)
