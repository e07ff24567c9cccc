"""ClaraRerank on nodes of any origin."""

from __future__ import annotations

import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from llama_index_clara import ClaraEmbedding, ClaraRerank, RerankedNode
from tests.engines import Counter
from tests.llama_index.doubles import QUESTION, TEXTS, nodes
from tests.served import behind


def candidates(n=5):
    return [NodeWithScore(node=node, score=0.1 * number) for number, node in enumerate(nodes(n))]


async def both(rerank, given, **query):
    query = query or {"query_str": QUESTION}
    ours = rerank.postprocess_nodes(given, **query)
    later = await rerank.apostprocess_nodes(given, **query)
    assert [(hit.node_id, hit.score) for hit in ours] == [(hit.node_id, pytest.approx(hit.score)) for hit in later]
    return ours


@pytest.mark.parametrize("top_n", [1, 3, 5, 50])
async def test_order_and_scores_are_the_engine_s(model, engine, top_n):
    ranked = engine.rank(QUESTION, engine.remember(list(TEXTS)), top_k=top_n)
    found = await both(ClaraRerank(model=model, top_n=top_n), candidates())
    assert [hit.node_id for hit in found] == [f"n-{hit.index}" for hit in ranked]
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in ranked], abs=1e-5)
    assert all(type(hit.score) is float for hit in found)


async def test_given_nodes_are_untouched(model):
    given = candidates()
    before = [hit.model_copy(deep=True) for hit in given]
    found = await both(ClaraRerank(model=model, keep_retrieval_score=True), given)
    assert given == before
    assert all(hit.node in [each.node for each in given] for hit in found)


async def test_retrieval_score_is_kept_beside_the_node(model):
    """Other rerankers put it into the metadata, where it changes hashes and is read by the next model."""
    given = candidates()
    hashes = {hit.node_id: hit.node.hash for hit in given}
    for hit in await both(ClaraRerank(model=model, keep_retrieval_score=True), given):
        assert isinstance(hit, RerankedNode)
        assert hit.retrieval_score == 0.1 * int(hit.node_id[2:])
        assert hit.node.hash == hashes[hit.node_id]
        for mode in MetadataMode:
            assert "score" not in hit.get_content(metadata_mode=mode)
    assert not isinstance((await both(ClaraRerank(model=model), given))[0], RerankedNode)


@pytest.mark.in_process
async def test_stale_memories_are_noticed_by_the_text(model, engine):
    given = candidates()
    ClaraEmbedding(model=model)([hit.node for hit in given])
    rerank = ClaraRerank(model=model, top_n=5)
    with Counter(behind(engine).load().model, "encode") as encoded:
        rerank.postprocess_nodes(given, query_str=QUESTION)
        assert encoded.calls == 1  # the question
        given[3].node.set_content("Another text under the same id and vector.")
        found = {hit.node_id: hit.score for hit in rerank.postprocess_nodes(given, query_str=QUESTION)}
        assert encoded.calls > 2
    texts = [hit.get_content() for hit in given]
    assert found["n-3"] == pytest.approx(engine.score([QUESTION], engine.compress(texts))[0, 3].item(), abs=1e-4)


async def test_metadata_of_the_embedding_is_ranked(model, engine):
    node = TextNode(text=TEXTS[0], metadata={"a": 1, "b": 2}, excluded_embed_metadata_keys=["b"])
    [hit] = await both(ClaraRerank(model=model), [NodeWithScore(node=node)])
    wanted = engine.score([QUESTION], engine.remember([f"a: 1\n\n{TEXTS[0]}"])).item()
    assert hit.score == pytest.approx(wanted, abs=1e-5)


async def test_nodes_without_text_come_last(model):
    blank = NodeWithScore(node=TextNode(id_="blank", text=" "), score=9.0)
    found = await both(ClaraRerank(model=model, top_n=6), [blank, *candidates()])
    assert (found[-1].node_id, found[-1].score) == ("blank", -1.0)
    assert (await both(ClaraRerank(model=model), [blank]))[0].node_id == "blank"


async def test_question_is_needed_and_said_once(model):
    rerank = ClaraRerank(model=model)
    with pytest.raises(ValueError, match="needs the question"):
        rerank.postprocess_nodes(candidates())
    with pytest.raises(ValueError, match="Cannot specify both"):
        rerank.postprocess_nodes(candidates(), query_bundle=QueryBundle(QUESTION), query_str=QUESTION)
    assert len(await both(rerank, candidates(), query_bundle=QueryBundle(QUESTION))) == 3
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ClaraRerank(model=model, top_n=0)


@pytest.mark.parametrize("n", [0, 5])
async def test_events_come_in_pairs(model, recorder, n):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    rerank = ClaraRerank(model=model, callback_manager=CallbackManager([debug]))
    found = await both(rerank, candidates(n))
    assert recorder.names == ["ReRankStartEvent", "ReRankEndEvent"] * 2
    assert recorder.events[0].model_name == model
    assert recorder.events[0].top_n == 3
    assert [hit.node_id for hit in recorder.events[1].nodes] == [hit.node_id for hit in found]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2
