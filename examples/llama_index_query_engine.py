"""The shortest way from documents to answers: one class, asked at once, in pieces, and many at a time.

python examples/llama_index_query_engine.py [model]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from llama_index.core import Document

from llama_index_clara import ClaraQueryEngine, ClaraRerank

DATA = Path(__file__).parent / "data"
QUESTIONS = (
    "What is the price of a return ticket?",
    "How high is the Eiffel Tower?",
    "How high is the Eiffel Tower?",
)


def main(model: str = "pocket") -> None:
    """Ask in three ways."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), doc_id=path.name)
        for path in sorted(DATA.iterdir())
        if path.suffix in (".md", ".txt")
    ]
    options = {"model": model, "max_tokens": 32, "similarity_top_k": 10}
    rerank = ClaraRerank(model=model, top_n=3)
    engine = ClaraQueryEngine.from_documents(documents, node_postprocessors=[rerank], **options)

    print("one question:", engine.query(QUESTIONS[0]))

    # The same retriever and nodes, with answers in pieces. Leaving the loop early stops the work.
    streaming = ClaraQueryEngine(
        engine.retriever, node_postprocessors=[rerank], model=model, max_tokens=32, streaming=True
    )
    print("in pieces:", end=" ")
    for piece in streaming.query(QUESTIONS[1]).response_gen:
        print(piece, end="|", flush=True)

    async def all_at_once() -> list[str]:
        """Questions that wait together are computed together."""
        return [str(response) for response in await asyncio.gather(*map(engine.aquery, QUESTIONS))]

    print("\ntogether:")
    for question, answer in zip(QUESTIONS, asyncio.run(all_at_once()), strict=True):
        print(f"  {question} {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
