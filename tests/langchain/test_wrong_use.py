"""Common mistakes: each raises an error with a clear message, before anything is computed or stored."""

from __future__ import annotations

import pytest
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from clara_core import ClaraEngine
from langchain_clara import ClaraEmbeddings, ClaraRetriever, ClaraVectorStore
from tests.langchain.data import bundled_or_tiny

# langchain_community warns at import that it is being retired.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEXTS = ["The mill at Orre grinds oats.", "Ferries to Skarn leave at noon.", "The choir of Orre sings on Sundays."]


@pytest.fixture(params=["memory", "folder"])
def store(request, tmp_path):
    if request.param == "memory":
        return ClaraVectorStore(model=bundled_or_tiny())
    pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")
    return ClaraVectorStore(uri=tmp_path / "memories", model=bundled_or_tiny())


@pytest.fixture
def retriever():
    return ClaraRetriever(model=bundled_or_tiny())


# -- numbers ---------------------------------------------------------------------------------------

SEARCHES = {
    "similarity_search": ("What does the mill grind?",),
    "similarity_search_with_score": ("What does the mill grind?",),
    "similarity_search_by_vector": ([1.0, 0.0],),
    "max_marginal_relevance_search": ("What does the mill grind?",),
    "max_marginal_relevance_search_by_vector": ([1.0, 0.0],),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("k", [0, -1])
async def test_k_is_at_least_one(store, name, k):
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        getattr(store, name)(*SEARCHES[name], k=k)
    with pytest.raises(ValueError, match=f"k must be at least 1, got {k}"):
        await getattr(store, f"a{name}")(*SEARCHES[name], k=k)


@pytest.mark.parametrize("options, named", [({"fetch_k": 0}, "fetch_k"), ({"lambda_mult": 1.5}, "lambda_mult")])
async def test_limits_of_a_diverse_search(store, options, named):
    """Limits are checked in an empty store, too; otherwise the search would fail once there is a document."""
    with pytest.raises(ValueError, match=named):
        store.max_marginal_relevance_search("What does the mill grind?", **options)
    with pytest.raises(ValueError, match=named):
        await store.amax_marginal_relevance_search("What does the mill grind?", **options)


def test_k_of_a_retriever_over_the_store(store):
    with pytest.raises(ValueError, match="k must be at least 1"):
        store.as_retriever(search_type="mmr", search_kwargs={"k": 0}).invoke("What does the mill grind?")


# -- one where several belong, strings where documents belong --------------------------------------


@pytest.mark.parametrize("documents", ["one text", Document("one"), {"page_content": "one"}, None, 3])
async def test_one_where_documents_belong(store, retriever, documents):
    for target in (store, retriever):
        with pytest.raises(TypeError, match=r"documents must be a list of Documents, got one \w+; put it into a list"):
            target.add_documents(documents)
        with pytest.raises(TypeError, match="put it into a list"):
            await target.aadd_documents(documents)
    assert len(store) == 0


async def test_strings_where_documents_belong(store, retriever):
    words = r"documents\[0\] must be a Document, got str; texts go to from_texts or add_texts"
    for target in (store, retriever):
        with pytest.raises(TypeError, match=words):
            target.add_documents(TEXTS)
        with pytest.raises(TypeError, match=words):
            await target.aadd_documents(TEXTS)
    with pytest.raises(TypeError, match=words):
        ClaraRetriever.from_documents(TEXTS, model=bundled_or_tiny())
    with pytest.raises(TypeError, match=words):
        ClaraVectorStore.from_documents(TEXTS, ClaraEmbeddings(model=bundled_or_tiny()))


async def test_documents_where_strings_belong(store):
    words = r"texts\[0\] must be a string, got Document; Documents go to from_documents or add_documents"
    with pytest.raises(TypeError, match=words):
        store.add_texts(map(Document, TEXTS))
    with pytest.raises(TypeError, match=words):
        await store.aadd_texts(map(Document, TEXTS))
    with pytest.raises(TypeError, match=words):
        ClaraRetriever.from_texts(map(Document, TEXTS), model=bundled_or_tiny())


async def test_a_string_is_not_walked_through(store):
    """Otherwise each letter of a text would become a document, and each letter of an id an id."""
    with pytest.raises(TypeError, match="texts must be a list of strings, got one str"):
        store.add_texts(TEXTS[0])
    with pytest.raises(TypeError, match="texts must be a list of strings, got one str"):
        await ClaraVectorStore.afrom_texts(TEXTS[0], model=bundled_or_tiny())
    with pytest.raises(TypeError, match="ids must be a list of strings, got one str"):
        store.add_texts(TEXTS, ids="abc")
    with pytest.raises(TypeError, match="metadatas must be a list of dicts, got one dict"):
        store.add_texts(TEXTS, {"town": "Orre", "year": 1, "kind": "x"})
    store.add_texts(TEXTS, ids=["a", "b", "c"])
    for name in ("delete", "get_by_ids", "get_memories"):
        with pytest.raises(TypeError, match="ids must be several strings, got one str"):
            getattr(store, name)("abc")
    assert len(store) == 3


async def test_what_can_be_walked_through_once_is_enough(store):
    store.add_texts((text for text in TEXTS[:1]), ({"n": n} for n in [1]), ids=iter(["a"]))
    await store.aadd_texts((text for text in TEXTS[1:2]), ({"n": n} for n in [2]), ids=iter(["b"]))
    store.add_documents((Document(text) for text in TEXTS[2:]), ids=iter(["c"]))
    found = store.get_by_ids(iter(["c", "b", "a"]))
    assert [document.page_content for document in found] == TEXTS[::-1]
    assert [document.metadata for document in found] == [{}, {"n": 2}, {"n": 1}]
    store.delete(iter(["a", "b"]))
    assert [document.id for document in store] == ["c"]


# -- the wrong kind of part ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "embedding, named",
    [
        ("pocket", "got the name 'pocket'; a model's name is model="),
        (ClaraEmbeddings, r"got ClaraEmbeddings; make one: ClaraEmbeddings\(\)"),
        (lambda text: [0.0], "got function; make one, such as"),
    ],
)
async def test_what_is_not_an_embedding(embedding, named):
    with pytest.raises(TypeError, match=named):
        ClaraVectorStore(embedding)
    with pytest.raises(TypeError, match=named):
        ClaraVectorStore.from_texts(TEXTS, embedding)
    with pytest.raises(TypeError, match=named):
        await ClaraVectorStore.afrom_documents(list(map(Document, TEXTS)), embedding)


def test_an_engine_is_not_an_embedding():
    with pytest.raises(TypeError, match="an engine is engine="):
        ClaraVectorStore(ClaraEngine.from_pretrained(bundled_or_tiny()))


def test_another_kind_of_store_for_the_retriever():
    faiss = FAISS.from_texts(TEXTS, DeterministicFakeEmbedding(size=6))
    with pytest.raises(ValueError, match=r"got FAISS; .*from_retriever\(store.as_retriever\(\)\)"):
        ClaraRetriever(vectorstore=faiss)
    with pytest.raises(ValueError, match=r"got FAISS; use store.as_retriever\(\)"):
        ClaraRetriever.from_retriever(faiss)
    with pytest.raises(ValueError, match=r"got str; ClaraVectorStore\(uri=...\) opens a folder"):
        ClaraRetriever(vectorstore="memories")
    with pytest.raises(ValueError, match="got function; wrap a function in RunnableLambda"):
        ClaraRetriever.from_retriever(lambda question: [])


# -- from_texts of a retriever ---------------------------------------------------------------------


@pytest.mark.in_process
async def test_a_retriever_of_texts():
    options = {"model": bundled_or_tiny(), "reasoner": "encoder", "k": 1}
    metadatas = [{"n": number} for number in range(3)]
    made = ClaraRetriever.from_texts(iter(TEXTS), iter(metadatas), ids=["a", "b", "c"], **options)
    awaited = await ClaraRetriever.afrom_texts(TEXTS, metadatas, ids=["a", "b", "c"], **options)
    for retriever in (made, awaited):
        (found,) = retriever.invoke(TEXTS[1])
        assert (found.id, found.page_content, found.metadata["n"]) == ("b", TEXTS[1], 1)
    with pytest.raises(ValueError, match="got 2 for 3 texts"):
        ClaraRetriever.from_texts(TEXTS, metadatas[:2], **options)
