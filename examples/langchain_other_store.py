"""CLaRa's embeddings in another vector database: shorter vectors, the same angles. Needs `langchain-qdrant`.

    python examples/langchain_other_store.py [MODEL]

A memory of the 7B model at rate 16 has 65,536 numbers, more than most databases take. `dimensions` projects it. What
the database finds by short vectors, `ClaraRerank` puts in order by the whole memories, which the generator then reads.
"""

from __future__ import annotations

import sys
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.runnables import RunnablePassthrough
from langchain_qdrant import QdrantVectorStore

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRerank, ClaraTextSplitter, create_clara_documents_chain

DATA = Path(__file__).parent / "data"
QUESTION = "How high is the Eiffel Tower?"


def main(model: str = "pocket") -> str:
    """Fill a database in memory and ask; returns the answer."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, metadata={"source": file.name}) for file in files]
    pieces = ClaraTextSplitter(model=model).split_documents(whole)

    embeddings = ClaraEmbeddings(model=model, dimensions=256)
    database = QdrantVectorStore.from_documents(pieces, embeddings, location=":memory:", collection_name="examples")
    retriever = database.as_retriever(search_kwargs={"k": 20})
    best_five = ClaraRerank(model=model, top_n=5).as_runnable(retriever)

    chain = RunnablePassthrough.assign(context=itemgetter("input") | best_five).assign(
        answer=create_clara_documents_chain(ChatClara(model=model, max_tokens=32))
    )
    result = chain.invoke({"input": QUESTION})
    print(f"{QUESTION}\n  {result['answer']}")
    for document in result["context"]:
        print(f"    {document.metadata['source']}")
    return str(result["answer"])


if __name__ == "__main__":
    main(*sys.argv[1:2])
