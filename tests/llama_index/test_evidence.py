"""Log-probabilities, citations and confidence in LlamaIndex's formats."""

from __future__ import annotations

import json

import pytest
from llama_index.core.base.llms.types import ChatMessage, CitationBlock
from llama_index.core.schema import NodeWithScore, TextNode

from clara_core import ClaraEngine
from llama_index_clara import ClaraLLM, ClaraQueryEngine, ClaraRetriever, ClaraSynthesizer
from tests.known import Known


@pytest.fixture
def nodes(known: Known) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=f"node-{at}"), score=0.5) for at, text in enumerate(known.texts)]


def test_log_probabilities_stand_with_their_tokens(encyclopedia: ClaraEngine, known: Known) -> None:
    llm = ClaraLLM(engine=encyclopedia).reading(known.texts)
    completion = llm.complete(known.question, logprobs=True, top_logprobs=2)
    assert b"".join(bytes(token[0].bytes) for token in completion.logprobs).decode() == known.answer
    assert {len(token) for token in completion.logprobs} == {3}
    chat = llm.chat([ChatMessage(content=known.question)], logprobs=True, top_logprobs=2)
    assert chat.logprobs == completion.logprobs
    streamed = [piece.logprobs for piece in llm.stream_chat([ChatMessage(content=known.question)], logprobs=True)]
    assert [token[0] for piece in streamed for token in piece] == [token[0] for token in completion.logprobs]
    assert llm.complete(known.question).logprobs is None


async def test_citations_are_blocks_behind_the_text(encyclopedia: ClaraEngine, known: Known) -> None:
    llm = ClaraLLM(engine=encyclopedia, citations=True).reading(known.texts)
    for response in (
        llm.chat([ChatMessage(content=known.question)]),
        await llm.achat([ChatMessage(content=known.question)]),
        list(llm.stream_chat([ChatMessage(content=known.question)]))[-1],
        [piece async for piece in await llm.astream_chat([ChatMessage(content=known.question)])][-1],
    ):
        assert response.message.content == known.answer
        _, block = response.message.blocks
        assert isinstance(block, CitationBlock)
        places = block.additional_location_info
        assert places["document"] == known.gold
        quoted = known.texts[known.gold][places["text_start"] : places["text_end"]]
        assert quoted == block.cited_content.text
        assert response.raw["checks"] == {"cited_first": True, "verbatim": True, "grounded": True}
        json.dumps(response.raw)
    plain = ClaraLLM(engine=encyclopedia).reading(known.texts).chat([ChatMessage(content=known.question)])
    assert len(plain.message.blocks) == 1
    assert "citations" not in plain.raw


def test_the_synthesizer_says_which_node(encyclopedia: ClaraEngine, known: Known, nodes: list[NodeWithScore]) -> None:
    empty = NodeWithScore(node=TextNode(text="  ", id_="empty"))
    response = ClaraSynthesizer(engine=encyclopedia, citations=True).synthesize(known.question, [empty, *nodes])
    assert str(response) == known.answer
    [citation] = response.metadata["clara"]["citations"]
    assert citation["node_id"] == f"node-{known.gold}"
    assert known.answer in citation["text"]
    assert [one.node.node_id for one in response.source_nodes] == ["empty", *(f"node-{at}" for at in range(4))]
    assert all(one.node.metadata == {} for one in nodes)
    off = ClaraSynthesizer(engine=encyclopedia).synthesize(known.question, nodes)
    assert "clara" not in off.metadata


def test_the_synthesizer_cites_by_attention(
    encyclopedia: ClaraEngine, known: Known, nodes: list[NodeWithScore]
) -> None:
    response = ClaraSynthesizer(engine=encyclopedia, citations="attention").synthesize(known.question, nodes)
    assert str(response) == known.answer
    assert response.metadata["clara"]["checks"]["grounded"] is None  # no document was hidden from the answer


async def test_only_cited_sources_and_marks(
    encyclopedia: ClaraEngine, known: Known, nodes: list[NodeWithScore]
) -> None:
    synthesizer = ClaraSynthesizer(engine=encyclopedia, sources="cited", inline_citations=True)
    for response in (
        synthesizer.synthesize(known.question, nodes),
        await synthesizer.asynthesize(known.question, nodes),
    ):
        [source] = response.source_nodes
        assert source.node.node_id == f"node-{known.gold}"
        assert source.score > 0.5
        assert str(response) == f"{known.answer} [1]"
    assert nodes[known.gold].score == 0.5
    marked = ClaraSynthesizer(engine=encyclopedia, inline_citations=True).synthesize(known.question, nodes)
    assert str(marked) == f"{known.answer} [{known.gold + 1}]"
    with pytest.raises(ValueError, match="did you mean 'cited'"):
        ClaraSynthesizer(engine=encyclopedia, sources="cites")


async def test_a_stream_has_its_evidence_when_it_has_ended(
    encyclopedia: ClaraEngine, known: Known, nodes: list[NodeWithScore]
) -> None:
    synthesizer = ClaraSynthesizer(engine=encyclopedia, citations=True, streaming=True)
    response = synthesizer.synthesize(known.question, nodes)
    assert "clara" not in response.metadata
    assert "".join(response.response_gen) == known.answer
    assert response.metadata["clara"]["citations"][0]["node_id"] == f"node-{known.gold}"
    response = await synthesizer.asynthesize(known.question, nodes)
    assert "".join([piece async for piece in response.async_response_gen()]) == known.answer
    assert response.metadata["clara"]["citations"][0]["node_id"] == f"node-{known.gold}"


def test_a_query_engine_withholds(encyclopedia: ClaraEngine, known: Known, nodes: list[NodeWithScore]) -> None:
    encyclopedia.warned_uncalibrated = True  # the warning is tested elsewhere
    retriever = ClaraRetriever.from_documents([node.node for node in nodes], engine=encyclopedia, similarity_top_k=4)
    sure = ClaraQueryEngine(retriever, min_confidence=0.0).query(known.question)
    assert sure.metadata["clara"]["abstained"] is False
    assert 0 <= sure.metadata["clara"]["confidence"] <= 1
    unsure = ClaraQueryEngine(retriever, min_confidence=1.0, read="again", citations=True).query(known.question)
    assert str(unsure) == "I am not sure enough to answer."
    assert unsure.metadata["clara"]["abstained"] is True
    assert unsure.metadata["clara"]["draft"]


def test_an_answer_is_words_of_a_node_where_asked(engine: ClaraEngine) -> None:
    """The weights are random, so a free answer is no text at all."""
    texts, question = ["The oat mill opens at 9.", "Ada Quill sailed to Lisbon."], "Who sailed?"
    for llm, asked in ((ClaraLLM(engine=engine, verbatim=True), {}), (ClaraLLM(engine=engine), {"verbatim": True})):
        reader = llm.reading(texts)
        quoted = reader.complete(question, **asked).text
        assert any(quoted in text for text in texts)
        assert "".join(piece.delta for piece in reader.stream_complete(question, **asked)) == quoted
    assert not any(ClaraLLM(engine=engine).reading(texts).complete(question).text in text for text in texts)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    said = ClaraSynthesizer(llm=ClaraLLM(engine=engine, verbatim=True)).synthesize(question, nodes)
    assert str(said) == quoted
