"""Filters as predicates of the table: the rules of `clara_core.retrieval.filters.matches`, evaluated by Lance.

The table stores metadata as JSON, which indexes do not cover and comparisons do not order as Python does. So each row
also has these columns for filters:

    facts         list[string]   ``["town"]`` (name exists), ``["town","Aln"]`` (its value), ``["tags","has","river"]``
    number_names  list[string]   names whose value is a number, and the numbers
    numbers       list[double]
    text_names    list[string]   names whose value is a string, and the strings
    texts         list[string]
    odd           bool           some value cannot be expressed in the other columns

Facts are canonical: two values have the same fact if and only if they are equal (``1`` and ``1.0`` are, ``1`` and
``true`` are not). For rows that are not odd, the predicate is exact. Odd rows are few (an integer that no double holds,
a string that is not valid Unicode); `matches` itself decides them. If `to_sql` can express only a part of a filter,
`matches` also decides the rows that pass this part.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from lance import LanceDataset

from clara_core.retrieval.filters import check_filter, is_operators, matches
from clara_core.store.records import metadata_from_json

_LISTS: Final = {  # columns of lists, with the type of their members
    "facts": pa.string(),
    "number_names": pa.string(),
    "numbers": pa.float64(),
    "text_names": pa.string(),
    "texts": pa.string(),
}
_LONGEST_FACT: Final = 96  # characters; a longer fact is replaced by its hash
_MOST_PARTS: Final = 500  # most names in a filter that becomes a predicate
_DEEPEST: Final = 12  # deepest nesting of filters; Lance parses 20
_ORDERS: Final[dict[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "$gt": (">", operator.gt),
    "$gte": (">=", operator.ge),
    "$lt": ("<", operator.lt),
    "$lte": ("<=", operator.le),
}


class _Beyond(Exception):
    """A filter or a value that the columns cannot express."""


# --- metadata to columns ---------------------------------------------------------------------------------------------


def predicate_fields() -> list[pa.Field]:
    """The columns that predicates use."""
    return [*(pa.field(name, pa.list_(kind)) for name, kind in _LISTS.items()), pa.field("odd", pa.bool_())]


def predicate_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the columns of `predicate_fields` for metadata that was read from JSON."""
    values: dict[str, Any] = {name: [] for name in _LISTS} | {"odd": False}
    for name, value in metadata.items():
        values["facts"] += _facts(name, value)
        if isinstance(value, str) and _is_unicode(value):
            values["text_names"].append(_escaped(name))
            values["texts"].append(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and _is_double(value):
            values["number_names"].append(_escaped(name))
            values["numbers"].append(value + 0.0)  # turns -0.0, which Lance orders below 0.0, into 0.0
        elif isinstance(value, str) or type(value) is int:  # not NaN, which equals nothing and has no order
            values["odd"] = True
    return values


def _facts(name: str, value: Any) -> Iterator[str]:
    yield _fact(name)
    if _is_comparable(value):
        yield _fact(name, value)
    if isinstance(value, list | tuple):
        for member in value:
            if _is_comparable(member):
                yield _fact(name, "has", member)


def _fact(name: str, *rest: Any) -> str:
    """A fact about a name, in ASCII: ``[name]``, ``[name, value]`` or ``[name, "has", member]``."""
    text = json.dumps([name, *map(_canonical, rest)], sort_keys=True, separators=(",", ":"))
    return text if len(text) <= _LONGEST_FACT else hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any, *, nested: bool = False) -> Any:
    """One form for all values that are equal in Python; inside lists and dicts ``True == 1``."""
    if isinstance(value, bool):
        return int(value) if nested else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_canonical(member, nested=True) for member in value]
    if isinstance(value, dict):
        return {name: _canonical(member, nested=True) for name, member in value.items()}
    return value


def _is_comparable(value: Any) -> bool:
    """Whether a value may equal a value of a filter that becomes a predicate: a JSON value other than NaN."""
    if isinstance(value, list):
        return all(map(_is_comparable, value))
    if isinstance(value, dict):
        return all(map(_is_comparable, value.values()))
    if isinstance(value, tuple | date):
        return False
    return not (isinstance(value, float) and math.isnan(value))


def _is_double(number: float) -> bool:
    """Whether a double holds a number exactly."""
    try:
        return float(number) == number
    except OverflowError:
        return False


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _escaped(name: str) -> str:
    """A name in ASCII, because Arrow strings cannot hold lone surrogates."""
    return json.dumps(name)


# --- filters to predicates -------------------------------------------------------------------------------------------


def to_sql(condition: Mapping[str, Any]) -> str | None:
    """The predicate of a filter that `check_filter` accepts; None if it cannot be expressed.

    For rows that are not odd, the predicate is exact and never null. It contains nothing of the filter except quoted
    literals and numbers.
    """
    try:
        return _Parts().all_of(condition)
    except (_Beyond, RecursionError, ValueError):  # ValueError: an integer with more digits than Python writes
        return None


class _Parts:
    """Builds a predicate; fails for filters that may be too large for Lance's parser."""

    def __init__(self) -> None:
        self._count = 0

    def all_of(self, condition: Mapping[str, Any], depth: int = 0) -> str:
        """The predicate of a filter at nesting `depth`."""
        self._count += len(condition)
        if self._count > _MOST_PARTS or depth > _DEEPEST:
            raise _Beyond
        return _joined("AND", [self._named(name, value, depth + 1) for name, value in condition.items()])

    def _named(self, name: str, value: Any, depth: int) -> str:
        if name in ("$and", "$or"):
            return _joined(name[1:].upper(), [self.all_of(part, depth) for part in value])
        if name == "$not":
            return f"(NOT {self.all_of(value, depth)})"
        if is_operators(value):
            return _joined("AND", [_compared(name, sign, operand) for sign, operand in value.items()])
        return _compared(name, "$eq", value)


def _compared(name: str, sign: str, operand: Any) -> str:
    if sign == "$icontains":  # the rules of Lance's lower() are not documented
        raise _Beyond
    if sign in _ORDERS:
        return _ordered(name, sign, operand)
    if sign == "$exists":
        exists = _any_of([_fact(name)])
        return exists if operand else f"(NOT {exists})"
    if sign == "$contains":
        member = _equal_to_any([operand], name, "has")
        if not isinstance(operand, str):
            return member
        return f"({member} OR coalesce(contains({_value('text', name)}, {_quoted(operand)}), false))"
    equal = _equal_to_any(operand if sign in ("$in", "$nin") else [operand], name)
    return f"(NOT {equal})" if sign in ("$ne", "$nin") else equal


def _equal_to_any(operands: Iterable[Any], *about: str) -> str:
    return _any_of([_fact(*about, value) for value in map(_plain, operands) if _is_comparable(value)])


def _ordered(name: str, sign: str, operand: Any) -> str:
    symbol, compare = _ORDERS[sign]
    value = _plain(operand)
    if isinstance(value, bool):
        return _any_of([_fact(name, truth) for truth in (False, True) if compare(truth, value)])
    if isinstance(value, str):
        return f"coalesce({_value('text', name)} {symbol} {_quoted(value)}, false)"
    if isinstance(value, list):
        raise _Beyond
    if value is None or isinstance(value, dict) or value != value:  # noqa: PLR0124 - NaN
        return "false"
    if not _is_double(value):
        raise _Beyond
    return f"coalesce({_value('number', name)} {symbol} CAST('{value + 0.0!r}' AS DOUBLE), false)"


def _plain(value: Any) -> Any:
    """A value of a JSON type; others (a decimal, a number of an array) may equal one by rules of Python alone."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain(member) for member in value]
    if type(value) is dict and all(type(name) is str for name in value):
        return {name: _plain(member) for name, member in value.items()}
    raise _Beyond


def _any_of(facts: Sequence[str]) -> str:
    if not facts:
        return "false"
    if len(facts) == 1:
        return f"array_has(facts, {_quoted(facts[0])})"
    return f"array_has_any(facts, [{', '.join(map(_quoted, facts))}])"


def _value(kind: str, name: str) -> str:
    """The number or text of a name; null if there is none."""
    return f"array_element({kind}s, CAST(array_position({kind}_names, {_quoted(_escaped(name))}) AS BIGINT))"


def _joined(word: str, parts: Sequence[str]) -> str:
    if not parts:
        return "true" if word == "AND" else "false"
    return parts[0] if len(parts) == 1 else f"({f' {word} '.join(parts)})"


def _quoted(text: str) -> str:
    if not _is_unicode(text):
        raise _Beyond
    return "'" + text.replace("'", "''") + "'"


# --- rows that pass --------------------------------------------------------------------------------------------------


def passing(dataset: LanceDataset, condition: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """The rows whose metadata passes a filter, by exactly the rules of `matches`, in the order of the table.

    Args:
        dataset: A table with the columns of `predicate_fields` and ``metadata`` as JSON, none of them null.
        condition: As in `clara_core.retrieval.filters`.
        columns: Columns to return; ``_rowid`` is added.

    Raises:
        TypeError, ValueError: The filter is invalid.
    """
    check_filter(condition)
    sql = to_sql(condition)
    judged = dataset.scanner(
        columns=[*columns, *{"metadata"}.difference(columns)],
        filter="odd" if sql is not None else _possible(condition),
        with_row_id=True,
    )
    seen: list[pa.Array] = []
    kept = [_passing(batch, condition, seen) for batch in judged.to_batches()]
    found = pa.Table.from_batches(kept, judged.projected_schema).select([*columns, "_rowid"])
    if sql is None:
        return found
    # Not "NOT odd AND …": no index covers that column, so every row that passes would have to be read.
    plain = dataset.to_table(columns=list(columns), filter=sql, with_row_id=True)
    if not seen:
        return plain
    odd = pc.is_in(plain["_rowid"], pa.concat_arrays(seen))
    return pa.concat_tables([plain.filter(pc.invert(odd)), found]).sort_by("_rowid")


def _passing(batch: pa.RecordBatch, condition: Mapping[str, Any], seen: list[pa.Array]) -> pa.RecordBatch:
    """The rows of a batch that pass; adds the row ids of the whole batch to `seen`."""
    seen.append(batch.column("_rowid"))
    judged = [matches(condition, metadata_from_json(text)) for text in batch.column("metadata").to_pylist()]
    return batch.filter(pa.array(judged, pa.bool_()))


def _possible(condition: Mapping[str, Any]) -> str:
    """A predicate that holds for every row that may pass a filter: the part of it that can be expressed."""
    parts = (to_sql({name: value}) for name, value in condition.items())
    return f"odd OR {_joined('AND', [part for part in parts if part is not None])}"
