"""A store of memories: kept up to date by `index`, searched with filters, for similarity or for variety.

python examples/langchain_store.py [MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraTextSplitter, ClaraVectorStore, create_clara_documents_chain

DATA = Path(__file__).parent / "data"
QUESTION = "What is the price of a return ticket?"


def load_documents(model: str) -> list[Document]:
    """The files of the folder, in pieces that fit the model's window."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, metadata={"source": file.name, "length": len(file.text)}) for file in files]
    return ClaraTextSplitter(model=model, add_start_index=True).split_documents(whole)


def update(store: ClaraVectorStore, records: InMemoryRecordManager, documents: list[Document]) -> dict[str, int]:
    """Bring the store to the state of the documents: what is new is compressed, what is gone is deleted."""
    result = index(documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256")
    return {name: int(count) for name, count in result.items()}


def main(model: str = "pocket") -> str:
    """Fill, update and search a store; returns an answer."""
    store = ClaraVectorStore(model=model)
    records = InMemoryRecordManager(namespace="examples")
    records.create_schema()
    documents = load_documents(model)
    print("first: ", update(store, records, documents))
    print("again: ", update(store, records, documents))
    print("less:  ", update(store, records, [d for d in documents if d.metadata["source"] != "people.md"]))

    print(f"\n{QUESTION}")
    for document, score in store.similarity_search_with_score(QUESTION, k=3):
        print(f"  {score:.3f}  {document.metadata['source']}")
    print("in short texts that are not .md:")
    short = {"length": {"$lt": 200}, "$not": {"source": {"$contains": ".md"}}}
    for document in store.similarity_search(QUESTION, k=3, filter=short):
        print(f"         {document.metadata['source']}")
    print("different from each other:")
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 20})
    for document in diverse.invoke(QUESTION):
        print(f"         {document.metadata['source']}")

    chain = create_clara_documents_chain(ChatClara(model=model, max_tokens=32))
    answer: str = chain.invoke({"context": store.similarity_search(QUESTION), "input": QUESTION})
    print(f"\n  {answer}")
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:2])
