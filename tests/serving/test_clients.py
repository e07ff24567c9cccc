"""Clients of other projects with a real server, used as their documentation says; missing ones are skipped.

The server is started here, unless ``CLARA_TEST_SERVER`` has the address of one. With it, each client can be tested in
an environment of its own, without this project and without the other clients.
"""

from __future__ import annotations

import os

import pytest

QUESTION = "When was Tolmet Bridge opened?"
DOCUMENTS = [
    "Captain Ada Quill sailed the Merganser from Bristol to Lisbon in nine days.",
    "Tolmet Bridge was opened in 1907.",
    "The company Brandt & Sons makes clocks, barometers and maps.",
]
KEY = "unused"


@pytest.fixture(scope="module")
def url(request):
    return os.environ.get("CLARA_TEST_SERVER") or request.getfixturevalue("server").url


@pytest.fixture(scope="module")
def expected(url):
    """The responses of the routes to plain requests."""
    httpx = pytest.importorskip("httpx")

    def ask(path, body):
        reply = httpx.post(url + path, json=body, timeout=300)
        assert reply.status_code == 200, reply.text
        return reply.json()

    chat = {"model": "clara", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    ranked = ask("/v1/rerank", {"query": QUESTION, "documents": DOCUMENTS})["results"]
    return {
        "text": ask("/v1/chat/completions", chat)["choices"][0]["message"]["content"],
        "read": ask("/v1/chat/completions", {**chat, "documents": DOCUMENTS})["choices"][0]["message"]["content"],
        "order": [each["index"] for each in ranked],
        "scores": [each["relevance_score"] for each in ranked],
        "vectors": ask("/embed", {"inputs": DOCUMENTS, "dimensions": 32}),
        "whole": ask("/embed", {"inputs": DOCUMENTS}),
        "question": ask("/embed", {"inputs": QUESTION, "prompt_name": "query", "dimensions": 32})[0],
    }


def close(found, expected):
    return [pytest.approx(row, abs=1e-6) for row in expected] == [list(row) for row in found]


async def test_langchain_openai(url, expected):
    kit = pytest.importorskip("langchain_openai")
    llm = kit.ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, model="clara", max_tokens=16)
    reading = llm.bind(extra_body={"documents": DOCUMENTS})
    answer = reading.invoke(QUESTION)
    assert answer.content == expected["read"]
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in reading.stream(QUESTION)) == expected["read"]
    assert [each.content for each in llm.batch([QUESTION] * 3)] == [expected["text"]] * 3
    assert (await llm.ainvoke(QUESTION)).content == expected["text"]
    assert "".join([piece.content async for piece in llm.astream(QUESTION)]) == expected["text"]
    logprobs = llm.bind(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert all(len(each["top_logprobs"]) == 2 for each in logprobs)
    embed = kit.OpenAIEmbeddings(
        base_url=f"{url}/v1", api_key=KEY, model="clara", dimensions=32, check_embedding_ctx_length=False
    )
    assert close(embed.embed_documents(DOCUMENTS), expected["vectors"])


async def test_langchain_init_chat_model(url, expected):
    pytest.importorskip("langchain_openai")
    init_chat_model = pytest.importorskip("langchain.chat_models").init_chat_model
    llm = init_chat_model("openai:clara", base_url=f"{url}/v1", api_key=KEY, max_tokens=16)
    assert llm.invoke(QUESTION).content == expected["text"]


async def test_cohere(url, expected):
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key=KEY, base_url=url)
    told = client.rerank(model="clara", query=QUESTION, documents=DOCUMENTS, top_n=2)
    assert [each.index for each in told.results] == expected["order"][:2]
    assert [each.relevance_score for each in told.results] == pytest.approx(expected["scores"][:2], abs=1e-6)
    one = await cohere.AsyncClientV2(api_key=KEY, base_url=url).rerank(
        model="clara", query=QUESTION, documents=DOCUMENTS
    )
    assert [each.index for each in one.results] == expected["order"]
    with pytest.raises(cohere.NotFoundError, match="there is no model 'rerank-v9' here"):
        client.rerank(model="rerank-v9", query=QUESTION, documents=DOCUMENTS)


async def test_langchain_cohere(url, expected):
    kit = pytest.importorskip("langchain_cohere")
    documents = pytest.importorskip("langchain_core.documents")
    rerank = kit.CohereRerank(base_url=url, cohere_api_key=KEY, model="clara", top_n=2)
    found = rerank.compress_documents([documents.Document(text) for text in DOCUMENTS], QUESTION)
    assert [each.page_content for each in found] == [DOCUMENTS[index] for index in expected["order"][:2]]
    assert [each.metadata["relevance_score"] for each in found] == pytest.approx(expected["scores"][:2], abs=1e-6)


async def test_llama_index_openai_like(url, expected):
    llms = pytest.importorskip("llama_index.llms.openai_like")
    llm = llms.OpenAILike(
        api_base=f"{url}/v1", api_key=KEY, model="clara", is_chat_model=True, temperature=0, max_tokens=16
    )
    assert llm.complete(QUESTION).text == expected["text"]
    assert [piece.text for piece in llm.stream_complete(QUESTION)][-1] == expected["text"]
    assert (await llm.acomplete(QUESTION)).text == expected["text"]
    reading = llms.OpenAILike(
        api_base=f"{url}/v1", api_key=KEY, model="clara", is_chat_model=True, temperature=0, max_tokens=16,
        additional_kwargs={"extra_body": {"documents": DOCUMENTS}},
    )  # fmt: skip
    assert reading.complete(QUESTION).text == expected["read"]
    plain = llms.OpenAILike(api_base=f"{url}/v1", api_key=KEY, model="clara", max_retries=0)
    with pytest.raises(Exception, match="is_chat_model=True"):
        plain.complete(QUESTION)


async def test_llama_index_openai_like_embedding(url, expected):
    kit = pytest.importorskip("llama_index.embeddings.openai_like")
    embed = kit.OpenAILikeEmbedding(model_name="clara", api_base=f"{url}/v1", api_key=KEY, dimensions=32)
    assert close(embed.get_text_embedding_batch(DOCUMENTS), expected["vectors"])


def nodes():
    schema = pytest.importorskip("llama_index.core.schema")
    return [schema.NodeWithScore(node=schema.TextNode(text=text)) for text in DOCUMENTS]


async def test_llama_index_jina_rerank(url, expected):
    kit = pytest.importorskip("llama_index.postprocessor.jinaai_rerank")
    rerank = kit.JinaRerank(base_url=f"{url}/v1", api_key=KEY, model="clara", top_n=2)
    found = rerank.postprocess_nodes(nodes(), query_str=QUESTION)
    assert [each.text for each in found] == [DOCUMENTS[index] for index in expected["order"][:2]]
    assert [each.score for each in found] == pytest.approx(expected["scores"][:2], abs=1e-6)


async def test_llama_index_tei(url, expected):
    kit = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    found = kit.TextEmbeddingInference(base_url=url, model_name="clara", top_n=2).postprocess_nodes(
        nodes(), query_str=QUESTION
    )
    assert [each.text for each in found] == [DOCUMENTS[index] for index in expected["order"][:2]]
    embeddings = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    embed = embeddings.TextEmbeddingsInference(
        model_name="clara", base_url=url, text_instruction="", query_instruction=""
    )
    assert close(embed.get_text_embedding_batch(DOCUMENTS), expected["whole"])
    assert close(await embed.aget_text_embedding_batch(DOCUMENTS), expected["whole"])


async def test_huggingface_inference_client(url, expected, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # a server of this machine is not the Hub
    client = hub.InferenceClient(base_url=url)
    told = client.chat_completion([{"role": "user", "content": QUESTION}], model="clara", max_tokens=16)
    assert told.choices[0].message.content == expected["text"]
    pieces = client.chat_completion([{"role": "user", "content": QUESTION}], max_tokens=16, stream=True, model="clara")
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == expected["text"]
    vectors = hub.InferenceClient(model=f"{url}/embed").feature_extraction(DOCUMENTS)
    assert close(vectors.tolist(), expected["whole"])


async def test_litellm(url, expected):
    litellm = pytest.importorskip("litellm")
    asked = {"model": "openai/clara", "api_base": f"{url}/v1", "api_key": KEY, "max_tokens": 16}
    messages = [{"role": "user", "content": QUESTION}]
    assert litellm.completion(messages=messages, **asked).choices[0].message.content == expected["text"]
    read = litellm.completion(messages=messages, extra_body={"documents": DOCUMENTS}, **asked)
    assert read.choices[0].message.content == expected["read"]
    pieces = litellm.completion(messages=messages, stream=True, **asked)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected["text"]
    ranked = litellm.rerank(
        model="cohere/clara", query=QUESTION, documents=DOCUMENTS, api_base=url, api_key=KEY, top_n=2
    )
    assert [each["index"] for each in ranked.results] == expected["order"][:2]
