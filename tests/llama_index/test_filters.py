"""Translation of LlamaIndex's filters to filters of the core, compared with LlamaIndex's own evaluator."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from clara_core.retrieval.filters import check_filter, matches
from llama_index_clara._filters import core_filter
from tests.llama_index.doubles import needs_filters_of_today

TAKES_A_LIST = (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL)
TAKES_A_STRING = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)

found = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, "", "a", "A", "ab", "Ab c", "1"]),
    st.lists(st.sampled_from(["a", "ab", "A", 1, 2, True, None]), max_size=3),
)
values = st.one_of(
    st.none(),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, "", "a", "A", "ab", "1"]),
    st.lists(st.sampled_from(["a", "ab", "A"]), max_size=2),
    st.lists(st.integers(-2, 2), max_size=2),
)
filters = st.builds(
    lambda key, value, operator: MetadataFilter(key=key, value=value, operator=operator),
    st.sampled_from("xy"),
    values,
    st.sampled_from(FilterOperator),
)


@needs_filters_of_today
@settings(max_examples=500, deadline=None)
@given(
    st.lists(filters, max_size=3),
    st.sampled_from([*FilterCondition, None]),
    st.dictionaries(st.sampled_from("xy"), found),
)
def test_same_as_llama_index_wherever_it_gives_an_answer(several, condition, metadata):
    given = MetadataFilters(filters=several, condition=condition)
    try:
        expected = build_metadata_filter_fn(lambda _: metadata, given)("node")
    except TypeError:  # compares values without an order, or looks for a number in a string
        return
    try:
        translated = core_filter(given)
    except ValueError:
        assert any(
            (part.operator in TAKES_A_LIST and not isinstance(part.value, list))
            or (part.operator in TAKES_A_STRING and not isinstance(part.value, str))
            for part in several
        )
        return
    if translated is not None:
        check_filter(translated)
    assert (translated is None or matches(translated, metadata)) is expected, translated


@pytest.mark.parametrize("value", [1907, "1907", None, ["1907"]])
@pytest.mark.parametrize("found", ["Aln", 5, None, ["x"], True])
@pytest.mark.parametrize("operator", [FilterOperator.GT, FilterOperator.LTE])
def test_values_without_an_order_do_not_match(value, found, operator):
    condition = core_filter(MetadataFilters(filters=[MetadataFilter(key="x", value=value, operator=operator)]))
    try:
        expected = build_metadata_filter_fn(
            lambda _: {"x": found}, MetadataFilters(filters=[MetadataFilter(key="x", value=value, operator=operator)])
        )("node")
    except TypeError:
        expected = False
    assert matches(condition, {"x": found}) is expected


def test_nested_filters():
    bridges = MetadataFilters(filters=[MetadataFilter(key="kind", value="bridge")])
    old = MetadataFilters(
        filters=[MetadataFilter(key="year", value=1900, operator=FilterOperator.LT), bridges],
        condition=FilterCondition.OR,
    )
    condition = core_filter(MetadataFilters(filters=[old], condition=FilterCondition.NOT))
    assert [matches(condition, metadata) for metadata in ({"year": 1800}, {"kind": "bridge"}, {"year": 1950})] == [
        False,
        False,
        True,
    ]


def test_no_filters_let_everything_pass():
    assert core_filter(None) is core_filter(MetadataFilters(filters=[])) is None


@pytest.mark.parametrize("operator", [*TAKES_A_LIST, *TAKES_A_STRING])
def test_a_value_that_an_operator_cannot_take(operator):
    with pytest.raises(ValueError, match=rf"{operator.value} for 'x' takes a (list|string)"):
        core_filter(MetadataFilters(filters=[MetadataFilter(key="x", value=5, operator=operator)]))


def test_a_key_that_looks_like_an_operator():
    with pytest.raises(ValueError, match=r"'\$or'"):
        core_filter(MetadataFilters(filters=[MetadataFilter(key="$or", value=5)]))
