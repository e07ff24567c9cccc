"""Request bodies of OpenAI, Cohere, Jina and TEI clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from clara_core.engine.answer_options import EVIDENCE
from clara_core.serving.bodies import DocumentBody, Strict

# Fields that clients send and that do not change the answer.
_IGNORED: Final = frozenset({"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"})
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
}
"""Options that are accepted with a neutral value only, because the server does not support them."""


class ChatMessage(Strict):
    """A message; content in parts must be text."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("tool_calls"):
            raise ValueError("a message holds tool calls, which CLaRa does not support; leave them out")
        content = value.get("content")
        if isinstance(content, list):
            return {**value, "content": "".join(map(_text_of, content))}
        return value

    def turn(self) -> dict[str, str]:
        """The message in the engine's format."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


def _text_of(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise ValueError(f"content is text, got a part of type {kind!r:.40}; documents go into documents=")


class Retrieval(Strict):
    """Retrieval from a store for the last user message."""

    store: str
    k: Annotated[int, Field(ge=1, le=256)] = 4
    mode: Literal["memory", "text", "hybrid"] | None = None
    filter: dict[str, Any] | None = None


class StreamOptions(Strict):
    """OpenAI's options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatBody(Strict):
    """OpenAI's chat completion, with documents."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    documents: list[DocumentBody] = Field(default_factory=list)
    retrieval: Retrieval | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    verbatim: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    citations: bool | Literal["attention"] | None = None
    min_confidence: float | None = None
    read: Literal["memory", "again", "text", "auto"] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, value: Any) -> Any:
        return without_neutral(value)

    def options(self) -> dict[str, Any]:
        """The engine's options; omitted ones keep the engine's defaults."""
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        given: dict[str, Any] = {"max_tokens": most}
        named = ("temperature", "top_p", "seed", *EVIDENCE)
        given |= {name: getattr(self, name) for name in named}
        return {name: value for name, value in {**given, "stop": self.stop or None}.items() if value is not None}


def without_neutral(value: Any) -> Any:
    """A body without ignored fields and neutral options.

    Raises:
        ValueError: An unsupported option has a value that is not neutral.
    """
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, given in value.items():
        if name in _IGNORED:
            continue
        if name in _NEUTRAL:
            if given is not None and given not in _NEUTRAL[name]:
                raise ValueError(f"{name}={given!r:.60} is not supported by this server; leave it out")
            continue
        kept[name] = given
    return kept


class EmbeddingBody(Strict):
    """OpenAI's request for embeddings."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    input_type: Literal["document", "query", "search_document", "search_query", "passage"] | None = None
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_ids(cls, value: Any) -> Any:
        given = value.get("input") if isinstance(value, dict) else None
        if isinstance(given, list) and given and isinstance(given[0], int | list):
            raise ValueError(
                "input holds token ids of another tokenizer; send texts (LangChain's OpenAIEmbeddings with "
                "check_embedding_ctx_length=False)"
            )
        return value


class RerankBody(Strict):
    """The rerank request of Cohere, Jina and vLLM."""

    model: str | None = None
    query: str
    documents: list[DocumentBody]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool | None = False
    normalize: bool = False
    max_tokens_per_doc: int | None = None
    priority: int | None = None
    user: str | None = None
    truncate: bool | None = None


class TeiRerankBody(Strict):
    """TEI's rerank request."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool = False
    return_text: bool = False


class TeiEmbedBody(Strict):
    """TEI's embed request."""

    inputs: str | list[str]
    truncate: bool | None = None
    truncation_direction: str | None = None
    normalize: Literal[True] = True
    prompt_name: Literal["query", "document"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
