"""Answers with their sources: marks in the text, only the nodes that were used, and one answer that is withheld.

python examples/llama_index_citations.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama_index.core import SimpleDirectoryReader

from llama_index_clara import ClaraLLM, ClaraQueryEngine, ClaraSynthesizer

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")
UNANSWERABLE = "Who is the president of Brazil?"


def main(model: str = "pocket") -> None:
    """Ask three questions, one of which nothing answers."""
    documents = SimpleDirectoryReader(str(DATA), required_exts=[".md", ".txt"]).load_data()
    retriever = ClaraQueryEngine.from_documents(documents, model=model, similarity_top_k=5).retriever
    llm = ClaraLLM(model=model, max_tokens=32, min_confidence=0.5)
    synthesizer = ClaraSynthesizer(llm, citations=True, sources="cited", inline_citations=True)
    engine = ClaraQueryEngine(retriever, response_synthesizer=synthesizer)
    for question in (*QUESTIONS, UNANSWERABLE):
        response = engine.query(question)
        print(f"\n{question}\n  {response}")
        told = response.metadata["clara"]
        if told["abstained"]:
            sure = "not known" if told["confidence"] is None else f"{told['confidence']:.0%}"
            print(f"  withheld: {told['draft']!r}, confidence {sure}")
            continue
        for citation in told["citations"]:
            print(f"    {citation['text']!r}")
        for number, hit in enumerate(response.source_nodes, start=1):
            print(f"    [{number}] {hit.metadata['file_name']}, score {hit.score:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
