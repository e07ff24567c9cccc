"""Translates LangChain's structured queries to the filter language of the stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

_COMPARATORS: Final = {
    Comparator.EQ: "$eq",
    Comparator.NE: "$ne",
    Comparator.GT: "$gt",
    Comparator.GTE: "$gte",
    Comparator.LT: "$lt",
    Comparator.LTE: "$lte",
    Comparator.IN: "$in",
    Comparator.NIN: "$nin",
    Comparator.CONTAIN: "$contains",
}
_DATES: Final = ("date", "datetime")


class ClaraTranslator(Visitor):
    """Translates a structured query (from "reports of 1907 about bridges") to a question and a ``filter=``.

    The filters are those of `clara_core.retrieval.filters`, which `ClaraVectorStore` and `ClaraRetriever` take. Dates
    become ISO strings (``"1907-05-01"``), so metadata should hold dates in that form. Patterns are not supported, so
    ``like`` is not among the comparators offered to the language model.

    Example:
        ```python
        SelfQueryRetriever.from_llm(
            llm, store, "Reports", attributes, structured_query_translator=ClaraTranslator(), enable_limit=True
        )
        ```
    """

    allowed_comparators = tuple(_COMPARATORS)
    allowed_operators = (Operator.AND, Operator.OR, Operator.NOT)

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """Translate filters joined by and, or, not.

        Raises:
            ValueError: There is nothing to join, or not exactly one filter to negate.
        """
        self._validate_func(operation.operator)
        parts = [part.accept(self) for part in operation.arguments]
        if not parts or (operation.operator is Operator.NOT and len(parts) > 1):
            raise ValueError(f"the operator {operation.operator.value!r} cannot take {len(parts)} filters")
        if operation.operator is Operator.NOT:
            return {"$not": parts[0]}
        return {f"${operation.operator.value}": parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """Translate the filter of one attribute."""
        self._validate_func(comparison.comparator)
        value = _plain(comparison.value)
        if comparison.comparator in (Comparator.IN, Comparator.NIN) and not isinstance(value, list):
            value = [value]
        return {comparison.attribute: {_COMPARATORS[comparison.comparator]: value}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """The remaining question, and the ``filter=`` of the search if there is one."""
        if structured_query.filter is None:
            return structured_query.query, {}
        return structured_query.query, {"filter": structured_query.filter.accept(self)}


def _plain(value: Any) -> Any:
    """A value in the form of metadata: dates as ISO strings, sequences as lists."""
    if isinstance(value, Mapping) and value.get("type") in _DATES:
        return value[value["type"]]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
