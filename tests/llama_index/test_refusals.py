"""ClaraLLM refuses tools and schemas before any model runs."""

from __future__ import annotations

import inspect
import shutil

import pytest
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.selectors import LLMSingleSelector
from pydantic import BaseModel

from llama_index_clara import ClaraLLM
from tests.llama_index.doubles import QUESTION, nodes
from tests.llama_index.test_llm import TURNS


class Year(BaseModel):
    year: int


REFUSED = {
    "structured_predict": lambda llm: llm.structured_predict(Year, PromptTemplate("{a}"), a=1),
    "stream_structured_predict": lambda llm: llm.stream_structured_predict(Year, PromptTemplate("{a}"), a=1),
    "astructured_predict": lambda llm: llm.astructured_predict(Year, PromptTemplate("{a}"), a=1),
    "astream_structured_predict": lambda llm: llm.astream_structured_predict(Year, PromptTemplate("{a}"), a=1),
    "as_structured_llm": lambda llm: llm.as_structured_llm(Year),
    "StructuredLLM": lambda llm: StructuredLLM(llm=llm, output_cls=Year).complete(QUESTION),
    "output_cls of a synthesizer": lambda llm: get_response_synthesizer(llm=llm, output_cls=Year).synthesize(
        QUESTION, [NodeWithScore(node=nodes(1)[0])]
    ),
    "response_format": lambda llm: llm.complete(QUESTION, response_format={"type": "json_object"}),
    "selector": lambda llm: LLMSingleSelector.from_defaults(llm=llm).select(["a", "b"], QUESTION),
    "aselector": lambda llm: LLMSingleSelector.from_defaults(llm=llm).aselect(["a", "b"], QUESTION),
    "sub-questions": lambda llm: LLMQuestionGenerator.from_defaults(llm=llm).generate([], QueryBundle(QUESTION)),
    "tools": lambda llm: llm.chat(TURNS, tools=[]),
    "tools of a stream": lambda llm: llm.stream_chat(TURNS, tools=[], tool_choice="auto"),
    "predict_and_call": lambda llm: llm.predict_and_call([], QUESTION),
    "apredict_and_call": lambda llm: llm.apredict_and_call([], QUESTION),
    "chat_with_tools": lambda llm: llm.chat_with_tools([], QUESTION),
    "achat_with_tools": lambda llm: llm.achat_with_tools([], QUESTION),
}


async def outcome(ask, llm):
    found = ask(llm)
    return await found if inspect.isawaitable(found) else found


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
async def test_tools_and_schemas_are_refused_before_a_model_runs(tmp_path, tiny, ask):
    """The error states the reason and an alternative; weights are not even read."""
    shutil.copytree(tiny.folder, folder := tmp_path / "unread")
    llm = ClaraLLM(model=str(folder))
    with pytest.raises(NotImplementedError, match=r"trained to answer briefly.*general LLM"):
        await outcome(ask, llm)
    assert llm.engine._loaded is None
