"""IngestionPipeline: upserts, deletions, duplicates, cache, and worker processes."""

from __future__ import annotations

import pytest
from llama_index.core import Document
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.storage.docstore import SimpleDocumentStore

from llama_index_clara import ClaraEmbedding, ClaraLLM, ClaraNodeParser, ClaraRerank, ClaraVectorStore
from tests.engines import Counter
from tests.llama_index.doubles import TEXTS, documents
from tests.served import behind


def pipeline(model, **options):
    store = ClaraVectorStore(model=model)
    transformations = [ClaraNodeParser(model=model), ClaraEmbedding(model=model)]
    return IngestionPipeline(transformations=transformations, vector_store=store, **options), store


def stored(store):
    return sorted(node.text for node in store.get_nodes())


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_upserts_and_deletions(model, way):
    pipe, store = pipeline(model, docstore=SimpleDocumentStore(), docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE)

    async def run(docs):
        return pipe.run(documents=docs) if way == "sync" else await pipe.arun(documents=docs)

    assert len(await run(documents())) == len(TEXTS)
    assert stored(store) == sorted(TEXTS)
    assert await run(documents()) == []
    changed = [Document(text="Changed.", doc_id="doc-0"), *documents()[1:3]]
    assert [node.text for node in await run(changed)] == ["Changed."]
    assert stored(store) == sorted(["Changed.", *TEXTS[1:3]])


def test_duplicates(model):
    pipe, store = pipeline(model, docstore=SimpleDocumentStore(), docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY)
    pipe.run(documents=documents())
    assert pipe.run(documents=[Document(text=text, doc_id=f"again-{text}") for text in TEXTS]) == []
    assert len(stored(store)) == len(TEXTS)


@pytest.mark.in_process
def test_cache_is_hit_and_told_apart_by_what_changes_vectors(model, engine):
    cache = IngestionCache()
    for number, options in enumerate([{}, {}, {"dimensions": 64}, {"dtype": "bfloat16"}]):
        engine.cache.clear()
        with Counter(behind(engine).load().model, "encode") as encoded:
            pipe = IngestionPipeline(transformations=[ClaraEmbedding(model=model, **options)], cache=cache)
            found = pipe.run(nodes=[document.model_copy() for document in documents()])
        assert len(found[0].embedding) == (64 if "dimensions" in options else engine.dimension)
        assert (encoded.calls == 0) == (number == 1 or "dtype" in options)  # another dtype gives another engine


def test_cached_vectors_become_memories_again(model, engine):
    """Vectors from a cache are kept unchanged, and readers of the nodes look up memories by text."""
    cache = IngestionCache()
    stores = []
    for _ in range(2):
        pipe, store = pipeline(model, cache=cache)
        engine.cache.clear()
        pipe.run(documents=documents())
        stores.append(store)
    assert stores[1].memories([node.node_id for node in stores[1].get_nodes()])[0].text == stores[0].get_nodes()[0].text


def test_nodes_without_embedding_step_are_compressed_by_the_store(model):
    store = ClaraVectorStore(model=model)
    nodes = IngestionPipeline(transformations=[ClaraNodeParser(model=model)]).run(documents=documents())
    store.add(nodes)
    assert stored(store) == sorted(TEXTS)


def test_workers_are_refused_in_words(model):
    pipe = IngestionPipeline(transformations=[ClaraEmbedding(model=model)], disable_cache=True)
    with pytest.raises(TypeError, match=r"ClaraEmbedding is not sent to other processes.*num_workers at None"):
        pipe.run(documents=documents(), num_workers=2)
    assert len(pipe.run(documents=documents())) == len(TEXTS)  # the live object is unchanged


async def test_async_workers_too(model):
    pipe = IngestionPipeline(transformations=[ClaraEmbedding(model=model)], disable_cache=True)
    with pytest.raises(TypeError, match="ClaraEmbedding is not sent to other processes"):
        await pipe.arun(documents=documents(), num_workers=2)


@pytest.mark.parametrize("component", [ClaraEmbedding, ClaraLLM, ClaraRerank])
def test_whatever_holds_weights_is_refused(component):
    from multiprocessing.reduction import ForkingPickler

    class Mine(component):
        pass

    for made in (component(), Mine()):
        with pytest.raises(TypeError, match="num_workers"):
            ForkingPickler.dumps(made)
    ForkingPickler.dumps(ClaraNodeParser())  # needs only a tokenizer
