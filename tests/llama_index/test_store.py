"""ClaraVectorStore: writing, deleting, memories, and nodes that are returned unchanged."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
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
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from clara_core import FingerprintMismatch
from llama_index_clara import ClaraEmbedding, ClaraVectorStore
from tests.llama_index.conftest import ask, rounding
from tests.llama_index.doubles import QUESTION, TEXTS, nodes, unit
from tests.tiny import build

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
    assert len(plain.client._backend.latest().matrix.rows) <= 3 * 40


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
    assert engine.cache.misses == 0  # no text was compressed again
    with pytest.raises(KeyError, match="no document with the id '\\?'"):
        store.memories(["?"])


def test_long_node_scores_by_its_best_window(store, engine):
    store.add([long_node()])
    memory = engine.remember([long_node().text])[0]
    found = store.query(VectorStoreQuery(query_embedding=engine.reason([QUESTION]).flatten().tolist()))
    assert found.similarities[0] == pytest.approx(engine.score([QUESTION], [memory]).item(), abs=10 * rounding(store))


def test_vector_that_is_no_memory_is_searched_as_it_is(plain, engine, length):
    given = nodes(1)
    given[0].embedding = unit("anything", length)
    engine.remember([TEXTS[0]])  # one in the cache of the engine, and another one
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
    assert node == kept  # the node must not be changed
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
    assert back[1].obj is None  # the object that it references is not data
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
