"""Routes for other clients: OpenAI's chat, embeddings and models, rerank (Cohere, Jina, vLLM) and TEI."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from clara_core.engine.logprobs import TokenLogprob, logprobs_account
from clara_core.engine.remote.wire import answer_to_wire
from clara_core.engine.sampling import Answer, Chunk
from clara_core.retrieval.vectors import Array, VectorSpace
from clara_core.serving.bodies import DocumentBody, check_texts, described, json_response, post_json, reader
from clara_core.serving.documents import memories_of
from clara_core.serving.failures import Refused
from clara_core.serving.native import options_of
from clara_core.serving.standard_bodies import ChatBody, EmbeddingBody, RerankBody, TeiEmbedBody, TeiRerankBody
from clara_core.serving.streams import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clara_core.serving.state import ServerState

ALIAS: Final = "clara"
"""A model name that every server accepts for its model."""


def standard_routes(state: ServerState) -> APIRouter:
    """Routes of a server."""
    router = APIRouter()
    engine, limits = state.engine, state.config.limits

    # --- answers -----------------------------------------------------------------------------------------

    @post_json(router, "/v1/chat/completions", tags=["openai"])
    async def chat(body: ChatBody, request: Request) -> Response:
        named = check_model(state, body.model)
        options = options_of(body.options())
        state.admit_answers(request.scope)
        messages = [message.turn() for message in body.messages]
        documents, scores = await _found(state, body)
        memories = await memories_of(state, documents, read=True)
        writer = _Completion(named, _sources(documents, scores), state.engine.fingerprint[:12])
        if body.stream:
            chunks = cast("AsyncGenerator[Chunk, None]", engine.astream_chat(messages, memories, **options))
            usage = body.stream_options is not None and body.stream_options.include_usage
            stream = EventStream(state, chunks, request_id=request.scope["clara.id"], ending="data: [DONE]\n\n")
            return await stream.response(lambda pieces: writer.pieces(pieces, usage=usage))
        answer = await engine.achat(messages, memories, **options)
        state.metrics.answered(answer)
        return await json_response(writer.whole(answer))

    # --- vectors -----------------------------------------------------------------------------------------

    async def vectors(texts: list[str], length: int | None, *, query: bool, name: str) -> tuple[Array, int]:
        """Vectors of texts, and the number of tokens read."""
        check_texts(texts, limits.inputs, limits.characters, name)
        if not texts or not all(texts):
            raise Refused("invalid_request", f"{name} holds no text, or an empty one", param=name)
        if length and length > engine.dimension:
            raise Refused(
                "invalid_request",
                f"dimensions={length} is more than the {engine.dimension} there are",
                param="dimensions",
            )
        space = VectorSpace(engine, None if length == engine.dimension else length)
        if query:
            tokens = await engine.areason(texts)
            count = await asyncio.to_thread(lambda: sum(map(engine.tokenizer.count, texts)))
            return await asyncio.to_thread(space.questions, tokens), count
        memories = await engine.aremember(texts)
        count = sum(memory.source_tokens for memory in memories)
        return await asyncio.to_thread(space.documents, memories), count

    @post_json(router, "/v1/embeddings", tags=["openai"])
    async def embeddings(body: EmbeddingBody) -> Response:
        named = check_model(state, body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        query = body.input_type in ("query", "search_query")
        rows, count = await vectors(texts, body.dimensions, query=query, name="input")
        write = _base64 if body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(await asyncio.to_thread(write, rows))
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return await json_response({"object": "list", "data": data, "model": named, "usage": usage})

    @post_json(router, "/embed", tags=["tei"])
    async def embed(body: TeiEmbedBody) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        rows, _ = await vectors(texts, body.dimensions, query=body.prompt_name == "query", name="inputs")
        return await json_response(await asyncio.to_thread(_floats, rows))

    # --- rerank ------------------------------------------------------------------------------------------

    async def rerank(request: Request) -> Response:
        raw = await request.body()
        # TEI calls the field "texts", others call it "documents".
        if b'"texts"' in raw and b'"documents"' not in raw:
            return await rerank_tei(await reader(TeiRerankBody)(request))
        body = await reader(RerankBody)(request)
        named = ALIAS if body.model is None else check_model(state, body.model)
        memories = await memories_of(state, body.documents, read=False)
        ranked = await engine.arank(body.query, memories, body.top_n or None)
        results: list[dict[str, Any]] = []
        for each in ranked:
            score = (1 + each.score) / 2 if body.normalize else each.score
            result: dict[str, Any] = {"index": each.index, "relevance_score": score}
            if body.return_documents:
                result["document"] = {"text": memories[each.index].text}
            results.append(result)
        count = sum(memory.source_tokens for memory in memories)
        return await json_response(
            {
                "id": f"rerank-{uuid.uuid4().hex}",
                "object": "rerank",
                "model": named,
                "results": results,
                "usage": {"prompt_tokens": count, "total_tokens": count},
                "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 0}},
            }
        )

    async def rerank_tei(body: TeiRerankBody) -> Response:
        documents = [DocumentBody(text=text) for text in body.texts]
        memories = await memories_of(state, documents, read=False)
        told = [
            {"index": each.index, "score": each.score, **({"text": body.texts[each.index]} if body.return_text else {})}
            for each in await engine.arank(body.query, memories)
        ]
        return await json_response(told)

    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        router.post(path, tags=["rerank"], openapi_extra=described(RerankBody))(rerank)

    # --- models ------------------------------------------------------------------------------------------

    def model_card() -> dict[str, Any]:
        return {
            "id": state.engine.arguments.model,
            "object": "model",
            "created": state.started,
            "owned_by": "clara-rag",
            "aliases": [ALIAS],
            "fingerprint": engine.fingerprint if state.ready else None,
            "max_model_len": engine.context if state.ready else None,
        }

    @router.get("/v1/models", tags=["openai"])
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_card()]}

    @router.get("/v1/models/{name:path}", tags=["openai"])
    async def model(name: str) -> dict[str, Any]:
        check_model(state, name)
        return model_card()

    @router.get("/info", tags=["tei"])
    async def info() -> dict[str, Any]:
        return {
            "model_id": state.engine.arguments.model,
            "model_sha": engine.fingerprint if state.ready else None,
            "model_dtype": str(engine.dtype).removeprefix("torch."),
            "max_input_length": engine.window if state.ready else None,
            "max_client_batch_size": limits.inputs,
            "max_concurrent_requests": limits.requests,
        }

    @router.post("/v1/completions", tags=["openai"])
    async def completions() -> None:
        how = "use /v1/chat/completions (LlamaIndex: OpenAILike(is_chat_model=True))"
        raise Refused("not_found", f"this server answers conversations: {how}")

    @router.post("/v1/responses", tags=["openai"])
    async def responses() -> None:
        raise Refused("not_found", "this server has no responses API: use /v1/chat/completions")

    return router


def check_model(state: ServerState, name: str) -> str:
    """Return the model name of a request, after checking it.

    Raises:
        Refused: It is the name of another model.
    """
    served = state.engine.arguments.model
    if state.config.any_model or name in (served, ALIAS):
        return name
    raise Refused("model_not_found", f"there is no model {name[:100]!r} here; served: {served}, {ALIAS}", param="model")


async def _found(state: ServerState, body: ChatBody) -> tuple[list[DocumentBody], list[tuple[float, int] | None]]:
    """The documents of a request and those that retrieval found, with the score and window of each found one."""
    own: list[tuple[float, int] | None] = [None] * len(body.documents)
    if body.retrieval is None:
        return body.documents, own
    wanted = body.retrieval
    question = next((message.content for message in reversed(body.messages) if message.role == "user"), "")
    store = state.store(wanted.store)
    hits = await asyncio.to_thread(
        store.search, question, wanted.k, filter=wanted.filter, mode=wanted.mode, with_memories=True
    )
    for hit in hits:
        if hit.memory is not None:
            state.engine.cache.put(hit.memory, replace=False)
    found = [DocumentBody(text=hit.text, id=hit.id, title=_title(hit.metadata)) for hit in hits]
    documents = [*body.documents, *(each.model_copy(update={"store": wanted.store}) for each in found)]
    return documents, [*own, *((hit.score, hit.window) for hit in hits)]


def _title(metadata: dict[str, Any]) -> str | None:
    """A title for people, from metadata; `clara index` writes the folder as ``source`` and the file as ``file``."""
    named = (metadata.get(name) for name in ("title", "file", "file_name", "source"))
    return next((name for name in named if isinstance(name, str)), None)


def _sources(documents: Sequence[DocumentBody], scores: Sequence[tuple[float, int] | None]) -> list[dict[str, Any]]:
    """The sources that the response lists, in the order in which they were read."""
    told = []
    for index, (document, score) in enumerate(zip(documents, scores, strict=True)):
        facts: dict[str, Any] = {"index": index, "id": document.id, "store": document.store, "title": document.title}
        if score is not None:
            facts |= {"score": score[0], "window": score[1], "text": document.text}
        told.append({name: fact for name, fact in facts.items() if fact is not None})
    return told


class _Completion:
    """Formats one answer as OpenAI's chat completion."""

    def __init__(self, model: str, sources: list[dict[str, Any]], fingerprint: str) -> None:
        self._sources = sources
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer as one JSON object."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": _logprobs(answer.logprobs),
            "finish_reason": answer.finish_reason,
        }
        return self._told("chat.completion", [choice], usage=_usage(answer), sources=self._sources, **_evidence(answer))

    async def pieces(self, chunks: AsyncIterator[Chunk], *, usage: bool) -> AsyncIterator[dict[str, Any]]:
        """The answer as the events of a stream."""
        begun = False
        async for chunk in chunks:
            if not begun:
                yield self._piece({"role": "assistant", "content": ""}, None, sources=self._sources)
                begun = True
            if chunk.text or chunk.logprobs:
                yield self._piece({"content": chunk.text}, None, logprobs=_logprobs(chunk.logprobs))
            if chunk.answer is not None:
                yield self._piece({}, chunk.answer.finish_reason, **_evidence(chunk.answer))
                if usage:
                    yield self._told("chat.completion.chunk", [], usage=_usage(chunk.answer))

    def _piece(self, delta: dict[str, Any], reason: str | None, *, logprobs: Any = None, **more: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._told("chat.completion.chunk", [choice], **more)

    def _told(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": choices, **more}


def _logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    return None if logprobs is None else logprobs_account(logprobs)


def _evidence(answer: Answer) -> dict[str, Any]:
    """Requested evidence of an answer: citations, attribution, confidence and the reading that gave it."""
    told = answer_to_wire(answer)
    names = ("citations", "attribution", "confidence", "checks", "draft")
    facts = {name: told[name] for name in names if told[name] is not None}
    if answer.confidence is not None:
        facts |= {"calibrated": answer.calibrated, "abstained": answer.abstained}
    return facts if answer.reading == "memory" else {**facts, "reading": answer.reading}


def _usage(answer: Answer) -> dict[str, Any]:
    read = answer.prompt_tokens + answer.memory_tokens
    return {
        "prompt_tokens": read,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": read + answer.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": 0,
            "memory_tokens": answer.memory_tokens,
            "source_tokens": answer.source_tokens,
            "windows_left_out": answer.windows_left_out,
        },
    }


def _floats(rows: Array) -> list[Any]:
    floats: list[Any] = rows.tolist()
    return floats


def _base64(rows: Array) -> list[Any]:
    """Little-endian float32, as the clients decode it."""
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
