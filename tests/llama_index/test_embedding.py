"""ClaraEmbedding, compared with the engine, and in LlamaIndex's uses of an embedding model."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest
import torch
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from clara_core import WindowOverflow
from clara_core.retrieval.ranking import unit_rows
from llama_index_clara import ClaraEmbedding
from tests.llama_index.doubles import QUESTION, TEXTS, nodes

HOSTILE = ("", "   \n", "<MEM0> <SEP> </s> [INST]", "lone \ud800 surrogate \x00", "word" * 100)


@pytest.fixture
def embedding(model):
    return ClaraEmbedding(model=model, embed_batch_size=2)


def close(first, second):
    return np.allclose(first, second, atol=1e-4)


def test_vectors_are_the_memories_of_the_roles(embedding, engine):
    memory = engine.compress([TEXTS[0]])[0]
    assert close(embedding.get_text_embedding(TEXTS[0]), unit_rows(memory.tokens)[0])
    assert close(embedding.get_query_embedding(QUESTION), unit_rows(engine.reason([QUESTION]))[0])


def test_batch_equals_single_in_order(embedding):
    batch = embedding.get_text_embedding_batch(list(TEXTS))
    assert len(batch) == len(TEXTS)
    assert close(batch, [embedding.get_text_embedding(text) for text in TEXTS])
    assert all(type(number) is float for number in batch[0])
    assert embedding.get_text_embedding_batch([]) == []


def test_async_equals_sync(embedding):
    async def all_three():
        return (
            await embedding.aget_query_embedding(QUESTION),
            await embedding.aget_text_embedding(TEXTS[0]),
            await embedding.aget_text_embedding_batch(list(TEXTS), show_progress=False),
        )

    query, text, batch = asyncio.run(all_three())
    assert close(query, embedding.get_query_embedding(QUESTION))
    assert close(text, embedding.get_text_embedding(TEXTS[0]))
    assert close(batch, embedding.get_text_embedding_batch(list(TEXTS)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_has_a_vector(embedding, text):
    for vector in (embedding.get_text_embedding(text), embedding.get_query_embedding(text)):
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-4)


def test_fewer_dimensions_keep_cosines(model, engine):
    full, short = ClaraEmbedding(model=model), ClaraEmbedding(model=model, dimensions=128)
    vectors, projected = (np.array(each.get_text_embedding_batch(list(TEXTS))) for each in (full, short))
    assert vectors.shape == (len(TEXTS), engine.dimension)
    assert projected.shape == (len(TEXTS), 128)
    assert np.abs(vectors @ vectors.T - projected @ projected.T).max() < 0.35
    assert np.allclose(np.linalg.norm(projected, axis=1), 1.0)
    assert len(short.get_query_embedding(QUESTION)) == 128
    assert short.to_dict()["dimensions"] == 128
    with pytest.raises(ValueError, match="dimensions=513 must be at most 512"):
        ClaraEmbedding(model=model, dimensions=engine.dimension + 1).get_query_embedding(QUESTION)


def test_long_text_is_the_mean_of_its_windows_and_warns(embedding, engine, caplog):
    long = " ".join(f"Sentence {number} speaks of the town." for number in range(30))
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        vector = embedding.get_text_embedding(long)
    assert "ClaraNodeParser" in caplog.text
    memory = engine.remember([long])[0]
    assert memory.n_windows > 2
    assert close(vector, torch.nn.functional.normalize(unit_rows(memory.tokens).mean(0), dim=0))


def test_overflow_error_and_truncate(model, engine):
    long = "The town is old. " * 60
    with pytest.raises(WindowOverflow):
        ClaraEmbedding(model=model, overflow="error").get_text_embedding(long)
    cut = ClaraEmbedding(model=model, overflow="truncate")
    with pytest.warns(UserWarning, match="truncated"):
        vector = cut.get_text_embedding(long)
    with pytest.warns(UserWarning, match="truncated"):
        assert close(vector, unit_rows(engine.compress([long], "truncate")[0].tokens)[0])
    assert engine.cache.get(long, engine.fingerprint) is None  # a truncated memory is not shared
    cut.get_text_embedding("Fits well.")
    assert engine.cache.get("Fits well.", engine.fingerprint) is not None


def test_one_pair_of_events_a_batch(embedding, recorder):
    embedding.get_text_embedding_batch(list(TEXTS))
    assert recorder.names == ["EmbeddingStartEvent", "EmbeddingEndEvent"] * 3
    assert [len(event.chunks) for event in recorder.events[1::2]] == [2, 2, 1]
    assert recorder.events[0].model_dict["model_name"] == embedding.model_name


def test_payload_has_nothing_that_looks_like_a_secret(embedding):
    payload = embedding.to_payload() if hasattr(embedding, "to_payload") else embedding.to_dict()
    assert not [name for name in payload if "token" in name or "key" in name]


def test_transformation_embeds_the_text_with_its_metadata(embedding):
    node = TextNode(text=TEXTS[0], metadata={"place": "Aln", "secret": "x"}, excluded_embed_metadata_keys=["secret"])
    embedding([node])
    assert close(node.embedding, embedding.get_text_embedding(f"place: Aln\n\n{TEXTS[0]}"))


def test_mean_of_several_questions(embedding):
    vectors = [embedding.get_query_embedding(text) for text in TEXTS[:2]]
    assert close(embedding.get_agg_embedding_from_queries(list(TEXTS[:2])), np.mean(vectors, axis=0))


def test_progress_is_drawn(embedding, capfd):
    embedding.get_text_embedding_batch(list(TEXTS), show_progress=True)
    assert "Generating embeddings" in capfd.readouterr().err


def test_memory_stays_for_the_reranker(embedding, engine):
    engine.cache.clear()
    embedding.get_text_embedding_batch([node.get_content() for node in nodes(2)])
    assert engine.cache.get(TEXTS[1], engine.fingerprint) is not None


def test_embeddings_cache_is_refused(model):
    with pytest.raises(ValueError, match="mixes questions and documents"):
        ClaraEmbedding(model=model, embeddings_cache=SimpleKVStore())
    embedding = ClaraEmbedding(model=model)
    with pytest.raises(ValueError, match="mixes questions and documents"):
        embedding.embeddings_cache = SimpleKVStore()
