"""Twelve pitfalls of LlamaIndex with local models that have state and long vectors, and a test for each.

Each pitfall exists in LlamaIndex or in packages around it. A test fails if our components no longer avoid its pitfall.
"""

from __future__ import annotations

import ast
import copy
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Settings, StorageContext, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores.types import VectorStoreQuery

from clara_core import ClaraEngine, Memory
from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraQueryEngine,
    ClaraRerank,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from tests.llama_index.doubles import QUESTION, TEXTS, ScriptedLLM, documents, nodes, unit
from tests.tiny import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def retriever(model):
    return ClaraRetriever.from_documents(documents(), model=model, similarity_top_k=3)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory):
    """A tiny model whose memories are as long as those of a 7B one: 1,024 tokens of 64 numbers."""
    return str(build(tmp_path_factory.mktemp("wide"), window=1024, rate=1).folder)


def test_1_long_vectors_are_searched_as_a_matrix(wide_model):
    """LlamaIndex's own store converts lists to an array at every query: 3.7 s for 100 nodes of 65,536 numbers."""
    engine = ClaraEngine.from_pretrained(wide_model)
    assert engine.dimension == 65_536
    rng = np.random.default_rng(0)
    given = [TextNode(id_=str(number), text=f"text {number}") for number in range(100)]
    memories = (synthetic(engine, node.text, rng) for node in given)
    store = ClaraVectorStore(engine=engine)
    store.add(given, memories=memories)
    query = VectorStoreQuery(query_embedding=rng.standard_normal(65_536).tolist(), similarity_top_k=5)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        found = store.query(query)
        seconds.append(time.process_time() - start)
    assert len(found.ids) == 5
    assert min(seconds) < 0.25
    assert store.client.stats().bytes == 100 * 65_536 * 4


def synthetic(engine, text, rng):
    """A synthetic memory as large as a real one."""
    import torch

    tokens = torch.from_numpy(rng.standard_normal((1, engine.n_mem, engine.hidden), np.float32))
    return Memory(tokens, text, ((0, len(text)),), 1, engine.fingerprint)


def test_2_nothing_of_a_chunk_is_cut_off(model, engine, caplog):
    """The default splitter makes chunks of 1,024 tokens of another tokenizer; most of each would be cut silently."""
    text = " ".join(f"Sentence number {number} speaks of the town." for number in range(60))
    assert engine.tokenizer.count(text) > 4 * engine.window
    (whole,) = engine.remember([text])
    assert "".join(text[start:end] for start, end in whole.spans) == text
    ClaraEmbedding(model=model).get_text_embedding(text)
    assert "Split documents with ClaraNodeParser" in caplog.text
    pieces = ClaraNodeParser(model=model).split_text(text)
    assert "".join(pieces) == text  # and no overlap, so no text is compressed twice
    assert all(engine.tokenizer.count(piece) <= engine.window for piece in pieces)


def test_3_the_model_is_shared_by_copies_and_never_pickled(model, engine):
    """The framework tries to pickle every attribute, and deletes those that fail from the live object."""
    engine.load()
    for made in (ClaraEmbedding(engine=engine), ClaraLLM(engine=engine), ClaraRerank(engine=engine)):
        made.callback_manager.add_handler(Unpicklable())
        before = dict(made.__dict__)
        data = pickle.dumps(made)
        assert len(data) < 4_000
        assert made.__dict__ == before
        assert pickle.loads(data).engine is engine  # noqa: S301
        assert copy.deepcopy(ClaraEmbedding(engine=engine)).engine is engine


class Unpicklable:
    """A handler that contains a lock."""

    event_starts_to_ignore: tuple[str, ...] = ()
    event_ends_to_ignore: tuple[str, ...] = ()

    def __init__(self):
        self.lock = threading.Lock()


def test_4_threads_get_the_vectors_of_their_own_role(model, engine):
    """LlamaIndex calls a model from many threads without a lock; switching adapters would be a race."""
    embedding = ClaraEmbedding(model=model)
    alone = [embedding.get_text_embedding(text) for text in TEXTS], [embedding.get_query_embedding(t) for t in TEXTS]

    def ask(number):
        engine.cache.clear()
        role, text = number % 2, number % len(TEXTS)
        call = (embedding.get_text_embedding, embedding.get_query_embedding)[role]
        return np.abs(np.array(call(TEXTS[text])) - alone[role][text]).max()

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(80))) < 1e-4


def test_5_a_cache_by_the_bare_text_is_refused(model):
    """Such a cache gives a question the vector of a document with the same text."""
    with pytest.raises(ValueError, match="mixes questions and documents"):
        ClaraEmbedding(model=model, embeddings_cache=SimpleKVStore())
    embedding = ClaraEmbedding(model=model)
    for _ in range(2):  # our cache separates roles
        text, question = embedding.get_text_embedding(QUESTION), embedding.get_query_embedding(QUESTION)
        assert np.abs(np.array(text) - question).max() > 1e-2


async def test_6_nodes_reach_the_generator_as_memories(model, engine):
    """A synthesizer gets texts; ours passes the nodes on, and otherwise works like the base class."""
    hits = [NodeWithScore(node=node, score=0.5) for node in nodes(3)]
    wanted = engine.answer(QUESTION, engine.remember(list(TEXTS[:3])), max_tokens=8)
    synthesizer = ClaraSynthesizer(model=model, max_tokens=8)
    for response in (synthesizer.synthesize(QUESTION, hits), await synthesizer.asynthesize(QUESTION, hits)):
        assert str(response) == wanted.text
        assert response.source_nodes == hits
    as_text = engine.answer("\n\n".join([*TEXTS[:3], QUESTION]), max_tokens=8)
    assert wanted.memory_tokens == 3 * engine.n_mem > as_text.memory_tokens


def test_7_stale_memories_are_not_trusted(model, engine):
    """Postprocessors change the text of a node and keep its id and vector; masked text would then leak."""
    given = nodes(2)
    ClaraEmbedding(model=model)(given)
    given[0].metadata["window"] = "The name was taken out."
    given[0].excluded_embed_metadata_keys = ["window"]
    hits = [NodeWithScore(node=node, score=0.5) for node in given]
    synthesizer, rerank = ClaraSynthesizer(model=model, max_tokens=8), ClaraRerank(model=model)
    synthesizer.synthesize(QUESTION, hits)  # the components know these ids with other texts
    rerank.postprocess_nodes(hits, query_str=QUESTION)
    replaced = MetadataReplacementPostProcessor(target_metadata_key="window").postprocess_nodes(hits)
    assert replaced[0].node.embedding is not None
    texts = ["The name was taken out.", TEXTS[1]]
    wanted = engine.answer(QUESTION, engine.compress(texts), max_tokens=8).text
    assert str(synthesizer.synthesize(QUESTION, replaced)) == wanted
    scores = {hit.node_id: hit.score for hit in rerank.postprocess_nodes(replaced, query_str=QUESTION)}
    assert scores["n-0"] == pytest.approx(engine.score([QUESTION], engine.compress(texts))[0, 0].item(), abs=1e-4)


def test_8_nodes_without_memory_are_compressed_on_the_fly(model, engine):
    """Sub-question engines create nodes from answers; docstores return nodes without vectors."""
    engine.cache.clear()
    hit = NodeWithScore(node=TextNode(text="Sub question: when?\nResponse: 1907"), score=None)
    wanted = engine.answer(QUESTION, engine.compress([hit.text]), max_tokens=8).text
    assert str(ClaraSynthesizer(model=model, max_tokens=8).synthesize(QUESTION, [hit])) == wanted
    assert ClaraRerank(model=model).postprocess_nodes([hit], query_str=QUESTION)[0].score is not None
    store = ClaraVectorStore(model=model)
    store.add([hit.node])
    assert store.memories([hit.node_id])[0].text == hit.text


async def test_9_chat_engines_can_stream(retriever):
    """Chat engines switch `_response_synthesizer._streaming` of a `RetrieverQueryEngine` between calls."""
    query_engine = ClaraQueryEngine(retriever, max_tokens=8)
    assert isinstance(query_engine, RetrieverQueryEngine)
    wanted = str(query_engine.query(QUESTION))
    history = [ChatMessage(content="The bridge?")]
    chat = CondenseQuestionChatEngine.from_defaults(
        query_engine, llm=ScriptedLLM(lines=[QUESTION]), chat_history=history
    )
    assert "".join(chat.stream_chat("When?").response_gen) == wanted
    stream = await chat.astream_chat("When?")
    assert "".join([piece async for piece in stream.async_response_gen()]) == wanted
    assert isinstance(query_engine.with_retriever(retriever), ClaraQueryEngine)


def test_10_nothing_asks_for_openai(retriever, model):
    """Without an LLM, LlamaIndex would import the OpenAI package, which is not installed."""
    with pytest.raises(ImportError, match="llama-index-llms-openai"):
        _ = Settings.llm
    llm = ClaraLLM(model=model, max_tokens=8)
    index = VectorStoreIndex.from_vector_store(retriever.vector_store, embed_model=ClaraEmbedding(model=model))
    engines = (
        ClaraQueryEngine(retriever, max_tokens=8),
        ClaraQueryEngine.from_args(retriever, response_synthesizer=ClaraSynthesizer(llm)),
        ClaraQueryEngine.from_documents(documents(), model=model, similarity_top_k=3, max_tokens=8),
        RetrieverQueryEngine(retriever, ClaraSynthesizer(llm)),
        RetrieverQueryEngine.from_args(retriever, llm=llm, response_synthesizer=ClaraSynthesizer(llm)),
        index.as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm), similarity_top_k=3),
    )
    assert len({str(engine.query(QUESTION)) for engine in engines}) == 1


def test_11_ids_that_an_index_remembers_are_no_filter(model):
    """`as_retriever` passes the ids that the index stores: none, or those of its index nodes only."""
    store, embedding = ClaraVectorStore(model=model), ClaraEmbedding(model=model)
    index = VectorStoreIndex(
        nodes(), embed_model=embedding, storage_context=StorageContext.from_defaults(vector_store=store)
    )
    assert index.as_retriever()._node_ids == []
    assert len(index.as_retriever(similarity_top_k=9).retrieve(QUESTION)) == 5
    index.insert_nodes([IndexNode(id_="points", text="It points at something.", index_id="x")])
    assert index.as_retriever()._node_ids == ["points"]
    assert len(index.as_retriever(similarity_top_k=9).retrieve(QUESTION)) == 6
    vector = unit("x", store.engine.dimension)
    strict = VectorStoreQuery(query_embedding=vector, similarity_top_k=9, node_ids=["n-1", "points"])
    assert sorted(store.query(strict).ids) == ["n-1", "points"]  # a real filter still works


def test_12_the_package_stands_by_itself():
    """LlamaIndex's repository takes no new integrations, so our package imports only its core, under its own name."""
    found = set()
    for path in (ROOT / "llama_index_clara").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {*names, node.module or ""} if isinstance(node, ast.ImportFrom) else set(names)
    llama = {name for name in found if name.partition(".")[0] == "llama_index"}
    assert llama
    assert all(name == "llama_index.core" or name.startswith("llama_index.core.") for name in llama)
    assert not (ROOT / "llama_index").exists()
    code = "import sys, llama_index_clara; print('llama_index' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_nodes_are_read_with_the_metadata_that_was_compressed(model, engine):
    """Search and answer share one memory, so both must use the same text."""
    node = TextNode(text=TEXTS[0], metadata={"page": 3}, excluded_llm_metadata_keys=["page"])
    retriever = ClaraRetriever(model=model)
    retriever.add_nodes([node])
    text = node.get_content(metadata_mode=MetadataMode.EMBED)
    wanted = engine.answer(QUESTION, engine.compress([text]), max_tokens=8).text
    assert str(ClaraQueryEngine(retriever, max_tokens=8).query(QUESTION)) == wanted
