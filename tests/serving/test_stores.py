"""Stores on a server, compared with the store in this process."""

from __future__ import annotations

import json
import math
import pickle
from datetime import date

import pytest

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from clara_core import MemoryStore, ServerError, StoreError
from langchain_clara import ChatClara, ClaraRetriever
from langchain_clara import ClaraVectorStore as LangChainStore
from llama_index_clara import ClaraVectorStore as LlamaIndexStore
from tests.serving.servers import running

KEY = "a-key-of-more-than-sixteen"
READER = "a-reader-of-more-than-sixteen"
QUESTION = "When was the bridge opened?"
TEXTS = [
    "The bridge over the Aln was opened in 1907.",
    "Captain Ada Quill sailed the Merganser.",
    "The company Brandt & Sons makes clocks, model AB-1234/9.",
    "北京大学在中国。 橋は古い。",
    " ".join(f"Sentence {number} speaks of the town." for number in range(40)),
    "Weldenia is a genus of flowering plants, known since 1829.",
]
IDS = [f"id-{number}" for number in range(len(TEXTS))]
METADATAS = [{"n": number, "day": date(1907, 1, 1 + number), "pair": (1, "b")} for number in range(len(TEXTS))]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    MemoryStore.open(folder / "fixed", model="pocket").add(TEXTS, METADATAS, IDS)
    uris = {name: str(folder / name) for name in ("fixed", "handbook", "langchain", "llama")}
    with running(stores=uris, writable={"handbook", "langchain", "llama"}) as server:
        yield server


@pytest.fixture(scope="module")
def inside(stores):
    return MemoryStore.open(stores.state.config.stores["fixed"], model="pocket")


def opened(server, name, **options):
    return MemoryStore.open(f"{server.url}/v1/stores/{name}", **options)


def facts(hits):
    return [(hit.id, hit.text, hit.metadata, hit.window) for hit in hits]


@pytest.mark.parametrize("mode", ["memory", "text", "hybrid", None])
def test_a_search_finds_the_same(stores, inside, mode):
    remote = opened(stores, "fixed")
    for options in (
        {},
        {"filter": {"n": {"$gte": 2}}},
        {"filter": {"day": {"$lt": date(1907, 1, 3)}}},
        {"exact": True},
        {"rerank": 10},
    ):
        ours, theirs = (store.search(QUESTION, 4, mode=mode, **options) for store in (inside, remote))
        assert facts(theirs) == facts(ours)
        assert [hit.score for hit in theirs] == pytest.approx([hit.score for hit in ours], abs=1e-6)
        assert [hit.relevance for hit in theirs] == pytest.approx([hit.relevance for hit in ours], abs=1e-6)
    both = remote.search([QUESTION, "Who sailed?"], 2, mode=mode)
    assert list(map(facts, both)) == list(map(facts, inside.search([QUESTION, "Who sailed?"], 2, mode=mode)))


def test_a_question_as_numbers_and_diverse_documents(stores, inside, local):
    remote = opened(stores, "fixed")
    [vector] = local.reason([QUESTION]).flatten(1)
    assert facts(remote.search(vector, 3)) == facts(inside.search(vector, 3))
    for question in (vector, QUESTION):
        assert facts(remote.search_mmr(question, 3, fetch_k=5)) == facts(inside.search_mmr(question, 3, fetch_k=5))


def test_reading(stores, inside):
    remote = opened(stores, "fixed")
    assert remote.get([*IDS[:2], "unknown"]) == inside.get(IDS[:2])
    assert list(remote) == list(inside)
    assert len(remote) == len(inside) == 6
    assert remote.count({"n": {"$lt": 2}}) == 2
    assert "id-1" in remote
    assert "unknown" not in remote
    assert remote.stats() == inside.stats()
    assert remote.fingerprint == inside.fingerprint
    assert [memory.text for memory in remote.memories(IDS[:2])] == TEXTS[:2]
    assert pickle.loads(pickle.dumps(remote)).uri == remote.uri  # noqa: S301
    with pytest.raises(KeyError, match="unknown"):
        remote.memories(["unknown"])
    [hit] = remote.search(QUESTION, 1, with_memories=True)
    assert hit.memory.spans == inside.memories([hit.id])[0].spans


def test_what_is_found_is_not_compressed_again(stores):
    remote = opened(stores, "fixed")
    hits = remote.search(QUESTION, 5)
    before = stores.state.engine.stats().compressed
    remote.engine.rank(QUESTION, remote.engine.remember([hit.text for hit in hits]))
    assert stores.state.engine.stats().compressed == before + 1  # the question


def test_writing(stores, local):
    remote = opened(stores, "handbook")
    assert remote.search(QUESTION) == []
    assert remote.fingerprint is None
    assert remote.add(iter(TEXTS), METADATAS, [*IDS[:-1], None])[:-1] == IDS[:-1]
    assert remote.add(TEXTS[:2], METADATAS[:2], IDS[:2]) == IDS[:2]  # repeated: nothing changes
    assert remote.count() == len(TEXTS)
    assert remote.get(["id-1"])[0].metadata == METADATAS[1]
    assert remote.add(memories=local.compress(["A new note."]), ids=["new"]) == ["new"]
    [kept] = local.fidelity(local.compress(["A new note."]))
    remote.add(["A new note."], ids=["new"], fidelity=True)
    assert remote.get(["new"])[0].metadata == {"fidelity": kept.kept}
    assert remote.delete(["new", "unknown"]) == 1
    assert remote.delete(filter={"n": {"$gte": 4}}) == 2
    assert remote.count() == 4
    for wrong, error in (
        ({"texts": "one"}, TypeError),
        ({"texts": ["a"], "metadatas": [{"x": math.nan}]}, ValueError),
        ({"texts": ["a", "b"], "ids": ["1", "1"]}, ValueError),
        ({"texts": ["a"], "vectors": [[1.0]]}, ValueError),
    ):
        with pytest.raises(error):
            remote.add(**wrong)
    assert remote.count() == 4
    with pytest.raises(ValueError, match="delete needs ids or a filter"):
        remote.delete()
    with pytest.raises(TypeError, match="a function cannot be sent"):
        remote.search(QUESTION, filter=lambda record: True)
    with pytest.raises(StoreError, match="clara store optimize"):
        remote.optimize()


def test_lines_as_anybody_sends_them(stores):
    headers = {"content-type": "application/x-ndjson"}
    lines = b'{"text": "One.", "metadata": {"a": 1}}\n\n{"text": "Two.", "id": "two"}'
    told = stores.http.post("/v1/stores/handbook/documents", content=lines, headers=headers).json()
    assert told["ids"][1] == "two"
    again = stores.http.post("/v1/stores/handbook/documents", content=lines, headers=headers).json()
    assert again == told
    for wrong in (b'{"text": 1}', b"{", b'{"text": "a", "metadata": {"x": [1, {"y": 2}]}, "more": 1}', b'{"id": "a"}'):
        response = stores.http.post("/v1/stores/handbook/documents", content=lines + b"\n" + wrong, headers=headers)
        assert response.status_code == 400
        assert "line 4 is not a document" in response.json()["detail"]
    hits = stores.post("/v1/stores/handbook/search", {"query": "Two?", "k": 1}).json()["hits"]
    assert set(hits[0]) == {"id", "text", "metadata", "score", "relevance", "window"}
    for wrong in ({}, {"query": "a", "vectors": [[1.0]]}, {"query": "a", "k": 0}, {"query": "a", "mode": "x"},
                  {"vectors": [[1.0], [1.0, 2.0]]}, {"vectors": [[1.0]]}, {"query": "a", "filter": {"$x": 1}},
                  {"query": ["a", "b"], "mmr": {}}):  # fmt: skip
        assert stores.post("/v1/stores/handbook/search", wrong).status_code == 400, wrong


@pytest.mark.parametrize("name", ["none", "..", "%2e%2e", "fixed%2f..", "..%2ffixed", "fixed/../../etc", "fixed%00"])
def test_a_name_is_not_a_path(stores, name):
    response = stores.http.get(f"/v1/stores/{name}")
    assert response.status_code == 404
    assert str(stores.state.config.stores["fixed"]).rpartition("/")[0] not in response.text


def test_who_may_write(tmp_path):
    folder = str(tmp_path / "a")
    MemoryStore.open(folder, model="pocket").add(["One."], ids=["1"])
    with running(stores={"a": folder, "b": folder}, writable={"a"}, keys=[KEY, f"{READER} read-only"]) as server:
        open_store, closed = (opened(server, name, model=server.url, token=KEY) for name in "ab")
        reader = opened(server, "a", model=server.url, token=READER)
        assert open_store.add(["Two."], ids=["2"]) == ["2"]
        for store, why in ((closed, "--writable b"), (reader, "read-only")):
            assert store.count() == 2
            with pytest.raises(ServerError, match=why):
                store.add(["Three."])
            with pytest.raises(ServerError, match=why):
                store.delete(filter={})
        with pytest.raises(StoreError, match="read_only=True"):
            opened(server, "a", model=server.url, token=KEY, read_only=True).add(["x"])
        assert json.loads(server.http.get("/v1/stores", headers={"x-api-key": KEY}).content)["data"] == [
            {"name": "a", "writable": True},
            {"name": "b", "writable": False},
        ]


def test_documents_of_a_store_are_read_by_name(stores, inside, local):
    expected = local.answer(QUESTION, inside.memories(IDS[:2]), max_tokens=16).text
    chat = {"model": "clara", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    by_id = [{"id": id_, "store": "fixed"} for id_ in IDS[:2]]
    told = stores.post("/v1/chat/completions", {**chat, "documents": by_id}).json()
    assert told["choices"][0]["message"]["content"] == expected
    assert told["sources"] == [{"index": n, "id": id_, "store": "fixed"} for n, id_ in enumerate(IDS[:2])]
    found = stores.post("/v1/chat/completions", {**chat, "retrieval": {"store": "fixed", "k": 2}}).json()
    hits = inside.search(QUESTION, 2)
    assert [source["id"] for source in found["sources"]] == [hit.id for hit in hits]
    assert found["sources"][0]["text"] == hits[0].text
    missing = stores.post("/v1/chat/completions", {**chat, "documents": [{"id": "no", "store": "fixed"}]})
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "document_not_found"
    other = [
        {"id": "no", "store": "fixed", "text": TEXTS[0]},
        {"id": "id-0", "store": "fixed", "text": "Another text."},
    ]
    ranked = stores.post("/v1/clara/rank", {"question": QUESTION, "documents": other}).json()["results"]
    expected_ranks = local.rank(QUESTION, local.remember([TEXTS[0], "Another text."]))
    assert [each["index"] for each in ranked] == [each.index for each in expected_ranks]


def test_langchain_uses_a_store_of_a_server(stores, inside):
    store = LangChainStore(uri=f"{stores.url}/v1/stores/langchain", model=stores.url)
    documents = [
        Document(text, id=id_, metadata=metadata) for text, id_, metadata in zip(TEXTS, IDS, METADATAS, strict=True)
    ]
    assert store.add_documents(documents) == IDS
    expected = [hit.id for hit in inside.search(QUESTION, 3)]
    assert [found.id for found in store.similarity_search(QUESTION, 3)] == expected
    assert [found.id for found in ClaraRetriever(vectorstore=store, k=3).invoke(QUESTION)] == expected
    diverse = store.max_marginal_relevance_search(QUESTION, 3, fetch_k=5)
    assert [found.id for found in diverse] == [hit.id for hit in inside.search_mmr(QUESTION, 3, fetch_k=5)]
    assert ChatClara(model=stores.url).invoke(QUESTION, documents=diverse).text
    assert store.delete(["id-0"])
    assert len(store) == 5


def test_llama_index_uses_a_store_of_a_server(stores, inside):
    store = LlamaIndexStore(uri=f"{stores.url}/v1/stores/llama", model=stores.url)
    store.add([TextNode(text=text, id_=id_) for text, id_ in zip(TEXTS, IDS, strict=True)])
    result = store.query(VectorStoreQuery(query_str=QUESTION, similarity_top_k=3))
    assert result.ids == [hit.id for hit in inside.search(QUESTION, 3)]
    store.delete_nodes(["id-0"])
    assert store.count == 5
