"""An agent of LangGraph whose tool retrieves and answers: another model decides, CLaRa reads. Needs `langchain`.

    pip install 'clara-rag[agents]'
    python examples/langgraph_agent.py [MODEL]

An agent needs a model that calls tools, which CLaRa does not. `Asker` stands in for one, so that the program runs
without a network: it calls the tool once and says what came back. Put `init_chat_model("openai:gpt-4o-mini")`, or any
other model with tools, in its place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool, tool

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder
from langchain_clara import ChatClara, ClaraRetriever

DATA = Path(__file__).parent / "data"
QUESTIONS = ("What is the price of a return ticket?", "How high is the Eiffel Tower?")


class Asker(BaseChatModel):
    """Stands in for a model with tools: asks the first tool, then says what it was told."""

    tool_name: str = ""

    @property
    def _llm_type(self) -> str:
        return "asker"

    def bind_tools(
        self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        """Remember the name of the first tool."""
        first = tools[0]
        return self.model_copy(update={"tool_name": first.name if isinstance(first, BaseTool) else ""})

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            message = AIMessage(last.text)
        else:
            call = {"name": self.tool_name, "args": {"question": last.text}, "id": f"call-{len(messages)}"}
            message = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=message)])


def make_tool(engine: ClaraEngine) -> BaseTool:
    """The example files behind a function from a question to an answer with its sources."""
    passages = [part for file in read_folder(DATA)[0] for part in cut_passages(file, engine.tokenizer.windows)]
    documents = [Document(part.text, metadata={"source": part.file}) for part in passages]
    retriever = ClaraRetriever.from_documents(documents, engine=engine, k=3)
    llm = ChatClara(engine=engine, max_tokens=32)

    @tool
    def handbook(question: str) -> str:
        """Answers a question about the Boathouse, and names the files that the answer is from."""
        found = retriever.invoke(question)
        sources = ", ".join(dict.fromkeys(document.metadata["source"] for document in found))
        return f"{llm.invoke(question, documents=found).text} ({sources})"

    return handbook


def main(model: str = "pocket") -> list[str]:
    """Ask the agent; returns the answers."""
    agent = create_agent(Asker(), tools=[make_tool(ClaraEngine.from_pretrained(model))])
    answers = []
    for question in QUESTIONS:
        messages = agent.invoke({"messages": [HumanMessage(question)]})["messages"]
        calls = [call for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]
        answers.append(messages[-1].text)
        print(f"\n{question}\n  {answers[-1]}\n  tools called: {', '.join(call['name'] for call in calls)}")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:2])
