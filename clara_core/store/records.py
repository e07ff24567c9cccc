"""What goes into a store and what comes out of it, as plain values. Knows nothing of tables and files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from clara_core.memory import Memory

__all__ = ["Broken", "Hit", "Record", "StoreStats"]

Metadata = dict[str, Any]

# Arrow knows no lone surrogates, and not every reader knows NUL: both are written as this noncharacter and four digits.
_MARK: Final = "\ufdd0"
_UNSAFE: Final = re.compile("[\ud800-\udfff\0\ufdd0]")
_MARKED: Final = re.compile("\ufdd0([0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class Record:
    """A document of a store, without its memory.

    Attributes:
        id: Of the document.
        text: Exactly as it was given.
        metadata: As it was given; the reader's own copy.
        spans: Character span of each window of its memory.
        source_tokens: Text tokens that the windows stand for.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()
    source_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found.

    Attributes:
        id: Of the document.
        text: Exactly as it was given.
        metadata: As it was given; the reader's own copy.
        score: By ``mode``: the cosine of question and best window in [-1, 1] (``memory``), BM25 (``text``), or both of
            them fused, in [0, 1] (``hybrid``). More is better; scores of different modes are not comparable.
        relevance: The same order as a number in [0, 1], see `clara_core.ranking`.
        window: Which window of the document scored best; 0 where only the text was searched.
        memory: Of the document, where the search was asked for it.
    """

    id: str
    text: str
    metadata: Metadata
    score: float
    relevance: float
    window: int
    memory: Memory | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A file of a store that cannot be read.

    Attributes:
        path: Of the file.
        rows: Documents that were in it.
        reason: What was found.
        fragment: Its number in the table.
    """

    path: str
    rows: int
    reason: str
    fragment: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The state of a store.

    Attributes:
        documents: Documents in it.
        bytes: What the live files take, memories and everything else.
        bytes_per_document: That, for a document on average.
        fragments: Files of rows; many small ones slow a search down, `compact` merges them.
        version: Counts commits.
        fingerprint: Of the model whose memories it holds; None while there are none.
        memory_type: How memories are written; None while there are none.
        key_length: Numbers of a key; None while there are none.
        word_index_rows: Documents whose words an index covers; None without one: this process keeps the words.
        key_index_rows: Documents whose keys an index covers; None without one: this process keeps the keys.
    """

    documents: int = 0
    bytes: int = 0
    bytes_per_document: float = 0.0
    fragments: int = 0
    version: int = 0
    fingerprint: str | None = None
    memory_type: str | None = None
    key_length: int | None = None
    word_index_rows: int | None = None
    key_index_rows: int | None = None


def guarded(text: str) -> str:
    """A string that every part of a table can hold; different strings stay different."""
    return _UNSAFE.sub(lambda found: f"{_MARK}{ord(found[0]):04x}", text)


def unguarded(text: str) -> str:
    """The string that `guarded` was given."""
    return _MARKED.sub(lambda found: chr(int(found[1], 16)), text)


def made_id(text: str, seen: int) -> str:
    """The id of a text that was given none, the same in every process; `seen` tells equal texts of a call apart."""
    return hashlib.sha256(f"{seen}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def metadata_json(metadata: Mapping[str, Any] | None, name: str) -> str:
    """Metadata as JSON in ASCII, from which exactly the same comes back.

    Args:
        metadata: A dict of what JSON knows, nested as deep as you like; None is an empty one.
        name: What to call it in an error.

    Raises:
        TypeError: It is no dict, or something in it is not JSON; says what and where.
        ValueError: A number is not finite.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise TypeError(f"{name} must be a dict, got {type(metadata).__name__}: {metadata!r:.60}")
    check_json(metadata, name)
    return json.dumps(metadata, allow_nan=False, separators=(",", ":"))


def check_json(value: object, name: str) -> None:
    """Refuse what would not come back from JSON as it was: tuples, dates, numpy numbers, keys that are no strings."""
    pending: list[tuple[object, str]] = [(value, name)]
    while pending:
        found, place = pending.pop()
        kind = type(found)
        if found is None or kind in (bool, int, str):
            continue
        if kind is float:
            if not math.isfinite(found):  # type: ignore[arg-type]
                raise ValueError(f"{place} must be a finite number, got {found!r}; JSON knows no other")
        elif isinstance(found, dict) and kind is dict:
            pending.extend(_members(found, place))
        elif isinstance(found, list) and kind is list:
            pending.extend((member, f"{place}[{index}]") for index, member in enumerate(found))
        else:
            raise TypeError(f"{place} is a {kind.__module__}.{kind.__name__}, which JSON does not know: {found!r:.60}; "
                            "turn it into a string, a number, a list or a dict")  # fmt: skip


def _members(found: dict[object, object], place: str) -> Iterable[tuple[object, str]]:
    for key, member in found.items():
        if type(key) is not str:
            raise TypeError(f"{place} has the key {key!r:.60} of {type(key).__name__}; keys of JSON are strings")
        yield member, f"{place}[{key!r:.60}]"
