"""LlamaIndex's starter program, on memory tokens: a folder becomes an index, the index answers.

    python examples/llama_index_starter.py                       the bundled model, on the CPU
    python examples/llama_index_starter.py apple/CLaRa-7B-E2E    a released one

The index, its retriever and its query engine are LlamaIndex's own. What is swapped in are the embedding model, the
store, the reranker, the LLM and the synthesizer; all of them share one model without being told.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama_index.core import SimpleDirectoryReader, StorageContext, VectorStoreIndex

from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraRerank,
    ClaraSynthesizer,
    ClaraVectorStore,
)

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")


def main(model: str = "pocket") -> None:
    """Index the example files and ask two questions."""
    documents = SimpleDirectoryReader(str(DATA), required_exts=[".md", ".txt"]).load_data()
    index = VectorStoreIndex.from_documents(
        documents,
        transformations=[ClaraNodeParser(model=model)],
        embed_model=ClaraEmbedding(model=model),
        storage_context=StorageContext.from_defaults(vector_store=ClaraVectorStore(model=model)),
    )
    llm = ClaraLLM(model=model, max_tokens=32)
    query_engine = index.as_query_engine(
        llm=llm,
        response_synthesizer=ClaraSynthesizer(llm),
        node_postprocessors=[ClaraRerank(model=model, top_n=3)],
        similarity_top_k=10,
    )
    for question in QUESTIONS:
        response = query_engine.query(question)
        print(f"\n{question}\n  {response}")
        for hit in response.source_nodes:
            print(f"  {hit.score:6.3f}  {hit.metadata['file_name']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
