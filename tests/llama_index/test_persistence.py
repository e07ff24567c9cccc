"""A store on disk: StorageContext, other file systems, crashes, other models."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import IndexNode, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from clara_core import CheckpointError, ClaraEngine, FingerprintMismatch
from llama_index_clara import ClaraEmbedding, ClaraVectorStore, _files
from tests.llama_index.doubles import QUESTION, documents, nodes
from tests.tiny import build

NAME = "default__vector_store.json"


@pytest.fixture
def store(model):
    store = ClaraVectorStore(model=model)
    long = TextNode(id_="long", text="The town is old. " * 40, metadata={"list": [1, {"a": None}], "odd": "\ud800"})
    store.add([*nodes(), long, IndexNode(id_="index", text="An index.", index_id="x")])
    return store


def listed(folder):
    return [path.name for path in folder.iterdir()]


def same(first, second):
    assert first.get_nodes() == second.get_nodes()
    for one, other in zip(*(each.memories(["n-0", "long"]) for each in (first, second)), strict=True):
        assert np.array_equal(one.tokens, other.tokens)
        assert one.spans == other.spans
    for mode in ("default", "text_search", "hybrid", "mmr"):
        ours, theirs = (
            each.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=9, mode=mode)) for each in (first, second)
        )
        assert ours.ids == theirs.ids
        assert ours.similarities == pytest.approx(theirs.similarities, abs=1e-6)


def test_round_trip(store, tmp_path, model, engine):
    store.persist(str(tmp_path / NAME))
    engine.cache.clear()
    again = ClaraVectorStore.from_persist_path(str(tmp_path / NAME), model=model)
    same(store, again)
    assert again.client is not store.client


def test_without_a_model_the_one_that_made_it_is_used(store, tmp_path, engine):
    store.persist(str(tmp_path / NAME))
    assert ClaraVectorStore.from_persist_dir(str(tmp_path)).engine.fingerprint == engine.fingerprint


def test_storage_context_round_trip(model, tmp_path):
    folder = str(tmp_path)
    embedding = ClaraEmbedding(model=model)
    store = ClaraVectorStore(model=model)
    index = VectorStoreIndex.from_documents(
        documents(), embed_model=embedding, storage_context=StorageContext.from_defaults(vector_store=store)
    )
    index.storage_context.persist(folder)
    loaded = load_index_from_storage(
        StorageContext.from_defaults(vector_store=ClaraVectorStore.from_persist_dir(folder), persist_dir=folder),
        embed_model=embedding,
    )
    first, second = ([hit.node_id for hit in each.as_retriever().retrieve(QUESTION)] for each in (index, loaded))
    assert first == second
    loaded.insert(documents()[0])


def test_forgotten_vector_store_is_an_error_not_an_empty_index(store, model, tmp_path):
    """A file with LlamaIndex's own name would be read as an empty store, which silently finds nothing."""
    index = VectorStoreIndex.from_vector_store(store, embed_model=ClaraEmbedding(model=model))
    index.storage_context.persist(str(tmp_path))
    assert NAME not in listed(tmp_path)
    assert NAME + ".clara" in listed(tmp_path)
    with pytest.raises(KeyError, match="default"):
        load_index_from_storage(
            StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=ClaraEmbedding(model=model)
        )


@pytest.mark.parametrize("namespace", ["default", "image", "v1.2", "a.b.c"])
def test_namespaces_do_not_collide(model, tmp_path, namespace):
    context = StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model))
    for number, name in enumerate([namespace, "v1.3", "a.b"], start=1):
        store = ClaraVectorStore(model=model)
        store.add(nodes(number))
        context.add_vector_store(store, name)
    context.persist(str(tmp_path))
    assert ClaraVectorStore.from_persist_dir(str(tmp_path), namespace, model=model).count == 1


def test_any_file_system(store, model):
    memory = fsspec.filesystem("memory")
    for _ in range(2):  # over its own files
        store.persist(f"/clara/{NAME}", fs=memory)
    same(store, ClaraVectorStore.from_persist_dir("/clara", fs=memory, model=model))
    assert [Path(path).name for path in memory.ls("/clara", detail=False)] == [NAME + ".clara"]


def test_empty_store(model, tmp_path):
    ClaraVectorStore(model=model).persist(str(tmp_path / NAME))
    assert ClaraVectorStore.from_persist_dir(str(tmp_path), model=model).count == 0


def test_shorter_vectors_are_remembered(model, tmp_path):
    store = ClaraVectorStore(model=model, dimensions=64)
    store.add(nodes())
    store.persist(str(tmp_path / NAME))
    assert ClaraVectorStore.from_persist_dir(str(tmp_path), model=model).dimensions == 64
    with pytest.raises(FingerprintMismatch, match="64"):
        ClaraVectorStore.from_persist_dir(str(tmp_path), model=model, dimensions=32)


@pytest.mark.parametrize("other", [{"seed": 1}, {"rate": 16}, {"window": 32, "rate": 4}])
def test_another_model_is_refused_with_both_names(store, tmp_path, other):
    store.persist(str(tmp_path / NAME))
    model = str(build(tmp_path / "other", **other).folder)
    fingerprint = ClaraEngine.from_pretrained(model).fingerprint
    with pytest.raises(FingerprintMismatch, match=rf"(?s){store.engine.fingerprint[:12]}.*{fingerprint[:12]}"):
        ClaraVectorStore.from_persist_dir(str(tmp_path), model=model)


def test_crash_while_writing_leaves_the_old_file(store, model, tmp_path, monkeypatch):
    store.persist(str(tmp_path / NAME))
    before = (tmp_path / (NAME + ".clara")).read_bytes()
    store.add([TextNode(id_="new", text="new")])

    def power_cut(*args):
        raise OSError("power cut")

    monkeypatch.setattr(_files.os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        store.persist(str(tmp_path / NAME))
    assert (tmp_path / (NAME + ".clara")).read_bytes() == before
    assert listed(tmp_path) == [NAME + ".clara"]
    assert ClaraVectorStore.from_persist_dir(str(tmp_path), model=model).count == 7


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "not ours", "header"])
def test_damaged_file_is_noticed(store, model, tmp_path, damage):
    path = tmp_path / (NAME + ".clara")
    store.persist(str(tmp_path / NAME))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[-500] ^= 1
    elif damage == "longer":
        data += b"x"
    elif damage == "not ours":
        data = bytearray(b"{}")
    else:
        data[20] ^= 255
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged|is not a Clara"):
        ClaraVectorStore.from_persist_dir(str(tmp_path), model=model)


def test_missing_file(model, tmp_path):
    with pytest.raises(CheckpointError, match="no stored ClaraVectorStore"):
        ClaraVectorStore.from_persist_dir(str(tmp_path), model=model)
