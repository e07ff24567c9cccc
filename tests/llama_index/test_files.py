"""Files from LlamaIndex's own loader: its notes about a file are neither compressed nor read by any component."""

from __future__ import annotations

import logging

import pytest
from llama_index.core import Document, SimpleDirectoryReader, StorageContext, SummaryIndex, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter, SentenceWindowNodeParser
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import VectorStoreQuery

from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraQueryEngine,
    ClaraRerank,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from tests.llama_index.doubles import QUESTION
from tests.served import served
from tools.pocket_factory.world import ENCYCLOPEDIA

HARBOUR = "The harbour was dredged in 1962."
FILES = {
    "harbour.txt": HARBOUR,
    "museum.md": "# Museum of Clocks\n\nIt owns 412 clocks.\n",
    "orchard.html": "<h1>Vellmark Orchard</h1><p>Rosa Teller planted it in 1911.</p>",
    "stations.csv": "station,opened\nArnfeld,1871\nTolvik,1904\n",
    "river.json": '{"river": "Osk", "length_km": 212}',
    "empty.txt": "",
}
NOTES = {"file_path": "/home/ada/a.pdf", "file_name": "a.pdf", "file_size": 1, "creation_date": "2026-01-02"}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "a folder with a rather long name"
    place.mkdir()
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def loaded(folder):
    return SimpleDirectoryReader(folder).load_data()


@pytest.fixture
def texts(monkeypatch, engine):
    """Every text that the engine compresses."""
    seen: list[str] = []
    for name in ("remember", "compress"):
        original = getattr(type(engine), name)

        def watch(self, texts, *args, original=original, **kwargs):
            seen.extend(texts)
            return original(self, texts, *args, **kwargs)

        monkeypatch.setattr(type(engine), name, watch)
    return seen


def contents(parsed):
    return {node.get_content(metadata_mode=MetadataMode.EMBED) for node in parsed}


def test_the_parser_leaves_notes_of_files_out_and_empty_files_too(loaded, model):
    keys = [list(document.excluded_embed_metadata_keys) for document in loaded]
    pieces = ClaraNodeParser(model=model).get_nodes_from_documents(loaded)
    assert {piece.metadata["file_name"] for piece in pieces} == FILES.keys() - {"empty.txt"}
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert all(piece.get_content(metadata_mode=mode) == piece.text for piece in pieces)
    assert all(piece.metadata["file_path"].startswith("/") for piece in pieces)  # for filters and for citing
    assert [document.excluded_embed_metadata_keys for document in loaded] == keys


@pytest.mark.parametrize("uri", [False, True])
@pytest.mark.parametrize("splitter", [ClaraNodeParser, SentenceSplitter])
def test_an_index_stores_the_texts_alone(loaded, model, engine, tmp_path, uri, splitter):
    """Another splitter leaves the path before each text, and an index embeds it; the store removes it."""
    store = ClaraVectorStore(model=model, uri=str(tmp_path / "memories") if uri else None)
    parser = splitter(model=model) if splitter is ClaraNodeParser else splitter()
    given = [document for document in loaded if document.text]
    VectorStoreIndex.from_documents(
        given,
        transformations=[parser],
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    stored = store.get_nodes()
    memories = store.memories([node.node_id for node in stored])
    assert {memory.text for memory in memories} == {node.text for node in stored}
    (harbour,) = (node for node in stored if node.metadata["file_name"] == "harbour.txt")
    question = ClaraEmbedding(model=model).get_query_embedding(QUESTION)
    (score,) = store.query(VectorStoreQuery(question, similarity_top_k=1, node_ids=[harbour.node_id])).similarities
    wanted = engine.score([QUESTION], engine.compress([HARBOUR]))[0, 0].item()
    assert score == pytest.approx(wanted, abs=1e-3)  # a folder stores half of the digits


async def test_a_pipeline_embeds_the_texts_alone(loaded, model, engine):
    given = [document for document in loaded if document.text]
    for run in ("run", "arun"):
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), ClaraEmbedding(model=model)])
        made = getattr(pipeline, run)(documents=given)
        for node in made if run == "run" else await made:
            vector = ClaraEmbedding(model=model).space.documents(engine.compress([node.text]))[0]
            assert node.embedding == pytest.approx(vector.tolist(), abs=1e-4)


async def test_nodes_from_anywhere_are_read_without_notes(model, texts):
    """Retriever, reranker, synthesizer and LLM remove the notes of nodes that our parser never saw."""
    node = TextNode(text=HARBOUR, metadata=NOTES | {"page_label": "3"}, excluded_llm_metadata_keys=["page_label"])
    hits = [NodeWithScore(node=node, score=0.5)]
    llm = ClaraLLM(model=model, max_tokens=4)
    retriever = ClaraRetriever(model=model)
    retriever.add_nodes([node])
    ClaraQueryEngine(retriever, max_tokens=4).query(QUESTION)
    ClaraRerank(model=model).postprocess_nodes(hits, query_str=QUESTION)
    await ClaraRerank(model=model).apostprocess_nodes(hits, query_str=QUESTION)
    ClaraSynthesizer(llm).synthesize(QUESTION, hits)
    llm.reading([node]).complete(QUESTION)
    SummaryIndex([node]).as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm)).query(QUESTION)
    assert set(texts) == {f"page_label: 3\n\n{HARBOUR}"}
    texts.clear()
    ClaraSynthesizer(llm, metadata_mode=MetadataMode.LLM).synthesize(QUESTION, hits)
    assert set(texts) == {HARBOUR}
    texts.clear()
    ClaraSynthesizer(llm, metadata_mode=MetadataMode.ALL).synthesize(QUESTION, hits)  # "all" includes the notes
    assert all("/home/ada/a.pdf" in text for text in texts)
    assert texts
    assert node.excluded_embed_metadata_keys == []


def test_notes_are_read_where_they_are_asked_for(folder, model):
    """Under another name, which is also possible with ``file_metadata=`` of a loader."""
    named = SimpleDirectoryReader(folder, file_metadata=lambda path: {"report": path.rpartition("/")[2]}).load_data()
    assert f"report: harbour.txt\n\n{HARBOUR}" in contents(ClaraNodeParser(model=model).get_nodes_from_documents(named))


def test_dates_of_other_things_are_content(model):
    """A date belongs to a file only if the metadata name a file, too."""
    painting = Document(text="Oil on wood.", metadata={"creation_date": "1642", "artist": "Rembrandt"})
    scan = Document(text="Oil on wood.", metadata={"creation_date": "2026-01-02", "file_name": "scan.png"})
    parser = ClaraNodeParser(model=model)
    assert contents(parser.get_nodes_from_documents([painting, scan])) == {
        "creation_date: 1642\nartist: Rembrandt\n\nOil on wood.",
        "Oil on wood.",
    }


def test_sentence_windows_of_files(loaded, model):
    store = ClaraVectorStore(model=model)
    VectorStoreIndex(
        SentenceWindowNodeParser.from_defaults(window_size=1).get_nodes_from_documents(loaded[1:]),
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=store),
    )
    ids = [node.node_id for node in store.get_nodes()]
    assert not any("file_path" in memory.text for memory in store.memories(ids))


def test_an_embedding_that_sees_notes_says_so_once(model, caplog):
    embedding = ClaraEmbedding(model=model)
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        for _ in range(3):
            embedding.get_text_embedding_batch([f"file_path: /a/b.txt\n\n{HARBOUR}"] * 20)
        assert [record.name for record in caplog.records] == ["llama_index_clara.embeddings"]
        assert "file_path" in caplog.text
        caplog.clear()
        ClaraEmbedding(model=model).get_text_embedding(f"Write it so:\n\nfile_path: /a/b.txt\n\n{HARBOUR}")
        assert not caplog.records


def test_ingestion_twice_with_cache_and_docstore(loaded, model, tmp_path):
    store = ClaraVectorStore(model=model, uri=str(tmp_path / "memories"))
    pipeline = IngestionPipeline(
        transformations=[ClaraNodeParser(model=model), ClaraEmbedding(model=model)],
        vector_store=store,
        docstore=SimpleDocumentStore(),
    )
    first = pipeline.run(documents=loaded)
    assert len(first) == store.count > 0
    assert pipeline.run(documents=loaded) == []
    changed = [document.model_copy(deep=True) for document in loaded]
    (harbour,) = (document for document in changed if document.text == HARBOUR)
    harbour.set_content("The harbour was filled in.")
    assert [node.text for node in pipeline.run(documents=changed)] == ["The harbour was filled in."]
    assert HARBOUR not in {node.text for node in store.get_nodes()}


@pytest.mark.parametrize("uri", [False, True])
def test_an_empty_page_among_good_ones_is_kept_and_found_by_nothing(model, tmp_path, uri):
    store = ClaraVectorStore(model=model, uri=str(tmp_path / "memories") if uri else None)
    blank = [TextNode(id_="scan-7", text=" \n"), TextNode(id_="scan-8", text="", metadata=NOTES)]
    store.add([TextNode(id_="good", text=HARBOUR), *blank])
    assert store.count == 3
    assert {node.node_id for node in store.get_nodes(["scan-7", "scan-8"])} == {"scan-7", "scan-8"}
    assert [hit.node_id for hit in ClaraRetriever(store, similarity_top_k=3).retrieve(QUESTION)] == ["good"]


def test_a_folder_of_files_is_answered_rightly(encyclopedia_files):
    model = served(ENCYCLOPEDIA)
    index = VectorStoreIndex.from_documents(
        SimpleDirectoryReader(str(encyclopedia_files)).load_data(),
        transformations=[ClaraNodeParser(model=model)],
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
    )
    llm = ClaraLLM(model=model)
    # By memory only, because the passage about another mountain contains the words of the question.
    search = {"vector_store_query_mode": "hybrid", "alpha": 1.0}
    engine = index.as_query_engine(llm=llm, response_synthesizer=ClaraSynthesizer(llm), **search)
    assert str(engine.query("When was Mount Masar first climbed?")) == "1689"
