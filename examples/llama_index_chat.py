"""A conversation over documents: a chat engine of LlamaIndex around a query engine of ours.

python examples/llama_index_chat.py [model]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from llama_index.core import Document
from llama_index.core.chat_engine import CondenseQuestionChatEngine

from llama_index_clara import ClaraLLM, ClaraQueryEngine

DATA = Path(__file__).parent / "data"
TURNS = ("What does Zorfen Foundry use as its emblem?", "When was Fesunrin Bridge opened?")


async def talk(chat: CondenseQuestionChatEngine) -> None:
    """Two turns, in pieces, without ever blocking the event loop."""
    for turn in TURNS:
        response = await chat.astream_chat(turn)
        print(f"you: {turn}\nit:  ", end="")
        async for piece in response.async_response_gen():
            print(piece, end="", flush=True)
        print()


def main(model: str = "pocket") -> None:
    """Talk about the example files."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), doc_id=path.name)
        for path in sorted(DATA.iterdir())
        if path.suffix in (".md", ".txt")
    ]
    query_engine = ClaraQueryEngine.from_documents(documents, model=model, max_tokens=24, similarity_top_k=3)

    # Another turn is first rewritten into a question of its own. CLaRa answers briefly and rewrites poorly: with a
    # general LLM at hand, give that one here.
    chat = CondenseQuestionChatEngine.from_defaults(query_engine, llm=ClaraLLM(model=model, max_tokens=24))
    asyncio.run(talk(chat))
    print(f"{len(chat.chat_history)} messages so far")


if __name__ == "__main__":
    main(*sys.argv[1:])
