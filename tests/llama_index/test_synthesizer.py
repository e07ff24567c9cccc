"""ClaraSynthesizer: nodes reach the generator as memories, whatever their state."""

from __future__ import annotations

import inspect

import pytest
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.llms import MockLLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, TextNode
from pydantic import BaseModel

from llama_index_clara import ClaraEmbedding, ClaraLLM, ClaraSynthesizer
from tests.engines import Counter
from tests.llama_index.doubles import QUESTION, TEXTS, nodes, unit
from tests.served import behind

STATES = ("known", "unknown", "stale", "foreign vector")
WAYS = ("sync", "stream", "async", "async stream")


@pytest.fixture
def synthesizer(model):
    return ClaraSynthesizer(model=model, max_tokens=8)


def scored(items):
    return [NodeWithScore(node=node, score=1 - number / 10) for number, node in enumerate(items)]


async def answered(synthesizer, way, items, **more):
    """Text and response of one call; the response must have the type that the call promises."""
    synthesizer._streaming = "stream" in way
    if "async" in way:
        response = await synthesizer.asynthesize(QUESTION, items, **more)
    else:
        response = synthesizer.synthesize(QUESTION, items, **more)
    if way == "stream":
        assert isinstance(response, StreamingResponse)
        assert inspect.isgenerator(response.response_gen)
        return "".join(response.response_gen), response
    if way == "async stream":
        assert isinstance(response, AsyncStreamingResponse)
        return "".join([piece async for piece in response.response_gen]), response
    assert isinstance(response, Response)
    return response.response, response


@pytest.mark.in_process
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
async def test_nodes_are_read_as_their_text_is_now(synthesizer, model, engine, way, state):
    given = nodes(3)
    texts = list(TEXTS[:3])
    engine.cache.clear()
    if state != "unknown":
        ClaraEmbedding(model=model)(given)
    if state == "stale":  # as postprocessors do that mask or replace text
        given[1].set_content("A text that was put in later.")
        texts[1] = given[1].text
    if state == "foreign vector":
        given[1].embedding = unit("x", 8)
    if state == "known":
        engine.load()
    wanted = engine.answer(QUESTION, engine.compress(texts), max_tokens=8)
    with Counter(behind(engine).load().model, "encode") as encoded:
        text, response = await answered(synthesizer, way, scored(given))
    assert text == wanted.text
    assert encoded.calls == (0 if state in ("known", "foreign vector") else 1)
    assert [(hit.node_id, hit.score) for hit in response.source_nodes] == [("n-0", 1.0), ("n-1", 0.9), ("n-2", 0.8)]
    assert set(response.metadata) == {"n-0", "n-1", "n-2"}


@pytest.mark.parametrize("way", WAYS)
async def test_additional_sources_are_shown_and_not_read(synthesizer, engine, way):
    more = scored([TextNode(id_="extra", text="extra")])
    text, response = await answered(synthesizer, way, scored(nodes(2)), additional_source_nodes=more)
    assert text == engine.answer(QUESTION, engine.remember(list(TEXTS[:2])), max_tokens=8).text
    assert [hit.node_id for hit in response.source_nodes] == ["n-0", "n-1", "extra"]


@pytest.mark.parametrize("way", WAYS)
async def test_no_nodes_and_nodes_without_text(model, engine, way):
    synthesizer = ClaraSynthesizer(model=model, max_tokens=8, empty_response="Nothing found.")
    text, response = await answered(synthesizer, way, [])
    assert (text, response.source_nodes) == ("Nothing found.", [])
    blank = [TextNode(id_="blank", text="  \n"), ImageNode(id_="image", image_url="http://example.org/a.png")]
    text, response = await answered(synthesizer, way, scored(blank))
    assert text == "Nothing found."
    assert len(response.source_nodes) == 2
    text, response = await answered(synthesizer, way, scored([*blank, *nodes(1)]))
    assert text == engine.answer(QUESTION, engine.remember([TEXTS[0]]), max_tokens=8).text
    assert len(response.source_nodes) == 3


def test_text_chunks_are_read_too(synthesizer, engine):
    wanted = engine.answer(QUESTION, engine.remember(list(TEXTS)), max_tokens=8).text
    assert synthesizer.get_response(QUESTION, list(TEXTS)) == wanted


def test_metadata_mode(model, engine):
    node = TextNode(text=TEXTS[0], metadata={"a": 1, "b": 2}, excluded_embed_metadata_keys=["b"])
    for mode, text in (
        (MetadataMode.EMBED, f"a: 1\n\n{TEXTS[0]}"),
        (MetadataMode.LLM, f"a: 1\nb: 2\n\n{TEXTS[0]}"),
        ("none", TEXTS[0]),
    ):
        synthesizer = ClaraSynthesizer(model=model, max_tokens=8, metadata_mode=mode)
        wanted = engine.answer(QUESTION, engine.remember([text]), max_tokens=8).text
        assert str(synthesizer.synthesize(QUESTION, scored([node]))) == wanted


def test_prompt_can_be_changed(synthesizer, engine):
    template = PromptTemplate("In one word: {query_str}")
    synthesizer.update_prompts({"text_qa_template": template})
    assert synthesizer.get_prompts() == {"text_qa_template": template}
    wanted = engine.answer(f"In one word: {QUESTION}", engine.remember([TEXTS[0]]), max_tokens=8).text
    assert str(synthesizer.synthesize(QUESTION, scored(nodes(1)))) == wanted
    with pytest.raises(ValueError, match=r"no \{context_str\}"):
        synthesizer.update_prompts({"text_qa_template": PromptTemplate("{context_str} {query_str}")})


def test_what_it_cannot_do_is_refused_early(model):
    class Answer(BaseModel):
        text: str

    with pytest.raises(ValueError, match="output_cls="):
        ClaraSynthesizer(model=model, output_cls=Answer)
    with pytest.raises(ValueError, match="multimodal="):
        ClaraSynthesizer(model=model, multimodal=True)
    with pytest.raises(TypeError, match=r"needs a ClaraLLM.*MockLLM"):
        ClaraSynthesizer(MockLLM())
    with pytest.raises(TypeError, match="needs a ClaraLLM"):
        ClaraSynthesizer(StructuredLLM(llm=ClaraLLM(model=model), output_cls=Answer))
    with pytest.raises(ValueError, match="llm= or max_tokens="):
        ClaraSynthesizer(ClaraLLM(model=model), max_tokens=3)


def test_events_show_what_was_read(synthesizer, recorder):
    synthesizer.synthesize(QUESTION, scored(nodes(2)))
    started = next(event for event in recorder.events if event.class_name() == "GetResponseStartEvent")
    assert started.text_chunks == list(TEXTS[:2])
    assert started.query_str == QUESTION
