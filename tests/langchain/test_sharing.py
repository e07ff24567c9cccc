"""One engine for all components, and many concurrent callers."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from langchain_core.documents import Document

from clara_core import ClaraEngine
from langchain_clara import (
    ChatClara,
    ClaraContextMiddleware,
    ClaraEmbeddings,
    ClaraRerank,
    ClaraRetriever,
    ClaraTextSplitter,
    ClaraVectorStore,
    create_clara_documents_chain,
)
from tests.engines import wrapped
from tests.event_loop import LoopWitness
from tests.langchain.data import bundled_or_tiny
from tests.served import behind
from tests.tiny import build

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [Document(f"Town {n} lies on the Aln and has a bridge of 19{n:02d}.", id=str(n)) for n in range(5)]
QUESTIONS = [f"When was the bridge of town {number} opened?" for number in range(50)]


def use_everything(model, device="auto"):
    """Create every component from the name of the model, and use it."""
    options = {"model": model, "device": device}
    llm = ChatClara(max_tokens=4, **options)
    embeddings = ClaraEmbeddings(**options)
    store = ClaraVectorStore.from_documents(DOCUMENTS, **options)
    retriever = ClaraRetriever.from_documents(DOCUMENTS, **options)
    rerank = ClaraRerank(**options)
    splitter = ClaraTextSplitter(**options)
    embeddings.embed_query(QUESTIONS[0])
    rerank.compress_documents(retriever.invoke(QUESTIONS[0]), QUESTIONS[0])
    create_clara_documents_chain(llm).invoke({"context": store.similarity_search(QUESTIONS[0]), "input": QUESTIONS[0]})
    splitter.split_text("One sentence.")
    ClaraContextMiddleware(retriever)
    return [llm, embeddings, store.embeddings, retriever, rerank, splitter._source]


def bytes_of_tensors():
    """Bytes of all live storages, each counted once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            if thing.is_mkldnn:  # packed weights have no storage to inspect
                storages[id(thing)] = thing.numel() * thing.element_size()
                continue
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_all_components_hold_one_engine_and_one_copy_of_the_weights(tmp_path):
    model = str(build(tmp_path, seed=21).folder)
    engine = ClaraEngine.from_pretrained(model)
    empty = bytes_of_tensors()
    loaded = engine.load()
    weights = bytes_of_tensors() - empty
    engine.answer("Where?", max_tokens=1)  # allocates the KV cache, which all answers share
    before = bytes_of_tensors()
    components = use_everything(model)
    assert {id(component.shared_engine) for component in components} == {id(engine)}
    assert engine.load() is loaded
    assert bytes_of_tensors() - before < weights / 2  # memories, but no second model


@pytest.mark.gpu
def test_device_memory_holds_one_copy_of_the_weights(tmp_path):
    model = str(build(tmp_path, seed=22).folder)
    engine = ClaraEngine.from_pretrained(model, device="cuda")
    engine.load()
    before = torch.cuda.memory_allocated()
    components = use_everything(model, "cuda")
    assert {id(component.shared_engine) for component in components} == {id(engine)}
    gc.collect()
    assert torch.cuda.memory_allocated() - before < before / 2


def test_embedding_reranking_and_answering_at_once_mix_nothing_up():
    """The role is an argument of each row, so no call uses the adapter of another."""
    model = bundled_or_tiny()
    llm, embeddings = ChatClara(model=model, max_tokens=6), ClaraEmbeddings(model=model)
    rerank = ClaraRerank(model=model, top_n=None)
    questions = QUESTIONS[:8]

    def answer(question):
        return llm.invoke(question, documents=DOCUMENTS).content

    def order(question):
        return [document.metadata["relevance_score"] for document in rerank.compress_documents(DOCUMENTS, question)]

    jobs = [(call, q) for q in questions for call in (answer, order, embeddings.embed_query)]
    jobs += [(lambda n: embeddings.embed_documents([f"A new text, number {n}."])[0], n) for n in range(8)]
    serial = [call(given) for call, given in jobs]
    llm.shared_engine.cache.clear()
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs))
    for alone, among in zip(serial, together, strict=True):
        assert among == (alone if isinstance(alone, str) else pytest.approx(alone, abs=1e-4))


async def test_fifty_callers_keep_the_loop_ticking():
    llm = ChatClara(model=bundled_or_tiny(), max_tokens=24)
    model = behind(llm.shared_engine).load().model
    with LoopWitness() as witness, wrapped(model, "prefill", witness.around), wrapped(model, "step", witness.around):
        single = await asyncio.gather(*(llm.ainvoke(question, documents=DOCUMENTS) for question in QUESTIONS))
        batch = await llm.abatch(QUESTIONS, documents=DOCUMENTS)
    assert [answer.content for answer in single] == [answer.content for answer in batch]


async def test_fifty_callers_cost_what_a_batch_costs():
    """Fifty calls take at most 1.2 times the processor time of one `abatch`, in the best of several tries."""
    llm = ChatClara(model=bundled_or_tiny(), max_tokens=24)
    await llm.ainvoke(QUESTIONS[0], documents=DOCUMENTS)
    ratios = []
    for _ in range(6):
        start = time.process_time()
        await asyncio.gather(*(llm.ainvoke(question, documents=DOCUMENTS) for question in QUESTIONS))
        between = time.process_time()
        await llm.abatch(QUESTIONS, documents=DOCUMENTS)
        ratios.append((between - start) / (time.process_time() - between))
        if ratios[-1] < 1.2:
            return
    pytest.fail(f"ratios {ratios}")


COLD = """
import asyncio, importlib.abc, sys, threading
import langchain_core
sys.path.insert(0, {root!r})
from langchain_clara import ChatClara
# LangChain itself imported transformers with its models once.
assert "torch" not in sys.modules or langchain_core.__version__ < "1.7"

importers = {{}}  # module -> the thread that imported it first

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        importers.setdefault(name, threading.current_thread())

sys.meta_path.insert(0, Watch())
asyncio.run(ChatClara(model={model!r}, max_tokens=4).ainvoke('Hello'))
slow = ["torch", "transformers", "transformers.modeling_utils"]
print([name for name in slow if importers.get(name) is threading.main_thread()])
"""


def test_the_first_call_of_a_process_does_not_block_the_loop():
    """Most of the call is the import of torch and transformers, which happens in a thread."""
    code = COLD.format(root=str(ROOT), model=bundled_or_tiny())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
