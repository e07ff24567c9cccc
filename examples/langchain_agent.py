"""An agent that remembers a conversation and reads what was retrieved for each question. Needs `langchain`.

pip install 'clara-rag[agents]'
python examples/langchain_agent.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from clara_core.data.documents import read_folder
from langchain_clara import ChatClara, ClaraContextMiddleware, ClaraRetriever, ClaraTextSplitter

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")


async def main(model: str = "pocket") -> list[str]:
    """Ask the questions in one conversation; returns the answers."""
    files, _ = read_folder(DATA)
    whole = [Document(file.text, id=file.name, metadata={"source": file.name}) for file in files]
    pieces = ClaraTextSplitter(model=model).split_documents(whole)
    retriever = await ClaraRetriever.afrom_documents(pieces, model=model, k=5)

    agent = create_agent(
        ChatClara(model=model, max_tokens=32),
        tools=[],  # CLaRa calls none: the middleware retrieves before each call of the model
        middleware=[ClaraContextMiddleware(retriever)],
        checkpointer=InMemorySaver(),
    )
    answers = []
    for question in QUESTIONS:
        result = await agent.ainvoke(
            {"messages": [HumanMessage(question)]}, {"configurable": {"thread_id": "a conversation"}}
        )
        answer = result["messages"][-1]
        account = answer.response_metadata
        print(f"\n{question}\n  {answer.text}")
        print("  read:", ", ".join(document["title"] for document in account["documents"]))
        print(f"  {account['memory_tokens']} memory tokens instead of {account['source_tokens']} of text")
        answers.append(answer.text)
    return answers


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
