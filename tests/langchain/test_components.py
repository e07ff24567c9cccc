"""The components together: a shared engine, a chain, the demo."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from operator import itemgetter
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

import langchain_clara
from clara_core import CheckpointError, ClaraEngine, UnknownOption
from clara_core.engine import runtime
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRerank, ClaraRetriever, DocumentsPlaceholder
from tests.event_loop import LoopWitness
from tests.langchain.data import HOSTILE, bundled_or_tiny, make_documents
from tests.served import served
from tests.tiny import build

ROOT = Path(__file__).parents[2]
COMPONENTS = (ChatClara, ClaraEmbeddings, ClaraRerank, ClaraRetriever)
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("langchain"))


@pytest.fixture(scope="module")
def model(tiny):
    return served(tiny.folder)


@pytest.fixture
def chain(model):
    """The documented chain: retrieve, rerank, answer from memory tokens; it returns the documents, too."""
    retriever = ClaraRetriever.from_documents(make_documents(), model=model, k=4)
    candidates = ClaraRerank(model=model, top_n=2).as_runnable(retriever)
    prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
    llm = ChatClara(model=model, max_tokens=8)
    return RunnablePassthrough.assign(context=itemgetter("question") | candidates).assign(answer=prompt | llm)


# -- which engine ----------------------------------------------------------------------------------


def test_components_of_one_model_share_one_engine(model):
    engine = ClaraEngine.from_pretrained(model)
    for component in COMPONENTS:
        assert component(model=model).shared_engine is engine
        assert component(engine=engine).shared_engine is engine


@pytest.mark.in_process
def test_another_base_or_dtype_is_another_engine(tiny, model):
    for option in (
        {"base_model": str(tiny.base)},
        {"dtype": "bfloat16"},
        {"reasoner": "encoder"},
        {"attn_implementation": "eager"},
        {"local_files_only": True},
    ):
        engine = ClaraRetriever(model=model, **option).shared_engine
        assert engine is not ClaraEngine.from_pretrained(model)
        assert engine is ClaraEngine.from_pretrained(model, **option)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_bundled_model_is_the_default(component):
    assert component().shared_engine is ClaraEngine.from_pretrained("pocket")


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("option", [{"model": "pocket"}, {"compression": 16}, {"dtype": "float32"}])
def test_engine_and_model_at_once(model, component, option):
    with pytest.raises(ValueError, match=f"engine= or {next(iter(option))}="):
        component(engine=ClaraEngine.from_pretrained(model), **option)


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_engine_must_be_one(component):
    with pytest.raises(ValueError, match="a ClaraEngine or RemoteEngine, got str"):
        component(engine="pocket")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_misspelt_option_is_refused(component):
    with pytest.raises(UnknownOption, match=f"{component.__name__} has .* did you mean 'compression'"):
        component(compresion=16)


def test_a_missing_model_says_so_at_first_use_and_every_time():
    llm = ChatClara(model="/nowhere/at/all")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="/nowhere/at/all"):
            llm.invoke("Hello")


def test_making_components_imports_no_torch():
    names = sorted({*langchain_clara.__all__} - {"ClaraContextMiddleware"})
    code = (
        "import sys\n"
        "from langchain_core.language_models import BaseChatModel\n"
        "before = {'torch', 'transformers'} & {*sys.modules}\n"  # older versions of LangChain import them
        f"from langchain_clara import {', '.join(names)}\n"
        "llm = ChatClara(model='x')\n"
        "ClaraEmbeddings(model='x', dimensions=8), ClaraRerank(model='x'), ClaraRetriever(model='x')\n"
        "ClaraTextSplitter(model='x'), ClaraVectorStore(model='x'), DocumentsPlaceholder('c')\n"
        "create_clara_documents_chain(llm)\n"
        "print({'torch', 'transformers'} & {*sys.modules} == before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True"]


def test_threads_that_come_first_at_once_get_the_same_engine(tmp_path):
    llm = ChatClara(model=str(build(tmp_path).folder), max_tokens=4)
    found = []
    barrier = threading.Barrier(8)

    def use():
        barrier.wait()
        found.append((llm.shared_engine, llm.invoke(QUESTION).content))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(engine) for engine, _ in found}) == len({text for _, text in found}) == 1


# -- the chain -------------------------------------------------------------------------------------


def by_hand(model, question, n_candidates=4, n_read=2, max_tokens=8):
    """The expected answer of the chain, by calls of the engine."""
    engine = ClaraEngine.from_pretrained(model)
    texts = [document.page_content for document in make_documents()]
    memories = engine.compress(texts)
    read = [hit.index for hit in engine.rank(question, memories, top_k=n_candidates)][:n_read]
    answer = engine.answer(question, [memories[index] for index in read], max_tokens=max_tokens)
    return [texts[index] for index in read], answer.text


async def test_chain_equals_the_engine_by_hand(model, chain):
    texts, answer = by_hand(model, QUESTION)
    for result in (chain.invoke({"question": QUESTION}), await chain.ainvoke({"question": QUESTION})):
        assert [document.page_content for document in result["context"]] == texts
        assert result["answer"].content == answer
        read = [document.id for document in result["context"]]
        assert [entry["id"] for entry in result["answer"].response_metadata["documents"]] == read
        assert all(type(document.metadata["relevance_score"]) is float for document in result["context"])


async def test_chain_streams_what_it_says(model, chain):
    _, answer = by_hand(model, QUESTION)
    text = chain.pick("answer") | StrOutputParser()
    assert "".join(text.stream({"question": QUESTION})) == answer
    pieces = [piece async for piece in text.astream({"question": QUESTION})]
    assert "".join(pieces) == answer
    assert len(pieces) > 2


async def test_each_question_of_a_batch_reads_its_own_documents(model, chain):
    inputs = [{"question": f"What is said of town {number}?"} for number in range(6)]
    expected = [by_hand(model, each["question"]) for each in inputs]
    for results in (chain.batch(inputs), await chain.abatch(inputs)):
        assert [
            ([document.page_content for document in result["context"]], result["answer"].content) for result in results
        ] == expected


@pytest.mark.parametrize("question", HOSTILE)
def test_chain_takes_hostile_questions(chain, question):
    result = chain.invoke({"question": question})
    assert len(result["context"]) == 2
    assert result["question"] == question


def test_chain_over_nothing_answers_from_the_model_alone(model):
    engine = ClaraEngine.from_pretrained(model)
    prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
    chain = (
        {"context": ClaraRetriever(model=model), "question": RunnablePassthrough()}
        | prompt
        | ChatClara(model=model, max_tokens=8)
    )
    message = chain.invoke(QUESTION)
    assert message.content == engine.answer(QUESTION, max_tokens=8).text
    assert message.response_metadata["memory_tokens"] == 0


def test_a_system_message_of_the_user_is_used(model):
    engine = ClaraEngine.from_pretrained(model)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer in one word."), DocumentsPlaceholder("context"), ("human", "{question}")]
    )
    chain = prompt | ChatClara(model=model, max_tokens=8)
    said = chain.invoke({"context": [Document("Short note.")], "question": QUESTION}).content
    turns = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": QUESTION}]
    assert said == engine.chat(turns, engine.compress(["Short note."]), max_tokens=8).text


async def test_first_use_does_not_block_the_loop(tmp_path, monkeypatch):
    llm = ChatClara(model=str(build(tmp_path, seed=5).folder), max_tokens=8)
    with LoopWitness() as witness:
        monkeypatch.setattr(runtime, "load_model", witness.before(runtime.load_model))
        message = await llm.ainvoke(QUESTION, documents=make_documents())
    assert message.content


# -- the demo --------------------------------------------------------------------------------------


def test_demo_runs_and_judges_each_answer(model, capsys):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.main(model) == 1  # a random model knows nothing
    shown = capsys.readouterr().out
    for question in demo.QUESTIONS:
        assert question in shown.replace("\n", " ")
    assert shown.count("✗") == len(demo.QUESTIONS) - 1 == 7  # no document answers the last question
    assert "No document answers this" in shown.split(demo.QUESTIONS[-1])[1]
    assert "0 of 7 right" in shown
    assert "not sure" not in shown  # without a calibration there is no confidence


def test_demo_is_right_with_the_bundled_model(capsys):
    if bundled_or_tiny() != "pocket":
        pytest.skip("the bundled model has no weights")
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.main("pocket") == 0
    assert "The documents do not say. ✓" in capsys.readouterr().out.split(demo.QUESTIONS[-1])[1]
