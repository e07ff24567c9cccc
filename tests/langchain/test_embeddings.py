"""The embeddings with a tiny model, compared with the engine."""

from __future__ import annotations

import asyncio

import pytest
import torch

from clara_core import ClaraEngine, UnknownOption, WindowOverflow
from clara_core.retrieval.projection import Projection
from langchain_clara import ClaraEmbeddings
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.langchain.data import HOSTILE
from tests.served import behind, served
from tests.tiny import build

TEXTS = ["Weldenia is a genus of flowering plants.", "The bridge over the Aln was opened in 1907.", "Short note."]
LONG = " ".join(f"Sentence {number} speaks of the town." for number in range(60))
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("embeddings")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def embeddings(model):
    return ClaraEmbeddings(model=model)


def unit(tokens):
    return torch.nn.functional.normalize(tokens.flatten(1).float(), dim=1)


def test_documents_are_memories_laid_flat(engine, embeddings):
    memories = engine.compress(TEXTS)
    expected = torch.cat([unit(memory.tokens) for memory in memories])
    vectors = torch.tensor(embeddings.embed_documents(TEXTS))
    assert vectors.shape == (3, engine.dimension)
    assert torch.allclose(vectors, expected, atol=1e-5)


def test_questions_are_read_by_the_query_reasoner(engine, embeddings):
    vector = torch.tensor([embeddings.embed_query(QUESTION)])
    assert torch.allclose(vector, unit(engine.reason([QUESTION])), atol=1e-5)
    assert not torch.allclose(vector, torch.tensor(embeddings.embed_documents([QUESTION])), atol=1e-2)


def test_inner_products_are_the_engines_scores(engine, embeddings):
    scores = torch.tensor(embeddings.embed_documents(TEXTS)) @ torch.tensor(embeddings.embed_query(QUESTION))
    assert torch.allclose(scores, engine.score([QUESTION], engine.compress(TEXTS))[0], atol=1e-5)


async def test_async_gives_the_same(embeddings):
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query(QUESTION) == pytest.approx(embeddings.embed_query(QUESTION), abs=1e-6)


@pytest.mark.parametrize("dimensions", [None, 32])
async def test_python_floats_in_lists_of_one_length(model, dimensions):
    embeddings = ClaraEmbeddings(model=model, dimensions=dimensions)
    vectors = [*embeddings.embed_documents([*TEXTS, *HOSTILE[:4]]), embeddings.embed_query(QUESTION)]
    vectors.append(await embeddings.aembed_query(HOSTILE[2]))
    assert {type(vector) for vector in vectors} == {list}
    assert {type(number) for vector in vectors for number in vector} == {float}
    assert len({len(vector) for vector in vectors}) == 1
    assert all(sum(number**2 for number in vector) == pytest.approx(1, abs=1e-4) for vector in vectors)


async def test_nothing_in_nothing_out(embeddings):
    assert embeddings.embed_documents([]) == []
    assert await embeddings.aembed_documents([]) == []


def test_order_and_repetition(embeddings):
    twice = embeddings.embed_documents([TEXTS[1], TEXTS[0], TEXTS[1]])
    once = embeddings.embed_documents(TEXTS)
    assert twice == [once[1], once[0], once[1]]


def test_line_breaks_count(embeddings):
    one, other = embeddings.embed_documents(["one\ntwo", "one two"])
    assert one != other


def test_a_known_text_is_not_compressed_again(engine, embeddings):
    embeddings.embed_documents(TEXTS)
    before = engine.cache.misses
    embeddings.embed_documents(TEXTS)
    assert engine.cache.misses == before


# -- fewer dimensions ------------------------------------------------------------------------------


def test_projection(engine, model):
    embeddings = ClaraEmbeddings(model=model, dimensions=64, seed=3)
    whole = torch.tensor(ClaraEmbeddings(model=model).embed_documents(TEXTS))
    expected = torch.nn.functional.normalize(Projection(engine.dimension, 64, seed=3).apply(whole), dim=1)
    assert torch.allclose(torch.tensor(embeddings.embed_documents(TEXTS)), expected, atol=1e-5)
    assert ClaraEmbeddings(model=model, dimensions=64).embed_query(QUESTION) != embeddings.embed_query(QUESTION)


def test_cosines_are_kept(engine, model):
    texts = [f"The town of number {number} lies on the river." for number in range(40)]
    whole = torch.tensor(ClaraEmbeddings(model=model).embed_documents(texts))
    short = torch.tensor(ClaraEmbeddings(model=model, dimensions=128).embed_documents(texts))
    told = Projection(engine.dimension, 128).standard_error(0.0)
    assert float((short @ short.T - whole @ whole.T).abs().max()) < 4 * told


def test_impossible_dimensions(engine, model):
    with pytest.raises(ValueError, match="dimensions"):
        ClaraEmbeddings(model=model, dimensions=0)
    with pytest.raises(ValueError, match=f"must be at most {engine.dimension}, "):
        ClaraEmbeddings(model=model, dimensions=engine.dimension + 1).embed_query(QUESTION)


# -- long texts ------------------------------------------------------------------------------------


async def test_a_long_text_is_the_mean_of_its_windows_with_a_warning(engine, embeddings):
    [memory] = engine.compress([LONG])
    assert memory.n_windows > 1
    expected = torch.nn.functional.normalize(unit(memory.tokens).mean(0), dim=0)
    with pytest.warns(UserWarning, match="1 texts are longer than the window of 64 tokens.*ClaraTextSplitter"):
        vectors = embeddings.embed_documents([TEXTS[0], LONG])
    assert torch.allclose(torch.tensor(vectors[1]), expected, atol=1e-5)
    with pytest.warns(UserWarning, match="longer than the window"):
        assert await embeddings.aembed_documents([TEXTS[0], LONG]) == vectors


async def test_a_long_text_can_be_refused(model):
    strict = ClaraEmbeddings(model=model, overflow="error")
    assert strict.embed_documents(TEXTS)
    with pytest.raises(WindowOverflow, match="Sentence 0 speaks"):
        strict.embed_documents([TEXTS[0], LONG])
    with pytest.raises(WindowOverflow, match="Sentence 0 speaks"):
        await strict.aembed_documents([TEXTS[0], LONG])


# -- together --------------------------------------------------------------------------------------


def test_misspelt_options_are_refused():
    with pytest.raises(UnknownOption, match="did you mean 'dimensions'"):
        ClaraEmbeddings(dimension=64)


def test_copies_of_the_framework_reload_nothing(engine, model):
    assert ClaraEmbeddings(model=model).shared_engine is engine
    assert ClaraEmbeddings(engine=engine).model_copy(deep=True).shared_engine is engine


async def test_embedding_holds_no_thread_and_blocks_no_loop(model):
    """All code shares the default thread pool, so work on the device must not fill it."""
    embeddings = ClaraEmbeddings(model=model)
    await embeddings.aembed_query(QUESTION)
    texts = [f"Passage {number}: " + "word " * 12 for number in range(120)]
    with LoopWitness() as witness, wrapped(behind(embeddings.shared_engine).load().model, "encode", witness.around):
        await asyncio.gather(*(embeddings.aembed_documents(texts[at : at + 4]) for at in range(0, 120, 4)))
