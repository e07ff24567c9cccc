"""A store of memories in a folder: compressed once, found and read again by any process.

python examples/langchain_durable.py [MODEL [FOLDER]]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from langchain_core.documents import Document

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraTextSplitter, ClaraVectorStore, create_clara_documents_chain

DATA = Path(__file__).parent / "data"
QUESTION = "How high is the Eiffel Tower?"


def load_documents(model: str) -> list[Document]:
    """The files of the folder in pieces that fit the model's window, each with an id that stays the same."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, metadata={"source": file.name}) for file in files]
    pieces = ClaraTextSplitter(model=model, add_start_index=True).split_documents(whole)
    for piece in pieces:
        piece.id = f"{piece.metadata['source']}#{piece.metadata['start_index']}"
    return pieces


def main(model: str = "pocket", folder: str | None = None) -> str:
    """Fill a folder twice, open it again, search it and answer from it; returns the answer."""
    with tempfile.TemporaryDirectory() as temporary:
        uri = folder or temporary
        documents = load_documents(model)
        for when in ("first", "again"):  # the second time nothing is compressed: the texts are there
            start = time.perf_counter()
            ClaraVectorStore.from_documents(documents, uri=uri, model=model)
            print(f"{when}: {len(documents)} passages in {time.perf_counter() - start:.1f} s")

        store = ClaraVectorStore(uri=uri, model=model)  # as another process would open it
        print(f"\n{QUESTION}")
        for mode in ("memory", "text", "hybrid"):
            found = store.similarity_search(QUESTION, k=2, mode=mode)
            print(f"  {mode:8}", ", ".join(document.metadata["source"] for document in found))
        only = store.similarity_search(QUESTION, k=2, filter={"source": {"$contains": ".md"}})
        print("  only .md", ", ".join(document.metadata["source"] for document in only))

        chain = create_clara_documents_chain(ChatClara(model=model, max_tokens=32))
        answer: str = chain.invoke({"context": store.similarity_search(QUESTION), "input": QUESTION})
        print(f"\n  {answer}")
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:3])
