"""ClaraNodeParser: nodes fit one window, and together they contain the whole text."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.schema import ImageDocument, MetadataMode, NodeRelationship

from llama_index_clara import ClaraEmbedding, ClaraNodeParser, ClaraVectorStore

TOWN = " ".join(f"Sentence number {number} speaks of the town and of the river." for number in range(40))


@pytest.fixture
def parser(model):
    return ClaraNodeParser(model=model)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=600) | st.text("a. \n<MEM0>", max_size=900))
def test_no_character_is_lost_and_every_piece_fits(engine, text):
    pieces = ClaraNodeParser(engine=engine).split_text(text)
    assert "".join(pieces) == text
    assert all(engine.tokenizer.count(piece) <= engine.window for piece in pieces)


def test_metadata_is_counted(parser, engine):
    document = Document(text=TOWN, metadata={"source": "town.txt", "page": 12}, excluded_llm_metadata_keys=["page"])
    pieces = parser.get_nodes_from_documents([document])
    assert "".join(piece.text for piece in pieces) == TOWN
    for piece in pieces:
        assert piece.metadata == document.metadata
        assert len(engine.tokenizer.windows(piece.get_content(metadata_mode=MetadataMode.EMBED))) == 1
    bare = parser.get_nodes_from_documents([Document(text=TOWN)])
    assert len(bare) < len(pieces)
    alone = ClaraNodeParser(engine=engine, include_metadata=False).get_nodes_from_documents([document])
    assert all(not piece.metadata for piece in alone)


def test_window_is_filled_and_nothing_overlaps(parser, engine):
    pieces = parser.split_text(TOWN)
    assert len(pieces) <= 2 * engine.tokenizer.count(TOWN) / engine.window + 1
    assert sum(map(len, pieces)) == len(TOWN)


def test_pieces_end_at_sentences(parser, engine):
    assert all(piece.rstrip().endswith(".") for piece in parser.split_text("He ran. " * 100))


def test_metadata_that_leaves_no_room_is_warned_of(parser, caplog):
    document = Document(text=TOWN, metadata={"abstract": TOWN})
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        pieces = parser.get_nodes_from_documents([document])
    assert "excluded_embed_metadata_keys" in caplog.text
    assert "".join(piece.text for piece in pieces) == TOWN


def test_chunk_size(engine):
    parser = ClaraNodeParser(engine=engine, chunk_size=20)
    assert all(engine.tokenizer.count(piece) <= 20 for piece in parser.split_text(TOWN))
    assert "".join(parser.split_text(TOWN)) == TOWN
    large = ClaraNodeParser(engine=engine, chunk_size=10_000)
    assert large.split_text(TOWN) == ClaraNodeParser(engine=engine).split_text(TOWN)


def test_relationships_and_places(parser):
    document = Document(text=TOWN, doc_id="town")
    pieces = parser.get_nodes_from_documents([document])
    assert all(piece.ref_doc_id == "town" for piece in pieces)
    assert pieces[0].relationships[NodeRelationship.NEXT].node_id == pieces[1].node_id
    assert all(TOWN[piece.start_char_idx : piece.end_char_idx] == piece.text for piece in pieces)


async def test_async_equals_sync(parser):
    document = Document(text=TOWN)
    later = await parser.aget_nodes_from_documents([document])
    assert [piece.text for piece in later] == [piece.text for piece in parser.get_nodes_from_documents([document])]


def test_reserve_bounds(engine):
    for reserve in (engine.window, -1):
        with pytest.raises(ValueError, match="reserve"):
            engine.tokenizer.windows(TOWN, reserve=reserve)


def windows(engine, parsed):
    return [len(engine.tokenizer.windows(piece.get_content(metadata_mode=MetadataMode.EMBED))) for piece in parsed]


def words_of(engine, n):
    """A text of about this number of tokens."""
    text = "sea"
    while engine.tokenizer.count(text) < n:
        text += " sea"
    return text


def test_metadata_is_counted_as_it_is_embedded(parser, engine):
    """A key that only the LLM sees takes no tokens; a custom template takes its own number of tokens."""
    secret = Document(text=TOWN, metadata={"note": words_of(engine, 30)}, excluded_embed_metadata_keys=["note"])
    bare = Document(text=TOWN)
    assert [p.text for p in parser.get_nodes_from_documents([secret])] == [
        p.text for p in parser.get_nodes_from_documents([bare])
    ]
    wordy = Document(
        text=TOWN, metadata={"page": 1}, text_template=f"{words_of(engine, 20)} {{metadata_str}}: {{content}} the end."
    )
    assert set(windows(engine, parser.get_nodes_from_documents([wordy]))) == {1}
    outside = ClaraNodeParser(engine=engine, include_metadata=False)
    noted = Document(text=TOWN, metadata={"note": words_of(engine, 30)})
    assert [p.text for p in outside.get_nodes_from_documents([noted])] == [
        p.text for p in parser.get_nodes_from_documents([bare])
    ]


def test_half_a_window_of_metadata_leaves_nodes_of_one_window(parser, engine, caplog):
    """All nodes have one window, and a short text gives no warning."""
    metadata = {"abstract": words_of(engine, engine.window // 2 + 2)}
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        short = parser.get_nodes_from_documents([Document(text="It sank.", metadata=metadata)])
        assert windows(engine, short) == [1]
        assert not caplog.records
        long = parser.get_nodes_from_documents([Document(text=TOWN, metadata=metadata)])
    assert set(windows(engine, long)) == {1}
    assert "more than one window" not in caplog.text


def test_one_cause_is_one_warning(parser, engine, model, caplog):
    """One warning for all documents, and none from the embedding, which would advise to use this parser."""
    abstract = words_of(engine, engine.window)
    given = [Document(text=TOWN, metadata={"title": "Sea", "abstract": abstract}) for _ in range(5)]
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        pieces = parser.get_nodes_from_documents(given)
        VectorStoreIndex(
            pieces,
            embed_model=ClaraEmbedding(model=model),
            storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
        )
    (record,) = caplog.records
    several = sum(count > 1 for count in windows(engine, pieces))
    assert several == len(pieces)
    assert f"{several} of {len(pieces)} nodes take more than one window" in record.getMessage()
    assert "of 5 documents" in record.getMessage()
    assert "'abstract'" in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="llama_index_clara"):
        embedding = ClaraEmbedding(model=model)
        for _ in range(3):
            embedding.get_text_embedding_batch([TOWN] * 15)
    assert len(caplog.records) == 1  # it warns about other texts, once


def test_a_document_without_text_has_no_pieces(parser):
    empty = [Document(text="", metadata={"page": 1}), Document(text=" \n")]
    assert parser.get_nodes_from_documents(empty) == []
    (image,) = parser.get_nodes_from_documents([ImageDocument(text="", image="aGVsbG8=")])
    assert image.image == "aGVsbG8="
