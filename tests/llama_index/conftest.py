"""Fixtures of the LlamaIndex tests. Without the OpenAI package and IS_TESTING, a use of a default model fails."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed: pip install 'clara-rag[llama-index]'")

from llama_index.core import Settings
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import VectorStoreQuery

from clara_core import ClaraEngine, MemoryStore
from clara_core.model.checkpoint.hub import BUNDLED
from llama_index_clara import ClaraEmbedding, ClaraQueryEngine, ClaraRetriever, ClaraVectorStore
from tests.llama_index.doubles import QUESTION, TEXTS, Recorder, documents, nodes, unit
from tests.served import served
from tests.tiny import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("llama_index"))


@pytest.fixture(scope="session")
def model(tiny):
    """Folder of a random checkpoint, whose answers have no meaning."""
    return served(tiny.folder)


@pytest.fixture(scope="session")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture(scope="session")
def best_model(model):
    """The bundled model, or the random one if its weights are missing."""
    return served("pocket") if (BUNDLED["pocket"] / "config.json").is_file() else model


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    """The environment of a user without OpenAI."""
    monkeypatch.delenv("IS_TESTING", raising=False)
    for name in ("openai", "llama_index.llms.openai", "llama_index.embeddings.openai"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails, even if it is installed
    for name in ("_llm", "_embed_model", "_callback_manager", "_tokenizer", "_node_parser", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    monkeypatch.setattr(Settings, "_transformations", None)


@pytest.fixture
def recorder():
    """Records the names of LlamaIndex's events during a test."""
    with Recorder() as recorder:
        yield recorder


# -- vector stores ---------------------------------------------------------------------------------

METADATA = (
    {"year": 1907, "place": "Aln", "tags": ["bridge", "river"], "ratio": 0.5, "open": True},
    {"year": 1950, "place": "Bristol", "tags": [], "note": ""},
    {"year": "1907", "place": "aln valley", "tags": ["bridge"], "when": None},
    {},
)


@pytest.fixture(scope="module")
def length(engine):
    return engine.dimension


@pytest.fixture(params=["memory", "durable"])
def store(request, model, engine, tmp_path):
    """A store in memory, and one in a folder."""
    if request.param == "memory":
        yield ClaraVectorStore(model=model)
    else:
        yield ClaraVectorStore(model=model, uri=tmp_path / "memories")
        engine.cache.clear()  # of memories that were stored in fewer bits


@pytest.fixture
def plain(model):
    """A store for vectors of any embedding."""
    return ClaraVectorStore(model=model, dimensions=ClaraVectorStore(model=model).engine.dimension)


@pytest.fixture
def pair(store, model, length):
    """Our store and LlamaIndex's, with the same eight nodes and vectors."""
    return filled(store, model, length)


@pytest.fixture
def plain_pair(plain, model, length):
    return filled(plain, model, length)


def filled(store, model, length):
    """A store with nodes; their vectors are invented if the store accepts any vector."""
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
    """Tolerance of a cosine: a store in a folder writes bfloat16."""
    return 1e-5 if store.uri is None else 4e-3


def ask(store, length, **fields):
    return store.query(VectorStoreQuery(query_embedding=unit(QUESTION, length), **fields))


# -- query engines ---------------------------------------------------------------------------------


@pytest.fixture
def retriever(model):
    return ClaraRetriever.from_documents(documents(), model=model, similarity_top_k=3)


@pytest.fixture
def query_engine(retriever):
    return ClaraQueryEngine(retriever, max_tokens=8)


@pytest.fixture
def expected(engine):
    """The expected answer to a question from the three best texts, by calls of the core."""
    store = MemoryStore.open("memory://", engine=engine)
    store.add(list(TEXTS))

    def answer(question):
        best = store.memories([hit.id for hit in store.search(question, k=3)])
        return engine.answer(question, best, max_tokens=8).text

    return answer
