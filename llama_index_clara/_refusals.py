"""What the generator cannot do, said before any model runs: call tools, and fill a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from llama_index.core.prompts import BasePromptTemplate

NO_TOOLS: Final = (
    "ClaraLLM calls no tools: it is trained to answer briefly from documents. Give the agent a general LLM with "
    "function calling, and CLaRa as its tool: QueryEngineTool.from_defaults(ClaraQueryEngine(retriever))"
)
NO_STRUCTURE: Final = (
    "ClaraLLM fills no schema: it is trained to answer briefly in plain text, and writes no JSON. Give this step a "
    "general LLM; it may take the text that ClaraSynthesizer answers"
)
_TOOLS: Final = frozenset({"tools", "tool_choice", "tool_required", "functions", "function_call"})
_STRUCTURE: Final = frozenset({"response_format", "output_cls"})


def refuse_options(call: Mapping[str, Any]) -> None:
    """Refuse the options of a call that ask for tools or a schema."""
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
        raise NotImplementedError(f"the answer is to be read by {type(parser).__name__}. {NO_STRUCTURE}")


class Refusals:
    """The methods of a LlamaIndex LLM that the generator does not have. Stands first among the bases."""

    def structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it writes no JSON."""
        raise NotImplementedError(NO_STRUCTURE)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it writes no JSON."""
        raise NotImplementedError(NO_STRUCTURE)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it writes no JSON."""
        raise NotImplementedError(NO_STRUCTURE)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it writes no JSON."""
        raise NotImplementedError(NO_STRUCTURE)

    def as_structured_llm(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it writes no JSON."""
        raise NotImplementedError(NO_STRUCTURE)

    def predict_and_call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it calls no tools."""
        raise NotImplementedError(NO_TOOLS)

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it calls no tools."""
        raise NotImplementedError(NO_TOOLS)

    def chat_with_tools(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it calls no tools."""
        raise NotImplementedError(NO_TOOLS)

    achat_with_tools = stream_chat_with_tools = astream_chat_with_tools = chat_with_tools
