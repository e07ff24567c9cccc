"""Log-probabilities, citations and confidence in LangChain's formats."""

from __future__ import annotations

import json

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage

from clara_core import ClaraEngine
from langchain_clara import ChatClara, cited_documents
from tests.known import Known


@pytest.fixture(scope="module")
def documents(known: Known) -> list[Document]:
    sources = [f"https://example.org/{at}" if at == known.gold else f"file-{at}.md" for at in range(4)]
    return [
        Document(text, id=str(at), metadata={"source": source})
        for at, (text, source) in enumerate(zip(known.texts, sources, strict=True))
    ]


def test_citations_are_annotations_of_the_text(
    encyclopedia: ClaraEngine, known: Known, documents: list[Document]
) -> None:
    message = ChatClara(engine=encyclopedia, citations=True).invoke(known.question, documents=documents)
    assert message.content == known.answer
    [block] = message.content_blocks
    assert (block["type"], block["text"]) == ("text", known.answer)
    note = block["annotations"][0]
    assert note["type"] == "citation"
    assert "id" not in note
    assert note["title"] == note["url"] == f"https://example.org/{known.gold}"
    assert known.answer[note["start_index"] : note["end_index"]] == known.answer
    extras = note["extras"]
    assert (extras["document_id"], extras["document_index"], extras["verbatim"]) == (str(known.gold), known.gold, True)
    text = documents[known.gold].page_content
    assert text[extras["start_char_index"] : extras["end_char_index"]] == note["cited_text"]
    metadata = message.response_metadata
    scores = [document["score"] for document in metadata["documents"]]
    assert scores.index(max(scores)) == known.gold
    assert metadata["checks"] == {"cited_first": True, "verbatim": True, "grounded": True}
    assert metadata["reading"] == "memory"
    assert metadata["judged_tokens"] > 0
    json.dumps(metadata)
    assert loads(dumps(message), allowed_objects="core").content_blocks == message.content_blocks


def test_the_documents_that_were_cited(encyclopedia: ClaraEngine, known: Known, documents: list[Document]) -> None:
    message = ChatClara(engine=encyclopedia).invoke(known.question, documents=documents, citations=True)
    [first] = cited_documents(message, documents)
    assert (first.id, first.page_content) == (str(known.gold), known.texts[known.gold])
    assert first.metadata["citation_score"] == message.response_metadata["citations"][0]["score"]
    assert "citation_score" not in documents[known.gold].metadata
    with pytest.raises(ValueError, match="the message has no citations"):
        cited_documents(AIMessage("text"), documents)
    with pytest.raises(ValueError, match="cites its document 1, but there are 1"):
        cited_documents(message, documents[:1])


def test_off_the_message_is_what_it_was(encyclopedia: ClaraEngine, known: Known, documents: list[Document]) -> None:
    message = ChatClara(engine=encyclopedia).invoke(known.question, documents=documents)
    new = {"logprobs", "citations", "confidence", "calibrated", "checks", "abstained", "draft", "reading"}
    assert not new & message.response_metadata.keys()
    assert all("score" not in document for document in message.response_metadata["documents"])
    assert message.content_blocks == [{"type": "text", "text": known.answer}]


def test_log_probabilities_in_the_shape_of_openai(
    encyclopedia: ClaraEngine, known: Known, documents: list[Document]
) -> None:
    llm = ChatClara(engine=encyclopedia, logprobs=True, top_logprobs=2)
    message = llm.invoke(known.question, documents=documents)
    logged = message.response_metadata["logprobs"]
    assert logged["refusal"] is None
    assert b"".join(bytes(one["bytes"]) for one in logged["content"]).decode() == known.answer
    for one in logged["content"]:
        assert one["logprob"] <= 0
        assert [set(other) for other in one["top_logprobs"]] == [{"token", "logprob", "bytes"}] * 2
    streamed = None
    for chunk in llm.stream(known.question, documents=documents):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.response_metadata["logprobs"] == logged
    assert streamed.content == known.answer


async def test_a_stream_has_its_evidence_once(
    encyclopedia: ClaraEngine, known: Known, documents: list[Document]
) -> None:
    llm = ChatClara(engine=encyclopedia, citations=True, min_confidence=0.0)
    whole = await llm.ainvoke(known.question, documents=documents)
    merged = None
    async for chunk in llm.astream(known.question, documents=documents):
        merged = chunk if merged is None else merged + chunk
    assert merged.response_metadata == whole.response_metadata
    assert merged.content_blocks == whole.content_blocks
    batch = await llm.abatch([known.question] * 2, documents=documents)
    [cited] = whole.response_metadata["citations"]
    # The last digits of a log-probability depend on the size of the batch.
    expected = [{**cited, "score": pytest.approx(cited["score"], abs=1e-4)}]
    assert [one.response_metadata["citations"] for one in batch] == [expected] * 2


def test_what_is_withheld_is_a_draft(encyclopedia: ClaraEngine, known: Known, documents: list[Document]) -> None:
    encyclopedia.warned_uncalibrated = True  # the warning is tested elsewhere
    llm = ChatClara(engine=encyclopedia, citations=True, min_confidence=1.0)
    message = llm.invoke(known.question, documents=documents)
    assert message.content == "I am not sure enough to answer."
    assert message.response_metadata["draft"] == known.answer
    assert message.response_metadata["abstained"] is True
    assert message.content_blocks == [{"type": "text", "text": message.content}]


def test_the_cache_tells_options_apart(encyclopedia: ClaraEngine, known: Known, documents: list[Document]) -> None:
    cache = InMemoryCache()
    plain, cited = (ChatClara(engine=encyclopedia, cache=cache, citations=citations) for citations in (False, True))
    assert plain._identifying_params != cited._identifying_params
    assert "citations" not in plain.invoke(known.question, documents=documents).response_metadata
    first = cited.invoke(known.question, documents=documents)
    assert "citations" in first.response_metadata
    again = cited.invoke(known.question, documents=documents)
    assert again.content_blocks == first.content_blocks
    called = plain.invoke(known.question, documents=documents, read="again")
    assert called.response_metadata["reading"] in ("memory", "again")


def test_what_cannot_be_is_refused(encyclopedia: ClaraEngine) -> None:
    for options in ({"top_logprobs": 21}, {"min_confidence": 1.5}, {"read": "twice"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ChatClara(engine=encyclopedia, **options)
    with pytest.raises(ValueError, match="needs logprobs=True"):
        ChatClara(engine=encyclopedia, top_logprobs=2).invoke("When?")
