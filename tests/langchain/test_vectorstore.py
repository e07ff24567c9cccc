"""The vector store with a tiny model, compared with the engine, and with other embeddings."""

from __future__ import annotations

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index

from clara_core import ClaraEngine, FingerprintMismatch, UnknownOption
from clara_core.retrieval.ranking import diversify
from langchain_clara import ClaraEmbeddings, ClaraRetriever, ClaraVectorStore, vectorstores
from tests.langchain.data import HOSTILE, make_documents
from tests.served import served
from tests.tiny import build

QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("store")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture(params=["memory", "durable"])
def place(request, tmp_path):
    """Options of a store in memory, and of one in a folder."""
    return {} if request.param == "memory" else {"uri": tmp_path / "memories"}


@pytest.fixture
def store(model, place, engine):
    yield ClaraVectorStore.from_documents(make_documents(), model=model, **place)
    engine.cache.clear()  # of memories that were stored in fewer bits


@pytest.fixture
def rounding(place):
    """Tolerance of a cosine: a store in a folder writes bfloat16."""
    return 4e-3 if place else 1e-5


@pytest.fixture(params=["memories", "projection", "other"])
def any_store(request, model, place):
    """An empty store of each kind in each place."""
    if request.param == "other":
        return ClaraVectorStore(DeterministicFakeEmbedding(size=16), **place)
    dimensions = 64 if request.param == "projection" else None
    return ClaraVectorStore(ClaraEmbeddings(model=model, dimensions=dimensions), **place)


def texts(documents):
    return [document.page_content for document in documents]


def ranked(engine, rounding):
    documents = make_documents()
    hits = engine.rank(QUESTION, engine.compress(texts(documents)))
    return [(documents[hit.index].page_content, pytest.approx(hit.score, abs=rounding)) for hit in hits]


# -- searching -------------------------------------------------------------------------------------


async def test_scores_are_the_engines(engine, store, rounding):
    pairs = store.similarity_search_with_score(QUESTION, k=5, mode="memory")
    assert [(document.page_content, score) for document, score in pairs] == ranked(engine, rounding)
    assert {type(score) for _, score in pairs} == {float}
    later = await store.asimilarity_search_with_score(QUESTION, k=5, mode="memory")
    assert [(document, pytest.approx(score, abs=1e-6)) for document, score in later] == pairs
    assert store.similarity_search(QUESTION, k=2, mode="memory") == [document for document, _ in pairs[:2]]
    assert await store.asimilarity_search(QUESTION, 2) == store.similarity_search(QUESTION, 2)
    assert len(store.similarity_search(QUESTION)) == 4


@pytest.mark.parametrize("mode", [None, "memory", "text", "hybrid"])
async def test_relevance_is_in_zero_to_one_and_keeps_the_order(any_store, mode, recwarn):
    any_store.add_documents(make_documents())
    exact = make_documents()[0].page_content
    for question in (QUESTION, exact):
        pairs = any_store.similarity_search_with_relevance_scores(question, k=5, mode=mode)
        scores = [score for _, score in pairs]
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        found = any_store.similarity_search_with_score(question, k=5, mode=mode)
        assert [document for document, _ in pairs] == [document for document, _ in found]
        if mode == "memory":
            assert scores == pytest.approx([(score + 1) / 2 for _, score in found], abs=1e-6)
        floor = (scores[0] + scores[1]) / 2
        assert (
            len(any_store.similarity_search_with_relevance_scores(question, 5, score_threshold=floor, mode=mode)) == 1
        )
        later = await any_store.asimilarity_search_with_relevance_scores(question, 5, score_threshold=floor, mode=mode)
        assert [document for document, _ in later] == [pairs[0][0]]
    if mode == "text":
        assert scores[0] > 0.9  # it contains every word of the question, and is longer than most
    assert not [each for each in recwarn if "elevance" in str(each.message)]


async def test_search_by_vector(model, store):
    vector = ClaraEmbeddings(model=model).embed_query(QUESTION)
    assert store.similarity_search_by_vector(vector, k=3) == store.similarity_search(QUESTION, k=3, mode="memory")
    assert await store.asimilarity_search_by_vector(vector, 3) == store.similarity_search_by_vector(vector, k=3)
    with pytest.raises(ValueError, match=r"question of 7 numbers|512 numbers, got the shape \[1, 7\]"):
        store.similarity_search_by_vector([0.0] * 7)


async def test_mmr_chooses_as_the_core_does(engine, model, store):
    documents = make_documents()
    memories = engine.compress(texts(documents))
    question = engine.reason([QUESTION])
    hits = engine.rank(QUESTION, memories)[:4]
    best = [memories[hit.index].tokens[hit.window].flatten() for hit in hits]
    for balance in (0.0, 0.5, 1.0):
        chosen = diversify(question.flatten(), torch.stack(best), 3, balance)
        expected = [documents[hits[at].index].page_content for at in chosen]
        options = {"k": 3, "fetch_k": 4, "lambda_mult": balance}
        assert texts(store.max_marginal_relevance_search(QUESTION, **options)) == expected
        assert texts(await store.amax_marginal_relevance_search(QUESTION, **options)) == expected
        vector = ClaraEmbeddings(model=model).embed_query(QUESTION)
        assert texts(store.max_marginal_relevance_search_by_vector(vector, **options)) == expected
        assert texts(await store.amax_marginal_relevance_search_by_vector(vector, **options)) == expected


def test_mmr_does_not_repeat_itself(any_store):
    twice = ["The bridge was opened in 1907.", "The bridge was opened in 1907.", "Weldenia is a plant of the north."]
    any_store.add_texts(twice)
    assert len(set(texts(any_store.max_marginal_relevance_search(QUESTION, k=2, lambda_mult=0.1)))) == 2


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(store, k):
    with pytest.raises(ValueError, match=f"at least 1, got {k}"):
        store.similarity_search(QUESTION, k=k)


def test_unknown_options_of_a_search_are_refused(store):
    for search in (store.similarity_search, store.max_marginal_relevance_search):
        with pytest.raises(TypeError, match="top_k"):
            search(QUESTION, top_k=3)


async def test_a_store_without_documents_finds_nothing_and_loads_nothing():
    store = ClaraVectorStore(model="/nowhere/at/all")
    assert store.similarity_search(QUESTION) == store.max_marginal_relevance_search(QUESTION) == []
    assert await store.asimilarity_search(QUESTION) == await store.amax_marginal_relevance_search(QUESTION) == []
    assert store.add_documents([]) == store.add_texts([]) == store.get_by_ids(["a"]) == list(store) == []
    assert store.delete(["a"]) is store.delete() is True


# -- filters ---------------------------------------------------------------------------------------


@pytest.fixture
def filtered(any_store):
    any_store.add_texts(
        [f"Passage {number} about the town." for number in range(12)],
        [{"n": number, "even": number % 2 == 0, "town": "Aln" if number < 6 else "Wye"} for number in range(12)],
        ids=[f"id-{number}" for number in range(12)],
    )
    return any_store


@pytest.mark.parametrize(
    "condition, expected",
    [
        ({"town": "Wye"}, {6, 7, 8, 9, 10, 11}),
        ({"n": {"$gt": 3, "$lte": 5}}, {4, 5}),
        ({"n": {"$in": [1, 2, 99]}}, {1, 2}),
        ({"$and": [{"even": True}, {"$or": [{"n": {"$lt": 2}}, {"town": "Wye"}]}]}, {0, 6, 8, 10}),
        ({"missing": 1}, set()),
        (lambda document: document.id in {"id-3", "id-9"}, {3, 9}),
        (lambda document: document.metadata["n"] == 7, {7}),
    ],
)
async def test_filters(filtered, condition, expected):
    for found in (
        filtered.similarity_search(QUESTION, k=12, filter=condition),
        await filtered.asimilarity_search(QUESTION, k=12, filter=condition),
        filtered.max_marginal_relevance_search(QUESTION, k=12, filter=condition),
        await filtered.amax_marginal_relevance_search(QUESTION, k=12, filter=condition),
        [d for d, _ in filtered.similarity_search_with_relevance_scores(QUESTION, k=12, filter=condition)],
        filtered.as_retriever(search_kwargs={"k": 12, "filter": condition}).invoke(QUESTION),
        filtered.as_retriever(search_kwargs={"k": 12}).invoke(QUESTION, filter=condition),
    ):
        assert {document.metadata["n"] for document in found} == expected


def test_a_filter_keeps_the_order_and_fills_k(filtered):
    everything = filtered.similarity_search(QUESTION, k=12)
    wanted = [document for document in everything if document.metadata["town"] == "Wye"]
    assert filtered.similarity_search(QUESTION, k=3, filter={"town": "Wye"}) == wanted[:3]


def test_a_wrong_filter_is_refused_even_by_an_empty_store(any_store):
    with pytest.raises(ValueError, match="did you mean"):
        any_store.similarity_search(QUESTION, filter={"n": {"$gte ": 1}})


# -- adding and deleting ---------------------------------------------------------------------------


def test_ids_of_the_call_before_ids_of_documents_before_made_ones(any_store):
    documents = [Document("a", id="own"), Document("b", id="own too"), Document("c")]
    assert any_store.add_documents(documents, ids=["given", None, None])[:2] == ["given", "own too"]
    assert any_store.add_documents(documents)[0] == "own"
    with pytest.raises(ValueError, match="2 ids for 3 documents"):
        any_store.add_documents(documents, ids=["x", "y"])
    assert any_store.add_texts(["d", "e"], [{"n": 1}, {"n": 2}], ids=["D", "E"]) == ["D", "E"]
    with pytest.raises(ValueError, match="got 1 for 2 texts"):
        any_store.add_texts(["d", "e"], [{"n": 1}])
    with pytest.raises(TypeError, match=r"documents\[0\] must be a Document, got str"):
        any_store.add_documents(["text"])


async def test_texts_may_be_a_generator(any_store):
    assert len(any_store.add_texts(text for text in ("one", "two"))) == 2
    assert len(await any_store.aadd_texts(text for text in ("three", "four"))) == 2
    assert len(any_store) == 4


def test_made_ids_are_the_same_everywhere_and_never_taken_twice(any_store):
    first = any_store.add_texts(["same", "same", "other"])
    assert len(set(first)) == 3
    any_store.delete(first[:1])
    assert len({*any_store.add_texts(["same"]), first[1]}) == 2
    assert sorted(texts(any_store)) == ["other", "same", "same"]
    assert ClaraVectorStore(DeterministicFakeEmbedding(size=3)).add_texts(["same", "same", "other"]) == first


async def test_an_id_again_replaces_text_metadata_and_vector(any_store):
    any_store.add_documents([Document("Old text.", id="x", metadata={"v": 1}), Document("Other.", id="y")])
    await any_store.aadd_documents([Document("New text.", id="x", metadata={"v": 2})])
    assert len(any_store) == 2
    [found] = any_store.get_by_ids(["x"])
    assert (found.page_content, found.metadata, found.id) == ("New text.", {"v": 2}, "x")
    fresh = ClaraVectorStore.from_documents([found], any_store.embeddings)
    expected = fresh.similarity_search_with_score(QUESTION, 1)[0][1]
    scores = {document.id: score for document, score in any_store.similarity_search_with_score(QUESTION)}
    assert scores["x"] == pytest.approx(expected, abs=1e-5 if any_store.store.uri == "memory://" else 4e-3)


async def test_delete(filtered):
    assert filtered.delete(["id-0", "unknown"]) is True
    assert await filtered.adelete(["id-1"]) is True
    assert filtered.delete(ids=["id-2", "id-6"], filter={"town": "Aln"}) is True
    assert len(filtered) == 9
    assert filtered.delete(filter={"town": "Wye"}) is True
    assert sorted(document.id for document in filtered) == ["id-3", "id-4", "id-5"]
    assert len(filtered.similarity_search(QUESTION, k=12)) == 3
    assert filtered.delete([]) is True
    assert len(filtered) == 3
    assert filtered.delete() is True
    assert len(filtered) == 0
    filtered.add_texts(["again"])
    assert texts(filtered.similarity_search(QUESTION)) == ["again"]


async def test_get_by_ids(filtered):
    found = filtered.get_by_ids(["id-3", "nowhere", "id-1"])
    assert [document.id for document in found] == ["id-3", "id-1"]
    assert found[0] == Document("Passage 3 about the town.", id="id-3", metadata={"n": 3, "even": False, "town": "Aln"})
    assert await filtered.aget_by_ids(["id-3", "nowhere", "id-1"]) == found


def test_nothing_given_is_changed_and_nothing_kept_can_be(any_store):
    documents = make_documents()
    before = copy.deepcopy(documents)
    ids = any_store.add_documents(documents)
    assert documents == before
    documents[1].metadata["tags"].append("later")
    for found in (any_store.similarity_search(QUESTION, k=5), any_store.get_by_ids(ids), list(any_store)):
        # Metadata are returned unchanged, without a score or an internal id.
        assert {json.dumps(d.metadata, sort_keys=True) for d in found} == {
            json.dumps(d.metadata, sort_keys=True) for d in before
        }
        for document in found:
            document.metadata["mine"] = True
            document.metadata.get("tags", []).append("mine")


def test_every_way_back_carries_the_id(filtered):
    for found in (
        filtered.similarity_search(QUESTION),
        filtered.max_marginal_relevance_search(QUESTION),
        [document for document, _ in filtered.similarity_search_with_score(QUESTION)],
        filtered.as_retriever().invoke(QUESTION),
        list(filtered),
    ):
        assert all(document.id.startswith("id-") for document in found)


def test_hostile_text(any_store):
    if isinstance(any_store.embeddings, DeterministicFakeEmbedding):
        pytest.skip("LangChain's fake embedding fails on lone surrogates itself")
    ids = any_store.add_texts(HOSTILE)
    assert texts(any_store.get_by_ids(ids)) == list(HOSTILE)
    for question in HOSTILE:
        found = {document.id: document.page_content for document in any_store.similarity_search(question, k=10)}
        assert found == {id_: text for id_, text in zip(ids, HOSTILE, strict=True) if text.strip()}


# -- memories --------------------------------------------------------------------------------------


def test_memories_come_back_exactly(engine, store):
    ids = [document.id for document in store]
    made = engine.compress(texts(store))
    for kept, memory in zip(store.get_memories(ids), made, strict=True):
        tokens = memory.tokens if store.store.uri == "memory://" else memory.tokens.bfloat16()  # as it was written
        assert torch.equal(kept.tokens.to(tokens.dtype), tokens)
        for name in ("text", "spans", "source_tokens", "fingerprint"):
            assert getattr(kept, name) == getattr(memory, name)
    with pytest.raises(KeyError, match="nowhere"):
        store.get_memories(["nowhere"])


@pytest.mark.in_process
def test_half_precision_memories_come_back_exactly(model):
    engine = ClaraEngine.from_pretrained(model, dtype="bfloat16")
    store = ClaraVectorStore.from_texts(["The bridge.", "A plant."], engine=engine, ids=["a", "b"])
    [kept] = store.get_memories(["b"])
    [memory] = engine.remember(["A plant."])  # a batch of another shape would be rounded differently
    assert kept.tokens.dtype == torch.bfloat16
    assert torch.equal(kept.tokens, memory.tokens)


@pytest.mark.in_process
def test_what_was_compressed_before_is_added_without_computing(engine, model, store, place, rounding):
    memories = engine.compress(texts(make_documents()))
    calls = engine._worker.model.encode
    engine._worker.model.encode = None  # any computation fails from now on
    try:
        other = ClaraVectorStore(model=model, **{name: folder / "other" for name, folder in place.items()})
        ids = other.add_memories(memories, [document.metadata for document in make_documents()])
    finally:
        engine._worker.model.encode = calls
    assert len(set(ids)) == 5
    pairs = store.similarity_search_with_score(QUESTION, k=5)
    assert [
        (document.page_content, document.metadata, pytest.approx(score, abs=rounding))
        for document, score in other.similarity_search_with_score(QUESTION, k=5)
    ] == [(document.page_content, document.metadata, score) for document, score in pairs]


def test_memories_of_another_model(tmp_path, store):
    other = ClaraEngine.from_pretrained(str(build(tmp_path, seed=9).folder))
    with pytest.raises(FingerprintMismatch):
        store.add_memories(other.compress(["text"]))


def test_a_store_of_other_vectors_has_no_memories():
    store = ClaraVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=4), ids=["a"])
    with pytest.raises(TypeError, match="DeterministicFakeEmbedding"):
        store.get_memories(["a"])
    with pytest.raises(TypeError, match="DeterministicFakeEmbedding"):
        store.add_memories([])
    retriever = ClaraRetriever(vectorstore=store)
    assert retriever.invoke("a")[0].id == "a"
    assert retriever._get_ls_params()["ls_embedding_provider"] == "DeterministicFakeEmbedding"


def test_a_store_of_short_vectors_finds_every_window(engine, model):
    """A projection keeps windows separate, whereas an embedding for other stores is their mean."""
    store = ClaraVectorStore.from_documents(make_documents(), ClaraEmbeddings(model=model, dimensions=128))
    assert sum(len(memory.tokens) for memory in store.get_memories([d.id for d in store])) > 5
    assert store.store.stats().bytes > 5 * 128 * 4


def test_what_a_search_finds_is_known_to_the_engine(engine, store):
    engine.cache.clear()
    found = store.similarity_search(QUESTION, k=2)
    engine.remember(texts(found))
    assert (engine.cache.hits, engine.cache.misses) == (2, 0)


# -- in LangChain ----------------------------------------------------------------------------------


def test_as_retriever(filtered):
    similar = filtered.as_retriever(search_kwargs={"k": 3})
    assert similar.invoke(QUESTION) == filtered.similarity_search(QUESTION, k=3)
    assert len(similar.invoke(QUESTION, k=2)) == 2
    diverse = filtered.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 6})
    assert diverse.invoke(QUESTION) == filtered.max_marginal_relevance_search(QUESTION, k=2, fetch_k=6)
    scores = [score for _, score in filtered.similarity_search_with_relevance_scores(QUESTION, k=12)]
    floor = float(scores[4])
    above = filtered.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 12, "score_threshold": floor}
    )
    assert len(above.invoke(QUESTION)) == sum(score >= floor for score in scores)


def test_index_api(any_store):
    manager = InMemoryRecordManager(namespace="test")
    manager.create_schema()
    first = [Document(f"Passage {number}.", metadata={"source": f"s{number}"}) for number in range(4)]
    options = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(first, manager, any_store, **options)["num_added"] == 4
    again = index(first, manager, any_store, **options)
    assert (again["num_added"], again["num_skipped"]) == (0, 4)
    changed = [*first[:2], Document("Passage 2, written anew.", metadata={"source": "s2"})]
    result = index(changed, manager, any_store, **options)
    assert (result["num_added"], result["num_deleted"], result["num_skipped"]) == (1, 2, 2)
    assert sorted(texts(any_store)) == ["Passage 0.", "Passage 1.", "Passage 2, written anew."]


async def test_index_api_async(any_store):
    manager = InMemoryRecordManager(namespace="test")
    await manager.acreate_schema()
    documents = [Document("Passage.", metadata={"source": "s"})]
    options = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
    assert (await aindex(documents, manager, any_store, **options))["num_added"] == 1
    assert (await aindex([Document("New.", metadata={"source": "s"})], manager, any_store, **options))[
        "num_deleted"
    ] == 1
    assert texts(any_store) == ["New."]


async def test_every_way_to_make_one(model):
    embedding = DeterministicFakeEmbedding(size=4)
    metadatas = [{"n": 0}, {"n": 1}]
    stores = [
        ClaraVectorStore.from_texts(["a", "b"], embedding, metadatas, ids=["x", "y"]),
        await ClaraVectorStore.afrom_texts(["a", "b"], embedding, metadatas, ids=["x", "y"]),
        ClaraVectorStore.from_texts(["a", "b"], metadatas=metadatas, ids=["x", "y"], model=model),
        ClaraVectorStore.from_documents(
            [Document("a", metadata={"n": 0}), Document("b", metadata={"n": 1})], embedding, ids=["x", "y"]
        ),
        await ClaraVectorStore.afrom_documents(
            [Document("a", metadata={"n": 0}, id="x"), Document("b", metadata={"n": 1}, id="y")], model=model
        ),
    ]
    for store in stores:
        assert [(d.id, d.page_content, d.metadata["n"]) for d in store] == [("x", "a", 0), ("y", "b", 1)]
    with pytest.raises(ValueError, match="give embedding= or model="):
        ClaraVectorStore(embedding, model=model)
    with pytest.raises(UnknownOption, match="did you mean 'compression'"):
        ClaraVectorStore(compresion=16)


def test_a_deep_copy_is_on_its_own_and_shares_the_engine(store):
    other = copy.deepcopy(store)
    other.add_texts(["more"])
    assert (len(store), len(other)) == (5 if store.store.uri == "memory://" else 6, 6)  # a folder is not copied
    assert other.embeddings.shared_engine is store.embeddings.shared_engine


def test_threads_add_the_same_text_at_once(model, monkeypatch):
    original = vectorstores.complete_ids

    def slow(*args):
        ids = original(*args)
        time.sleep(0.005)  # other threads run between choosing an id and using it
        return ids

    monkeypatch.setattr(vectorstores, "complete_ids", slow)
    store = ClaraVectorStore(model=model)
    with ThreadPoolExecutor(8) as pool:
        ids = [id_ for made in pool.map(lambda _: store.add_texts(["same"] * 3), range(8)) for id_ in made]
    assert len(set(ids)) == len(store) == 24


def test_a_search_multiplies_one_matrix():
    """Fifty documents of a 7B model: LangChain's own store takes 0.3 s for a question, to rebuild arrays from lists."""

    class Fixed(DeterministicFakeEmbedding):
        def embed_documents(self, texts):
            draw = torch.Generator().manual_seed(len(texts))
            return torch.randn(len(texts), 65536, generator=draw).tolist()

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    store = ClaraVectorStore.from_texts([str(number) for number in range(50)], Fixed(size=65536))
    question = torch.randn(65536)
    start = time.process_time()
    for _ in range(3):
        store.store.search(question, 4)
    assert (time.process_time() - start) / 3 < 0.1
