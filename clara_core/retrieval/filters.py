"""Metadata filters of a search, as nested dicts.

    {"town": "Aln"}                                    equality; several names must all match
    {"year": {"$gte": 1900, "$lt": 1950}}              operators; several must all match
    {"$or": [{"town": {"$in": ["Aln", "Wye"]}}, {"draft": {"$exists": False}}]}

Operators: ``$eq $ne $gt $gte $lt $lte $in $nin $contains $icontains $exists`` on a value; ``$and $or $not`` on filters.
A missing value equals nothing and has no order, so only ``$ne``, ``$nin``, ``$not`` and ``$exists: False`` match it.
Values of different types (a number and a string, a number and a bool) are unequal and have no order. ``$contains``
matches a list with the value as a member or a string with the value as a substring; ``$icontains`` matches a substring
without regard to case.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from clara_core.common.suggest import nearest_or_all

_MISSING: Final = object()


def check_filter(condition: Mapping[str, Any]) -> None:
    """Validate a filter before a search.

    Raises:
        TypeError: A filter is not a dict, or an operator's value has a wrong type.
        ValueError: An operator is unknown; the message names the closest one.
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
            raise ValueError(f"unknown operator {name!r} on filters{nearest_or_all(name, ('$and', '$or', '$not'))}")
        elif is_operators(value):
            _check_operators(name, value)


def matches(condition: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Whether metadata matches a valid filter. An empty filter matches everything."""
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
    """Whether the value of a name in a filter is a dict of operators instead of a value to compare with."""
    return isinstance(value, Mapping) and any(isinstance(key, str) and key.startswith("$") for key in value)


def _check_operators(name: str, operators: Mapping[str, Any]) -> None:
    for sign, operand in operators.items():
        if sign not in _OPERATORS:
            raise ValueError(f"unknown operator {sign!r} for {name!r}{nearest_or_all(sign, _OPERATORS)}")
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
        # For example a number and a string, dates with and without a time zone, a decimal and NaN.
        except (TypeError, ArithmeticError):
            return False

    return holds


def _in(found: Any, values: Collection[Any]) -> bool:
    return any(_equal(found, value) for value in values)


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    return isinstance(found, list | tuple | set | frozenset) and any(_equal(member, value) for member in found)


def _contains_any_case(found: Any, value: Any) -> bool:
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
    "$icontains": _contains_any_case,
    "$exists": lambda found, value: (found is not _MISSING) == value,
}
