"""Keyword search first, then CLaRa: BM25 finds candidates, the reasoner orders them, the generator reads the best.

    python examples/langchain_mixed.py [MODEL]

A pipeline that exists keeps its search; the reranker and the model are swapped in. The answer is streamed, and says
what it was read from.
"""

from __future__ import annotations

import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import bm25s
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraRerank, ClaraTextSplitter, DocumentsPlaceholder

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")


def load_documents(model: str) -> list[Document]:
    """The files of the folder, in pieces that fit the model's window."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, metadata={"source": file.name}) for file in files]
    return ClaraTextSplitter(model=model).split_documents(whole)


def keyword_search(documents: list[Document], k: int) -> Runnable[str, list[Document]]:
    """A retriever that knows words alone; any other would do."""
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([document.page_content for document in documents], show_progress=False), show_progress=False
    )

    def search(question: str) -> list[Document]:
        words = bm25s.tokenize(question, show_progress=False)
        found, _ = index.retrieve(words, documents, k=min(k, len(documents)), show_progress=False)
        return list(found[0])

    return RunnableLambda(search)


def build_chain(model: str) -> Runnable[dict[str, Any], dict[str, Any]]:
    """{"question"} -> {"question", "context", "answer"}."""
    candidates = keyword_search(load_documents(model), k=20)
    best = ClaraRerank(model=model, top_n=5).as_runnable(candidates)
    prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
    answer = prompt | ChatClara(model=model, max_tokens=32)
    return RunnablePassthrough.assign(context=itemgetter("question") | best).assign(answer=answer)


def main(model: str = "pocket") -> dict[str, str]:
    """Ask the questions; returns the answers."""
    chain = build_chain(model)
    answers = {}
    for question in QUESTIONS:
        print(f"\n{question}\n  ", end="")
        sources: list[Document] = []
        answers[question] = ""
        for piece in chain.stream({"question": question}):
            sources = piece.get("context", sources)
            if "answer" in piece:
                answers[question] += piece["answer"].text
                print(piece["answer"].text, end="", flush=True)
        print()
        for document in sources:
            print(f"    {document.metadata['relevance_score']:.3f}  {document.metadata['source']}")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:2])
