"""What goes into a store and what comes out of it, as plain values. Knows nothing of tables and files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from clara_core.data.memory import Memory

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
        relevance: The same order as a number in [0, 1], see `clara_core.retrieval.ranking`.
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


def escape(text: str) -> str:
    """A string that every part of a table can hold; different strings stay different."""
    return _UNSAFE.sub(lambda found: f"{_MARK}{ord(found[0]):04x}", text)


def unescape(text: str) -> str:
    """The string that `escape` was given."""
    return _MARKED.sub(lambda found: chr(int(found[1], 16)), text)


def made_id(text: str, seen: int) -> str:
    """The id of a text that was given none, the same in every process; `seen` tells equal texts of a call apart."""
    return hashlib.sha256(f"{seen}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


# --- metadata --------------------------------------------------------------------------------------------
#
# Metadata is kept as JSON. What JSON does not know and people's loaders give all the same stands there as an object of
# one name that begins with the mark; a name of their own that does begins with two.

_DATE, _TIME, _TUPLE = (_MARK + name for name in ("date", "datetime", "tuple"))


def metadata_json(metadata: Mapping[str, Any] | None, name: str) -> str:
    """Metadata as JSON in ASCII, from which `metadata_from_json` makes the same again.

    Beside what JSON knows there may be dates and times (a time zone comes back as its offset) and tuples; what is a
    subclass of a plain type, and numpy's numbers, come back as the plain value that they equal.

    Args:
        metadata: A dict, nested as deep as you like; None is an empty one.
        name: What to call it in an error.

    Raises:
        TypeError: It is no dict, or something in it is of another kind; says what and where.
        ValueError: A number is not finite, or a time is none.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise TypeError(f"{name} must be a dict, got {type(metadata).__name__}: {metadata!r:.60}")
    try:
        return json.dumps(_plain(metadata, name), allow_nan=False, separators=(",", ":"))
    except RecursionError as exc:
        raise ValueError(f"{name} is nested too deep, or holds itself") from exc


def metadata_from_json(text: str) -> Metadata:
    """The metadata that `metadata_json` was given."""
    if _ESCAPED_MARK not in text:
        found: Metadata = json.loads(text)
        return found
    restored: Metadata = json.loads(text, object_hook=_restored)
    return restored


_ESCAPED_MARK: Final = "\\ufdd0"


def _plain(value: Any, place: str) -> Any:
    """A value as JSON has it."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if isinstance(value, dict):
        return {_name(key, place): _plain(member, f"{place}[{key!r:.60}]") for key, member in value.items()}
    if isinstance(value, list | tuple):
        members = [_plain(member, f"{place}[{index}]") for index, member in enumerate(value)]
        return members if isinstance(value, list) else {_TUPLE: members}
    if isinstance(value, datetime):  # before date, of which it is one
        return {_TIME: _moment(value, place).isoformat()}
    if isinstance(value, date):
        return {_DATE: date(value.year, value.month, value.day).isoformat()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.generic) and not isinstance(value, np.character | np.void | np.timedelta64):
        return _plain(_item(value, place), place)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{place} must be a finite number, got {value!r}; leave it out, or write None")
        return float.__float__(value)
    raise TypeError(f"{place} is a {kind.__module__}.{kind.__name__}, which cannot be kept: {value!r:.60}; turn it "
                    "into a string, a number, a date, a list or a dict")  # fmt: skip


def _item(value: np.generic, place: str) -> Any:
    """What a number of numpy equals in Python."""
    item = value.item()
    if isinstance(item, np.generic) or (isinstance(value, np.datetime64) and not isinstance(item, date)):
        raise TypeError(f"{place} is a numpy.{type(value).__name__} that Python has no value for: {value!r:.60}")
    return item


def _name(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r:.60} of {type(key).__name__}; names in metadata are strings")
    return _MARK + key if key.startswith(_MARK) else str.__str__(key)


def _moment(value: datetime, place: str) -> datetime:
    """A time of a subclass, such as a Timestamp of pandas, as the plain one that it equals."""
    if value != value or bool(getattr(value, "nanosecond", False)):  # noqa: PLR0124 - pandas: not a time
        raise ValueError(f"{place} must be a time in microseconds, got {value!r:.60}")
    return datetime.combine(value.date(), value.time(), value.tzinfo)


def _restored(found: dict[str, Any]) -> Any:
    if len(found) == 1:
        [(name, value)] = found.items()
        if name == _DATE:
            return date.fromisoformat(value)
        if name == _TIME:
            return datetime.fromisoformat(value)
        if name == _TUPLE:
            return tuple(value)
    return {name.removeprefix(_MARK) if name.startswith(_MARK * 2) else name: value for name, value in found.items()}
