"""A web service that answers from a folder and streams its answers, token by token.

    pip install 'clara-rag[langchain]' fastapi uvicorn
    CLARA_MODEL=pocket uvicorn examples.fastapi_app:app
    curl -N 'localhost:8000/ask?question=How+high+is+the+Eiffel+Tower%3F'

Each line of the response is a JSON object: the sources first, then pieces of the answer, and at the end how much was
read. Answers to several callers are written in one batch; one who hangs up stops their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from langchain_core.documents import Document

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder
from langchain_clara import ChatClara, ClaraRetriever

DATA = Path(__file__).parent / "data"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Compress the folder before the first question is taken."""
    engine = ClaraEngine.from_pretrained(os.environ.get("CLARA_MODEL", "pocket"))
    passages = [part for file in read_folder(DATA)[0] for part in cut_passages(file, engine.tokenizer.windows)]
    documents = [Document(part.text, metadata={"source": part.file}) for part in passages]
    app.state.retriever = await ClaraRetriever.afrom_documents(documents, engine=engine, k=5)
    app.state.llm = ChatClara(engine=engine, max_tokens=32)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/ask")
async def ask(request: Request, question: Annotated[str, Query(min_length=1, max_length=1000)]) -> StreamingResponse:
    """Answer a question from the folder."""
    state = request.app.state

    async def lines() -> AsyncIterator[str]:
        found = await state.retriever.ainvoke(question)
        yield json.dumps({"sources": [document.metadata["source"] for document in found]}) + "\n"
        account: dict[str, int] = {}
        async for chunk in state.llm.astream(question, documents=found):
            account |= chunk.response_metadata
            if chunk.text:
                yield json.dumps({"text": chunk.text}) + "\n"
        yield json.dumps({name: account[name] for name in ("memory_tokens", "source_tokens")}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
