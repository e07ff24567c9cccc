"""Filters on metadata: a table of cases, laws of all filters, and refusals."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.retrieval.filters import check_filter, matches

METADATA = {
    "town": "Aln",
    "year": 1907,
    "ratio": 0.5,
    "draft": False,
    "tags": ["bridge", "river"],
    "none": None,
    "on": datetime(1907, 5, 1, tzinfo=UTC),
    "place": {"$id": 1},
}


@pytest.mark.parametrize(
    "condition, expected",
    [
        ({}, True),
        ({"town": "Aln"}, True),
        ({"town": "Wye"}, False),
        ({"town": "Aln", "year": 1907}, True),
        ({"town": "Aln", "year": 1908}, False),
        ({"missing": "x"}, False),
        ({"missing": None}, False),
        ({"none": None}, True),
        ({"tags": ["bridge", "river"]}, True),
        ({"tags": "bridge"}, False),
        ({"draft": 0}, False),  # False == 0 in Python
        ({"draft": False}, True),
        ({"year": {"$eq": 1907}}, True),
        ({"year": {"$eq": 1907.0}}, True),
        ({"year": {"$ne": 1907}}, False),
        ({"missing": {"$ne": 1907}}, True),
        ({"year": {"$gt": 1907}}, False),
        ({"year": {"$gte": 1907}}, True),
        ({"year": {"$lt": 1907}}, False),
        ({"year": {"$lte": 1907}}, True),
        ({"year": {"$gt": 1900, "$lt": 1910}}, True),
        ({"year": {"$gt": 1900, "$lt": 1905}}, False),
        ({"year": {"$gt": "1900"}}, False),
        ({"draft": {"$lt": 1}}, False),
        ({"missing": {"$lt": 1}}, False),
        ({"none": {"$lt": 1}}, False),
        ({"on": {"$lt": datetime(1908, 1, 1, tzinfo=UTC)}}, True),
        ({"on": {"$lt": datetime(1908, 1, 1)}}, False),  # noqa: DTZ001 - tests a date without a time zone
        ({"ratio": {"$lt": Decimal("NaN")}}, False),
        ({"ratio": {"$lt": Decimal("0.6")}}, True),
        ({"town": {"$in": ["Wye", "Aln"]}}, True),
        ({"town": {"$in": {"Wye", "Aln"}}}, True),
        ({"town": {"$in": []}}, False),
        ({"draft": {"$in": [0, 1]}}, False),
        ({"town": {"$nin": ["Wye"]}}, True),
        ({"missing": {"$nin": ["Wye"]}}, True),
        ({"tags": {"$contains": "river"}}, True),
        ({"tags": {"$contains": "riv"}}, False),
        ({"town": {"$contains": "ln"}}, True),
        ({"year": {"$contains": 1}}, False),
        ({"town": {"$contains": "al"}}, False),
        ({"town": {"$icontains": "aL"}}, True),
        ({"tags": {"$icontains": "River"}}, False),
        ({"year": {"$icontains": 1}}, False),
        ({"year": {"$exists": True}}, True),
        ({"none": {"$exists": True}}, True),
        ({"missing": {"$exists": False}}, True),
        ({"$and": [{"town": "Aln"}, {"year": {"$gt": 1900}}]}, True),
        ({"$and": []}, True),
        ({"$or": [{"town": "Wye"}, {"year": 1907}]}, True),
        ({"$or": []}, False),
        ({"$not": {"town": "Wye"}}, True),
        ({"$or": [{"town": "Wye"}, {"$and": [{"draft": False}, {"tags": {"$contains": "river"}}]}]}, True),
    ],
)
def test_cases(condition, expected):
    check_filter(condition)
    assert matches(condition, METADATA) is expected


values = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(-3, 3), st.sampled_from("abc"))
metadatas = st.dictionaries(st.sampled_from("xyz"), st.one_of(values, st.lists(values, max_size=3)), max_size=3)
comparisons = st.one_of(
    values,
    st.builds(lambda sign, value: {sign: value}, st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"]), values),
    st.builds(lambda sign, some: {sign: some}, st.sampled_from(["$in", "$nin"]), st.lists(values, max_size=3)),
)
filters = st.recursive(
    st.dictionaries(st.sampled_from("xyz"), comparisons, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(filters, filters, metadatas)
def test_laws(one, other, metadata):
    check_filter(one)
    here, there = matches(one, metadata), matches(other, metadata)
    assert matches({"$not": one}, metadata) is not here
    assert matches({"$and": [one, other]}, metadata) is (here and there)
    assert matches({"$or": [one, other]}, metadata) is (here or there)
    # De Morgan
    assert matches({"$not": {"$or": [one, other]}}, metadata) is matches(
        {"$and": [{"$not": one}, {"$not": other}]}, metadata
    )


@settings(max_examples=100, deadline=None)
@given(values, metadatas)
def test_operators_complement_each_other(value, metadata):
    def holds(sign, operand):
        return matches({"x": {sign: operand}}, metadata)

    assert holds("$ne", value) is not holds("$eq", value)
    assert holds("$nin", [value]) is not holds("$in", [value])
    assert holds("$in", [value]) is holds("$eq", value) is matches({"x": value}, metadata)
    if holds("$lt", value):
        assert holds("$lte", value)
        assert not holds("$gte", value)


@pytest.mark.parametrize(
    "condition, error, says",
    [
        ("town", TypeError, "must be a dict, got str"),
        ({"year": {"$gte ": 1}}, ValueError, r"did you mean '\$gte'"),
        ({"year": {"$regex": "a"}}, ValueError, r"\$regex"),
        ({"$nor": []}, ValueError, r"did you mean '\$or'"),
        ({"$and": {"a": 1}}, TypeError, "list of filters, got dict"),
        ({"$or": [1]}, TypeError, "got int"),
        ({"$not": [{"a": 1}]}, TypeError, "got list"),
        ({"year": {"$in": "1907"}}, TypeError, "list of values, got str"),
        ({"year": {"$exists": 1}}, TypeError, "True or False"),
        ({1: 2}, ValueError, "1"),
    ],
)
def test_refusals(condition, error, says):
    with pytest.raises(error, match=says):
        check_filter(condition)
