"""A LangChain chat model that reads documents as memory tokens with the generator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import Field, model_validator

from clara_core.common.version import __version__
from clara_core.engine.chat_options import ChatOptions
from clara_core.engine.logprobs import MOST_ALTERNATIVES
from langchain_clara import citations  # noqa: F401 - registers how LangChain reads them
from langchain_clara._batching import Request, answer_of_batch, run_apart, run_in_batches
from langchain_clara._engine import EngineFields, identity, profile_of
from langchain_clara._messages import (
    NO_SCHEMA,
    NO_TOOLS,
    OPTIONS,
    chat_chunk,
    chat_result,
    check_call,
    read_history,
    read_messages,
)

if TYPE_CHECKING:
    from clara_core.engine.sampling import Chunk


class ChatClara(BaseChatModel, ChatOptions, EngineFields):
    """A chat model that answers from documents and reads each as a few memory tokens.

    Documents are given as content blocks of a message (`DocumentsPlaceholder` makes them; types ``text-plain``,
    ``document`` and ``search_result``) or as ``documents=`` on `invoke`, `stream`, `batch` or `bind`; not both at once.
    They are compressed at first use and then cached by their text. Without documents it is a plain chat model.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'
        ```

    Key init args - completion params:
        max_tokens: int
            Maximum number of tokens to write.
        temperature, top_p, seed:
            Sampling; temperature 0 is greedy and reproducible.
        stop: list[str] | None
            Strings that end an answer.
        verbatim:
            Whether answers quote their documents; None: as the checkpoint says.
        logprobs, top_logprobs, citations, min_confidence, read:
            What to return beside the text; see the fields of `ChatOptions`. All can also be given to a call.

    Key init args - client params:
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        from langchain_clara import ChatClara

        llm = ChatClara(model="pocket", max_tokens=64)
        ```

    Invoke:
        ```python
        llm.invoke("When was the bridge opened?", documents=documents).text
        ```

    Stream:
        ```python
        for chunk in llm.stream("When was the bridge opened?", documents=documents):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        await llm.ainvoke("When was the bridge opened?", documents=documents)
        await llm.abatch(["When was it opened?", "Who designed it?"], documents=documents)  # one batch of the engine
        ```

    Token usage:
        ``usage_metadata["input_tokens"]`` counts positions of the prompt, text and memory tokens together.

    Response metadata:
        ``memory_tokens``, ``source_tokens`` (tokens of the documents as text), ``saved_tokens`` (the
        difference), ``windows_left_out`` (of documents too long to be read whole), ``documents`` (id and title of each
        one read, in order), ``finish_reason``, ``model_name`` and ``model_provider``. If requested also
        ``logprobs`` (in OpenAI's shape), ``citations``, ``documents[i]["score"]``, ``confidence``, ``calibrated``,
        ``checks``, ``abstained``, ``draft``, ``reading`` and ``judged_tokens`` (positions of the passes that this
        took). ``message.content_blocks`` has citations as annotations of the text; `cited_documents` gives documents.
        In a stream, each piece has its log-probabilities and the last one has the rest.

    Model profile:
        ``profile["max_input_tokens"]`` is the context, which holds prompt and answer together. For a Hub model it is
        missing until its files are downloaded.

    Tools, structured output, images and other media are refused.
    """

    # Options of models on a network, which generic code passes to every chat model.
    ignored_names: ClassVar[frozenset[str]] = frozenset({"api_key", "timeout", "max_retries"})

    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES)  # type: ignore[assignment]
    """Number of alternatives for each token; needs `logprobs`. None, which generic code passes, is 0."""
    streaming: bool = False
    """Whether `invoke` streams, for callbacks that expect tokens."""

    @model_validator(mode="after")
    def _set_clara_version(self) -> ChatClara:
        if hasattr(self, "_add_version"):  # newer versions of langchain-core
            self._add_version("clara-rag", __version__)
        return self

    # --- what it is ------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name of the model, as given."""
        return self.model_label

    @property
    def _llm_type(self) -> str:
        return "clara"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """All that an answer depends on; LangChain's cache distinguishes models by it."""
        options = {name: getattr(self, name) for name in OPTIONS}
        # Not as "stop": LangChain puts the stop of the call there, and None would replace ours.
        return {**identity(self.shared_engine), **options, "default_stop": self.stop}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        stop = self.stop if stop is None else stop
        params = super()._get_ls_params(stop=stop, **{"model": self.model_name, **kwargs})
        return {**params, "ls_provider": "clara"}

    def _resolve_model_profile(self) -> Any:
        return profile_of(self)

    # --- tokens ----------------------------------------------------------------------------------

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, from the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.shared_engine.tokenizer.encode_plain(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Positions of the context that any part of a history takes, with documents as memory tokens.

        A history may end with the model or a tool, or be empty; content that `invoke` would refuse counts as text.
        """
        if tools:
            raise ValueError(f"tools= cannot be counted: {NO_TOOLS}")
        turns, documents = read_history(messages)
        tokenizer = self.shared_engine.tokenizer
        n_windows = sum(len(tokenizer.windows(document.text)) for document in documents)
        return len(tokenizer.chat_prompt(turns, n_windows))

    # --- answers ---------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turns, read, options = self._prepared(messages, stop, kwargs)
        engine = self.shared_engine
        answer = engine.chat(turns, engine.remember([document.text for document in read]), **options)
        return chat_result(answer, self.model_label, read, options)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turns, read, options = self._prepared(messages, stop, kwargs)
        answer = await answer_of_batch(self, (turns, read, options))
        if answer is None:
            engine = await self.ashared_engine()
            memories = await engine.aremember([document.text for document in read])
            answer = await engine.achat(turns, memories, **options)
        return chat_result(answer, self.model_label, read, options)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        turns, read, options = self._prepared(messages, stop, kwargs)
        engine = self.shared_engine
        memories = engine.remember([document.text for document in read])
        # Closing this generator closes the stream, which stops the work on the device.
        with engine.stream_chat(turns, memories, **options) as pieces:
            for piece in pieces:
                chunk = chat_chunk(piece, self.model_label, read, options)
                if run_manager:
                    run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        turns, read, options = self._prepared(messages, stop, kwargs)
        engine = await self.ashared_engine()
        memories = await engine.aremember([document.text for document in read])
        stream = cast("AsyncGenerator[Chunk, None]", engine.astream_chat(turns, memories, **options))
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                chunk = chat_chunk(piece, self.model_label, read, options)
                if run_manager:
                    await run_manager.on_llm_new_token(piece.text, chunk=chunk)
                yield chunk

    # --- many answers ----------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many conversations as one batch of the engine; see `abatch`."""
        check_call(kwargs)
        if len(inputs) < 2:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        return run_apart(lambda: self.abatch(inputs, config, return_exceptions=return_exceptions, **kwargs))

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many conversations as one batch of the engine.

        Each has its own documents, callbacks and trace; ``config["max_concurrency"]`` limits the batch.

        Args:
            inputs: The conversations.
            config: One configuration for all, or one for each.
            return_exceptions: Return the error of a failed conversation in its place instead of raising it.
            **kwargs: Options of the call, the same for all.
        """
        check_call(kwargs)
        configs = get_config_list(config, len(inputs))
        calls = [partial(self.ainvoke, each, own, **kwargs) for each, own in zip(inputs, configs, strict=True)]
        size = configs[0].get("max_concurrency") if configs else None
        return await run_in_batches(self, calls, size, return_exceptions=return_exceptions)

    # --- what is refused -------------------------------------------------------------------------

    def bind(self, **kwargs: Any) -> Any:  # the oldest supported version has no type for its binding
        """The model bound to options of the call; options that no call can take are refused here."""
        check_call(kwargs)
        return super().bind(**kwargs)

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> Any:
        """Refuse tools; an empty list is accepted.

        Raises:
            NotImplementedError: The message gives the alternatives.
        """
        if tools or tool_choice:
            raise NotImplementedError(NO_TOOLS)
        return self.bind(**kwargs)

    def with_structured_output(self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any) -> Any:
        """Refuse structured output.

        Raises:
            NotImplementedError: The message gives the alternatives.
        """
        raise NotImplementedError(NO_SCHEMA)

    # --- an event loop that is not blocked -------------------------------------------------------

    async def agenerate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer conversations; the engine is looked up outside the event loop first."""
        await self.ashared_engine()
        return await super().agenerate(messages, *args, **kwargs)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """The answer in pieces; leaving the loop over it stops the work."""
        await self.ashared_engine()
        stream = cast("AsyncGenerator[AIMessageChunk, None]", super().astream(input, config, **kwargs))
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    def _prepared(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, call: Mapping[str, Any]
    ) -> Request:
        """The request of a call, whose options replace those of the object."""
        check_call({**call, "stop": stop})
        turns, read = read_messages(messages, call.get("documents"))
        options = {name: call.get(name, getattr(self, name)) for name in OPTIONS}
        options["top_logprobs"] = options["top_logprobs"] or 0
        options["stop"] = self.stop if stop is None else stop
        return turns, read, options
