"""Values that a store accepts and returns, and the JSON form of metadata."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, TypeVar

import numpy as np

from clara_core.data.memory import Memory

Metadata = dict[str, Any]
T = TypeVar("T")

# Arrow strings cannot hold lone surrogates, and not every reader accepts NUL: both are written as this noncharacter and
# four digits.
_MARK: Final = "\ufdd0"
_UNSAFE: Final = re.compile("[\ud800-\udfff\0\ufdd0]")
_MARKED: Final = re.compile("\ufdd0([0-9a-f]{4})")


@dataclass(frozen=True, slots=True)
class Record:
    """A document of a store, without its memory.

    Attributes:
        id: Id of the document.
        text: The exact text that was given.
        metadata: The metadata that was given; a copy for the caller.
        spans: Character span of each window of its memory.
        source_tokens: Text tokens in the windows.
    """

    id: str
    text: str
    metadata: Metadata = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()
    source_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """A document found by a search.

    Attributes:
        id: Id of the document.
        text: The exact text that was given.
        metadata: The metadata that was given; a copy for the caller.
        score: By ``mode``: the cosine of question and best window in [-1, 1] (``memory``), BM25 (``text``), or both
            fused, in [0, 1] (``hybrid``). Higher is better; scores of different modes are not comparable.
        relevance: A number in [0, 1] with the same order, see `clara_core.retrieval.ranking`.
        window: Index of the window with the best score; 0 if only the text was searched.
        memory: Memory of the document, if the search was called with ``with_memories=True``.
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
    """A file of a store that cannot be read."""

    path: str
    rows: int  # documents in it
    reason: str
    fragment: int  # its number in the table


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The size and state of a store.

    Attributes:
        documents: Number of documents.
        bytes: Size of the live files: memories and everything else.
        bytes_per_document: Mean size of a document.
        fragments: Number of row files. Many small files slow a search down; `compact` merges them.
        version: Number of commits.
        fingerprint: Fingerprint of the model whose memories the store holds; None if it holds none.
        memory_type: Number format of the memories; None if there are none.
        key_length: Numbers of a key; None if there are none.
        word_index_rows: Documents covered by an index over words; None without such an index (the words are held in
            memory).
        key_index_rows: Documents covered by an index over keys; None without such an index (the keys are held in
            memory).
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
    """Escape a string so that every part of a table can hold it; different strings stay different."""
    return _UNSAFE.sub(lambda found: f"{_MARK}{ord(found[0]):04x}", text)


def unescape(text: str) -> str:
    """Reverse `escape`."""
    return _MARKED.sub(lambda found: chr(int(found[1], 16)), text)


# --- ids -------------------------------------------------------------------------------------------------


def made_id(text: str, seen: int) -> str:
    """The generated id of a text, the same in every process; `seen` distinguishes equal texts of one call."""
    return hashlib.sha256(f"{seen}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def in_order(ids: Sequence[str], found: Mapping[str, T]) -> list[T]:
    """What was found of each document; a KeyError names one of which nothing was found."""
    if missing := [id_ for id_ in ids if id_ not in found]:
        raise KeyError(f"there is no document with the id {missing[0]!r}")
    return [found[id_] for id_ in ids]


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Ids as a list; a TypeError refuses a single string and ids of another type."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"ids must be several strings, got one {type(ids).__name__}; put it into a list")
    wanted = list(ids)
    for index, id_ in enumerate(wanted):
        if not isinstance(id_, str):
            raise TypeError(f"ids[{index}] must be a string, got {type(id_).__name__}: {id_!r:.60}")
    return wanted


# --- metadata --------------------------------------------------------------------------------------------
#
# Metadata is stored as JSON. A value of another type that loaders use is stored as an object with a single name, which
# begins with the mark; names of the metadata that begin with the mark get a second one.

_DATE, _TIME, _TUPLE = (_MARK + name for name in ("date", "datetime", "tuple"))


def metadata_json(metadata: Mapping[str, Any] | None, name: str) -> str:
    """Metadata as JSON in ASCII; `metadata_from_json` restores it.

    Besides JSON values, metadata may hold dates and times (a time zone is restored as its offset) and tuples. Instances
    of subclasses of plain types, and numpy numbers, are restored as the equal plain value.

    Args:
        metadata: A dict, nested to any depth; None is an empty dict.
        name: Name of the value in error messages.

    Raises:
        TypeError: It is not a dict, or contains a value of another type; the message names the value and its
            position.
        ValueError: A number is not finite, or a time is invalid.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise TypeError(f"{name} must be a dict, got {type(metadata).__name__}: {metadata!r:.60}")
    try:
        return json.dumps(_plain(metadata, name), allow_nan=False, separators=(",", ":"))
    except RecursionError as exc:
        raise ValueError(f"{name} is nested too deep, or contains itself") from exc


def metadata_from_json(text: str) -> Metadata:
    """Reverse `metadata_json`."""
    if _ESCAPED_MARK not in text:
        found: Metadata = json.loads(text)
        return found
    restored: Metadata = json.loads(text, object_hook=_restored)
    return restored


_ESCAPED_MARK: Final = "\\ufdd0"


def _plain(value: Any, place: str) -> Any:
    """A value in its JSON form."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if isinstance(value, dict):
        return {_name(key, place): _plain(member, f"{place}[{key!r:.60}]") for key, member in value.items()}
    if isinstance(value, list | tuple):
        members = [_plain(member, f"{place}[{index}]") for index, member in enumerate(value)]
        return members if isinstance(value, list) else {_TUPLE: members}
    if isinstance(value, datetime):  # before date, its base class
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
    raise TypeError(f"{place} is a {kind.__module__}.{kind.__name__}, which cannot be stored: {value!r:.60}; turn it "
                    "into a string, a number, a date, a list or a dict")  # fmt: skip


def _item(value: np.generic, place: str) -> Any:
    """The Python value that equals a numpy number."""
    item = value.item()
    if isinstance(item, np.generic) or (isinstance(value, np.datetime64) and not isinstance(item, date)):
        raise TypeError(f"{place} is a numpy.{type(value).__name__} that Python has no value for: {value!r:.60}")
    return item


def _name(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r:.60} of {type(key).__name__}; names in metadata are strings")
    return _MARK + key if key.startswith(_MARK) else str.__str__(key)


def _moment(value: datetime, place: str) -> datetime:
    """The plain time that equals a time of a subclass, such as a Timestamp of pandas."""
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
