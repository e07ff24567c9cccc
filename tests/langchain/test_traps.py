"""Pitfalls of LangChain's interfaces that other tests do not cover; docs/langchain/traps.md lists all."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import InMemoryByteStore
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import base as language_models_base
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from clara_core import ClaraEngine
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRerank, ClaraRetriever, ClaraVectorStore, _engine
from tests.langchain.data import make_documents
from tests.served import served
from tests.tiny import build

ROOT = Path(__file__).parent.parent.parent
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("traps"))


@pytest.fixture(scope="module")
def model(tiny):
    return served(tiny.folder)


@pytest.fixture
def llm(model):
    return ChatClara(model=model, max_tokens=8)


# -- embeddings ------------------------------------------------------------------------------------


def test_cached_embeddings_need_a_place_for_questions(model):
    """A common cache would return the vector of a document for a question with the same text."""
    embeddings = ClaraEmbeddings(model=model)
    cached = CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        InMemoryByteStore(),
        namespace="documents",
        query_embedding_cache=InMemoryByteStore(),
        key_encoder="sha256",
    )
    for _ in range(2):
        [document], question = cached.embed_documents([QUESTION]), cached.embed_query(QUESTION)
        assert document == pytest.approx(embeddings.embed_documents([QUESTION])[0], abs=1e-6)
        assert question == pytest.approx(embeddings.embed_query(QUESTION), abs=1e-6)
        assert document != question


# -- streaming -------------------------------------------------------------------------------------


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.tokens = []

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.tokens.append(token)


async def test_every_token_is_told_once(llm):
    for stream in (True, False):
        handler = Tokens()
        config = {"callbacks": [handler]}
        if stream:
            pieces = [chunk.content for chunk in llm.stream(QUESTION, config)]
        else:
            pieces = [chunk.content async for chunk in llm.astream(QUESTION, config)]
        assert handler.tokens == pieces
        assert "".join(pieces) == llm.invoke(QUESTION).content


async def test_streams_of_events(llm):
    kinds = [event["event"] async for event in llm.astream_events(QUESTION, version="v2")]
    assert kinds[0] == "on_chat_model_start"
    assert kinds[-1] == "on_chat_model_end"
    assert kinds.count("on_chat_model_stream") > 2


def test_a_stream_that_hops_between_threads_leaves_no_mode_behind(llm):
    """A decode loop inside the generator would turn inference mode on in one thread and off in another."""

    def look(_):
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with ThreadPoolExecutor(4) as pool:
        stream = llm.stream(QUESTION)
        pieces = [pool.submit(next, stream, None).result() for _ in range(6)]
        assert any(piece is not None for piece in pieces)
        assert set(pool.map(look, range(16))) == {(False, True)}
        stream.close()
        assert set(pool.map(look, range(16))) == {(False, True)}
    assert llm.invoke(QUESTION).content


def test_usage_is_summed_by_model(llm):
    usage = UsageMetadataCallbackHandler()
    list(llm.stream(QUESTION, {"callbacks": [usage]}))
    llm.invoke(QUESTION, {"callbacks": [usage]})
    [(name, total)] = usage.usage_metadata.items()
    assert name == llm.model_name
    assert total["total_tokens"] == 2 * llm.invoke(QUESTION).usage_metadata["total_tokens"]


# -- cache -----------------------------------------------------------------------------------------


def test_a_model_that_was_trained_again_in_its_folder_is_another_one(tmp_path):
    folder = build(tmp_path, seed=1).folder
    llm = ChatClara(model=str(folder), max_tokens=4)
    first = llm._get_llm_string()
    llm.invoke(QUESTION)
    assert llm._get_llm_string() == first  # loading changes nothing: cached answers are found again
    build(tmp_path, seed=2)
    assert llm._get_llm_string() == first  # this process still holds the old weights
    _engine._identities.clear()  # as in another process
    assert llm._get_llm_string() != first


@pytest.mark.parametrize("array", [torch.zeros(3, 64), np.zeros((3, 64)), [np.zeros(64)], [[0.0] * 64]])
def test_arrays_are_no_documents(llm, array):
    """Two large arrays look the same as text in a cache key."""
    with pytest.raises(TypeError, match=r"must be a (list of Documents|Document or a string), got"):
        llm.invoke(QUESTION, documents=array)


def test_a_cached_stream_of_other_documents_is_another_answer(model):
    cache = InMemoryCache()
    llm = ChatClara(model=model, max_tokens=8, cache=cache)
    answers = {llm.invoke(QUESTION, documents=[document]).content for document in make_documents()}
    assert len(cache._cache) == 5
    assert {llm.invoke(QUESTION, documents=[document]).content for document in make_documents()} == answers
    assert len(cache._cache) == 5


# -- identity --------------------------------------------------------------------------------------


def test_tokens_are_not_counted_with_another_models_tokenizer(llm, monkeypatch):
    def fail():
        raise AssertionError("the tokenizer of GPT-2 was asked for")

    monkeypatch.setattr(language_models_base, "get_tokenizer", fail)
    assert llm.get_num_tokens("The bridge.") == len(llm.get_token_ids("The bridge.")) > 1
    assert llm.get_num_tokens_from_messages([HumanMessage("The bridge.")]) > 2


def test_versions_and_profile(llm):
    with suppress(PackageNotFoundError):  # runs from a folder, without an installed package
        version("clara-rag")
        assert not hasattr(llm, "_add_version") or "clara-rag" in llm.metadata["lc_versions"]
    assert llm.profile["tool_calling"] is False
    assert llm.profile["text_inputs"] is True
    assert llm.profile["image_inputs"] is False


def test_what_is_heavy_is_in_no_repr_and_in_no_trace(model):
    engine = ClaraEngine.from_pretrained(model)
    engine.load()
    store = ClaraVectorStore.from_documents(make_documents(), engine=engine)
    components = (
        ChatClara(engine=engine),
        ClaraRerank(engine=engine),
        ClaraRetriever(vectorstore=store),
        ClaraRetriever.from_retriever(store.as_retriever(), engine=engine),
    )
    for component in components:
        assert not component.is_lc_serializable()
        assert len(repr(component)) < 1500
        for secret in ("tensor(", "Weldenia", "ClaraEngine"):
            assert secret not in repr(component)
            assert secret not in dumps(component)


def test_tool_messages_are_refused(llm):
    with pytest.raises(ValueError, match="no tools"):
        llm.invoke([HumanMessage("a"), ToolMessage("b", tool_call_id="1")])


def test_answers_can_be_written_and_read_again(llm):
    answer = llm.invoke(QUESTION, documents=make_documents())
    assert loads(dumps(answer), allowed_objects=[AIMessage]) == answer


# -- quiet, light, safe ----------------------------------------------------------------------------


@pytest.mark.in_process
def test_no_progress_bar_unless_asked_for(model, capfd):
    texts = [f"A text that nobody has seen before, number {number}." for number in range(6)]
    ClaraVectorStore.from_texts(texts, model=model)
    ClaraEmbeddings(model=model).embed_documents([text + "!" for text in texts])
    assert capfd.readouterr().err == ""
    ClaraEmbeddings(model=model, show_progress=True).embed_documents([text + "?" for text in texts])
    assert "compressing" in capfd.readouterr().err
    ClaraVectorStore.from_texts([text + "…" for text in texts], model=model, show_progress=True)
    assert "storing" in capfd.readouterr().err


def test_only_the_core_of_langchain_is_imported():
    """Other packages of LangChain change and are retired; only the middleware needs one."""
    code = (
        "import sys, langchain_clara\n"
        "names = [name for name in langchain_clara.__all__ if name != 'ClaraContextMiddleware']\n"
        "[getattr(langchain_clara, name) for name in names]\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(top for top in tops if top.startswith('lang') and top != 'langchain_clara'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    allowed = {"langchain_core", "langchain_text_splitters", "langsmith", "langchain_protocol"}
    assert set(done.stdout.split()) <= allowed


def test_the_middleware_says_what_it_needs():
    code = (
        "import sys\nsys.modules['langchain'] = None\nimport langchain_clara\n"
        "try:\n    langchain_clara.ClaraContextMiddleware\n"
        "except ImportError as exc:\n    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'clara-rag[agents]'" in done.stdout


def test_nothing_is_pickled_and_no_remote_code_is_trusted():
    for path in (ROOT / "langchain_clara").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        for word in ("pickle", "trust_remote_code", "allow_dangerous"):
            assert word not in source, f"{path.name} holds {word}"


# -- documents -------------------------------------------------------------------------------------


def test_documents_of_a_search_suit_every_prompt(model):
    """Full text, an id, the same metadata keys in every document, none named page_content, all values JSON."""
    documents = [Document(f"Town {number}.", metadata={"source": f"{number}.md"}) for number in range(4)]
    retriever = ClaraRetriever.from_documents(documents, model=model)
    found = [*retriever.invoke(QUESTION), *ClaraRerank(model=model, top_n=None).compress_documents(documents, QUESTION)]
    assert {frozenset(document.metadata) for document in found} == {frozenset({"source", "relevance_score"})}
    assert {document.page_content for document in found} == {document.page_content for document in documents}
    assert "not_implemented" not in dumps(found)
    assert all(document.id for document in retriever.invoke(QUESTION))
