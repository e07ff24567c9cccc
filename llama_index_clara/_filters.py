"""Converts LlamaIndex's metadata filters to filters of the core, which the store evaluates in its table.

They have the meaning of `llama_index.core.vector_stores.utils.build_metadata_filter_fn`, with two differences: a
comparison of values that cannot be ordered (a number and a string) does not match instead of raising a TypeError; and
filters may be nested, which LlamaIndex refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

Filter = dict[str, Any]

_ORDERS: Final[dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]]] = {
    FilterOperator.GT: ("$gt", lambda one, other: one > other),
    FilterOperator.GTE: ("$gte", lambda one, other: one >= other),
    FilterOperator.LT: ("$lt", lambda one, other: one < other),
    FilterOperator.LTE: ("$lte", lambda one, other: one <= other),
}


def core_filter(filters: MetadataFilters | None) -> Filter | None:
    """Convert to a filter of `clara_core.retrieval.filters`; None if everything passes.

    Raises:
        ValueError: An operator has an invalid value, or a key begins with ``$``.
    """
    if filters is None or not filters.filters:
        return None
    parts = [core_filter(part) or {} if isinstance(part, MetadataFilters) else _one(part) for part in filters.filters]
    condition = filters.condition or FilterCondition.AND
    if condition is FilterCondition.AND:
        return {"$and": parts}
    return {"$or": parts} if condition is FilterCondition.OR else {"$not": {"$or": parts}}


def _one(part: MetadataFilter) -> Filter:
    key, value, operator = part.key, part.value, part.operator
    if key.startswith("$"):
        raise ValueError(f"a metadata key that begins with $ cannot be used in a filter, got {key!r}; rename it")
    if operator is FilterOperator.IS_EMPTY:
        return {"$or": [{key: {"$exists": False}}, {key: {"$in": [None, "", []]}}]}
    if operator is FilterOperator.NE:
        return {"$or": [_absent(key), {"$not": _equal(key, [value])}]}
    if operator is FilterOperator.NIN:
        return {"$or": [_absent(key), {"$not": _equal(key, _listed(part))}]}
    return {"$and": [{"$not": _absent(key)}, _of_present(part)]}


def _of_present(part: MetadataFilter) -> Filter:
    """The condition for a value that exists."""
    key, value, operator = part.key, part.value, part.operator
    if operator is FilterOperator.EQ:
        return _equal(key, [value])
    if operator is FilterOperator.IN:
        return _equal(key, _listed(part))
    if operator in _ORDERS:
        return _ordered(key, operator, value)
    if operator is FilterOperator.CONTAINS:
        return _contains(key, value)
    if operator is FilterOperator.ALL:
        return {"$and": [_contains(key, member) for member in _listed(part)]}
    if operator is FilterOperator.ANY:
        return {"$or": [_contains(key, member) for member in _listed(part)]}
    if not isinstance(value, str):
        raise ValueError(f"{operator.value} for {key!r} takes a string, got {value!r:.60}")  # noqa: TRY004
    if operator is FilterOperator.TEXT_MATCH:
        return {key: {"$contains": value, "$gte": ""}}  # the second operator excludes lists
    return {key: {"$icontains": value}}


def _absent(key: str) -> Filter:
    """Whether the value is None or missing, which LlamaIndex does not distinguish."""
    return {"$or": [{key: {"$exists": False}}, {key: None}]}


def _equal(key: str, values: Iterable[Any]) -> Filter:
    """The value equals one of the values."""
    return {key: {"$in": [same for value in values for same in _same(value)]}}


def _contains(key: str, value: Any) -> Filter:
    return {"$or": [{key: {"$contains": same}} for same in _same(value)]}


def _same(value: Any) -> list[Any]:
    """The values that equal a value by Python's rule ``True == 1``."""
    return [value, *(truth for truth in (False, True) if truth == value)]


def _ordered(key: str, operator: FilterOperator, value: Any) -> Filter:
    sign, compare = _ORDERS[operator]
    if not isinstance(value, int | float):
        return {key: {sign: value}}
    truths = [truth for truth in (False, True) if compare(truth, value)]
    return {"$or": [{key: {sign: value}}, {key: {"$in": truths}}]}


def _listed(part: MetadataFilter) -> list[Any]:
    if not isinstance(part.value, list):
        raise ValueError(f"{part.operator.value} for {part.key!r} takes a list, got {part.value!r:.60}")  # noqa: TRY004
    return part.value
