"""The routes of OpenAI, Cohere, Jina and TEI, called by OpenAI's client and with the bodies of the other clients."""

from __future__ import annotations

import asyncio

import numpy as np
import openai
import pytest

from langchain_clara import ClaraEmbeddings

QUESTION = "When was Tolmet Bridge opened?"
DOCUMENTS = [
    "Tolmet Bridge was opened in 1907.",
    "Captain Ada Quill sailed the Merganser from Bristol to Lisbon in nine days.",
    " ".join(f"The {n}th pillar of the bridge is {n} metres high." for n in range(20)),
]
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as made:
        yield made


@pytest.fixture(scope="module")
def expected(local):
    return local.answer(QUESTION, local.remember(DOCUMENTS), max_tokens=24)


# --- chat ------------------------------------------------------------------------------------------------


def test_chat(client, expected, server):
    told = client.chat.completions.create(
        model="clara",
        messages=MESSAGES,
        max_tokens=24,
        extra_body={"documents": [{"text": text} for text in DOCUMENTS]},
    )
    assert told.choices[0].message.content == expected.text
    assert told.choices[0].finish_reason == expected.finish_reason
    assert told.usage.completion_tokens == expected.completion_tokens
    assert told.usage.prompt_tokens == expected.prompt_tokens + expected.memory_tokens
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert told.usage.prompt_tokens_details.memory_tokens == expected.memory_tokens
    assert told.usage.prompt_tokens_details.source_tokens == expected.source_tokens
    assert told.system_fingerprint == server.state.engine.fingerprint[:12]
    assert told._request_id


def test_chat_in_pieces(client, expected):
    pieces = list(
        client.chat.completions.create(
            model="pocket",
            messages=MESSAGES,
            max_completion_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"documents": DOCUMENTS},
        )
    )
    assert len({(piece.id, piece.created) for piece in pieces}) == 1
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == expected.text
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == expected.finish_reason
    assert pieces[-1].choices == []
    assert pieces[-1].usage.completion_tokens == expected.completion_tokens


def test_log_probabilities_and_citations(client, local):
    asked = {"logprobs": True, "top_logprobs": 2, "citations": True, "max_tokens": 12}
    expected = local.answer(QUESTION, local.remember(DOCUMENTS), **asked)
    body = {"documents": DOCUMENTS, "citations": True}
    told = client.chat.completions.create(
        model="clara", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=2, extra_body=body
    )
    content = told.choices[0].logprobs.content
    assert [(each.token, bytes(each.bytes)) for each in content] == [(e.token, e.bytes) for e in expected.logprobs]
    assert [each.logprob for each in content] == pytest.approx([e.logprob for e in expected.logprobs], abs=1e-5)
    assert all(len(each.top_logprobs) == 2 for each in content)
    assert [each["document"] for each in told.citations] == [each.document for each in expected.citations]
    assert told.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_an_answer_in_the_words_of_a_document(client):
    told = client.chat.completions.create(
        model="clara", messages=MESSAGES, max_tokens=200, extra_body={"documents": DOCUMENTS, "verbatim": True}
    )
    assert any(told.choices[0].message.content in text for text in DOCUMENTS)


def test_a_stream_that_is_left_stops(client, server):
    with client.chat.completions.create(model="clara", messages=MESSAGES, max_tokens=2000, stream=True) as stream:
        next(iter(stream))
    server.wait_until(lambda: server.state.engine.stats().running == server.state.in_flight == 0)


async def test_chat_of_many(server, expected):
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="unused") as client:
        told = await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="clara", messages=MESSAGES, max_tokens=24, extra_body={"documents": DOCUMENTS}
                )
                for _ in range(8)
            )
        )
    assert {each.choices[0].message.content for each in told} == {expected.text}


def test_what_clients_say_besides_is_accepted_where_it_says_nothing(client, expected):
    told = client.chat.completions.create(
        model="clara",
        messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        max_tokens=24, temperature=0, top_p=1, n=1, seed=3, stop=None, frequency_penalty=0, presence_penalty=0,
        logprobs=False, user="me", metadata={"a": "b"}, store=False, response_format={"type": "text"},
        extra_body={"documents": [{"text": text, "title": "T", "id": str(n)} for n, text in enumerate(DOCUMENTS)]},
    )  # fmt: skip
    assert told.choices[0].message.content == expected.text
    assert told.sources == [{"index": n, "id": str(n), "title": "T"} for n in range(3)]


@pytest.mark.parametrize(
    "wrong, param",
    [
        ({"n": 2}, "n="),
        ({"top_logprobs": 3}, "top_logprobs=3 needs logprobs=True"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools="),
        ({"response_format": {"type": "json_object"}}, "response_format="),
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"min_confidence": 2}}, "min_confidence must lie"),
        ({"extra_body": {"documents": [{"id": "a", "store": "none"}]}}, "there is no store"),
    ],
)
def test_what_is_not_done_is_refused_in_words(client, wrong, param):
    kind = openai.NotFoundError if "store" in param else openai.BadRequestError
    with pytest.raises(kind, match=param) as caught:
        client.chat.completions.create(model="clara", messages=MESSAGES, **wrong)
    assert caught.value.code in ("invalid_request", "store_not_found")
    assert caught.value.request_id


def test_other_models_and_routes_are_not_found(client, server):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9' here; served: pocket, clara"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.NotFoundError, match="is_chat_model=True"):
        client.completions.create(model="clara", prompt="a")
    with pytest.raises(openai.NotFoundError, match="chat/completions"):
        client.responses.create(model="clara", input="a")
    assert server.http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert server.http.get("/v1/rerank").json()["error"]["code"] == "method_not_allowed"


def test_too_long_is_named(client):
    with pytest.raises(openai.BadRequestError, match="the context holds 2048") as caught:
        client.chat.completions.create(model="clara", messages=[{"role": "user", "content": "word " * 4000}])
    assert caught.value.code == "context_length_exceeded"


def test_models(client, server):
    [model] = client.models.list().data
    assert model.id == "pocket"
    assert model.fingerprint == server.state.engine.fingerprint
    assert client.models.retrieve("clara").max_model_len == 2048
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../etc/passwd")


# --- vectors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [None, 64])
@pytest.mark.filterwarnings("ignore:.* texts are longer than the window")
def test_embeddings_are_those_of_the_components(client, local, dimensions):
    options = {} if dimensions is None else {"dimensions": dimensions}
    component = ClaraEmbeddings(engine=local, **options)
    expected = np.array(component.embed_documents(DOCUMENTS))
    for encoding in ("float", "base64", None):
        encoded = {} if encoding is None else {"encoding_format": encoding}
        told = client.embeddings.create(model="clara", input=DOCUMENTS, **options, **encoded)
        vectors = [each.embedding for each in told.data]
        if encoding == "base64":
            import base64

            vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
        assert np.allclose(np.array(vectors), expected, atol=1e-6)
        assert [each.index for each in told.data] == [0, 1, 2]
    question = client.embeddings.create(model="clara", input=QUESTION, extra_body={"input_type": "query"}, **options)
    assert np.allclose(question.data[0].embedding, component.embed_query(QUESTION), atol=1e-6)


def test_embeddings_that_cannot_be(client):
    for wrong, message in (
        ({"input": [[1, 2]]}, "check_embedding_ctx_length=False"),
        ({"input": [1, 2]}, "check_embedding_ctx_length=False"),
        ({"input": []}, "holds no text"),
        ({"input": ["a", ""]}, "or an empty one"),
        ({"input": "a", "dimensions": 10**6}, "is more than the 4096"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.embeddings.create(model="clara", **wrong)


def test_tei_embeds(server, local):
    component = ClaraEmbeddings(engine=local, dimensions=32)
    told = server.post("/embed", {"inputs": DOCUMENTS[:2], "truncate": True, "dimensions": 32}).json()
    assert np.allclose(told, component.embed_documents(DOCUMENTS[:2]), atol=1e-6)
    told = server.post("/embed", {"inputs": QUESTION, "prompt_name": "query", "dimensions": 32}).json()
    assert np.allclose(told, [component.embed_query(QUESTION)], atol=1e-6)
    assert server.http.get("/info").json()["max_input_length"] == local.window


# --- rerank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_rerank(server, local, path):
    ranked = local.rank(QUESTION, local.remember(DOCUMENTS))
    body = {"model": "clara", "query": QUESTION, "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    told = server.post(path, body).json()
    assert [each["index"] for each in told["results"]] == [each.index for each in ranked[:2]]
    assert [each["relevance_score"] for each in told["results"]] == pytest.approx(
        [each.score for each in ranked[:2]], abs=1e-6
    )
    assert told["results"][0]["document"] == {"text": DOCUMENTS[ranked[0].index]}
    assert told["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}}
    assert told["usage"]["total_tokens"] > 0
    everything = server.post(path, {**body, "top_n": 0, "normalize": True, "return_documents": False}).json()
    assert [each["relevance_score"] for each in everything["results"]] == pytest.approx(
        [(1 + each.score) / 2 for each in ranked], abs=1e-6
    )
    assert "document" not in everything["results"][0]
    objects = server.post(path, {"query": QUESTION, "documents": [{"text": text} for text in DOCUMENTS]}).json()
    assert [each["index"] for each in objects["results"]] == [each.index for each in ranked]


def test_tei_reranks(server, local):
    ranked = local.rank(QUESTION, local.remember(DOCUMENTS))
    body = {"query": QUESTION, "texts": DOCUMENTS, "truncate": True, "raw_scores": True, "return_text": True}
    told = server.post("/rerank", body).json()
    assert [(each["index"], each["text"]) for each in told] == [(each.index, DOCUMENTS[each.index]) for each in ranked]
    assert [each["score"] for each in told] == pytest.approx([each.score for each in ranked], abs=1e-6)


def test_a_rerank_without_documents_says_so(server):
    for path in ("/v1/rerank", "/rerank"):
        response = server.post(path, {"query": QUESTION})
        assert response.status_code == 400
        assert response.json()["detail"] == "documents is missing"  # the field that Jina's client reads
    assert server.post("/rerank", {"query": QUESTION, "documents": []}).json()["results"] == []
