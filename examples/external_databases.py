"""A vector database of your own finds candidates; their memories lie in a `MemoryStore`. Needs `qdrant-client`.

    python examples/external_databases.py [MODEL] [postgresql://…]

The database holds ids and short vectors (`dimensions`); with an address it is PostgreSQL with pgvector (needs
`psycopg` and `pgvector`). The store ranks the candidates by the exact cosine of their whole memories, and the generator
reads those: a document is compressed once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clara_core import ClaraEngine, Memory, MemoryStore
from clara_core.data.documents import read_folder
from langchain_clara import ClaraEmbeddings, ClaraTextSplitter

DATA = Path(__file__).parent / "data"
QUESTION = "How high is the Eiffel Tower?"
Search = Callable[[list[float], int], list[str]]  # vector of a question, how many -> ids, best first


def main(model: str = "pocket", postgres: str | None = None) -> str:
    """Fill a store and a database, and ask; returns the answer."""
    engine = ClaraEngine.from_pretrained(model)
    splitter = ClaraTextSplitter(engine=engine)
    texts = [piece for file in read_folder(DATA)[0] for piece in splitter.split_text(file.text)]
    store = MemoryStore.open("memory://", engine=engine)
    ids = store.add(texts)

    embeddings = ClaraEmbeddings(engine=engine, dimensions=256)
    vectors = embeddings.memory_vectors(store.memories(ids))  # [n, 256], without compressing again
    search = in_postgres(postgres, ids, vectors) if postgres else in_qdrant(ids, vectors)

    candidates = search(embeddings.embed_query(QUESTION), 20)
    memories = rerank(engine, store, QUESTION, candidates, top_k=5)
    answer = engine.answer(QUESTION, memories, max_tokens=32).text
    print(f"{QUESTION}\n  {answer}")
    for memory in memories:
        print("   ", " ".join(memory.text.split())[:80])
    return answer


def rerank(engine: ClaraEngine, store: MemoryStore, question: str, ids: Sequence[str], top_k: int) -> list[Memory]:
    """The best of a database's candidates by their whole memories; ids that the store does not know are passed over."""
    memories = store.memories([record.id for record in store.get(ids)])
    return [memories[hit.index] for hit in engine.rank(question, memories, top_k)]


def in_qdrant(ids: Sequence[str], vectors: np.ndarray) -> Search:
    """A collection in this process."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    config = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    client.create_collection("passages", vectors_config=config)
    client.upload_collection("passages", vectors, payload=[{"id": id_} for id_ in ids])

    def search(vector: list[float], k: int) -> list[str]:
        return [str((point.payload or {})["id"]) for point in client.query_points("passages", vector, limit=k).points]

    return search


def in_postgres(uri: str, ids: Sequence[str], vectors: np.ndarray) -> Search:
    """A table with an index that compares cosines; pgvector indexes vectors of up to 2,000 numbers."""
    import psycopg
    from pgvector import Vector
    from pgvector.psycopg import register_vector

    connection = psycopg.connect(uri, autocommit=True)
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    register_vector(connection)
    connection.execute(f"CREATE TABLE passages (id text PRIMARY KEY, key vector({vectors.shape[1]:d}))")
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO passages VALUES (%s, %s)", list(zip(ids, vectors, strict=True)))
    connection.execute("CREATE INDEX ON passages USING hnsw (key vector_cosine_ops)")

    def search(vector: list[float], k: int) -> list[str]:
        rows = connection.execute("SELECT id FROM passages ORDER BY key <=> %s LIMIT %s", (Vector(vector), k))
        return [id_ for (id_,) in rows]

    return search


if __name__ == "__main__":
    main(*sys.argv[1:3])
