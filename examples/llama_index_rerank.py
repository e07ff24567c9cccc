"""The reranker alone, over somebody else's retriever: one object more in a pipeline that exists.

python examples/llama_index_rerank.py [model]
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama_index.core import Document, SummaryIndex

from llama_index_clara import ClaraNodeParser, ClaraRerank

DATA = Path(__file__).parent / "data"
QUESTION = "What is the price of a return ticket?"


def main(model: str = "pocket") -> None:
    """Take all nodes of an index that ranks nothing, and let the reranker find the best."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), metadata={"file_name": path.name})
        for path in sorted(DATA.iterdir())
        if path.suffix in (".md", ".txt")
    ]
    index = SummaryIndex.from_documents(documents, transformations=[ClaraNodeParser(model=model)])
    candidates = index.as_retriever().retrieve(QUESTION)
    print(f"{len(candidates)} candidates: {', '.join(hit.metadata['file_name'] for hit in candidates[:5])} …")

    # The old score stays beside the node, so that neither its hash nor a later prompt changes.
    rerank = ClaraRerank(model=model, top_n=3, keep_retrieval_score=True)
    for hit in rerank.postprocess_nodes(candidates, query_str=QUESTION):
        text = hit.text.replace("\n", " ")
        print(f"{hit.score:6.3f}  (was {hit.retrieval_score})  {hit.metadata['file_name']}: {text[:60]}…")


if __name__ == "__main__":
    main(*sys.argv[1:])
