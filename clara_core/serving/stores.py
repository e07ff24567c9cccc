"""The routes under ``/v1/stores``: search, read and, if the server allows it, write stores by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response, StreamingResponse

from clara_core.serving.bodies import Strict, check_texts, json_response, post_json
from clara_core.serving.failures import Refused
from clara_core.serving.gate import NDJSON
from clara_core.store import Hit, MemoryStore, Record
from clara_core.store.records import metadata_from_json, metadata_json
from clara_core.store.search import DEFAULT_TEXT_WEIGHT

if TYPE_CHECKING:
    from clara_core.serving.state import ServerState

_MOST: Final = 1000  # maximum number of documents of a search


class Diverse(Strict):
    """Maximal marginal relevance over the best `fetch_k` documents."""

    fetch_k: Annotated[int, Field(ge=1, le=_MOST)] = 20
    lambda_mult: Annotated[float, Field(ge=0, le=1)] = 0.5


class SearchBody(Strict):
    """Questions to a store, as texts or as vectors of the query reasoner."""

    query: str | list[str] | None = None
    vectors: list[list[float]] | None = None
    k: Annotated[int, Field(ge=1, le=_MOST)] = 4
    mode: str | None = None
    filter: dict[str, Any] | None = None
    exact: bool = False
    oversample: Annotated[int, Field(ge=1, le=1000)] = 10
    text_weight: Annotated[float, Field(ge=0, le=1)] = DEFAULT_TEXT_WEIGHT
    rerank: Annotated[int, Field(ge=0, le=1000)] = 0
    mmr: Diverse | None = None

    @model_validator(mode="after")
    def _one_way(self) -> SearchBody:
        if (self.query is None) == (self.vectors is None):
            raise ValueError("give query or vectors, one of them")
        return self


class StoredBody(Strict):
    """A document to store; without an id it gets one made from its text."""

    text: str
    id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class IdsBody(Strict):
    """Ids of documents."""

    ids: list[str]


class DeleteBody(Strict):
    """Documents to delete, by ids, by a filter, or by both, which deletes those that meet both."""

    ids: list[str] | None = None
    filter: dict[str, Any] | None = None


class CountBody(Strict):
    """A filter of the documents to count."""

    filter: dict[str, Any] | None = None


def store_routes(state: ServerState) -> APIRouter:
    """Routes of a server."""
    router = APIRouter(prefix="/v1/stores", tags=["stores"])
    limits = state.config.limits

    def writable(name: str, request: Request) -> MemoryStore:
        store = state.store(name)
        if name not in state.config.writable:
            raise Refused("forbidden", f"the store {name!r} is read-only on this server (--writable {name})")
        if request.scope.get("clara.read_only"):
            raise Refused("forbidden", "this key is read-only")
        return store

    @router.get("")
    async def names() -> dict[str, Any]:
        told = [{"name": name, "writable": name in state.config.writable} for name in state.config.stores]
        return {"object": "list", "data": told}

    @router.get("/{name}")
    async def stats(name: str) -> dict[str, Any]:
        store = state.store(name)
        return {"name": name, **asdict(await asyncio.to_thread(store.stats))}

    @post_json(router, "/{name}/search")
    async def search(name: str, body: SearchBody) -> Response:
        store = state.store(name)
        if isinstance(body.query, list):
            check_texts(body.query, limits.inputs, limits.characters, "query")
        found = await asyncio.to_thread(_searched, store, body)
        cache = state.engine.cache
        for hit in (hit for hits in found for hit in hits):
            if hit.memory is not None and hit.memory.fingerprint == state.engine.fingerprint:
                cache.put(hit.memory, replace=False)  # a client often ranks and reads it next
        told = [[_hit(hit) for hit in hits] for hits in found]
        if isinstance(body.query, str):
            return await json_response({"hits": told[0]})
        return await json_response({"results": told})

    @router.get("/{name}/documents")
    async def listed(name: str) -> Response:
        store = state.store(name)

        def lines() -> Iterator[str]:
            for record in store:
                yield json.dumps(_record(record), separators=(",", ":")) + "\n"

        return StreamingResponse(lines(), media_type=NDJSON)

    @router.post("/{name}/documents")
    async def add(name: str, request: Request, fidelity: bool = False) -> Response:
        store = writable(name, request)
        documents = await asyncio.to_thread(_documents, await request.body())
        check_texts([document.text for document in documents], limits.inputs, limits.characters, "documents")
        ids = await asyncio.to_thread(
            store.add,
            [document.text for document in documents],
            [_plain(document.metadata) for document in documents],
            [document.id for document in documents],
            fidelity=fidelity,
        )
        return await json_response({"ids": ids})

    @post_json(router, "/{name}/get")
    async def get(name: str, body: IdsBody) -> Response:
        store = state.store(name)
        check_texts(body.ids, limits.inputs, limits.characters, "ids")
        records = await asyncio.to_thread(store.get, body.ids)
        return await json_response({"records": list(map(_record, records))})

    @post_json(router, "/{name}/count")
    async def count(name: str, body: CountBody) -> dict[str, int]:
        store = state.store(name)
        return {"count": await asyncio.to_thread(store.count, _filter(body.filter))}

    @post_json(router, "/{name}/delete")
    async def delete(name: str, request: Request, body: DeleteBody) -> dict[str, int]:
        store = writable(name, request)
        return {"deleted": await asyncio.to_thread(store.delete, body.ids, _filter(body.filter))}

    return router


def _searched(store: MemoryStore, body: SearchBody) -> Sequence[Sequence[Hit]]:
    import torch

    asked: Any = [body.query] if isinstance(body.query, str) else body.query
    if body.vectors is not None:
        if len({len(row) for row in body.vectors}) > 1:
            raise Refused("invalid_request", "vectors have different lengths", param="vectors")
        asked = torch.tensor(body.vectors, dtype=torch.float32)
    options: dict[str, Any] = {"filter": _filter(body.filter), "exact": body.exact, "oversample": body.oversample}
    if body.mmr is not None:
        if len(asked) != 1:
            raise Refused("invalid_request", "mmr takes one question", param="mmr")
        return [
            store.search_mmr(
                asked[0],
                body.k,
                fetch_k=body.mmr.fetch_k,
                lambda_mult=body.mmr.lambda_mult,
                with_memories=True,
                **options,
            )
        ]
    mode: Any = body.mode
    options |= {"text_weight": body.text_weight, "rerank": body.rerank}
    return store.search(asked, body.k, mode=mode, with_memories=True, **options)


def _documents(body: bytes) -> list[StoredBody]:
    """The documents of a body, one on each line."""
    documents = []
    for number, line in enumerate(body.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            documents.append(StoredBody.model_validate_json(line))
        except ValueError as exc:
            first = str(exc).splitlines()[-1].strip()
            raise Refused(
                "invalid_request", f"line {number} is not a document: {first:.200}", param="documents"
            ) from exc
    return documents


def _plain(written: dict[str, Any]) -> dict[str, Any]:
    """Metadata from JSON; dates are restored."""
    return metadata_from_json(json.dumps(written))


def _filter(written: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if written is None else _plain(written)


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "text": hit.text,
        "metadata": json.loads(metadata_json(hit.metadata, "metadata")),
        "score": hit.score,
        "relevance": hit.relevance,
        "window": hit.window,
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "text": record.text,
        "metadata": json.loads(metadata_json(record.metadata, "metadata")),
        "spans": record.spans,
        "source_tokens": record.source_tokens,
    }
