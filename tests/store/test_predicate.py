"""Predicates of a real Lance table, compared with `clara_core.retrieval.filters.matches`."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

import lance
import pyarrow as pa

from clara_core.retrieval.filters import matches
from clara_core.store.predicate import _possible, passing, predicate_fields, predicate_values, to_sql

NAMES = ("town", "we'ird", 'quo"ted', "a.b", "with space", "größe", "\ud800", "', true) --", "", "$notes", "\x00")
NUMBERS = (0, 1, -1, 2, 1.0, 0.5, -0.0, 0.1, 1e300, 1e-300, 5e-324, math.inf, -math.inf, math.nan)
LARGE = (2**53, 2**53 + 1, 2.0**53, -(2**53) - 1, 2**63, 2**64 - 1, 10**30, 10**400)
TEXTS = ("", "a", "Aln", "aln", "Al", "1", "true", "null", "2020-01-01", "2020-01-02", "é", "e\u0301", "\uffff", "🙂",
         "\ud800", "\x00", "'; DROP TABLE memories; --", "%", "_", "\\", "a\nb", '["town"]', "x" * 200)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(LARGE), st.sampled_from(TEXTS),
    st.integers(-3, 3), st.floats(width=32), st.text(max_size=4),
)  # fmt: skip
names = st.sampled_from(NAMES)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "'"]), inner, max_size=2)
    ),
    max_leaves=4,
)
metadatas = st.dictionaries(names, values, max_size=3)
comparisons = st.one_of(
    values,
    st.dictionaries(
        st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains", "$icontains"]),
        values,
        min_size=1,
        max_size=2,
    ),
    st.builds(lambda sign, some: {sign: some}, st.sampled_from(["$in", "$nin"]), st.lists(values, max_size=3)),
    st.builds(lambda truth: {"$exists": truth}, st.booleans()),
)
filters = st.recursive(
    st.dictionaries(names.filter(lambda name: not name.startswith("$")), comparisons, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


def table(folder, rows):
    """A Lance table of metadata, as the store writes it."""
    written = [json.loads(json.dumps(row)) for row in rows]
    schema = pa.schema([pa.field("n", pa.int64()), pa.field("metadata", pa.string()), *predicate_fields()])
    columns = [{"n": n, "metadata": json.dumps(row), **predicate_values(row)} for n, row in enumerate(written)]
    return lance.write_dataset(pa.Table.from_pylist(columns, schema), str(folder), mode="overwrite")


def found(dataset, condition):
    return passing(dataset, condition, ["n"])["n"].to_pylist()


def expected(rows, condition):
    return [n for n, row in enumerate(rows) if matches(condition, json.loads(json.dumps(row)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predicate") / "table"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One row for every difficult value, and a row without metadata."""
    single = [*NUMBERS, *LARGE, *TEXTS, None, True, False]
    nested = [[], {}, [1], [True], [[True]], [[1]], {"a": 1}, {"a": True}, {"a": 1.0}, [math.nan], ["a", None], "ab"]
    rows = [{}, *({"x": value} for value in (*single, *nested)), *({name: 1} for name in NAMES)]
    rows += [{"x": [value]} for value in single]
    return rows, table(tmp_path_factory.mktemp("predicate") / "everything", rows)


@settings(max_examples=150, deadline=None)
@given(st.lists(metadatas, min_size=1, max_size=6), st.lists(filters, min_size=1, max_size=4))
@example([{"a.b": 2**53 + 1}], [{"a.b": {"$gt": 2**53}}])
def test_any_filter_on_any_metadata(folder, rows, conditions):
    dataset = table(folder, rows)
    for condition in conditions:
        assert found(dataset, condition) == expected(rows, condition), (condition, to_sql(condition))


@pytest.mark.parametrize("sign", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$contains", "$icontains"])
def test_every_operator_on_every_value(everything, sign):
    rows, dataset = everything
    for operand in (*NUMBERS, *LARGE, *TEXTS, None, True, False, [], {}, [1], [True], [1.0], {"a": 1}, [math.nan]):
        condition = {"x": {sign: operand}}
        assert found(dataset, condition) == expected(rows, condition), (condition, to_sql(condition))


@pytest.mark.parametrize("name", NAMES[:9])
def test_every_name(everything, name):
    rows, dataset = everything
    for condition in ({name: 1}, {name: {"$exists": True}}, {name: {"$exists": False}}, {name: {"$lt": 2}}):
        assert found(dataset, condition) == expected(rows, condition)


@pytest.mark.parametrize(
    "operand", [Decimal(1), datetime(2020, 1, 1, tzinfo=UTC), (1,), {1: 2}, frozenset([1]), 10**5000], ids=type
)
def test_operands_that_json_does_not_have(everything, operand):
    rows, dataset = everything
    for condition in ({"x": operand}, {"x": {"$gte": operand}}, {"$not": {"x": {"$in": [operand, "a"]}}}):
        assert to_sql(condition) is None
        assert found(dataset, condition) == expected(rows, condition)


@pytest.mark.parametrize("parts", [50, 2_000])
def test_filters_of_many_parts(everything, parts):
    rows, dataset = everything
    several = [{"x": {"$lt": -number}} for number in range(parts)]
    for condition in ({"$or": [*several, {"x": "a"}]}, {"x": {"$in": [*map(str, range(2, parts)), "a"]}}):
        assert found(dataset, condition) == expected(rows, condition)


@pytest.mark.parametrize("depth", [3, 6, 40])
def test_deep_filters(everything, depth):
    rows, dataset = everything
    condition = {"x": {"$gt": 0}}
    for _ in range(depth):
        condition = {"$not": {"$and": [condition, {"x": {"$exists": True}}]}}
    assert found(dataset, condition) == expected(rows, condition)


def test_an_index_on_the_facts_changes_nothing(tmp_path):
    rows = [{"n": number % 7, "tags": [str(number % 3)], "big": 2**60 + number} for number in range(300)]
    dataset = table(tmp_path / "indexed", rows)
    dataset.create_scalar_index("facts", "LABEL_LIST")
    dataset = lance.dataset(str(tmp_path / "indexed"))
    for condition in (
        {"n": 3},
        {"n": {"$ne": 3}},
        {"n": {"$in": [1, 2]}, "tags": {"$contains": "1"}},
        {"$or": [{"n": 0}, {"n": {"$gt": 4}}]},
        {"$not": {"missing": 1}},
        {"big": {"$gt": 2**60 + 150}},
    ):
        assert found(dataset, condition) == expected(rows, condition)


def test_rows_that_come_and_go_after_the_index(tmp_path):
    folder = str(tmp_path / "later")
    rows = [{"n": number % 7, "tags": [str(number % 3)]} for number in range(60)]
    table(folder, rows[:40]).create_scalar_index("facts", "LABEL_LIST")
    columns = [{"n": n, "metadata": json.dumps(row), **predicate_values(row)} for n, row in enumerate(rows)]
    dataset = lance.dataset(folder)
    dataset.insert(pa.Table.from_pylist(columns[40:], dataset.schema))
    dataset = lance.dataset(folder)
    dataset.delete("n % 5 = 0")
    for condition in (
        {"n": 3},
        {"n": {"$ne": 3}},
        {"tags": {"$contains": "1"}},
        {"$not": {"tags": {"$contains": "1"}}},
    ):
        assert found(dataset, condition) == [n for n in expected(rows, condition) if n % 5]


def test_a_part_that_cannot_be_pushed_down_leaves_the_rest(tmp_path):
    rows = [{"town": "Aln" if number == 3 else "Wye", "name": f"Note {number}"} for number in range(10)]
    dataset = table(tmp_path / "part", rows)
    condition = {"town": "Aln", "name": {"$icontains": "nOTE"}}
    assert found(dataset, condition) == [3]
    assert dataset.count_rows(_possible(condition)) == 1


def test_what_is_pushed_down():
    condition = {"town": "Aln", "year": {"$gte": 1900, "$lt": 1950}, "$or": [{"tags": {"$contains": "a'b"}}]}
    assert to_sql(condition) == (
        """(array_has(facts, '["town","Aln"]') AND """
        """(coalesce(array_element(numbers, CAST(array_position(number_names, '"year"') AS BIGINT)) >= """
        """CAST('1900.0' AS DOUBLE), false) AND coalesce(array_element(numbers, """
        """CAST(array_position(number_names, '"year"') AS BIGINT)) < CAST('1950.0' AS DOUBLE), false)) AND """
        """(array_has(facts, '["tags","has","a''b"]') OR coalesce(contains(array_element(texts, """
        """CAST(array_position(text_names, '"tags"') AS BIGINT)), 'a''b'), false)))"""
    )


def test_a_filter_that_is_none(everything):
    with pytest.raises(ValueError, match=r"did you mean '\$gte'"):
        passing(everything[1], {"x": {"$gte ": 1}}, ["n"])
