"""LangChain and LlamaIndex in one program, on one model in memory.

    python examples/llama_index_with_langchain.py [model]

A document that one of them compressed is known to the other: memory is found by the text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.documents import Document as ChainDocument
from llama_index.core import Document

from langchain_clara import ChatClara, ClaraRerank
from llama_index_clara import ClaraRetriever

DATA = Path(__file__).parent / "data"
QUESTION = "What is the price of a return ticket?"


def main(model: str = "pocket") -> None:
    """Retrieve with LlamaIndex, rerank and answer with LangChain."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), doc_id=path.name)
        for path in sorted(DATA.iterdir())
        if path.suffix in (".md", ".txt")
    ]
    retriever = ClaraRetriever.from_documents(documents, model=model, similarity_top_k=10)
    rerank, chat = ClaraRerank(model=model, top_n=3), ChatClara(model=model, max_tokens=32)
    assert retriever.engine is rerank.shared_engine is chat.shared_engine  # noqa: S101 - the point of this example

    hits = retriever.retrieve(QUESTION)
    misses = retriever.engine.cache.misses
    candidates = [ChainDocument(hit.text, id=hit.node_id, metadata={"file": hit.node.ref_doc_id}) for hit in hits]
    best = rerank.compress_documents(candidates, QUESTION)
    answer = chat.invoke(QUESTION, documents=best)
    print(f"{QUESTION} {answer.content}")
    print("read:", ", ".join(document.metadata["file"] for document in best))
    print(f"compressed a second time: {retriever.engine.cache.misses - misses} documents")


if __name__ == "__main__":
    main(*sys.argv[1:])
