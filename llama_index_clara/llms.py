"""A LlamaIndex LLM that reads documents as memory tokens with the generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.types import TokenAsyncGen
from pydantic import PrivateAttr, field_validator

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.answer_options import EVIDENCE
from clara_core.engine.chat_options import ChatOptions
from clara_core.model.chat_format import Turn
from llama_index_clara._engine import EngineFields
from llama_index_clara._messages import (
    Refusals,
    chat_response,
    evidence_account,
    logprobs_of,
    read_messages,
    refuse_json,
    refuse_options,
)
from llama_index_clara._nodes import texts_of

if TYPE_CHECKING:
    from clara_core import Answer
    from clara_core.engine.sampling import Chunk

_OPTIONS: Final = ("max_tokens", "temperature", "top_p", "seed", "stop", *EVIDENCE)

_Request: TypeAlias = "tuple[list[Turn], tuple[str, ...], dict[str, Any]]"
"""A conversation, the texts to read, and the engine's options."""
_Piece = TypeVar("_Piece", CompletionResponse, ChatResponse)


class ClaraLLM(Refusals, EngineFields, ChatOptions, CustomLLM):
    """Answers prompts and conversations; after `reading`, from documents that it reads as a few memory tokens each.

    Every call takes ``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``, ``verbatim``, ``logprobs``,
    ``top_logprobs``, ``citations``, ``min_confidence``, ``read`` and ``system_prompt``. A `DocumentBlock` or
    `CitableBlock` of a message is read as memory tokens, like the documents of `reading`. Leaving a stream early, or
    cancelling a task, stops the work.

    `raw` of a response: ``usage`` counts positions of the prompt (text and memory tokens together), tokens written, and
    tokens of the documents as text. If requested, `raw` also has evidence and confidence. `logprobs` has a list for
    each token: the token, then its alternatives. Each citation is a `CitationBlock` after the text of a chat message.

    Tools and structured output are refused with a NotImplementedError, before any model runs.

    Example:
        ```python
        llm = ClaraLLM(model="pocket", max_tokens=64)
        llm.complete("When was the bridge opened?").text
        llm.reading(nodes).complete("When was the bridge opened?").text
        ```
    """

    _documents: tuple[str, ...] = PrivateAttr(default=())
    _recorded: list[Answer] | None = PrivateAttr(default=None)

    @field_validator("messages_to_prompt", mode="before")
    @classmethod
    def _check_template(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(
                "messages_to_prompt= would do nothing: the checkpoint has its own chat template; leave it out"
            )
        return value

    @property
    def metadata(self) -> LLMMetadata:
        """The metadata by which LlamaIndex plans prompts. Finds the checkpoint, but reads no weights."""
        return LLMMetadata(
            context_window=self.engine.context,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """The entry of the model in events; does not use the engine."""
        return {"class_name": self.class_name(), "model_name": self.model, "max_tokens": self.max_tokens}

    @property
    def tokenizer(self) -> Callable[[str], list[int]]:
        """Token ids of a text, for ``Settings.tokenizer``, with which stock components count the tokens of prompts."""
        return self.engine.tokenizer.encode_plain

    def reading(self, documents: Sequence[BaseNode | NodeWithScore | str]) -> ClaraLLM:
        """Return a copy of this LLM that answers from the documents in every call.

        Args:
            documents: Nodes or texts, in the order in which they are read.

        Returns:
            ClaraLLM: The copy; this object stays without documents.
        """
        reader = self.model_copy()
        reader._documents = tuple(texts_of(documents))  # noqa: SLF001 - a copy of this object
        return reader

    def recording(self, answers: list[Answer], **changes: Any) -> ClaraLLM:
        """A copy with other options that adds its answers to a list when they end."""
        reader = self.model_copy(update=changes)
        reader._recorded = answers  # noqa: SLF001 - a copy of this object
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "documents": self._documents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._documents = state["documents"]

    # --- completions -------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, which becomes the only turn of a conversation."""
        return self._answer(self._request(prompt, formatted, kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete`, in pieces."""
        return self._stream(self._request(prompt, formatted, kwargs), _unchanged)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, awaitable."""
        return await self._aanswer(self._request(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, asynchronous."""
        return self._astream(self._request(prompt, formatted, kwargs), _unchanged)

    # --- conversations -----------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; the documents are read with its last user turn."""
        return chat_response(self._answer(self._read(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat`, in pieces."""
        return self._stream(self._read(messages, kwargs), chat_response)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, awaitable."""
        return chat_response(await self._aanswer(self._read(messages, kwargs)))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, asynchronous."""
        return self._astream(self._read(messages, kwargs), chat_response)

    # --- prompts: the framework asks for `metadata` on the loop, so the engine is found before -----------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a prompt template.

        Raises:
            NotImplementedError: The prompt parses its answer as JSON, as selectors and question generators do.
        """
        refuse_json(prompt)
        return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict`, awaitable."""
        refuse_json(prompt)
        await self._planned()
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """`stream`, asynchronous."""
        await self._planned()
        return await super().astream(prompt, **prompt_args)

    async def _planned(self) -> None:
        await asyncio.to_thread(lambda: self.engine.context)

    # --- the engine --------------------------------------------------------------------------------------

    def _request(self, prompt: str, formatted: bool, call: Mapping[str, Any]) -> _Request:
        """The request of a prompt. A formatted prompt contains everything."""
        options = self._options(call)
        system = call.get("system_prompt", None if formatted else self.system_prompt)
        if not formatted and self.query_wrapper_prompt is not None:
            prompt = self.query_wrapper_prompt.format(query_str=prompt)
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        turns = [{"role": "user", "content": prompt}]
        return [{"role": "system", "content": system}, *turns] if system else turns, self._documents, options

    def _read(self, messages: Sequence[ChatMessage], call: Mapping[str, Any]) -> _Request:
        """The request of a conversation, which reads the documents of `reading`, then its own."""
        options = self._options(call)
        if own := call.get("system_prompt"):
            messages = [ChatMessage(role="system", content=own), *messages]
        turns, documents = read_messages(messages, None if "system_prompt" in call else self.system_prompt)
        return turns, (*self._documents, *(text for text in documents if text not in self._documents)), options

    def _options(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The engine's options; options of the call replace those of the object."""
        refuse_options(call)
        refuse_unknown("a call of ClaraLLM", call, [*_OPTIONS, "system_prompt"])
        return {name: call.get(name, getattr(self, name)) for name in _OPTIONS}

    def _answer(self, request: _Request) -> CompletionResponse:
        turns, documents, options = request
        engine = self.engine
        return self._completion(engine.chat(turns, engine.remember(documents), **options))

    async def _aanswer(self, request: _Request) -> CompletionResponse:
        turns, documents, options = request
        engine = await self.aengine()
        return self._completion(await engine.achat(turns, await engine.aremember(documents), **options))

    def _stream(self, request: _Request, form: Callable[[CompletionResponse], _Piece]) -> Generator[_Piece, None, None]:
        turns, documents, options = request
        engine = self.engine
        memories = engine.remember(documents)
        text = ""
        # Closing this generator closes the stream, which stops the work on the device.
        with engine.stream_chat(turns, memories, **options) as chunks:
            for chunk in chunks:
                text += chunk.text
                yield form(self._piece(text, chunk))

    async def _astream(
        self, request: _Request, form: Callable[[CompletionResponse], _Piece]
    ) -> AsyncGenerator[_Piece, None]:
        turns, documents, options = request
        engine = await self.aengine()
        memories = await engine.aremember(documents)
        text = ""
        stream = cast("AsyncGenerator[Chunk, None]", engine.astream_chat(turns, memories, **options))
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                text += chunk.text
                yield form(self._piece(text, chunk))

    def _completion(self, answer: Answer) -> CompletionResponse:
        return CompletionResponse(text=answer.text, raw=self._account(answer), logprobs=logprobs_of(answer.logprobs))

    def _piece(self, text: str, chunk: Chunk) -> CompletionResponse:
        raw = None if chunk.answer is None else self._account(chunk.answer)
        return CompletionResponse(text=text, delta=chunk.text, raw=raw, logprobs=logprobs_of(chunk.logprobs))

    def _account(self, answer: Answer) -> dict[str, Any]:
        if self._recorded is not None:
            self._recorded.append(answer)
        read = answer.prompt_tokens + answer.memory_tokens
        usage = {
            "prompt_tokens": read,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": read + answer.completion_tokens,
            "memory_tokens": answer.memory_tokens,
            "source_tokens": answer.source_tokens,
        }
        return {
            "model": self.model,
            "finish_reason": answer.finish_reason,
            "windows_left_out": answer.windows_left_out,
            "usage": usage,
            **evidence_account(answer),
        }


def _unchanged(piece: CompletionResponse) -> CompletionResponse:
    return piece
