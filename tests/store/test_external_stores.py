"""External vector databases find candidates, and a `MemoryStore` ranks them by their whole memories."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from uuid import NAMESPACE_URL, uuid4, uuid5

import numpy as np
import pytest
import torch
from langchain_core.documents import Document

from clara_core import ClaraEngine, MemoryStore
from clara_core.retrieval.projection import Projection
from langchain_clara import ClaraEmbeddings
from tests import postgres
from tools.pocket_factory.world import ENCYCLOPEDIA, make_corpus

EXAMPLE = Path(__file__).parents[2] / "examples" / "external_databases.py"
CANDIDATES = 20
# langchain_community warns at import that it is being retired.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def engine():
    return ClaraEngine.from_pretrained(ENCYCLOPEDIA)


@pytest.fixture(scope="module")
def corpus(engine):
    """Sixty passages of one window each, by id, and questions about them."""
    made = make_corpus(random.Random(5), 90, split="test", words=(10, 35), questions_per_passage=1, two_passage=0)
    short = [passage.text for passage in made.passages if engine.count_tokens(passage.text) <= engine.window - 8][:60]
    texts = {str(uuid5(NAMESPACE_URL, text)): text for text in short}
    assert len(texts) == 60
    return texts, [question.text for question in made.questions][:15]


@pytest.fixture(scope="module")
def store(engine, corpus, tmp_path_factory):
    """A store that was written, closed and opened again."""
    folder = tmp_path_factory.mktemp("store")
    texts, _ = corpus
    with_ids = MemoryStore.open(str(folder), engine=engine)
    with_ids.add(list(texts.values()), ids=list(texts))
    with_ids.close()
    return MemoryStore.open(str(folder), engine=engine)


@pytest.fixture(scope="module")
def server():
    with postgres.running() as server:
        yield server


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def database(server):
    psycopg = pytest.importorskip("psycopg")
    from pgvector.psycopg import register_vector

    with psycopg.connect(server.uri, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        yield connection
        connection.execute("DROP TABLE IF EXISTS passages")


# --- the databases -----------------------------------------------------------------------------------------


def faiss(embeddings, texts, request):
    from langchain_community.vectorstores import FAISS

    found = FAISS.from_texts(list(texts.values()), embeddings, ids=list(texts), distance_strategy="MAX_INNER_PRODUCT")
    return lambda question, k: [document.id for document in found.similarity_search(question, k=k)]


def qdrant(embeddings, texts, request):
    from langchain_qdrant import QdrantVectorStore

    documents = [Document(text, metadata={"id": id_}) for id_, text in texts.items()]
    found = QdrantVectorStore.from_documents(documents, embeddings, location=":memory:", collection_name="passages")
    return lambda question, k: [document.metadata["id"] for document in found.similarity_search(question, k=k)]


def chroma(embeddings, texts, request):
    from chromadb.config import Settings
    from langchain_chroma import Chroma

    found = Chroma.from_texts(
        list(texts.values()),
        embeddings,
        ids=list(texts),
        collection_name=f"passages-{uuid4()}",
        client_settings=Settings(anonymized_telemetry=False, is_persistent=False),
        # As many neighbours as passages, so the search is exact.
        collection_metadata={"hnsw:space": "cosine", "hnsw:search_ef": 100},
    )
    return lambda question, k: [document.id for document in found.similarity_search(question, k=k)]


def pgvector(embeddings, texts, request):
    from pgvector import Vector

    connection = request.getfixturevalue("database")
    vectors = embeddings.embed_documents(list(texts.values()))
    connection.execute(f"CREATE TABLE passages (id text PRIMARY KEY, key vector({len(vectors[0])}))")
    rows = [(id_, Vector(vector)) for id_, vector in zip(texts, vectors, strict=True)]
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO passages VALUES (%s, %s)", rows)

    def search(question, k):
        vector = Vector(embeddings.embed_query(question))
        query = "SELECT id FROM passages ORDER BY key <=> %s LIMIT %s"
        return [id_ for (id_,) in connection.execute(query, (vector, k))]

    return search


@pytest.mark.parametrize("make", [faiss, qdrant, chroma, pgvector])
@pytest.mark.parametrize("dimensions", [None, 256])
def test_candidates_of_a_database_are_ranked_by_whole_memories(
    make, dimensions, engine, corpus, store, example, request
):
    """The store corrects the ranking that a database makes with short vectors; the best passage is not lost."""
    texts, questions = corpus
    search = make(ClaraEmbeddings(engine=engine, dimensions=dimensions), texts, request)
    exact = engine.score(questions, store.memories(list(texts)))  # [questions, passages]
    lost = 0
    for question, scores in zip(questions, exact, strict=True):
        candidates = search(question, CANDIDATES)
        assert len(set(candidates)) == CANDIDATES
        of = dict(zip(texts, scores.tolist(), strict=True))
        order = sorted(candidates, key=of.__getitem__, reverse=True)
        found = example.rerank(engine, store, question, candidates, top_k=5)
        assert [memory.text for memory in found] == [texts[id_] for id_ in order[:5]]
        lost += max(of, key=of.__getitem__) not in candidates
        if dimensions is None:  # without a projection the database ranks as the store does, up to rounding
            assert [of[id_] for id_ in candidates] == pytest.approx(
                sorted(scores.tolist())[::-1][:CANDIDATES], abs=1e-3
            )
    assert lost == 0


def test_what_the_store_no_longer_holds_is_passed_over(engine, corpus, example):
    texts, questions = corpus
    ids = list(texts)
    store = MemoryStore.open("memory://", engine=engine)
    store.add([texts[id_] for id_ in ids[:8]], ids=ids[:8])
    store.delete(ids=[ids[3]])
    found = example.rerank(engine, store, questions[0], ids, top_k=60)
    assert {memory.text for memory in found} == {texts[id_] for id_ in ids[:8]} - {texts[ids[3]]}


def test_ids_are_data_to_a_database_and_to_the_store(engine, corpus, example, database, server):
    texts, questions = corpus
    names = ['o\'brien "quoted"; DROP TABLE passages; --', "../../etc/passwd", "naïve 🙂/x", "a' OR '1'='1", " "]
    store = MemoryStore.open("memory://", engine=engine)
    store.add(list(texts.values())[:5], ids=names)
    embeddings = ClaraEmbeddings(engine=engine, dimensions=64)
    vectors = embeddings.memory_vectors(store.memories(names))
    search = example.in_postgres(server.uri, names, vectors)
    found = search(embeddings.embed_query(questions[0]), 5)
    assert sorted(found) == sorted(names)
    assert len(example.rerank(engine, store, questions[0], found, top_k=5)) == 5


# --- PostgreSQL at the size of the 7B model ----------------------------------------------------------------


def test_pgvector_takes_projected_memories_of_65536_numbers(database):
    """PostgreSQL refuses whole memories; an index over 4,000 numbers of half precision finds the best one."""
    import psycopg
    from pgvector import HalfVector

    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(1, 65536, generator=generator)
    memories = centre + torch.randn(150, 65536, generator=generator)
    questions = memories[:5] + 2 * torch.randn(5, 65536, generator=generator)
    database.execute("CREATE TABLE passages (id int PRIMARY KEY, key halfvec(4000))")
    with pytest.raises(psycopg.errors.Error, match="more than 16000 dimensions"):
        database.execute("SELECT %s::vector", (str(memories[0].tolist()),))

    projection = Projection(65536, 4000)
    keys = torch.nn.functional.normalize(projection.apply(memories)).numpy()
    with database.cursor() as cursor:
        cursor.executemany("INSERT INTO passages VALUES (%s, %s)", [(n, HalfVector(key)) for n, key in enumerate(keys)])
    database.execute("CREATE INDEX ON passages USING hnsw (key halfvec_cosine_ops)")
    database.execute("SET enable_seqscan = off")
    query = "SELECT id FROM passages ORDER BY key <=> %s LIMIT 20"
    cosines = torch.nn.functional.normalize(questions) @ torch.nn.functional.normalize(memories).T
    for question, exact in zip(torch.nn.functional.normalize(projection.apply(questions)), cosines, strict=True):
        asked = (HalfVector(np.asarray(question)),)
        plan = str(database.execute("EXPLAIN " + query, asked).fetchall())
        assert "Index Scan using passages_key_idx" in plan
        found = [row for (row,) in database.execute(query, asked)]
        assert int(exact.argmax()) in found


def test_a_database_and_a_store_are_there_after_a_restart(engine, corpus, store, example, server):
    texts, questions = corpus
    embeddings = ClaraEmbeddings(engine=engine, dimensions=256)
    search = example.in_postgres(server.uri, list(texts), embeddings.memory_vectors(store.memories(list(texts))))
    vector = embeddings.embed_query(questions[0])
    before = search(vector, CANDIDATES)
    server.stop()
    server.start()
    import psycopg

    with psycopg.connect(server.uri, autocommit=True) as connection:
        again = connection.execute(
            "SELECT id FROM passages ORDER BY key <=> %s::vector LIMIT %s", (str(vector), CANDIDATES)
        ).fetchall()
        connection.execute("DROP TABLE passages")
    assert [id_ for (id_,) in again] == before
    assert len(store.memories(before)) == CANDIDATES


# --- the example -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qdrant", "postgres"])
def test_the_example_answers(kind, example, capsys, request):
    if kind == "postgres":
        request.getfixturevalue("database")  # this also drops the table
        answer = example.main("pocket", request.getfixturevalue("server").uri)
    else:
        answer = example.main("pocket")
    asked, answered, best, *_ = capsys.readouterr().out.splitlines()
    assert asked == example.QUESTION
    assert answered.strip() == answer
    _, *names = re.findall(r"[A-Z]\w+", example.QUESTION)
    assert names
    assert all(name in best for name in names)
