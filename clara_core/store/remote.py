"""The client of a store on a server: the calls of `MemoryStore` over HTTP. The server compresses the texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final, NoReturn, TypeVar

from torch import Tensor

from clara_core.common.errors import StoreError
from clara_core.common.surrogates import replace_surrogates
from clara_core.data.memory import Memory
from clara_core.engine.protocol import Engine
from clara_core.engine.remote.engine import RemoteEngine
from clara_core.engine.remote.http import Call
from clara_core.store.records import Hit, Record, StoreStats, checked_ids, in_order, metadata_from_json, metadata_json
from clara_core.store.search import Filter, Search, check_condition
from clara_core.store.store import MemoryStore
from clara_core.store.writing import Document, batches_of

PLACE: Final = "/v1/stores/"
_BATCH: Final = 256  # most documents of a request
_BATCH_BYTES: Final = 4 << 20

T = TypeVar("T", Hit, Record, StoreStats)


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(self: RemoteStore, *_: object, **__: object) -> NoReturn:
        """Not available over HTTP: raises `StoreError`."""
        raise StoreError(f"{name} is not available over HTTP, got {self.uri}: run clara store {name} URI on the server")

    return refuse


class RemoteStore(MemoryStore):
    """A store on a server. Open it with ``MemoryStore.open("http://host:port/v1/stores/NAME")``.

    Filters must be dicts, since a function cannot be sent. Questions are sent as words, and the server's model reads
    them. The server caches the memories of documents that it finds, so ranking and answering on the same server
    compress nothing again. Every write contains its ids, so repeating a write changes nothing.
    """

    def __init__(self, uri: str, engine: Engine | None, *, read_only: bool) -> None:
        address, _, name = uri.rstrip("/").rpartition(PLACE)
        if not address or not name or "/" in name:
            raise ValueError(f"a store of a server is named http://host:port{PLACE}NAME, got {uri!r}")
        self._server = RemoteEngine.connect(address)
        if isinstance(engine, RemoteEngine) and engine.connection.url == self._server.connection.url:
            self._server = engine
        self._uri = uri
        self._path = f"{PLACE}{name}"
        self._read_only = read_only
        self.engine = engine or self._server

    @property
    def uri(self) -> str:
        """Address of the store."""
        return self._uri

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model whose memories the store holds; None if it holds none."""
        return self.stats().fingerprint

    def _write(self, documents: Iterator[Document], vectors: object, *, fidelity: bool) -> Iterator[list[str]]:
        """Send documents. Of memories only the texts are sent. Vectors of other embeddings are refused."""
        if vectors is not None:
            raise ValueError("a store on a server holds memories of its own model: leave out vectors=")
        path = f"{self._path}/documents" + ("?fidelity=true" if fidelity else "")
        for batch in batches_of(documents, _BATCH, _BATCH_BYTES, _size):
            body = b"".join(map(_line, batch))
            self._server.connection.ask(Call(path, body, {"content-type": "application/x-ndjson"}))
            yield [document.id for document in batch]

    def delete(self, ids: Iterable[str] | None = None, filter: Filter | None = None) -> int:  # noqa: A002
        """See `MemoryStore.delete`."""
        wanted = self._to_delete(ids, filter)
        return int(self._ask("delete", {"ids": wanted, "filter": _sent(filter)})["deleted"])

    compact, optimize, check, salvage = map(_refused, ("compact", "optimize", "check", "salvage"))

    def get(self, ids: Iterable[str]) -> list[Record]:
        """See `MemoryStore.get`."""
        wanted = checked_ids(ids)
        return [_read(Record, each) for each in self._ask("get", {"ids": wanted})["records"]] if wanted else []

    def memories(self, ids: Iterable[str]) -> list[Memory]:
        """See `MemoryStore.memories`. Tensors are fetched when they are read."""
        wanted = checked_ids(ids)
        return self._server.remember(in_order(wanted, {record.id: record.text for record in self.get(wanted)}))

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """See `MemoryStore.count`."""
        return int(self._ask("count", {"filter": _sent(filter)})["count"])

    def __contains__(self, id_: object) -> bool:
        return isinstance(id_, str) and bool(self.get([id_]))

    def __iter__(self) -> Iterator[Record]:
        """All documents of the latest version, streamed from the server."""
        with self._server.connection.lines(f"{self._path}/documents") as lines:
            for line in lines:
                yield _read(Record, line)

    def stats(self) -> StoreStats:
        """See `MemoryStore.stats`."""
        return _read(StoreStats, self._server.connection.ask(Call(self._path)))

    def close(self) -> None:
        """Does nothing: the client holds no cache."""

    def _results(
        self, words: list[str] | None, given: Tensor | None, condition: Filter | None, how: Search
    ) -> list[list[Hit]]:
        """Search on the server. With words, vectors are not sent: the server computes them itself."""
        payload: dict[str, Any] = {"k": how.k, "filter": _sent(condition), "mode": how.mode}
        payload |= {name: getattr(how, name) for name in ("exact", "oversample", "text_weight", "rerank")}
        if words is not None:
            payload["query"] = list(map(replace_surrogates, words))
        elif given is not None:
            payload["vectors"] = given.float().reshape(len(given), -1).tolist()
        if how.fetch_k is not None:
            payload["mmr"] = {"fetch_k": how.fetch_k, "lambda_mult": how.lambda_mult}
        results = self._ask("search", payload)["results"]
        return [self._hits(each, with_memories=how.with_memories) for each in results]

    def _hits(self, results: Sequence[Mapping[str, Any]], *, with_memories: bool) -> list[Hit]:
        found = [_read(Hit, each) for each in results]
        if not with_memories:
            return found
        memories = self._server.remember([hit.text for hit in found])
        return [replace(hit, memory=memory) for hit, memory in zip(found, memories, strict=True)]

    def _ask(self, what: str, payload: Mapping[str, Any]) -> Any:
        # Ids and values as they are: one that is no text at all is refused, and never taken for another one.
        body = json.dumps(payload, allow_nan=False).encode()
        return self._server.connection.ask(Call(f"{self._path}/{what}", body))


def _sent(condition: Filter | None) -> Any:
    """The JSON form of a filter."""
    if condition is None:
        return None
    if callable(condition):
        raise TypeError("a function cannot be sent to a server as a filter; give a dict")
    check_condition(condition)
    return json.loads(metadata_json(dict(condition), "filter"))


def _read(kind: type[T], reply: Mapping[str, Any]) -> T:
    """A value from its JSON form; what only a newer server knows is left out."""
    known = {each.name: reply[each.name] for each in fields(kind) if each.name in reply}
    if "metadata" in known:
        known["metadata"] = metadata_from_json(json.dumps(known["metadata"]))
    if "spans" in known:
        known["spans"] = tuple(map(tuple, known["spans"]))
    return kind(**known)


def _line(document: Document) -> bytes:
    facts = {"id": document.id, "text": document.text, "metadata": json.loads(document.metadata)}
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


def _size(document: Document) -> int:
    """Most bytes of a document in a request, in which an escaped character takes six."""
    return 6 * len(document.text) + len(document.metadata)
