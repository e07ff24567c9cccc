"""The store: filters, words and vectors together, and a file to come back to.

python examples/llama_index_store.py [model]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llama_index.core import Document, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_clara import ClaraEmbedding, ClaraNodeParser, ClaraVectorStore

DATA = Path(__file__).parent / "data"
QUESTION = "How high is the Eiffel Tower?"


def main(model: str = "pocket") -> None:
    """Search with filters and in several modes; write the index to a folder and open it again."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), doc_id=path.name, metadata={"kind": path.suffix[1:]})
        for path in sorted(DATA.iterdir())
        if path.suffix in (".md", ".txt")
    ]
    for document in documents:
        document.excluded_embed_metadata_keys = ["kind"]
    embedding = ClaraEmbedding(model=model)
    index = VectorStoreIndex.from_documents(
        documents,
        transformations=[ClaraNodeParser(model=model)],
        embed_model=embedding,
        storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
    )

    only_markdown = MetadataFilters(
        filters=[MetadataFilter(key="kind", value=["md"], operator=FilterOperator.IN)],
    )
    for mode in ("default", "mmr", "text_search", "hybrid"):
        retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode, filters=only_markdown)
        found = ", ".join(f"{hit.node.ref_doc_id} {hit.score:.2f}" for hit in retriever.retrieve(QUESTION))
        print(f"{mode:12} {found}")

    with tempfile.TemporaryDirectory() as folder:
        index.storage_context.persist(folder)
        # The store has to be named again: LlamaIndex opens only its own by itself.
        store = ClaraVectorStore.from_persist_dir(folder, model=model)
        context = StorageContext.from_defaults(vector_store=store, persist_dir=folder)
        again = load_index_from_storage(context, embed_model=embedding)
    hits = again.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    print(f"opened again: {store.count} nodes, best {hits[0].node.ref_doc_id}")


if __name__ == "__main__":
    main(*sys.argv[1:])
