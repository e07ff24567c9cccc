"""The vector store with `uri=`: its special properties. `test_store` and `test_queries` test both kinds of stores."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import ImageNode, IndexNode, MediaResource, Node, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from clara_core import CheckpointError, FingerprintMismatch, StoreError
from clara_core.store import MemoryStore
from llama_index_clara import ClaraEmbedding, ClaraNodeParser, ClaraRerank, ClaraVectorStore
from tests.engines import Counter
from tests.llama_index.doubles import QUESTION, TEXTS, documents, nodes, unit
from tests.served import behind
from tests.tiny import build

ROOT = Path(__file__).parents[2]
MODES = ("default", "text_search", "hybrid", "mmr")


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "memories")


@pytest.fixture
def store(model, uri, engine):
    yield ClaraVectorStore(model=model, uri=uri)
    engine.cache.clear()  # of memories that were stored in fewer bits


def answers(store):
    queries = [VectorStoreQuery(query_str=QUESTION, similarity_top_k=5, mode=mode) for mode in MODES]
    return [[store.query(query).ids, store.query(query).similarities] for query in queries]


def test_another_process_sees_the_same(store, uri, model):
    store.add(nodes(12))
    code = f"""
import json
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index_clara import ClaraVectorStore
store = ClaraVectorStore(model={model!r}, uri={uri!r})
queries = [VectorStoreQuery(query_str={QUESTION!r}, similarity_top_k=5, mode=mode) for mode in {MODES!r}]
found = [store.query(query) for query in queries]
nodes = [node.model_dump(mode="json") for node in store.get_nodes()]
print(json.dumps([nodes, [[each.ids, each.similarities] for each in found]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    there, found = json.loads(done.stdout)
    assert there == [node.model_dump(mode="json") for node in store.get_nodes()]
    for (ids, scores), (their_ids, their_scores) in zip(answers(store), found, strict=True):
        assert ids == their_ids
        assert scores == pytest.approx(their_scores, abs=1e-5)


def test_opening_imports_no_torch_and_loads_no_model(uri):
    code = f"""
import sys
from llama_index_clara import ClaraVectorStore
ClaraVectorStore(model="/nowhere", uri={uri!r})
assert not {{"torch", "lance"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_class_of_node_comes_back(store):
    class Mine(TextNode):
        colour: str = "red"

    inner = TextNode(id_="inner", text="inside")
    given = [
        IndexNode(id_="index", text="b", index_id="x", obj=inner),
        IndexNode(id_="points", text="p", index_id="x", obj=object()),
        ImageNode(id_="image", text="c", image_url="http://example.org/c.png"),
        Node(id_="node", text_resource=MediaResource(text="d")),
        Document(text="e", doc_id="document", metadata={"deep": {"er": [1, None]}, "'; --": "\ud800", "ref_doc_id": 5}),
        Mine(id_="mine", text="a", colour="blue"),
    ]
    store.add(given)
    back = store.get_nodes([node.node_id for node in given])
    assert [type(node) for node in back] == [*(type(node) for node in given[:-1]), TextNode]
    assert back[0].obj == inner
    assert back[1].obj is None  # the object that it references is not data
    assert back[2].image_url == given[2].image_url
    assert back[4].metadata == given[4].metadata
    assert [node.get_content() for node in back] == ["b", "p", "c", "d", "e", "a"]


def test_what_cannot_be_written_is_named(store):
    for value, error in (({1907}, TypeError), (math.nan, ValueError)):
        with pytest.raises(error, match=r"node 'a': metadata\['x'\]"):
            store.add([*nodes(2), TextNode(id_="a", text="a", metadata={"x": value})])
    assert store.count == 0


def test_vectors_that_are_no_memories_are_refused(store, engine):
    for vector, says in ((unit("x", engine.dimension), "not the memory of its text"), ([1.0] * 7, "7 numbers")):
        given = nodes(3)
        given[2].embedding = vector
        with pytest.raises(ValueError, match=rf"node 'n-2'.*{says}"):
            store.add(given)
    assert store.count == 0


@pytest.mark.in_process
def test_embedded_nodes_are_not_compressed_again(store, model, engine):
    given = ClaraEmbedding(model=model)(nodes())
    with Counter(behind(engine).load().model, "encode") as encoded:
        store.add(given)
        store.add([node.model_copy(update={"id_": f"{node.node_id} again", "embedding": None}) for node in given])
    assert encoded.calls == 0
    assert store.count == 10


def test_found_nodes_are_read_without_compressing(store, model, engine):
    store.add(nodes())
    engine.cache.clear()
    index = VectorStoreIndex.from_vector_store(store, embed_model=ClaraEmbedding(model=model))
    hits = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
    assert len(ClaraRerank(model=model, top_n=2).postprocess_nodes(hits, query_str=QUESTION)) == 2
    assert engine.cache.misses == 0


def test_ids_that_an_index_remembers_are_no_filter(store, model):
    """An index passes the ids of all its index and image nodes, which as a filter would hide every other node."""
    store.add([*nodes(4), IndexNode(id_="index", text="An index.", index_id="x")])
    query = VectorStoreQuery(query_str=QUESTION, similarity_top_k=9, node_ids=["index", "elsewhere"])
    assert len(store.query(query).ids) == 5
    store.add([IndexNode(id_="other", text="Another index.", index_id="x")])
    assert store.query(query).ids == ["index"]


def test_replaced_and_deleted_words_are_not_found(store):
    store.add(nodes(3))
    changed = nodes(1)
    changed[0].text = "Zebras."
    store.add(changed)
    store.client.optimize()
    store.delete("doc-1")
    found = [store.query(VectorStoreQuery(query_str=words, mode="text_search")).ids for words in
             ("zebras", "Weldenia", "bridge")]  # fmt: skip
    assert found == [["n-0"], [], []]


# -- LlamaIndex's storage ------------------------------------------------------------------------------


def test_storage_context(store, model, uri, tmp_path):
    embedding = ClaraEmbedding(model=model)
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(documents(), embed_model=embedding, storage_context=context)
    index.storage_context.persist(str(tmp_path / "index"))
    again = ClaraVectorStore.from_persist_dir(str(tmp_path / "index"))
    assert (again.uri, again.count, again.engine.fingerprint) == (uri, 5, store.engine.fingerprint)
    loaded = load_index_from_storage(
        StorageContext.from_defaults(vector_store=again, persist_dir=str(tmp_path / "index")), embed_model=embedding
    )
    first, second = ([hit.node_id for hit in each.as_retriever().retrieve(QUESTION)] for each in (index, loaded))
    assert first == second
    loaded.insert(Document(text="New.", doc_id="new"))
    assert store.count == 6
    loaded.delete_ref_doc("new")
    assert store.count == 5


def test_a_place_that_was_written_down(store, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = ClaraVectorStore(model=model, uri="near")
    near.add(nodes(1))
    near.persist("index/default__vector_store.json")
    monkeypatch.chdir(tmp_path.parent)
    assert ClaraVectorStore.from_persist_dir(str(tmp_path / "index"), model=model).count == 1
    path = tmp_path / "index" / "default__vector_store.json.clara"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        ClaraVectorStore.from_persist_dir(str(tmp_path / "index"), model=model)
    with pytest.raises(ValueError, match="memory://"):
        ClaraVectorStore(model=model, uri="memory://").persist(str(tmp_path / "x.json"))


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_upserts_and_deletions_of_a_pipeline(store, model, way):
    pipe = IngestionPipeline(
        transformations=[ClaraNodeParser(model=model), ClaraEmbedding(model=model)],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    for given in (documents(), documents(), [Document(text="Changed.", doc_id="doc-0"), *documents()[1:3]]):
        _ = pipe.run(documents=given) if way == "sync" else await pipe.arun(documents=given)
    assert sorted(node.text for node in store.get_nodes()) == sorted(["Changed.", *TEXTS[1:3]])


async def test_awaitable(store):
    assert await store.async_add(nodes()) == [f"n-{number}" for number in range(5)]
    query = VectorStoreQuery(query_str=QUESTION, similarity_top_k=5)
    assert (await store.aquery(query)).ids == store.query(query).ids
    await store.adelete("doc-0")
    filters = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value="doc-1")])
    await store.adelete_nodes(filters=filters)
    assert [node.node_id for node in await store.aget_nodes()] == ["n-2", "n-3", "n-4"]
    await store.aclear()
    assert store.count == 0


# -- copies, other models --------------------------------------------------------------------------------


def test_copies_and_pickles_of_a_read_only_store_are_read_only(store):
    store.add(nodes(1))
    reader = ClaraVectorStore(store=MemoryStore.open(store.uri, store.engine, read_only=True))
    for other in (copy.copy(reader), copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):  # noqa: S301 - our own
        with pytest.raises(StoreError, match="read_only=True"):
            other.clear()


def test_copies_and_pickles_open_the_same_folder(store):
    store.add(nodes(2))
    for other in (
        copy.copy(store),
        copy.deepcopy(store),
        pickle.loads(pickle.dumps(store)),  # noqa: S301 - our own
        ClaraVectorStore.from_dict(store.to_dict()),
    ):
        assert [node.node_id for node in other.get_nodes()] == ["n-0", "n-1"]
        other.add([TextNode(id_="n-2", text="More.")])
        assert store.count == 3
        store.delete_nodes(["n-2"])


def test_an_opened_store(store, uri, engine, model):
    store.add(nodes())
    opened = MemoryStore.open(uri, engine)
    again = ClaraVectorStore(store=opened)
    assert again.client is opened
    assert again.engine is engine
    assert answers(again) == answers(store)
    with pytest.raises(ValueError, match="store= alone"):
        ClaraVectorStore(store=opened, uri=uri)
    with pytest.raises(ValueError, match=r"MemoryStore\.open"):
        ClaraVectorStore(store=MemoryStore.open(uri))


def test_another_model(store, uri, tmp_path):
    store.add(nodes())
    other = ClaraVectorStore(model=str(build(tmp_path / "other", seed=1).folder), uri=uri)
    with pytest.raises(FingerprintMismatch, match=store.engine.fingerprint[:12]):
        other.add([TextNode(text="new")])
    with pytest.raises(FingerprintMismatch, match=store.engine.fingerprint[:12]):
        other.query(VectorStoreQuery(query_str=QUESTION))
    assert len(other.get_nodes()) == 5
