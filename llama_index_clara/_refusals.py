"""Refuses tools and structured output, which the generator does not support, before any model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from llama_index.core.prompts import BasePromptTemplate

NO_TOOLS: Final = (
    "ClaraLLM cannot call tools: it is trained to answer briefly from documents. Give the agent a general LLM with "
    "function calling, and CLaRa as its tool: QueryEngineTool.from_defaults(ClaraQueryEngine(retriever))"
)
NO_STRUCTURE: Final = (
    "ClaraLLM cannot write JSON: it is trained to answer briefly in plain text. Give this step a general LLM, which "
    "may read the answer of ClaraSynthesizer"
)
_TOOLS: Final = frozenset({"tools", "tool_choice", "tool_required", "functions", "function_call"})
_STRUCTURE: Final = frozenset({"response_format", "output_cls"})


def refuse_options(call: Mapping[str, Any]) -> None:
    """Refuse options of a call that request tools or structured output."""
    if _TOOLS & call.keys():
        raise NotImplementedError(NO_TOOLS)
    if _STRUCTURE & call.keys():
        raise NotImplementedError(NO_STRUCTURE)


def refuse_json(prompt: BasePromptTemplate) -> None:
    """Refuse a prompt whose answer is parsed as JSON, such as those of selectors and question generators."""
    from llama_index.core.output_parsers import PydanticOutputParser
    from llama_index.core.output_parsers.selection import SelectionOutputParser
    from llama_index.core.question_gen.output_parser import SubQuestionOutputParser

    parser = prompt.output_parser
    if isinstance(parser, PydanticOutputParser | SelectionOutputParser | SubQuestionOutputParser):
        raise NotImplementedError(f"the prompt parses its answer with {type(parser).__name__}. {NO_STRUCTURE}")


class Refusals:
    """The methods of a LlamaIndex LLM that the generator does not support. Must be the first of the bases."""

    def structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_STRUCTURE)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_STRUCTURE)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_STRUCTURE)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_STRUCTURE)

    def as_structured_llm(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_STRUCTURE)

    def predict_and_call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_TOOLS)

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_TOOLS)

    def chat_with_tools(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not supported: raises an error that names the alternatives."""
        raise NotImplementedError(NO_TOOLS)

    achat_with_tools = stream_chat_with_tools = astream_chat_with_tools = chat_with_tools
