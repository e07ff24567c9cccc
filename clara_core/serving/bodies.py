"""Request bodies of the server's own routes, and the reading of JSON, which happens in a thread for large bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from clara_core.serving.failures import Refused

Body = TypeVar("Body", bound=BaseModel)
Handler = TypeVar("Handler", bound=Callable[..., Any])

_LARGE: Final = 1 << 16  # bytes from which a body is parsed in a thread


class Strict(BaseModel):
    """A body that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class DocumentBody(Strict):
    """A document, given by its text or by its id in a store of the server. "truncate" keeps the first window only."""

    text: str | None = None
    overflow: Literal["split", "truncate"] = "split"
    id: str | None = None
    store: str | None = None
    title: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named(self) -> DocumentBody:
        if self.text is None and (self.id is None or self.store is None):
            raise ValueError("a document needs text, or id and store")
        return self


class TurnBody(Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class RankBody(Strict):
    """A question and the documents to rank."""

    question: str
    documents: list[DocumentBody]
    top_k: int | None = None


class QuestionBody(Strict):
    """A conversation over documents."""

    messages: list[TurnBody]
    documents: list[DocumentBody] = []


class AnswerBody(Strict):
    """Conversations to answer in one batch, and the options of the answers."""

    questions: list[QuestionBody]
    options: dict[str, Any] = {}


class ParaphraseBody(Strict):
    """A document to paraphrase."""

    document: DocumentBody
    instruction: str | None = None
    max_tokens: int = 128


class SaidBody(Strict):
    """A question, its documents, and a text to evaluate as the answer."""

    question: str
    documents: list[DocumentBody] = []
    text: str


class FidelityBody(Strict):
    """Documents whose memories are tested by paraphrasing them."""

    documents: list[DocumentBody]
    instruction: str | None = None


class CompressBody(Strict):
    """Texts to compress."""

    texts: list[str]
    overflow: Literal["split", "error", "truncate"] = "split"
    wanted: Literal["keys", "tensors"] = Field(default="keys", alias="return")


class ReasonBody(Strict):
    """Questions for the query reasoner."""

    questions: list[str]


class TokensBody(Strict):
    """Texts or a conversation for the tokenizer."""

    what: Literal["count", "count_plain", "ids", "windows", "prompt"]
    texts: list[str] = []
    messages: list[TurnBody] = []
    n_windows: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    first_only: bool = False
    reserve: Annotated[int, Field(ge=0, le=1_000_000)] = 0


def post_json(router: APIRouter, path: str, **options: Any) -> Callable[[Handler], Handler]:
    """Like ``router.post``, for a handler whose parameter ``body`` is parsed by `reader`."""

    def register(handler: Handler) -> Handler:
        kind = get_type_hints(handler)["body"]
        handler.__annotations__["body"] = Annotated[kind, Depends(reader(kind))]
        registered: Handler = router.post(path, openapi_extra=described(kind), **options)(handler)
        return registered

    return register


def reader(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency, for `Depends`, that parses the body of a request."""

    async def read(request: Request) -> Body:
        raw = await request.body()
        if not raw:
            raise Refused("invalid_request", "the request has no body; send JSON")
        if len(raw) < _LARGE:
            return kind.model_validate_json(raw)
        return await asyncio.to_thread(kind.model_validate_json, raw)

    return read


def described(kind: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a body."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def json_response(value: Any) -> Response:
    """A JSON response. It is serialized in a thread, because many vectors take long."""
    import json

    body = await asyncio.to_thread(lambda: json.dumps(value, separators=(",", ":"), allow_nan=False).encode())
    return Response(body, media_type="application/json")


def check_texts(texts: list[str], most: int, characters: int, name: str) -> None:
    """Check the number and the length of texts.

    Raises:
        Refused: A limit is exceeded; the message names it.
    """
    if len(texts) > most:
        raise Refused("invalid_request", f"{name} has {len(texts)} entries; at most {most} are taken", param=name)
    for index, text in enumerate(texts):
        if len(text) > characters:
            raise Refused(
                "invalid_request",
                f"{name}[{index}] has {len(text)} characters; at most {characters} are taken",
                param=name,
            )
