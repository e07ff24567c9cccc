"""A folder of PDF files in a store that lasts; each answer names the files and pages that it was read from.

    pip install 'clara-rag[langchain,store,files]'
    python examples/pdf_pages.py [MODEL [FOLDER [STORE]]]

Pages keep their ids, so that a second run compresses only what is new or has changed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from langchain_core.documents import Document
from pypdf import PdfReader

from langchain_clara import ChatClara, ClaraTextSplitter, ClaraVectorStore

DATA = Path(__file__).parent / "pdf"
QUESTIONS = ("When was the Brooklyn Bridge opened?", "How long is Tower Bridge?", "How high is Mount Everest?")


def read_pages(folder: Path) -> Iterator[Document]:
    """The pages that have text, each with its file and its number, counted from 1."""
    for path in sorted(folder.rglob("*.pdf")):
        for number, page in enumerate(PdfReader(path).pages, start=1):
            text = " ".join(page.extract_text().split())  # lines of a page are no lines of a text
            if text:
                yield Document(text, metadata={"source": path.relative_to(folder).as_posix(), "page": number})


def main(model: str = "pocket", folder: str | Path = DATA, uri: str | None = None) -> dict[str, str]:
    """Fill the store and ask; returns the answers."""
    pieces = ClaraTextSplitter(model=model, add_start_index=True).split_documents(list(read_pages(Path(folder))))
    for piece in pieces:
        piece.id = "{source}#{page}.{start_index}".format(**piece.metadata)
    with tempfile.TemporaryDirectory() as temporary:
        store = ClaraVectorStore(uri=uri or temporary, model=model)
        store.add_documents(pieces)
        llm = ChatClara(model=model, max_tokens=32)
        answers: dict[str, str] = {}
        for question in QUESTIONS:
            found = store.similarity_search(question, k=2)
            answers[question] = llm.invoke(question, documents=found).text
            print(f"{question}\n  {answers[question]}")
            for document in found:
                print(f"    {document.metadata['source']}, page {document.metadata['page']}")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:4])
