"""Filters on metadata, as nested dicts: what a search may return.

    {"town": "Aln"}                                    equality; several names must all match
    {"year": {"$gte": 1900, "$lt": 1950}}              operators; several must all match
    {"$or": [{"town": {"$in": ["Aln", "Wye"]}}, {"draft": {"$exists": False}}]}

Operators: ``$eq $ne $gt $gte $lt $lte $in $nin $contains $icontains $exists`` on a value; ``$and $or $not`` on filters.
A value that is missing equals nothing and is neither more nor less than anything, so only ``$ne``, ``$nin``, ``$not``
and ``$exists: False`` match where it is. Values of different kinds (a number and a string, a number and a truth value)
are unequal and have no order. ``$contains`` asks a list for a member and a string for a part; ``$icontains`` asks a
string for a part in capitals or not.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

_MISSING: Final = object()


def check_filter(condition: Mapping[str, Any]) -> None:
    """Refuse a filter that could not be meant, before anything is searched.

    Raises:
        TypeError: A filter is no dict, or an operator's value is of a kind that it cannot take.
        ValueError: An operator is unknown; names the nearest one.
    """
    if not isinstance(condition, Mapping):
        raise TypeError(f"a filter must be a dict, got {type(condition).__name__}: {condition!r:.60}")
    for name, value in condition.items():
        if name in ("$and", "$or"):
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise TypeError(f"{name} takes a list of filters, got {type(value).__name__}")
            for part in value:
                check_filter(part)
        elif name == "$not":
            check_filter(value)
        elif not isinstance(name, str) or name.startswith("$"):
            raise ValueError(f"unknown operator {name!r} of filters{_nearest(name, ('$and', '$or', '$not'))}")
        elif is_operators(value):
            _check_operators(name, value)


def matches(condition: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether metadata passes a filter (that `check_filter` accepts). An empty filter passes everything."""
    return all(_holds(name, value, metadata) for name, value in condition.items())


def _holds(name: str, value: Any, metadata: Mapping[str, Any]) -> bool:
    if name == "$and":
        return all(matches(part, metadata) for part in value)
    if name == "$or":
        return any(matches(part, metadata) for part in value)
    if name == "$not":
        return not matches(value, metadata)
    found = metadata.get(name, _MISSING)
    if is_operators(value):
        return all(_OPERATORS[sign](found, operand) for sign, operand in value.items())
    return _equal(found, value)


def is_operators(value: object) -> bool:
    """Whether what a filter says of a name is operators, not a value to be equal to."""
    return isinstance(value, Mapping) and any(isinstance(key, str) and key.startswith("$") for key in value)


def _check_operators(name: str, operators: Mapping[str, Any]) -> None:
    for sign, operand in operators.items():
        if sign not in _OPERATORS:
            raise ValueError(f"unknown operator {sign!r} for {name!r}{_nearest(sign, _OPERATORS)}")
        listed = isinstance(operand, Collection) and not isinstance(operand, str | bytes | Mapping)
        if sign in ("$in", "$nin") and not listed:
            raise TypeError(f"{sign} for {name!r} takes a list of values, got {type(operand).__name__}")
        if sign == "$exists" and not isinstance(operand, bool):
            raise TypeError(f"$exists for {name!r} takes True or False, got {operand!r:.60}")


def _equal(found: Any, value: Any) -> bool:
    if found is _MISSING or isinstance(found, bool) != isinstance(value, bool):
        return False
    return bool(found == value)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def holds(found: Any, value: Any) -> bool:
        if found is _MISSING or isinstance(found, bool) != isinstance(value, bool):
            return False
        try:
            return bool(compare(found, value))
        except (
            TypeError,
            ArithmeticError,
        ):  # a number and a string, dates of which one has a time zone, a decimal and NaN
            return False

    return holds


def _in(found: Any, values: Collection[Any]) -> bool:
    return any(_equal(found, value) for value in values)


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    return isinstance(found, list | tuple | set | frozenset) and any(_equal(member, value) for member in found)


def _contains_in_any_case(found: Any, value: Any) -> bool:
    return isinstance(found, str) and isinstance(value, str) and value.lower() in found.lower()


_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$eq": _equal,
    "$ne": lambda found, value: not _equal(found, value),
    "$gt": _ordered(operator.gt),
    "$gte": _ordered(operator.ge),
    "$lt": _ordered(operator.lt),
    "$lte": _ordered(operator.le),
    "$in": _in,
    "$nin": lambda found, values: not _in(found, values),
    "$contains": _contains,
    "$icontains": _contains_in_any_case,
    "$exists": lambda found, value: (found is not _MISSING) == value,
}


def _nearest(name: object, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
