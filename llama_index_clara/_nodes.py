"""Nodes as the engine sees them: texts. Memory is found by the exact text, never by what a node carries along."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore


def text_of(node: BaseNode | NodeWithScore | str, mode: MetadataMode = MetadataMode.EMBED) -> str:
    """What is compressed of a node: its text with the metadata that an embedding sees."""
    return node if isinstance(node, str) else node.get_content(metadata_mode=mode)


def texts_of(documents: Sequence[BaseNode | NodeWithScore | str]) -> list[str]:
    """Texts of nodes and strings.

    Raises:
        TypeError: One document instead of several, or something else than nodes and strings.
    """
    if isinstance(documents, str | BaseNode | NodeWithScore):
        raise TypeError(f"documents must be several, got one {type(documents).__name__}; put it into a list")
    for index, document in enumerate(documents):
        if not isinstance(document, str | BaseNode | NodeWithScore):
            raise TypeError(f"documents[{index}] must be a node or a string, got {type(document).__name__}")
    return [text_of(document) for document in documents]


def copy_of(node: BaseNode, **changes: Any) -> BaseNode:
    """A node that can be changed without changing the other; without its embedding.

    Not a deep copy: an `IndexNode` may hold a whole query engine.
    """
    own = {
        "embedding": None,
        "metadata": deepcopy(node.metadata),
        "relationships": deepcopy(node.relationships),
        "excluded_embed_metadata_keys": list(node.excluded_embed_metadata_keys),
        "excluded_llm_metadata_keys": list(node.excluded_llm_metadata_keys),
    }
    return node.model_copy(update=own | changes)
