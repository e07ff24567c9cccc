"""The routes under ``/v1/clara``: every call of an engine, for `RemoteEngine` and other clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from clara_core.common.version import __version__
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.remote.wire import (
    TENSORS,
    answer_to_wire,
    logprobs_to_wire,
    memories_to_wire,
    tensor_to_wire,
)
from clara_core.engine.sampling import Chunk
from clara_core.serving.bodies import (
    AnswerBody,
    CompressBody,
    FidelityBody,
    ParaphraseBody,
    RankBody,
    ReasonBody,
    SaidBody,
    TokensBody,
    check_texts,
    described,
    json_response,
    reader,
)
from clara_core.serving.documents import memories_of
from clara_core.serving.failures import Refused
from clara_core.serving.streams import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from clara_core.serving.state import ServerState


def facts_of(state: ServerState) -> dict[str, Any]:
    """Properties of the model and the server that a client needs."""
    engine, limits = state.engine, state.config.limits
    return {
        "model": engine.arguments.model,
        "fingerprint": engine.fingerprint,
        "n_mem": engine.n_mem,
        "hidden": engine.hidden,
        "dimension": engine.dimension,
        "window": engine.window,
        "context": engine.context,
        "answer_top_k": engine.answer_top_k,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "roles": [role.name for role in engine.roles],
        "limits": limits.model_dump(include={"body_bytes", "inputs", "documents", "read", "characters"}),
        "stores": {name: {"writable": name in state.config.writable} for name in state.config.stores},
        "version": __version__,
    }


def options_of(options: dict[str, Any]) -> AnswerOptions:
    """The options of an answer, after checking them."""
    checked = cast("AnswerOptions", options)
    read_options(checked)
    return checked


def native_routes(state: ServerState) -> APIRouter:
    """Routes of a server."""
    router = APIRouter(prefix="/v1/clara", tags=["clara"])
    engine, limits = state.engine, state.config.limits

    @router.get("/info")
    async def info() -> dict[str, Any]:
        if not state.ready:
            raise Refused("loading", "the model is being loaded; try again", retry_after=5)
        return facts_of(state)

    @router.post("/rank", openapi_extra=described(RankBody))
    async def rank(body: Annotated[RankBody, Depends(reader(RankBody))]) -> Response:
        memories = await memories_of(state, body.documents, read=False)
        ranked = await engine.arank(body.question, memories, body.top_k)
        return await json_response(
            {"results": [{"index": each.index, "score": each.score, "window": each.window} for each in ranked]}
        )

    @router.post("/answer", openapi_extra=described(AnswerBody))
    async def answer(body: Annotated[AnswerBody, Depends(reader(AnswerBody))], request: Request) -> Response:
        options = options_of(body.options)
        state.admit_answers(request.scope, len(body.questions))
        asked = [
            ([turn.model_dump() for turn in each.messages], await memories_of(state, each.documents, read=True))
            for each in body.questions
        ]
        if "text/event-stream" in request.headers.get("accept", ""):
            if len(asked) != 1:
                raise Refused("invalid_request", f"one question can be streamed, got {len(asked)}", param="questions")
            [(messages, memories)] = asked
            chunks = cast("AsyncGenerator[Chunk, None]", engine.astream_chat(messages, memories, **options))
            return await EventStream(state, chunks).response(_events)
        answers = await engine.achat_batch(asked, **options)
        for each in answers:
            state.metrics.answered(each)
        return await json_response({"answers": [answer_to_wire(each) for each in answers]})

    @router.post("/paraphrase", openapi_extra=described(ParaphraseBody))
    async def paraphrase(
        body: Annotated[ParaphraseBody, Depends(reader(ParaphraseBody))], request: Request
    ) -> Response:
        state.admit_answers(request.scope)
        [memory] = await memories_of(state, [body.document], read=True)
        said = await asyncio.to_thread(engine.paraphrase, memory, body.instruction, body.max_tokens)
        return await json_response(answer_to_wire(said))

    @router.post("/attribute", openapi_extra=described(SaidBody))
    async def attribute(body: Annotated[SaidBody, Depends(reader(SaidBody))]) -> Response:
        memories = await memories_of(state, body.documents, read=True)
        return await json_response(asdict(await engine.aattribute(body.question, memories, body.text)))

    @router.post("/logprob", openapi_extra=described(SaidBody))
    async def logprob(body: Annotated[SaidBody, Depends(reader(SaidBody))]) -> Response:
        memories = await memories_of(state, body.documents, read=True)
        return await json_response({"logprob": await engine.alogprob(body.question, memories, body.text)})

    @router.post("/fidelity", openapi_extra=described(FidelityBody))
    async def fidelity(body: Annotated[FidelityBody, Depends(reader(FidelityBody))]) -> Response:
        memories = await memories_of(state, body.documents, read=False)
        measured = await engine.afidelity(memories, body.instruction)
        return await json_response({"results": [asdict(each) for each in measured]})

    @router.post("/compress", openapi_extra=described(CompressBody))
    async def compress(body: Annotated[CompressBody, Depends(reader(CompressBody))]) -> Response:
        check_texts(body.texts, limits.inputs, limits.characters, "texts")
        if body.overflow == "split":
            memories = await engine.aremember(body.texts)
        else:
            memories = await engine.acompress(body.texts, body.overflow)
        if body.wanted == "keys":
            told = [{"spans": memory.spans, "source_tokens": memory.source_tokens} for memory in memories]
            return await json_response({"memories": told})
        shape = (engine.n_mem, engine.hidden)
        return Response(await asyncio.to_thread(memories_to_wire, memories, shape, engine.dtype), media_type=TENSORS)

    @router.post("/reason", openapi_extra=described(ReasonBody))
    async def reason(body: Annotated[ReasonBody, Depends(reader(ReasonBody))]) -> Response:
        check_texts(body.questions, limits.inputs, limits.characters, "questions")
        tokens = await engine.areason(body.questions)
        return Response(await asyncio.to_thread(tensor_to_wire, tokens), media_type=TENSORS)

    @router.post("/tokens", openapi_extra=described(TokensBody))
    async def tokens(body: Annotated[TokensBody, Depends(reader(TokensBody))]) -> Response:
        check_texts(body.texts, limits.inputs, limits.characters, "texts")
        return await json_response({"results": await asyncio.to_thread(_counted, state, body)})

    return router


async def _events(chunks: AsyncIterator[Chunk]) -> AsyncIterator[dict[str, Any]]:
    async for chunk in chunks:
        told: dict[str, Any] = {"text": chunk.text}
        if chunk.logprobs is not None:
            told["logprobs"] = logprobs_to_wire(chunk.logprobs)
        if chunk.answer is not None:
            told["answer"] = answer_to_wire(chunk.answer)
        yield told


def _counted(state: ServerState, body: TokensBody) -> list[Any]:
    tokenizer = state.engine.tokenizer
    if body.what == "prompt":
        return [tokenizer.chat_prompt([turn.model_dump() for turn in body.messages], body.n_windows)]
    if body.what == "windows":
        cut = [tokenizer.windows(text, first_only=body.first_only, reserve=body.reserve) for text in body.texts]
        return [list(map(list, spans)) for spans in cut]
    calls = {"count": tokenizer.count, "count_plain": tokenizer.count_plain, "ids": tokenizer.encode_plain}
    return [calls[body.what](text) for text in body.texts]
