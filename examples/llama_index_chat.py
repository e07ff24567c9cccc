"""A conversation over documents: a chat engine of LlamaIndex around a query engine of ours.

python examples/llama_index_chat.py [model]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from llama_index.core import Document, PromptTemplate
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms import MockLLM

from llama_index_clara import ClaraQueryEngine

DATA = Path(__file__).parent / "data"
TURNS = ("What is the price of a return ticket?", "Where are the life jackets?")


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

    # The engine has each turn rewritten into a question of its own. CLaRa reads documents and does not rewrite: with a
    # general LLM at hand, give that one here, without a prompt; these two ask each turn as it stands.
    as_it_stands = PromptTemplate("{question}")
    chat = CondenseQuestionChatEngine.from_defaults(query_engine, llm=MockLLM(), condense_question_prompt=as_it_stands)
    asyncio.run(talk(chat))
    print(f"{len(chat.chat_history)} messages so far")


if __name__ == "__main__":
    main(*sys.argv[1:])
