"""The texts of nodes that are compressed. Memories are found by the exact text, not by a node's id or embedding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, TypeVar

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

_FILE_KEYS: Final = frozenset(
    {"file_path", "file_name", "file_type", "file_size", "file_directory", "file_extension", "filename", "filetype"}
)
# Dates count as a file's only if the file is named beside them, since other things have dates too.
_DATE_KEYS: Final = frozenset({"creation_date", "last_modified_date", "last_accessed_date", "last_modified"})
_HEAD: Final = 2_000  # characters of a text that are searched for metadata

_EXCLUDED: Final = {
    MetadataMode.EMBED: "excluded_embed_metadata_keys",
    MetadataMode.LLM: "excluded_llm_metadata_keys",
}


def file_keys(metadata: Mapping[str, Any]) -> frozenset[str]:
    """Keys of metadata that a loader added about the file of a text: its location, name, type, size and dates.

    They are not content. To include such a value in the text, give it another key, such as ``metadata["report"]``.
    """
    named = _FILE_KEYS & metadata.keys()
    return named | (_DATE_KEYS & metadata.keys()) if named else frozenset()


def text_of(node: BaseNode | NodeWithScore | str, mode: MetadataMode = MetadataMode.EMBED) -> str:
    """The text of a node that is compressed: with the metadata that is embedded, without `file_keys`.

    With `MetadataMode.ALL` it contains all metadata, also that of the file.
    """
    if isinstance(node, str):
        return node
    if isinstance(node, NodeWithScore):
        node = node.node
    excluded = _EXCLUDED.get(mode)
    return (node if excluded is None else without_file(node, excluded)).get_content(metadata_mode=mode)


def without_file(node: BaseNode, *lists: str) -> BaseNode:
    """The node, or a shallow copy of it with its `file_keys` in the lists of excluded keys."""
    notes = file_keys(node.metadata)
    keys = {name: getattr(node, name) for name in lists or _EXCLUDED.values()}
    changed = {name: [*listed, *sorted(notes - set(listed))] for name, listed in keys.items() if notes - set(listed)}
    return node.model_copy(update=changed) if changed else node


def begins_with_file(text: str) -> bool:
    """Whether a text begins with `file_keys`, in LlamaIndex's format of metadata."""
    head = text[:_HEAD].partition("\n\n")[0]
    return any(line.partition(": ")[0] in _FILE_KEYS for line in head.split("\n"))


def texts_of(documents: Sequence[BaseNode | NodeWithScore | str]) -> list[str]:
    """Texts of nodes and strings.

    Raises:
        TypeError: It is a single document, or an item is neither a node nor a string.
    """
    if isinstance(documents, str | BaseNode | NodeWithScore):
        raise TypeError(f"documents must be several, got one {type(documents).__name__}; put it into a list")
    for index, document in enumerate(documents):
        if not isinstance(document, str | BaseNode | NodeWithScore):
            raise TypeError(f"documents[{index}] must be a node or a string, got {type(document).__name__}")
    return [text_of(document) for document in documents]


Checked = TypeVar("Checked")


def checked(given: Iterable[Checked], kind: type, what: str) -> Iterator[Checked]:
    """Documents, nodes or hits, checked one by one during iteration.

    Raises:
        TypeError: It is a single item, or an item has another type; the message gives the remedy.
    """
    name, how = kind.__name__, f"{kind.__name__}(node=...) makes one"
    if kind is BaseNode:
        name, how = "Document or node", "a text is Document(text=...)"
    if isinstance(given, str | BaseNode | NodeWithScore):
        raise TypeError(f"{what} must be several, got one {type(given).__name__}; put it into a list, and {how}")
    for index, each in enumerate(given):
        if not isinstance(each, kind):
            raise TypeError(f"{what}[{index}] must be a {name}, got {type(each).__name__}; {how}")
        yield each


def copy_of(node: BaseNode, **changes: Any) -> BaseNode:
    """A copy of a node without its embedding, which can be changed independently.

    It is not a deep copy, because an `IndexNode` may hold a whole query engine.
    """
    own = {
        "embedding": None,
        "metadata": deepcopy(node.metadata),
        "relationships": deepcopy(node.relationships),
        "excluded_embed_metadata_keys": list(node.excluded_embed_metadata_keys),
        "excluded_llm_metadata_keys": list(node.excluded_llm_metadata_keys),
    }
    return node.model_copy(update=own | changes)


_announced: set[int] = set()  # hashes of texts
_MOST_ANNOUNCED: Final = 100_000


def announce_long(texts: Sequence[str]) -> None:
    """Note texts of several windows about which the user was warned, so that the warning is not repeated."""
    if len(_announced) + len(texts) > _MOST_ANNOUNCED:
        _announced.clear()
    _announced.update(map(hash, texts))


def announced_long(text: str) -> bool:
    """Whether the user was warned about this text."""
    return hash(text) in _announced
