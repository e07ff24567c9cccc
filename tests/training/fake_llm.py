"""The teacher (`tests.training.teacher`) as a model of both frameworks."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback


class ChatModel(BaseChatModel):
    """The teacher as a LangChain chat model."""

    teacher: Any
    calls: list[str] = []  # noqa: RUF012 - pydantic copies this field for each model

    @property
    def _llm_type(self) -> str:
        return "teacher"

    def _generate(self, messages: list[BaseMessage], stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        self.calls.append("plain")
        return self._result(messages)

    async def _agenerate(self, messages: list[BaseMessage], stop=None, run_manager=None, **kwargs: Any) -> ChatResult:
        self.calls.append("awaited")
        return self._result(messages)

    def _result(self, messages: list[BaseMessage]) -> ChatResult:
        reply = self.teacher("\n".join(message.text for message in messages))
        # Two blocks, as in the replies of many providers.
        content = [{"type": "text", "text": reply[:10]}, {"type": "text", "text": reply[10:]}]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=content))])


class Llm(CustomLLM):
    """The teacher as a LlamaIndex LLM."""

    teacher: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="teacher")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.teacher(prompt))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError
