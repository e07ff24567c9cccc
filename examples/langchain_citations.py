"""Answers that can be checked: the sentence that each one stands on, how sure it is, and one that is withheld.

python examples/langchain_citations.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.messages import AIMessage

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraRetriever, ClaraTextSplitter, cited_documents

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")
UNANSWERABLE = "Who is the president of Brazil?"


def read_documents(model: str) -> list[Document]:
    """The files of the folder, in pieces that fit the model's window."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, metadata={"source": file.name}) for file in files]
    return ClaraTextSplitter(model=model).split_documents(whole)


def show(message: AIMessage, documents: list[Document]) -> None:
    """An answer with its evidence."""
    print(f"  read: {', '.join(document.metadata['source'] for document in documents)}")
    facts = message.response_metadata
    withheld = f" (withheld: {facts['draft']!r})" if facts["abstained"] else ""
    sure = "not known" if facts["confidence"] is None else f"{facts['confidence']:.0%}"
    print(f"  {message.text}{withheld}, confidence {sure}")
    if facts["abstained"]:
        return
    for annotation in message.content_blocks[0].get("annotations", []):
        print(f"    {annotation.get('cited_text')!r}")
    for document in cited_documents(message, documents):
        print(f"    from {document.metadata['source']}, score {document.metadata['citation_score']:.3f}")


def main(model: str = "pocket") -> list[str]:
    """Ask three questions, one of which nothing answers; returns the answers to the others."""
    retriever = ClaraRetriever.from_documents(read_documents(model), model=model, k=5)
    llm = ChatClara(model=model, max_tokens=32, citations=True, min_confidence=0.5)
    answers = []
    for question in (*QUESTIONS, UNANSWERABLE):
        print(f"\n{question}")
        documents = retriever.invoke(question)
        message = llm.invoke(question, documents=documents)
        show(message, documents)
        answers.append(message.text)
    return answers[: len(QUESTIONS)]


if __name__ == "__main__":
    main(*sys.argv[1:2])
