"""Queries and filters of ClaraVectorStore, compared with LlamaIndex's own store and filter evaluator."""

from __future__ import annotations

import pytest
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from llama_index_clara import ClaraEmbedding, ClaraVectorStore
from tests.llama_index.conftest import ask, filled, rounding
from tests.llama_index.doubles import QUESTION, needs_filters_of_today, nodes, unit

VALUES = (1907, 0.5, "Aln", "", ["bridge"], ["bridge", "river"], [1907], None)


def outcome(call):
    """The result of a call, or the type of its error."""
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - LlamaIndex decides which errors are right
        return type(exc)


# -- queries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 3, 8, 100])
def test_same_order_and_scores_as_the_simple_store(pair, length, top_k):
    ours, theirs = (ask(store, length, similarity_top_k=top_k) for store in pair)
    assert ours.ids == theirs.ids
    assert ours.similarities == pytest.approx(theirs.similarities, abs=rounding(pair[0]))
    assert [node.node_id for node in ours.nodes] == ours.ids
    assert all(type(score) is float and -1 <= score <= 1 for score in ours.similarities)


def test_top_k_of_zero_and_empty_store(store, pair, length, model):
    assert ask(store, length, similarity_top_k=0).ids == []
    for mode in ("default", "mmr", "text_search", "hybrid"):
        found = ask(ClaraVectorStore(model=model), length, query_str=QUESTION, mode=mode)
        assert (found.nodes, found.similarities, found.ids) == ([], [], [])


@pytest.mark.parametrize("threshold", [None, 0.01, 0.3, 1.0])
def test_mmr_is_that_of_llama_index(pair, length, threshold):
    store, simple = pair
    query = VectorStoreQuery(unit(QUESTION, length), 5, mode=VectorStoreQueryMode.MMR)
    ours, theirs = (each.query(query, mmr_threshold=threshold) for each in (store, simple))
    assert ours.ids == theirs.ids
    assert ours.similarities == pytest.approx(theirs.similarities, abs=rounding(store))


def test_mmr_threshold_of_the_query_and_its_bounds(pair, length):
    store, simple = pair
    found = ask(store, length, similarity_top_k=4, mode="mmr", mmr_threshold=0.2)
    vectors = list(simple.data.embedding_dict.values())
    assert found.ids == get_top_k_mmr_embeddings(
        unit(QUESTION, length), vectors, similarity_top_k=4, embedding_ids=list(simple.data.embedding_dict),
        mmr_threshold=0.2,
    )[1]  # fmt: skip
    with pytest.raises(ValueError, match=r"\[0, 1\], got 2"):
        ask(store, length, mode="mmr", mmr_threshold=2)


def test_text_search_finds_words_best_first(store):
    store.add(nodes())
    found = store.query(VectorStoreQuery(query_str="bridge over the ALN?", mode="text_search", similarity_top_k=5))
    assert found.ids[0] == "n-1"
    assert found.similarities == sorted(found.similarities, reverse=True)
    assert all(score > 0 for score in found.similarities)
    store.delete_nodes(["n-1"])
    again = store.query(VectorStoreQuery(query_str="Aln", mode="text_search", similarity_top_k=5))
    assert again.ids == []


def test_text_search_is_bm25(plain):
    from bm25s import BM25

    texts = ["red red fox", "red dog", "blue dog and a fox in a long line of words", "nothing"]
    plain.add([TextNode(id_=str(i), text=text) for i, text in enumerate(texts)])
    oracle = BM25(method="lucene", k1=0.6, b=0.75)
    oracle.index([text.split() for text in texts], show_progress=False)
    expected = oracle.get_scores(["red", "fox"]) * 1.6  # Lucene omits the constant factor k1 + 1
    found = plain.query(VectorStoreQuery(query_str="red fox", mode="text_search", similarity_top_k=9))
    assert dict(zip(found.ids, found.similarities, strict=True)) == pytest.approx(
        {str(i): score for i, score in enumerate(expected) if score > 0}, rel=1e-4
    )


def test_hybrid_is_both(store, engine, length):
    store.add(nodes())
    vectors = ask(store, length, similarity_top_k=5).ids
    words = store.query(VectorStoreQuery(query_str="Brandt clocks", mode="text_search", similarity_top_k=5)).ids
    both = {"query_str": "Brandt clocks", "mode": "hybrid", "similarity_top_k": 5}
    assert ask(store, length, alpha=1.0, **both).ids == vectors
    assert ask(store, length, alpha=0.0, **both).ids == words == ["n-4"]
    fused = ask(store, length, **both)
    assert set(fused.ids) == set(vectors)
    assert fused.similarities[0] <= 1.0
    assert fused.similarities == sorted(fused.similarities, reverse=True)
    assert ask(store, length, alpha=0.01, **both).ids[0] == "n-4"
    assert len(ask(store, length, hybrid_top_k=2, **both).ids) == 2
    with pytest.raises(ValueError, match="alpha"):
        ask(store, length, alpha=1.5, **both)


@pytest.mark.parametrize("mode", ["sparse", "svm", "semantic_hybrid", "linear_regression"])
def test_modes_that_are_not_offered_are_an_error(store, length, mode):
    with pytest.raises(ValueError, match="default, mmr, text_search, hybrid"):
        ask(store, length, mode=mode)


def test_question_as_text_is_read_by_the_reasoner(store, model):
    store.add(nodes())
    vector = ClaraEmbedding(model=model).get_query_embedding(QUESTION)
    by_vector = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=5))
    by_text = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=5, mode="hybrid", alpha=1.0))
    assert by_text.ids == by_vector.ids
    both = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=5))
    fused = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=5, mode="hybrid"))
    assert (both.ids, both.similarities) == (fused.ids, fused.similarities)
    with pytest.raises(ValueError, match="query_str="):
        store.query(VectorStoreQuery())


@pytest.mark.parametrize("vector", [[0.0], [1.0] * 7])
def test_question_of_another_length(store, vector):
    store.add(nodes(1))
    with pytest.raises(ValueError, match=f"{len(vector)} numbers"):
        store.query(VectorStoreQuery(query_embedding=vector))


def test_zero_question(store, length):
    with pytest.raises(ValueError, match="zero"):
        store.query(VectorStoreQuery(query_embedding=[0.0] * length))


# -- which nodes -----------------------------------------------------------------------------------


@needs_filters_of_today
@pytest.mark.parametrize("operator", list(FilterOperator))
@pytest.mark.parametrize("key", ["year", "place", "tags", "ratio", "note", "when", "missing", "ref_doc_id"])
def test_every_operator_filters_as_llama_index_does(plain_pair, length, operator, key):
    for value in VALUES:
        try:
            filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
        except ValueError:
            continue
        ours, theirs = (
            outcome(lambda store=store: sorted(ask(store, length, similarity_top_k=9, filters=filters).ids))  # noqa: B023
            for store in plain_pair
        )
        # Values without an order do not match here, and an invalid value for an operator is an error.
        assert ours == theirs or theirs is TypeError or ours is ValueError, (operator, key, value)


@needs_filters_of_today
@pytest.mark.parametrize("condition", [*FilterCondition, None])
def test_every_condition_filters_as_llama_index_does(plain_pair, length, condition):
    several = [
        MetadataFilter(key="year", value=1907),
        MetadataFilter(key="place", value="aln", operator=FilterOperator.TEXT_MATCH_INSENSITIVE),
    ]
    for chosen in ([], several[:1], several):
        filters = MetadataFilters(filters=chosen, condition=condition)
        ours, theirs = (
            outcome(lambda store=store: sorted(ask(store, length, similarity_top_k=9, filters=filters).ids))  # noqa: B023
            for store in plain_pair
        )
        assert ours == theirs
    inner = MetadataFilters(filters=several)
    nested = MetadataFilters(filters=[inner, MetadataFilter(key="place", value="Aln")], condition="or")
    assert sorted(ask(plain_pair[0], length, similarity_top_k=9, filters=nested).ids) == ["n-0", "n-4"]


@needs_filters_of_today
def test_filters_of_a_store_in_a_folder(model, length, tmp_path):
    """`test_filters` tests the result of `core_filter`; this tests that the store uses it."""
    store, simple = filled(ClaraVectorStore(model=model, uri=str(tmp_path / "memories")), model, length)
    answered = 0
    for operator in FilterOperator:
        for key, value in (("year", 1907), ("place", "Aln"), ("tags", ["bridge", "river"]), ("ratio", 0.5)):
            for condition in FilterCondition:
                several = [
                    MetadataFilter(key=key, value=value, operator=operator),
                    MetadataFilter(key="year", value=1950),
                ]
                filters = MetadataFilters(filters=several, condition=condition)
                ours, theirs = (
                    outcome(lambda store=store: sorted(ask(store, length, similarity_top_k=9, filters=filters).ids))  # noqa: B023
                    for store in (store, simple)
                )
                if theirs is not TypeError and ours is not ValueError:  # no order, no list
                    assert ours == theirs, (operator, key, value, condition)
                    answered += 1
                    assert sorted(node.node_id for node in store.get_nodes(filters=filters)) == ours
    assert answered > 80
    store.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="year", value=1907)]))
    assert [node.node_id for node in store.get_nodes()] == ["n-1", "n-2", "n-3", "n-5", "n-6", "n-7"]


@pytest.mark.parametrize("none", [None, []])
def test_no_ids_is_no_filter(pair, length, none):
    store, _ = pair
    assert len(ask(store, length, similarity_top_k=9, node_ids=none, doc_ids=none).ids) == 8


def test_ids_filter(pair, length):
    store, _ = pair
    assert sorted(ask(store, length, similarity_top_k=9, node_ids=["n-3", "n-1", "?"]).ids) == ["n-1", "n-3"]
    assert sorted(ask(store, length, similarity_top_k=9, doc_ids=["doc-2", "doc-5"]).ids) == ["n-2", "n-5"]
    assert ask(store, length, similarity_top_k=9, node_ids=["n-3"], doc_ids=["doc-2"]).ids == []
    assert ask(store, length, similarity_top_k=9, node_ids=["?"]).ids == []
    words = ask(store, length, similarity_top_k=9, node_ids=["n-1"], query_str="bridge note", mode="text_search")
    assert words.ids == ["n-1"]
