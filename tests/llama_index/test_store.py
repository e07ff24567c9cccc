"""ClaraVectorStore, with LlamaIndex's own store and filter evaluator as the oracle."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from clara_core import FingerprintMismatch
from llama_index_clara import ClaraEmbedding, ClaraVectorStore
from tests.llama_index.doubles import QUESTION, TEXTS, needs_filters_of_today, nodes, unit
from tests.tiny import build

METADATA = (
    {"year": 1907, "place": "Aln", "tags": ["bridge", "river"], "ratio": 0.5, "open": True},
    {"year": 1950, "place": "Bristol", "tags": [], "note": ""},
    {"year": "1907", "place": "aln valley", "tags": ["bridge"], "when": None},
    {},
)
VALUES = (1907, 0.5, "Aln", "", ["bridge"], ["bridge", "river"], [1907], None)


@pytest.fixture(scope="module")
def length(engine):
    return engine.dimension


@pytest.fixture(params=["memory", "durable"])
def store(request, model, engine, tmp_path):
    """A store in this process, and one in a folder."""
    if request.param == "memory":
        yield ClaraVectorStore(model=model)
    else:
        yield ClaraVectorStore(model=model, uri=tmp_path / "memories")
        engine.cache.clear()  # of memories that were written in fewer bits and read again


@pytest.fixture
def plain(model):
    """A store of vectors of any embedding."""
    return ClaraVectorStore(model=model, dimensions=ClaraVectorStore(model=model).engine.dimension)


@pytest.fixture
def pair(store, model, length):
    """Our store and LlamaIndex's, with the same eight nodes under the same vectors."""
    return filled(store, model, length)


@pytest.fixture
def plain_pair(plain, model, length):
    return filled(plain, model, length)


def filled(store, model, length):
    """Vectors are made up, where any can be kept."""
    simple = SimpleVectorStore()
    given = nodes(8)
    for number, node in enumerate(given):
        node.metadata = dict(METADATA[number % len(METADATA)])
        node.excluded_embed_metadata_keys = list(node.metadata)
        node.embedding = unit(node.node_id, length)
    given = given if store.dimensions is not None else ClaraEmbedding(model=model)(given)
    for each in (store, simple):
        assert each.add(given) == [node.node_id for node in given]
    return store, simple


def rounding(store):
    """What a cosine may differ by: a store in a folder writes bfloat16."""
    return 1e-5 if store.uri is None else 4e-3


def ask(store, length, **fields):
    return store.query(VectorStoreQuery(query_embedding=unit(QUESTION, length), **fields))


def outcome(call):
    """What a call gives, or the type of its error."""
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - the oracle decides which errors are right
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
    oracle = BM25(method="lucene", k1=1.5, b=0.75)
    oracle.index([text.split() for text in texts], show_progress=False)
    expected = oracle.get_scores(["red", "fox"]) * 2.5  # Lucene leaves out the constant k1 + 1
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
        # Values that have no order do not match here, and a value that an operator cannot take is an error.
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
    """What `core_filter` makes of every filter is tested beside it; here, that the store asks it."""
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


# -- writing ---------------------------------------------------------------------------------------


def test_add_takes_a_generator_and_returns_ids_in_order(store):
    assert store.add(node for node in nodes(70)) == [f"n-{number}" for number in range(70)]
    assert store.count == 70


def test_add_replaces(store, length):
    store.add(nodes(3))
    changed = nodes(1)[0]
    changed.text = "Something else about zebras."
    assert store.add([changed, changed]) == ["n-0", "n-0"]
    assert store.count == 3
    assert store.get_nodes(["n-0"])[0].text == changed.text
    assert store.query(VectorStoreQuery(query_str="zebras", mode="text_search")).ids == ["n-0"]
    assert store.query(VectorStoreQuery(query_str="Weldenia", mode="text_search")).ids == []
    fresh = ClaraVectorStore(engine=store.engine)
    fresh.add([changed])
    ours, theirs = (each.query(VectorStoreQuery(query_str=QUESTION, node_ids=["n-0"])) for each in (store, fresh))
    assert ours.similarities == pytest.approx(theirs.similarities, abs=rounding(store))


def test_deleting(pair):
    store, simple = pair
    for each in (store, simple):
        each.delete("doc-1")
        each.delete("unknown")
        each.delete_nodes(["n-0", "n-7", "unknown"])
        each.delete_nodes(["n-2", "n-3"], MetadataFilters(filters=[MetadataFilter(key="place", value="aln valley")]))
    assert (
        [node.node_id for node in store.get_nodes()] == list(simple.data.embedding_dict) == ["n-3", "n-4", "n-5", "n-6"]
    )
    store.delete_nodes([])
    assert store.count == 4
    with pytest.raises(ValueError, match=r"clear\(\) empties"):
        store.delete_nodes()
    store.clear()
    assert store.get_nodes() == []
    store.delete("doc-3")


def test_freed_room_is_used_again(plain):
    for _ in range(20):
        plain.add(nodes(40))
        plain.delete_nodes([f"n-{number}" for number in range(40)])
    assert plain.client._backend.latest().size <= 3 * 40


def test_get_nodes_in_the_order_asked_for(pair):
    store, _ = pair
    filters = MetadataFilters(filters=[MetadataFilter(key="year", value=1907)])
    assert [node.node_id for node in store.get_nodes(["n-4", "?", "n-1", "n-0"])] == ["n-4", "n-1", "n-0"]
    assert [node.node_id for node in store.get_nodes(["n-4", "n-1", "n-0"], filters)] == ["n-4", "n-0"]
    assert [node.node_id for node in store.get_nodes(filters=filters)] == ["n-0", "n-4"]
    assert store.get_nodes([]) == []


BAD = {
    "another length": lambda length: [1.0] * (length - 1),
    "NaN": lambda length: [math.nan] * length,
    "infinity": lambda length: [math.inf] + [0.0] * (length - 1),
    "too large": lambda length: [1e300] * length,
    "zero": lambda length: [0.0] * length,
}


@pytest.mark.parametrize("kind", BAD)
def test_vectors_that_cannot_be_searched_are_refused_whole(store, length, kind):
    given = nodes(3)
    given[2].embedding = BAD[kind](length)
    store.add(nodes(1))
    with pytest.raises(ValueError, match="node 'n-2'"):
        store.add(given)
    assert store.count == 1


def test_error_about_a_foreign_embedding_says_what_to_do(store, length):
    given = nodes(1)
    given[0].embedding = [0.5] * 8
    with pytest.raises(ValueError, match=rf"8 numbers.*{length}.*ClaraEmbedding"):
        store.add(given)


# -- memories --------------------------------------------------------------------------------------


def long_node():
    return TextNode(id_="long", text=" ".join(f"Sentence {number} speaks of the town." for number in range(30)))


@pytest.mark.parametrize("how", ["compressed here", "embedded before", "given"])
def test_memories_come_back_whole(store, model, engine, how):
    given = [*nodes(2), long_node()]
    expected = engine.remember([node.get_content() for node in given])
    if how == "embedded before":
        given = ClaraEmbedding(model=model)(given)
    store.add(given, memories=expected if how == "given" else None)
    engine.cache.clear()
    memories = store.memories(["n-0", "n-1", "long"])
    for memory, wanted in zip(memories, expected, strict=True):
        assert np.allclose(memory.tokens.float(), wanted.tokens, atol=1e-4 if store.uri is None else 2e-2)
        assert (memory.text, memory.spans, memory.source_tokens) == (wanted.text, wanted.spans, wanted.source_tokens)
    assert len(memories[2].spans) > 2
    assert engine.cache.misses == 0  # nothing was compressed again
    with pytest.raises(KeyError, match="no node '\\?'"):
        store.memories(["?"])


def test_long_node_scores_by_its_best_window(store, engine):
    store.add([long_node()])
    memory = engine.remember([long_node().text])[0]
    found = store.query(VectorStoreQuery(query_embedding=engine.reason([QUESTION]).flatten().tolist()))
    assert found.similarities[0] == pytest.approx(engine.score([QUESTION], [memory]).item(), abs=10 * rounding(store))


def test_vector_that_is_no_memory_is_searched_as_it_is(plain, engine, length):
    given = nodes(1)
    given[0].embedding = unit("anything", length)
    engine.remember([TEXTS[0]])  # known to the engine, and another one
    plain.add(given)
    found = plain.query(VectorStoreQuery(query_embedding=unit("anything", length)))
    assert found.similarities[0] == pytest.approx(1.0, abs=1e-5)
    assert plain.memories(["n-0"])[0].text == TEXTS[0]


def test_query_leaves_memories_for_the_reranker(store, engine):
    store.add(nodes())
    engine.cache.clear()
    found = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=2))
    assert len(engine.cache) == 2
    assert engine.cache.get(found.nodes[0].get_content(), engine.fingerprint) is not None


def test_fewer_dimensions(model, engine):
    store = ClaraVectorStore(model=model, dimensions=64)
    given = ClaraEmbedding(model=model, dimensions=64)(nodes())
    store.add(given[:2])
    store.add(nodes()[2:])
    assert store.space.length == 64
    by_vector = ClaraEmbedding(model=model, dimensions=64).get_query_embedding(QUESTION)
    found = store.query(VectorStoreQuery(query_embedding=by_vector, similarity_top_k=5))
    words = VectorStoreQuery(query_str=QUESTION, similarity_top_k=5, mode="hybrid", alpha=1.0)
    assert found.ids == store.query(words).ids
    assert np.allclose(store.memories(["n-0"])[0].tokens, engine.compress([TEXTS[0]])[0].tokens, atol=1e-4)


def test_memory_of_another_model_or_text_is_refused(store, engine, tmp_path):
    from clara_core import ClaraEngine

    other = ClaraEngine.from_pretrained(str(build(tmp_path, seed=1).folder))
    with pytest.raises(FingerprintMismatch):
        store.add(nodes(1), memories=other.compress([TEXTS[0]]))
    with pytest.raises(ValueError, match="another text"):
        store.add(nodes(1), memories=engine.compress(["other"]))
    with pytest.raises(ValueError, match="more nodes than memories"):
        store.add(nodes(2), memories=engine.compress([TEXTS[0]]))
    assert store.count == 0


# -- nodes -----------------------------------------------------------------------------------------


def test_nodes_come_back_as_they_were_and_as_copies(store, length):
    node = TextNode(
        id_="a", text=TEXTS[0], metadata={"deep": {"er": [1]}, "year": 1907},
        excluded_embed_metadata_keys=["year"], excluded_llm_metadata_keys=["deep"],
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"x": 1}, hash="h"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="b"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c")],
        },
        metadata_template="{key}={value}", metadata_seperator="; ", text_template="{content} [{metadata_str}]",
        start_char_idx=3, end_char_idx=9, mimetype="text/markdown",
    )  # fmt: skip
    kept = node.model_copy(deep=True)
    store.add([node])
    assert node == kept  # ours to read, not to change
    expected = node.model_copy(update={"embedding": None})
    for _ in range(2):
        found = store.query(VectorStoreQuery(query_embedding=unit("a", length))).nodes[0]
        assert found == store.get_nodes(["a"])[0] == expected
        found.metadata["deep"]["er"].append(2)
        found.metadata["retrieval_score"] = 1.0
        found.excluded_llm_metadata_keys.append("z")
        found.relationships.clear()
        found.set_content("changed")
    node.metadata["year"] = 0
    assert store.get_nodes(["a"])[0].metadata["year"] == 1907


def test_every_class_of_node_comes_back(plain):
    class Mine(TextNode):
        colour: str = "red"

    retriever = object()
    given = [
        Mine(id_="mine", text="a", colour="blue"),
        IndexNode(id_="index", text="b", index_id="x", obj=retriever),
        ImageNode(id_="image", text="c", image_url="http://example.org/c.png"),
        Node(id_="node", text_resource=MediaResource(text="d")),
        Document(text="e", doc_id="document"),
    ]
    plain.add(given)
    back = plain.get_nodes([node.node_id for node in given])
    assert [type(node) for node in back] == [TextNode, *(type(node) for node in given[1:])]  # it knows no others
    assert back[1].obj is None  # what it points at is not data
    assert back[2].image_url == given[2].image_url
    assert [node.get_content() for node in back] == ["a", "b", "c", "d", "e"]


# -- an index over it ------------------------------------------------------------------------------


def test_index_from_vector_store(store, model):
    store.add(nodes())
    index = VectorStoreIndex.from_vector_store(store, embed_model=ClaraEmbedding(model=model))
    assert [hit.node_id for hit in index.as_retriever(similarity_top_k=5).retrieve(QUESTION)] == store.query(
        VectorStoreQuery(query_str=QUESTION, similarity_top_k=5)
    ).ids
    index.insert_nodes([TextNode(id_="new", text="A new one about zebras.")])
    assert store.count == 6
    index.delete_nodes(["new"])
    index.delete_ref_doc("doc-0")
    assert store.count == 4


# -- threads ---------------------------------------------------------------------------------------


def test_readers_never_see_half_a_write(plain, engine, length):
    batches = [nodes(20), [node.model_copy(update={"text": node.text + "!"}) for node in nodes(20)]]
    for batch in batches:
        for node in batch:
            node.embedding = unit(node.text, length)
    plain.add(batches[0])
    stop, problems = threading.Event(), []

    def read():
        while not stop.is_set():
            found = ask(plain, length, similarity_top_k=20)
            if len({node.text.endswith("!") for node in found.nodes}) != 1:
                problems.append("texts of two writes")
            for node, score in zip(found.nodes, found.similarities, strict=True):
                true = float(np.dot(unit(QUESTION, length), unit(node.text, length)))
                if abs(true - score) > 1e-4:
                    problems.append(f"{node.text!r} scored {score}, not {true}")

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(30):
        plain.add(batches[number % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems
