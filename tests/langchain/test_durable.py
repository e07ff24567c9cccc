"""The vector store with `uri=`: its special properties. `test_vectorstore.py` tests the common ones for both kinds."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from langchain_core.documents import Document

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from clara_core import ClaraEngine
from clara_core.store import MemoryStore
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRetriever, ClaraVectorStore
from tests.engines import Counter
from tests.served import served
from tests.tiny import build

ROOT = Path(__file__).parents[2]
QUESTION = "When was the bridge opened?"
TEXTS = [f"Passage {number} speaks of the town of number {number * 17 % 40}." for number in range(40)]
METADATAS = [{"n": number, "town": "Aln" if number % 8 == 0 else "Wye"} for number in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("durable")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "memories")


@pytest.fixture
def store(model, uri):
    ids = [f"id-{number}" for number in range(40)]
    return ClaraVectorStore.from_texts(TEXTS, metadatas=METADATAS, ids=ids, uri=uri, model=model)


def test_another_process_sees_the_same(store, uri, model):
    question = {"k": 5, "filter": {"n": {"$gte": 10}}}
    code = f"""
import json
from langchain_clara import ClaraVectorStore
store = ClaraVectorStore(uri={uri!r}, model={model!r})
hits = store.similarity_search_with_score({QUESTION!r}, **{question!r})
print(json.dumps([len(store), [(d.id, d.page_content, d.metadata, score) for d, score in hits]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, hits = json.loads(done.stdout)
    here = store.similarity_search_with_score(QUESTION, **question)
    assert count == 40
    assert [(document.id, document.page_content, document.metadata) for document, _ in here] == [
        tuple(hit[:3]) for hit in hits
    ]
    assert [score for _, score in here] == pytest.approx([hit[3] for hit in hits], abs=1e-5)


def test_opening_imports_no_torch_and_loads_no_model(uri):
    code = f"""
import sys
from langchain_clara import ClaraVectorStore
ClaraVectorStore(uri={uri!r}, model="/nowhere")
assert not {{"torch", "lance", "pyarrow"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.in_process
def test_a_text_that_is_there_is_not_compressed_again(store, uri, engine):
    engine.cache.clear()
    engine.load()
    with Counter(engine._worker.model, "encode") as encoded:
        store.add_texts(TEXTS, METADATAS, ids=[f"other-{number}" for number in range(40)])
    assert encoded.calls == 0
    assert len(store) == 80


def test_what_is_found_is_read_without_compressing(store, engine, model):
    engine.cache.clear()
    found = store.similarity_search(QUESTION, k=3)
    ChatClara(model=model, max_tokens=2).invoke(QUESTION, documents=found)
    assert (engine.cache.hits, engine.cache.misses) == (3, 0)


@pytest.mark.in_process
def test_a_more_exact_memory_is_not_replaced(store, engine):
    engine.cache.clear()
    [memory] = engine.remember(TEXTS[:1])
    store.similarity_search(QUESTION, k=40)
    assert engine.remember(TEXTS[:1])[0] is memory


# -- filters ---------------------------------------------------------------------------------------


async def test_a_dict_is_asked_in_the_store_and_fills_k(store):
    everything = store.similarity_search_with_score(QUESTION, k=40)
    wanted = [pair for pair in everything if pair[0].metadata["town"] == "Aln"][:4]
    for condition in ({"town": "Aln"}, lambda document: document.metadata["town"] == "Aln"):
        found = store.similarity_search_with_score(QUESTION, k=4, filter=condition)
        assert [(document, pytest.approx(score, abs=1e-5)) for document, score in found] == wanted
        found = await store.asimilarity_search_with_score(QUESTION, k=4, filter=condition)
        assert [document for document, _ in found] == [document for document, _ in wanted]


def test_a_function_is_asked_further_down_until_enough_is_found(store):
    last = store.similarity_search(QUESTION, k=40)[-1]
    asked = []

    def accept(document):
        asked.append(document.id)
        return document.id == last.id

    assert store.similarity_search(QUESTION, k=1, filter=accept) == [last]
    assert set(asked) == {f"id-{number}" for number in range(40)}
    assert store.max_marginal_relevance_search(QUESTION, k=3, filter=accept) == [last]
    assert store.similarity_search(QUESTION, k=3, filter=lambda _: False) == []


def test_deleting_by_function(store):
    store.delete(filter=lambda document: document.metadata["n"] > 3)
    assert [document.id for document in store] == ["id-0", "id-1", "id-2", "id-3"]
    store.delete(ids=["id-0", "id-1"], filter=lambda document: document.metadata["n"] > 0)
    assert [document.id for document in store] == ["id-0", "id-2", "id-3"]


# -- words -----------------------------------------------------------------------------------------


async def test_words(store):
    text = store.similarity_search("number 17", k=1, mode="text")
    assert "17" in text[0].page_content
    assert store.similarity_search("number 17", k=40, mode="hybrid")[0] in store.similarity_search("number 17", k=40)
    assert await store.asimilarity_search("number 17", k=1, mode="text") == text
    assert store.as_retriever(search_kwargs={"k": 1, "mode": "text"}).invoke("number 17") == text
    filtered = store.similarity_search("passage", k=40, mode="text", filter={"town": "Aln"})
    assert {document.metadata["town"] for document in filtered} == {"Aln"}
    assert len(filtered) == 5
    with pytest.raises(ValueError, match="mode"):
        store.similarity_search("x", mode="words")


# -- adding ----------------------------------------------------------------------------------------


def test_the_last_of_several_under_one_id_counts(store):
    ids = store.add_documents([Document("one", id="x"), Document("two", id="y"), Document("three", id="x")])
    assert ids == ["x", "y", "x"]
    assert [document.page_content for document in store.get_by_ids(["x", "y"])] == ["three", "two"]


def test_threads_add_the_same_text_at_once(model, uri):
    store = ClaraVectorStore(model=model, uri=uri)
    with ThreadPoolExecutor(4) as pool:
        ids = [id_ for made in pool.map(lambda _: store.add_texts(["same"] * 3), range(4)) for id_ in made]
    assert len(set(ids)) == len(store) == 12


def test_metadata_that_cannot_be_kept_is_refused_whole(store):
    with pytest.raises(TypeError, match=r"\['on'\] is a builtins.set"):
        store.add_documents([Document("a"), Document("b", metadata={"on": {1907}})])
    assert len(store) == 40


# -- making one ------------------------------------------------------------------------------------


def test_an_embedding_has_its_own_model(uri, model):
    with pytest.raises(ValueError, match="give embedding= or model="):
        ClaraVectorStore(ClaraEmbeddings(model=model), uri=uri, model=model)


def test_from_documents_and_from_an_opened_store(uri, model, engine):
    documents = [Document("The bridge.", id="a", metadata={"n": {"e": [1, None]}}), Document("A plant.", id="b")]
    made = ClaraVectorStore.from_documents(documents, ClaraEmbeddings(model=model), uri=uri)
    opened = MemoryStore.open(uri, engine)
    again = ClaraVectorStore(store=opened)
    assert again.store is opened
    assert list(again) == list(made) == documents
    assert again.embeddings.shared_engine is engine
    with pytest.raises(ValueError, match="give store= or model="):
        ClaraVectorStore(store=opened, model=model)
    with pytest.raises(ValueError, match="store= or uri="):
        ClaraVectorStore(store=opened, uri=uri)
    with pytest.raises(ValueError, match=r"MemoryStore\.open"):
        ClaraVectorStore(store=MemoryStore.open(uri))


def test_a_retriever_over_it(store):
    retriever = ClaraRetriever(vectorstore=store, k=3, filter={"town": "Aln"})
    found = retriever.invoke(QUESTION)
    assert len(found) == 3
    assert all(document.metadata["town"] == "Aln" for document in found)
    assert all(document.metadata["relevance_score"] <= 1 for document in found)
