"""Nodes in a folder: an index over what is there already, kept up to date by a pipeline.

python examples/llama_index_durable.py [model [folder]]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_clara import ClaraEmbedding, ClaraNodeParser, ClaraVectorStore

DATA = Path(__file__).parent / "data"
QUESTION = "What is the price of a return ticket?"


def load_documents() -> list[Document]:
    """The files, each under its name."""
    files = (path for path in sorted(DATA.iterdir()) if path.suffix in (".md", ".txt"))
    return [
        Document(
            text=path.read_text(encoding="utf-8"),
            doc_id=path.name,
            metadata={"kind": path.suffix[1:]},
            excluded_embed_metadata_keys=["kind"],
        )
        for path in files
    ]


def main(model: str = "pocket", folder: str | None = None) -> None:
    """Fill a folder, bring it up to date, and ask it through a new store object."""
    with tempfile.TemporaryDirectory() as temporary:
        uri = folder or temporary
        pipeline = IngestionPipeline(
            transformations=[ClaraNodeParser(model=model)],  # the store compresses: no vector is ever a list
            vector_store=ClaraVectorStore(model=model, uri=uri),
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
        )
        documents = load_documents()
        store = ClaraVectorStore(model=model, uri=uri)  # as another process would open it
        for _ in range(2):
            nodes = pipeline.run(documents=documents)
            store.add(nodes)
            print(f"{len(nodes)} nodes were new or changed; the folder holds {store.count}")

        index = VectorStoreIndex.from_vector_store(store, embed_model=ClaraEmbedding(model=model))
        text_files = MetadataFilters(filters=[MetadataFilter(key="kind", value=["txt"], operator=FilterOperator.IN)])
        for mode in ("default", "text_search", "hybrid", "mmr"):
            retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode, filters=text_files)
            found = ", ".join(f"{hit.node.ref_doc_id} {hit.score:.2f}" for hit in retriever.retrieve(QUESTION))
            print(f"{mode:12} {found}")


if __name__ == "__main__":
    main(*sys.argv[1:])
