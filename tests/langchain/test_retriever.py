"""Retriever and reranker with a tiny model, compared with the engine."""

from __future__ import annotations

import asyncio
import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField, RunnableLambda

from clara_core import ClaraEngine
from clara_core.retrieval.ranking import RERANK
from langchain_clara import ClaraRerank, ClaraRetriever
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.langchain.data import HOSTILE, make_documents
from tests.served import behind, served
from tests.tiny import build

QUESTION = "When was the bridge opened?"
KEY = "relevance_score"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return served(build(tmp_path_factory.mktemp("retriever")).folder)


@pytest.fixture(scope="module")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture
def retriever(model):
    return ClaraRetriever.from_documents(make_documents(), model=model, k=3)


def expected(engine, question, documents, k=None, score=lambda cosine: (cosine + 1) / 2):
    """Texts and relevances in the ranking of the engine; a reranker returns cosines."""
    memories = engine.compress([document.page_content for document in documents])
    ranked = engine.rank(question, memories, top_k=k)
    return [(documents[hit.index].page_content, pytest.approx(score(hit.score), abs=1e-5)) for hit in ranked]


def found(documents):
    return [(document.page_content, document.metadata[KEY]) for document in documents]


def close(documents):
    return [(text, pytest.approx(score, abs=1e-5)) for text, score in found(documents)]


# -- retriever -------------------------------------------------------------------------------------


def test_finds_what_the_engine_ranks_first(engine, retriever):
    assert found(retriever.invoke(QUESTION, mode="memory")) == expected(engine, QUESTION, make_documents(), 3)


@pytest.mark.parametrize("mode", [None, "memory", "text", "hybrid"])
async def test_mode_of_the_object_and_of_the_call(model, retriever, mode):
    other = ClaraRetriever(vectorstore=retriever.vectorstore, k=3, mode=mode)
    assert other.invoke(QUESTION) == retriever.invoke(QUESTION, mode=mode) == await other.ainvoke(QUESTION)
    scores = [document.metadata[KEY] for document in other.invoke(QUESTION)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len(other.invoke(QUESTION, score_threshold=(scores[0] + scores[1]) / 2)) == 1
    with pytest.raises(ValueError, match="mode"):
        ClaraRetriever(model=model, mode="words")


async def test_the_best_are_ranked_again_unless_told_not_to(model, retriever):
    store = retriever.vectorstore
    plain = store.similarity_search_with_relevance_scores(QUESTION, 3)
    again = store.similarity_search_with_relevance_scores(QUESTION, 3, rerank=RERANK)
    assert plain != again
    assert found(retriever.invoke(QUESTION)) == [(document.page_content, score) for document, score in again]
    for other in (ClaraRetriever(vectorstore=store, k=3, rerank=0), store.as_retriever(search_kwargs={"k": 3})):
        texts = [document.page_content for document, _ in plain]
        assert [document.page_content for document in other.invoke(QUESTION)] == texts
    assert found(await retriever.ainvoke(QUESTION, rerank=0)) == [(each.page_content, score) for each, score in plain]
    assert store.similarity_search_with_score(QUESTION, 3, rerank=RERANK) == again
    assert store.similarity_search(QUESTION, 3, rerank=RERANK) == [document for document, _ in again]
    with pytest.raises(ValueError, match="rerank must be at least 0, got -1"):
        retriever.invoke(QUESTION, rerank=-1)
    with pytest.raises(ValueError, match="rerank"):
        ClaraRetriever(model=model, rerank=-1)


async def test_async_finds_the_same(model, retriever):
    other = await ClaraRetriever.afrom_documents(make_documents(), model=model, k=3)
    assert await other.ainvoke(QUESTION) == retriever.invoke(QUESTION)


def test_k_of_the_object_and_of_the_call(retriever):
    assert len(retriever.invoke(QUESTION)) == 3
    assert len(retriever.invoke(QUESTION, k=2)) == 2
    assert retriever.invoke(QUESTION, k=2) == retriever.invoke(QUESTION)[:2]
    assert len(retriever.invoke(QUESTION, k=100)) == 5
    assert len(retriever.invoke(QUESTION)) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(model, retriever, k):
    with pytest.raises(ValueError, match=str(k)):
        retriever.invoke(QUESTION, k=k)
    with pytest.raises(ValueError, match="k"):
        ClaraRetriever(model=model, k=k)


def test_unknown_option_of_a_call_is_refused(retriever):
    with pytest.raises(TypeError, match=r"a call of ClaraRetriever has no option 'top_k'.*known: k, filter"):
        retriever.invoke(QUESTION, top_k=2)


async def test_score_threshold(model, retriever):
    everything = retriever.invoke(QUESTION, k=5)
    floor = everything[1].metadata[KEY]
    assert retriever.invoke(QUESTION, k=5, score_threshold=floor) == everything[:2]
    assert await retriever.ainvoke(QUESTION, k=5, score_threshold=floor) == everything[:2]
    strict = ClaraRetriever.from_documents(make_documents(), model=model, k=5, score_threshold=floor)
    assert strict.invoke(QUESTION) == everything[:2]
    assert strict.invoke(QUESTION, score_threshold=1.5) == []


def test_scores_are_python_floats_and_documents_are_json(retriever):
    for document in retriever.invoke(QUESTION):
        assert type(document.metadata[KEY]) is float
        assert json.loads(json.dumps(document.metadata)) == document.metadata


def test_ids_given_kept_or_made(model):
    documents = make_documents()
    retriever = ClaraRetriever(model=model, k=5)
    made = retriever.add_documents(documents)
    assert made[0] == "weldenia"
    assert made[4] == "long"
    assert len(set(made)) == 5
    assert {document.id for document in retriever.invoke(QUESTION)} == set(made)
    # Generated ids are the same in another process, so that answers cached under them are found again.
    assert ClaraRetriever(model=model).add_documents(documents) == made
    given = [str(number) for number in range(5)]
    assert ClaraRetriever(model=model).add_documents(documents, ids=given) == given


def test_equal_texts_are_two_documents_and_equal_ids_one(model):
    retriever = ClaraRetriever(model=model, k=10)
    twice = [Document("Same.", metadata={"n": 1}), Document("Same.", metadata={"n": 2})]
    assert len(set(retriever.add_documents(twice))) == 2
    retriever.add_documents([Document("Old.", id="x"), Document("New.", id="x")])
    texts = sorted(document.page_content for document in retriever.invoke(QUESTION))
    assert texts == ["New.", "Same.", "Same."]


def test_wrong_number_of_ids(model):
    with pytest.raises(ValueError, match="2 ids for 5 documents"):
        ClaraRetriever.from_documents(make_documents(), ids=["a", "b"], model=model)


def test_takes_a_generator(model):
    retriever = ClaraRetriever.from_documents((document for document in make_documents()), model=model)
    assert len(retriever.vectorstore) == 5


def test_nothing_given_is_changed_and_nothing_kept_can_be(model):
    documents = make_documents()
    before = copy.deepcopy(documents)
    retriever = ClaraRetriever.from_documents(documents, model=model, k=5)
    retriever.invoke(QUESTION)
    assert documents == before
    documents[1].metadata["tags"].append("later")
    for document in retriever.invoke(QUESTION):
        document.metadata.get("tags", []).append("mine")
        document.metadata["more"] = True
    again = retriever.invoke(QUESTION)
    assert [document.metadata["tags"] for document in again if "tags" in document.metadata] == [["a", "b"]]
    assert not any("more" in document.metadata for document in again)


def test_no_documents(model):
    retriever = ClaraRetriever.from_documents([], model=model)
    assert retriever.invoke(QUESTION) == []
    assert retriever.add_documents([]) == []


async def test_no_documents_async(model):
    retriever = await ClaraRetriever.afrom_documents([], model=model)
    assert await retriever.ainvoke(QUESTION) == []


def test_hostile_text_is_found_as_it_was_given(model):
    documents = [Document(text, id=str(number)) for number, text in enumerate(HOSTILE)]
    retriever = ClaraRetriever.from_documents(documents, model=model, k=10)
    for question in HOSTILE:
        texts = {document.id: document.page_content for document in retriever.invoke(question)}
        assert texts == {str(number): text for number, text in enumerate(HOSTILE) if text.strip()}


def test_copies_of_the_framework_share_the_documents(engine, model, retriever):
    flexible = retriever.configurable_fields(k=ConfigurableField(id="k"))
    assert len(flexible.invoke(QUESTION, config={"configurable": {"k": 1}})) == 1
    assert len(flexible.invoke(QUESTION)) == 3
    prepared, _ = flexible.prepare({"configurable": {"k": 1}})
    assert prepared.vectorstore is retriever.vectorstore
    assert prepared.shared_engine is engine


def test_a_deep_copy_is_on_its_own(retriever):
    other = retriever.model_copy(deep=True)
    assert other.shared_engine is retriever.shared_engine
    other.add_documents([Document("More.")])
    assert (len(retriever.vectorstore), len(other.vectorstore)) == (5, 6)


def test_batch_equals_loop(retriever):
    questions = [QUESTION, "Which family?", "How high?"]
    assert retriever.batch(questions) == [retriever.invoke(question) for question in questions]


def test_threads_add_and_search_at_once(model):
    retriever = ClaraRetriever(model=model, k=100)
    texts = [f"Passage number {number} of the folder." for number in range(40)]

    def add(part):
        retriever.add_documents([Document(text) for text in texts[part::4]])
        return retriever.invoke(QUESTION)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    alone = ClaraRetriever.from_documents([Document(text) for text in texts], model=model, k=100)
    together = {document.page_content: document.metadata[KEY] for document in retriever.invoke(QUESTION)}
    assert together == {
        document.page_content: pytest.approx(document.metadata[KEY], abs=1e-5) for document in alone.invoke(QUESTION)
    }
    assert len(together) == 40


async def test_compressing_does_not_block_the_loop(model):
    documents = [Document(" ".join(f"w{number * word}" for word in range(60))) for number in range(150)]
    engine = ClaraEngine.from_pretrained(model)
    with LoopWitness() as witness, wrapped(behind(engine).load().model, "encode", witness.around):
        retriever = await ClaraRetriever.afrom_documents(documents, model=model)
    assert len(retriever.vectorstore) == 150


# -- reranker --------------------------------------------------------------------------------------


def test_reranks_as_the_engine_ranks(engine, model):
    rerank = ClaraRerank(model=model, top_n=3)
    best = rerank.compress_documents(make_documents(), QUESTION)
    assert found(best) == expected(engine, QUESTION, make_documents(), 3, score=float)


async def test_reranks_the_same_async(model):
    rerank = ClaraRerank(model=model, top_n=2)
    best = rerank.compress_documents(make_documents(), QUESTION)
    assert await rerank.acompress_documents(make_documents(), QUESTION) == best
    assert rerank.compress_documents(make_documents(), QUESTION, callbacks=[]) == best


def test_top_n(model):
    documents = make_documents()
    assert len(ClaraRerank(model=model).compress_documents(documents, QUESTION)) == 3
    assert len(ClaraRerank(model=model, top_n=None).compress_documents(documents, QUESTION)) == 5
    assert len(ClaraRerank(model=model, top_n=50).compress_documents(documents, QUESTION)) == 5
    with pytest.raises(ValueError, match="top_n"):
        ClaraRerank(model=model, top_n=0)


async def test_reranking_nothing(model):
    assert ClaraRerank(model=model).compress_documents([], QUESTION) == []
    assert await ClaraRerank(model=model).acompress_documents([], QUESTION) == []


def test_reranking_changes_no_input_and_keeps_ids_and_metadata(model):
    documents = make_documents()
    before = copy.deepcopy(documents)
    best = ClaraRerank(model=model, top_n=None).compress_documents(documents, QUESTION)
    assert documents == before
    for document in best:
        metadata = {name: value for name, value in document.metadata.items() if name != KEY}
        assert Document(document.page_content, id=document.id, metadata=metadata) in before
        assert type(document.metadata[KEY]) is float


def test_known_documents_are_not_compressed_again(engine, model, retriever):
    candidates = retriever.invoke(QUESTION)
    before = engine.cache.hits, engine.cache.misses
    ClaraRerank(model=model).compress_documents(candidates, QUESTION)
    assert (engine.cache.hits, engine.cache.misses) == (before[0] + 3, before[1])


def test_what_the_retriever_found_is_known_even_if_the_cache_forgot_it(engine, model, retriever):
    engine.cache.clear()
    candidates = retriever.invoke(QUESTION)
    ClaraRerank(model=model).compress_documents(candidates, QUESTION)
    assert (engine.cache.hits, engine.cache.misses) == (3, 0)


def test_changed_text_is_compressed_anew(model):
    rerank = ClaraRerank(model=model)
    first, second = (
        rerank.compress_documents([Document(text, id="same")], QUESTION)[0].metadata[KEY]
        for text in ("The bridge was opened in 1907.", "A list of plants of the north.")
    )
    assert first != second


def test_reranking_hostile_text(model):
    documents = [Document(text) for text in HOSTILE]
    best = ClaraRerank(model=model, top_n=None).compress_documents(documents, HOSTILE[2])
    assert sorted(document.page_content for document in best) == sorted(HOSTILE)


async def test_reranker_as_a_step_of_a_chain(model, retriever):
    rerank = ClaraRerank(model=model, top_n=2)
    step = rerank.as_runnable(retriever.bind(k=5))
    best = rerank.compress_documents(make_documents(), QUESTION)
    assert found(step.invoke(QUESTION)) == close(best)
    assert found(await step.ainvoke(QUESTION)) == close(best)
    backwards = RunnableLambda(lambda question: make_documents()[::-1])
    assert found(rerank.as_runnable(backwards).invoke(QUESTION)) == close(best)


async def test_concurrent_questions_equal_serial_ones(model):
    rerank = ClaraRerank(model=model, top_n=None)
    questions = [f"What of town {number}?" for number in range(20)]
    together = await asyncio.gather(*(rerank.acompress_documents(make_documents(), q) for q in questions))
    for question, documents in zip(questions, together, strict=True):
        assert found(documents) == close(rerank.compress_documents(make_documents(), question))
