"""ClaraNodeParser: whole windows, the whole text."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import Document
from llama_index.core.schema import MetadataMode, NodeRelationship

from llama_index_clara import ClaraNodeParser

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
