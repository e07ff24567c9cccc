"""Nodes as the engine sees them: texts. Memory is found by the exact text, never by what a node carries along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, TypeVar

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

_FILE_KEYS: Final = frozenset(
    {"file_path", "file_name", "file_type", "file_size", "file_directory", "file_extension", "filename", "filetype"}
)
# Other things have dates too: these are a file's where the file is named beside them.
_DATE_KEYS: Final = frozenset({"creation_date", "last_modified_date", "last_accessed_date", "last_modified"})
_HEAD: Final = 2_000  # characters of a text in which metadata is looked for

_EXCLUDED: Final = {
    MetadataMode.EMBED: "excluded_embed_metadata_keys",
    MetadataMode.LLM: "excluded_llm_metadata_keys",
}


def file_keys(metadata: Mapping[str, Any]) -> frozenset[str]:
    """What a loader noted of the file that a text came from: where it is, its name, type, size and dates.

    It is not content. Whoever wants it read gives it a name of their own, such as ``metadata["report"]``.
    """
    named = _FILE_KEYS & metadata.keys()
    return named | (_DATE_KEYS & metadata.keys()) if named else frozenset()


def text_of(node: BaseNode | NodeWithScore | str, mode: MetadataMode = MetadataMode.EMBED) -> str:
    """What is compressed of a node: its text with the metadata that an embedding sees, without `file_keys`.

    With `MetadataMode.ALL` it is everything, the notes of the file too.
    """
    if isinstance(node, str):
        return node
    if isinstance(node, NodeWithScore):
        node = node.node
    excluded = _EXCLUDED.get(mode)
    return (node if excluded is None else without_file(node, excluded)).get_content(metadata_mode=mode)


def without_file(node: BaseNode, *lists: str) -> BaseNode:
    """The node, or a shallow copy of it on whose lists of excluded keys its `file_keys` stand."""
    notes = file_keys(node.metadata)
    keys = {name: getattr(node, name) for name in lists or _EXCLUDED.values()}
    changed = {name: [*listed, *sorted(notes - set(listed))] for name, listed in keys.items() if notes - set(listed)}
    return node.model_copy(update=changed) if changed else node


def begins_with_file(text: str) -> bool:
    """Whether `file_keys` stand before a text, in the form that LlamaIndex gives metadata."""
    head = text[:_HEAD].partition("\n\n")[0]
    return any(line.partition(": ")[0] in _FILE_KEYS for line in head.split("\n"))


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


Checked = TypeVar("Checked")


def checked(given: Iterable[Checked], kind: type, what: str) -> Iterator[Checked]:
    """Documents, nodes or hits, one by one as they are asked for.

    Raises:
        TypeError: One instead of several, or something of another kind; says what to make of it.
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


_announced: set[int] = set()  # hashes of texts
_MOST_ANNOUNCED: Final = 100_000


def announce_long(texts: Sequence[str]) -> None:
    """Remember texts of several windows that the user was told of, so that nobody else tells it again."""
    if len(_announced) + len(texts) > _MOST_ANNOUNCED:
        _announced.clear()
    _announced.update(map(hash, texts))


def announced_long(text: str) -> bool:
    """Whether the user was told of this text."""
    return hash(text) in _announced
