"""The contract of all stores: in a folder and in memory, through the core, LangChain and LlamaIndex.

All of them accept, find, rank and return the same documents, or refuse them with the same message.
"""

from __future__ import annotations

import copy
import math
import pickle
from datetime import UTC, date, datetime

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from clara_core import ClaraEngine
from clara_core.store import MemoryStore
from langchain_clara import ClaraRetriever as LangChainRetriever
from langchain_clara import ClaraVectorStore as LangChainStore
from llama_index_clara import ClaraEmbedding
from llama_index_clara import ClaraRetriever as LlamaIndexRetriever
from llama_index_clara import ClaraVectorStore as LlamaIndexStore
from tests.tiny import build

QUESTION = "When was the bridge opened?"
TEXTS = [
    "The bridge over the Aln was opened in 1907.",
    "Captain Ada Quill sailed the Merganser.",
    "The company Brandt & Sons makes clocks, model AB-1234/9.",
    "北京大学在中国。 橋は古い。",
    "A café by the river serves naïve painters.",
    "Weldenia is a genus of flowering plants of the family Commelinaceae, known since 1829.",
]
IDS = [f"id-{number}" for number in range(len(TEXTS))]
METADATAS = [{"n": number, "town": "Aln" if number % 2 == 0 else "Wye"} for number in range(len(TEXTS))]
MODES = ("memory", "text", "hybrid")
LONG = " ".join(f"Sentence {number} speaks of the town." for number in range(40))


LLAMA_INDEX_MODES = {None: "default", "memory": "default", "text": "text_search", "hybrid": "hybrid"}


class Core:
    """The store of the core."""

    def __init__(self, model, uri):
        self.store = MemoryStore.open(uri or "memory://", model=model, memory_type="float32")

    def add(self, texts, metadatas=None, ids=None):
        return self.store.add(texts, metadatas, ids)

    def search(self, question, k=10, mode=None, filter=None):  # noqa: A002
        return [(hit.id, hit.score) for hit in self.store.search(question, k, mode=mode, filter=filter)]

    def mmr(self, question, k):
        return [hit.id for hit in self.store.search_mmr(question, k)]

    def get(self, ids):
        return [(record.id, record.text, record.metadata) for record in self.store.get(ids)]

    def delete(self, ids):
        self.store.delete(ids)

    @property
    def core(self):
        return self.store


class LangChain(Core):
    """A LangChain store; its folder has float32, so that scores equal those of the store in memory."""

    def __init__(self, model, uri):
        engine = ClaraEngine.from_pretrained(model)
        self.store = LangChainStore(store=MemoryStore.open(uri or "memory://", engine, memory_type="float32"))

    def add(self, texts, metadatas=None, ids=None):
        given = [{} for _ in texts] if metadatas is None else metadatas
        return self.store.add_texts(texts, given, ids=ids)

    def search(self, question, k=10, mode=None, filter=None):  # noqa: A002
        found = self.store.similarity_search_with_score(question, k, filter=filter, mode=mode)
        return [(document.id, score) for document, score in found]

    def mmr(self, question, k):
        return [document.id for document in self.store.max_marginal_relevance_search(question, k)]

    def get(self, ids):
        return [(each.id, each.page_content, each.metadata) for each in self.store.get_by_ids(ids)]

    @property
    def core(self):
        return self.store.store


class LlamaIndex(Core):
    """A LlamaIndex store; metadata are excluded from the compressed text, as in the other stores."""

    def __init__(self, model, uri):
        engine = ClaraEngine.from_pretrained(model)
        self.store = LlamaIndexStore(store=MemoryStore.open(uri or "memory://", engine, memory_type="float32"))

    def add(self, texts, metadatas=None, ids=None):
        given = [{} for _ in texts] if metadatas is None else metadatas
        nodes = [TextNode(text=text, metadata=own, excluded_embed_metadata_keys=list(own))
                 for text, own in zip(texts, given, strict=True)]  # fmt: skip
        for node, id_ in zip(nodes, ids or [node.node_id for node in nodes], strict=True):
            node.id_ = id_
        return self.store.add(nodes)

    def search(self, question, k=10, mode=None, filter=None):  # noqa: A002
        if callable(filter):
            pytest.skip("LlamaIndex has no functions as filters")
        filters = filter and MetadataFilters(
            filters=[MetadataFilter(key=key, value=value) for key, value in filter.items()]
        )
        query = VectorStoreQuery(
            query_str=question, similarity_top_k=k, mode=LLAMA_INDEX_MODES[mode], filters=filters,
            query_embedding=self.store.engine.reason([question]).flatten().tolist() if mode == "memory" else None,
        )  # fmt: skip
        if mode == "memory":
            query.query_str = None
        found = self.store.query(query)
        return list(zip(found.ids, found.similarities, strict=True))

    def mmr(self, question, k):
        query = VectorStoreQuery(query_str=question, similarity_top_k=k, mode="mmr")
        return self.store.query(query).ids

    def get(self, ids):
        return [(node.node_id, node.text, node.metadata) for node in self.store.get_nodes(ids)]

    def delete(self, ids):
        self.store.delete_nodes(ids)

    @property
    def core(self):
        return self.store.client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("contract")).folder)


@pytest.fixture(params=["memory", "folder"])
def uri(request, tmp_path):
    return None if request.param == "memory" else str(tmp_path / "memories")


@pytest.fixture(params=[Core, LangChain, LlamaIndex])
def entry_point(request, model, uri):
    return request.param(model, uri)


@pytest.fixture
def filled(entry_point):
    entry_point.add([*TEXTS, LONG], [*METADATAS, {"n": 99, "town": "Long"}], [*IDS, "long"])
    return entry_point


@pytest.fixture(scope="module")
def expected(model):
    """The results of a store in memory by mode and filter, which all others must find, too."""
    store = Core(model, None)
    store.add([*TEXTS, LONG], [*METADATAS, {"n": 99, "town": "Long"}], [*IDS, "long"])
    return store


# --- one ranking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("condition", [None, {"town": "Aln"}, {"town": "nowhere"}])
def test_same_ids_order_and_scores(filled, expected, mode, condition):
    for question in (QUESTION, "AB-1234/9", "cafe", "中国", LONG[-60:]):
        for k in (1, 3, 50):
            found, wanted = (each.search(question, k, mode, condition) for each in (filled, expected))
            assert [id_ for id_, _ in found] == [id_ for id_, _ in wanted]
            # Scores have six digits, and sums in another order may round the last one to its neighbour.
            assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1.001e-6)


def test_hybrid_is_the_default(filled):
    assert filled.search(QUESTION) == filled.search(QUESTION, mode="hybrid")


@pytest.mark.parametrize("mode", MODES)
def test_a_function_finds_what_the_same_dict_finds(filled, mode):
    by_function = filled.search(QUESTION, 2, mode, lambda found: found.metadata["town"] == "Aln")
    assert by_function == filled.search(QUESTION, 2, mode, {"town": "Aln"})
    assert filled.search(QUESTION, 2, mode, lambda _: False) == []


def test_a_synonym_is_found_behind_the_word_itself(entry_point):
    texts = ["The pool opens at noon.", "Rubbish goes out on Tuesday.", "The trash can is in the shed."]
    entry_point.add(texts, None, ["pool", "notice", "shed"])
    assert [id_ for id_, *_ in entry_point.search("trash", mode="text")] == ["shed", "notice"]


def test_every_word_is_found(filled):
    firsts = {"1907": "id-0", "ab-1234/9": "id-2", "1234": "id-2", "橋": "id-3", "中国": "id-3", "CAFE": "id-4",
              "naïve": "id-4", "NAIVE": "id-4", "Commelinaceae": "id-5", "Café": "id-4"}  # fmt: skip
    for word, id_ in firsts.items():
        assert filled.search(word, mode="text")[0][0] == id_, word
        assert filled.search(word, mode="hybrid")[0][0] == id_, word
    assert filled.search("clock", mode="text") == filled.search("clocks", mode="text") != []
    filled.add(["x" * 300], None, ["huge"])
    assert filled.search("X" * 300, mode="text")[0][0] == "huge"


def test_mmr(filled, expected):
    if isinstance(filled, LlamaIndex):
        assert len(filled.mmr(QUESTION, 3)) == 3  # LlamaIndex's rule
    else:
        assert filled.mmr(QUESTION, 3) == expected.mmr(QUESTION, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(filled, k):
    if isinstance(filled, LlamaIndex):
        assert filled.search(QUESTION, 0) == filled.mmr(QUESTION, 0) == []
        return
    for search in (filled.search, filled.mmr):
        with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
            search(QUESTION, k)


# --- accepted values -------------------------------------------------------------------------------------


def test_an_empty_page_among_good_ones_is_kept_and_not_found(entry_point, caplog):
    texts = [TEXTS[0], "", TEXTS[1], " \n\t"]
    assert entry_point.add(texts, None, ["a", "b", "c", "d"]) == ["a", "b", "c", "d"]
    assert [text for _, text, _ in entry_point.get(["a", "b", "c", "d"])] == texts
    for mode in MODES:
        assert {id_ for id_, _ in entry_point.search(QUESTION, mode=mode)} <= {"a", "c"}
    assert "'b'" in caplog.text
    entry_point.delete(["b"])
    assert entry_point.core.count() == 3


def test_only_empty_pages(entry_point):
    entry_point.add(["", " "], None, ["a", "b"])
    assert entry_point.search(QUESTION) == []
    entry_point.add([TEXTS[0]], None, ["c"])
    assert [id_ for id_, _ in entry_point.search(QUESTION)] == ["c"]


class Name(str):
    """A subclass of str, as some loaders return."""

    __slots__ = ()


NAIVE = datetime(1907, 5, 1, 12)  # noqa: DTZ001 - without a time zone, as from many loaders
KEPT = {
    "nested": {"deep": {"er": [1, None, {"x": [True, 2.5]}]}},
    "date": date(1907, 5, 1),
    "time": datetime(1907, 5, 1, 12, 30, 15, 7, tzinfo=UTC),
    "naive time": NAIVE,
    "tuple": (1, (2.5, "x"), [3]),
    "dates within": [{"on": date(1907, 5, 1)}],
    "surrogates": "\ud800 \0 \ufdd0",
    "": 10**40,
}


def test_metadata_comes_back_as_it_was(entry_point):
    entry_point.add([TEXTS[0]], [KEPT], ["a"])
    [(_, _, back)] = entry_point.get(["a"])
    assert back == KEPT
    assert {name: type(value) for name, value in back.items()} == {name: type(value) for name, value in KEPT.items()}


def test_metadata_of_kinds_that_equal_plain_ones(entry_point):
    given = {"int": np.int64(3), "float": np.float32(0.5), "bool": np.bool_(True), "text": Name("x"),
             "time": np.datetime64("1907-05-01T12:00:00"), "list": [np.float64(1.5)]}  # fmt: skip
    plain = {"int": 3, "float": 0.5, "bool": True, "text": "x", "time": NAIVE, "list": [1.5]}
    entry_point.add([TEXTS[0]], [given], ["a"])
    [(_, _, back)] = entry_point.get(["a"])
    assert back == plain
    assert [type(value) for value in back.values()] == [type(value) for value in plain.values()]
    assert [id_ for id_, _ in entry_point.search(QUESTION, filter={"int": 3})] == ["a"]


@pytest.mark.parametrize("value, error", [
    (math.nan, ValueError), (-math.inf, ValueError), (np.float64("nan"), ValueError), ({1}, TypeError),
    (b"x", TypeError), (np.zeros(2), TypeError), ({"x": object()}, TypeError), ({1: 2}, TypeError),
])  # fmt: skip
def test_metadata_that_is_refused_names_document_and_key_and_nothing_is_kept(entry_point, value, error):
    with pytest.raises(error, match=r"(?s)'bad'.*'key'"):
        entry_point.add(TEXTS[:2], [{}, {"key": [value]}], ["good", "bad"])
    assert entry_point.get(["good", "bad"]) == []


def test_dates_are_filtered(uri, model):
    store = Core(model, uri)
    store.add(TEXTS[:3], [{"on": date(1900 + year, 1, 1)} for year in range(3)], IDS[:3])
    for condition, count in (({"on": {"$gte": date(1901, 1, 1)}}, 2), ({"on": date(1900, 1, 1)}, 1),
                             ({"on": "1900-01-01"}, 0), ({"on": {"$exists": True}}, 3)):  # fmt: skip
        assert store.core.count(condition) == count, condition


@pytest.mark.parametrize("ids", [[1, 2], ["a", 2], ["a", b"b"]])
def test_ids_are_strings(entry_point, ids):
    if isinstance(entry_point, LlamaIndex):
        pytest.skip("a node refuses an id that is no string itself")
    with pytest.raises(TypeError, match=r"ids\[\d\] must be a string"):
        entry_point.add(TEXTS[:2], None, ids)


def test_a_string_where_ids_belong(filled):
    for call in (filled.get, filled.delete):
        with pytest.raises(TypeError, match="ids must be"):
            call("id-0")
    assert len(filled.get(["id-0"])) == 1


def test_duplicates(filled):
    before = filled.core.count()
    filled.add(["Another text about a bridge."], [{}], ["id-0"])
    assert filled.core.count() == before
    assert [text for _, text, _ in filled.get(["id-0"])] == ["Another text about a bridge."]
    assert filled.search("1907", mode="text") == []


def test_made_ids_of_equal_texts(uri, model):
    store = LangChain(model, uri)
    first, second = store.add([TEXTS[0]]), store.add([TEXTS[0]])
    assert first != second
    assert store.core.count() == 2


def test_what_comes_back_is_the_callers_own(filled):
    [(_, _, metadata)] = filled.get(["id-0"])
    metadata["town"] = "changed"
    [(_, _, again)] = filled.get(["id-0"])
    assert again["town"] == "Aln"


# --- copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])  # noqa: S301
def test_copies_and_pickles(filled, uri, way):
    twin = way(filled)
    assert twin.search(QUESTION) == filled.search(QUESTION)
    twin.add(["A text of the copy alone: zebra."], [{}], ["own"])
    assert twin.search("zebra", mode="text")[0][0] == "own"
    assert bool(filled.get(["own"])) == (uri is not None)  # a folder is not copied


@pytest.mark.parametrize("way", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])  # noqa: S301
def test_retrievers_travel(model, uri, way):
    langchain = LangChainRetriever(vectorstore=LangChain(model, uri).store, k=2)
    langchain.add_documents([Document(text, id=id_) for text, id_ in zip(TEXTS, IDS, strict=True)])
    assert way(langchain).invoke(QUESTION) == langchain.invoke(QUESTION)
    llama = LlamaIndexRetriever(LlamaIndex(model, uri and f"{uri}-2").store)
    llama.add_nodes([TextNode(text=text) for text in TEXTS])
    assert [hit.score for hit in way(llama).retrieve(QUESTION)] == [hit.score for hit in llama.retrieve(QUESTION)]


# --- vectors of other embeddings -------------------------------------------------------------------------


def test_vectors_of_any_embedding(uri, model):
    """A prototype in memory can get a `uri=`, with any vectors."""
    store = LangChainStore(DeterministicFakeEmbedding(size=12), uri=uri)
    twin = LangChainStore(DeterministicFakeEmbedding(size=12))
    for each in (store, twin):
        each.add_texts([*TEXTS, " "], [*METADATAS, {}], ids=[*IDS, "blank"])
    for mode in MODES:
        found, wanted = (each.similarity_search_with_score(TEXTS[1], 9, mode=mode) for each in (store, twin))
        assert [document for document, _ in found] == [document for document, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-6)
        assert found[0][0].id == "id-1"
    llama = LlamaIndexStore(model=model, uri=uri and f"{uri}-2", dimensions=7)
    nodes = [TextNode(id_=id_, text=text, embedding=np.eye(7)[at].tolist())
             for at, (id_, text) in enumerate(zip(IDS, TEXTS, strict=True))]  # fmt: skip
    llama.add(nodes)
    found = llama.query(VectorStoreQuery(query_embedding=np.eye(7)[3].tolist(), similarity_top_k=1))
    assert (found.ids, found.similarities) == (["id-3"], [1.0])


def test_vectors_of_another_process_rank_like_fresh_ones(uri, model, tmp_path):
    """Nodes from an ingestion cache have vectors, and the engine of a new process has no texts in its cache."""
    nodes = [TextNode(id_=id_, text=text) for id_, text in zip([*IDS, "long"], [*TEXTS, LONG], strict=True)]
    embedded = ClaraEmbedding(model=model)(nodes)
    fresh = LlamaIndexStore(model=model)
    fresh.add(nodes)
    fresh.engine.cache.clear()
    store = LlamaIndexStore(model=model, uri=uri)
    store.add(embedded)
    query = VectorStoreQuery(query_str=QUESTION, similarity_top_k=9)
    rounding = 1e-5 if uri is None else 4e-3  # a folder writes bfloat16
    assert store.query(query).ids == fresh.query(query).ids
    assert store.query(query).similarities == pytest.approx(fresh.query(query).similarities, abs=rounding)
