"""The facts of a server's engine, and the compression of documents: the base of `RemoteEngine`."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from clara_core.common.errors import ServerError
from clara_core.data.memory import Memory, MemoryCache
from clara_core.engine.checks import Message, Overflow, check_overflow, checked_memories, checked_texts
from clara_core.engine.options import EngineArguments
from clara_core.engine.protocol import Engine
from clara_core.engine.remote.http import Call, Connection
from clara_core.engine.remote.memory import Facts, Fetched, RemoteMemory
from clara_core.engine.remote.wire import memories_from_wire
from clara_core.engine.steps import Steps, T, adrive, drive
from clara_core.model.checkpoint.config import Role

if TYPE_CHECKING:
    import torch

BLOCK: Final = 64  # texts of a request
_TOKENS: Final = "/v1/clara/tokens"
_COMPRESS: Final = "/v1/clara/compress"
_BODY_SHARE: Final = 0.5  # of the server's limit of bytes, because JSON escapes some characters


class RemoteInstance(Engine):
    """Facts of the model and compression, by requests to a server."""

    def __init__(self, url: str, key: str | None) -> None:
        self.arguments = EngineArguments(model=url)
        self.cache = _LocalCache()
        self.connection = Connection(url, key)
        self._info: dict[str, Any] | None = None
        self._lock = threading.Lock()

    # --- facts of the model ------------------------------------------------------------------------------

    def load(self, *, show_progress: bool = False) -> dict[str, Any]:
        """Ask the server for the facts of its model, once; returns them.

        Raises:
            ServerError: The server refuses, or is not `clara serve`.
            ServerUnreachable: The server does not answer.
        """
        with self._lock:
            if self._info is None:
                info = self.connection.ask(Call("/v1/clara/info"))
                try:
                    self.connection.fingerprint = str(info["fingerprint"])
                    self._info = dict(info)
                except (TypeError, KeyError) as exc:
                    raise ServerError(f"{self.connection.url} is not `clara serve`: it sent {info!r:.100}") from exc
            return self._info

    def unload(self) -> None:
        """Forget the facts, clear the cache and close connections; the server's model stays loaded."""
        with self._lock:
            self._info = self.connection.fingerprint = None
        self.cache.clear()
        self.connection.close()

    @property
    def fingerprint(self) -> str:
        """Hash of the server's weights and rate."""
        return str(self.load()["fingerprint"])

    @property
    def n_mem(self) -> int:
        return int(self.load()["n_mem"])

    @property
    def hidden(self) -> int:
        return int(self.load()["hidden"])

    @property
    def window(self) -> int:
        return int(self.load()["window"])

    @property
    def context(self) -> int:
        return int(self.load()["context"])

    @property
    def answer_top_k(self) -> int:
        return int(self.load()["answer_top_k"])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the server's memory tokens."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.load()["dtype"]]

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles that the server's checkpoint holds."""
        return tuple(Role[name] for name in self.load()["roles"])

    @property
    def tokenizer(self) -> RemoteTokenizer:
        """The server's tokenizer; each call is a request."""
        return RemoteTokenizer(self.connection)

    # --- documents ---------------------------------------------------------------------------------------

    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        from tqdm.auto import tqdm

        check_overflow(overflow)
        given, total = checked_texts(texts), len(texts) if isinstance(texts, Sequence) else None
        with tqdm(total=total, desc="compressing", unit="doc", disable=not show_progress) as bar:
            while block := list(islice(given, BLOCK)):
                for part in self._slices(map(weight_of, block)):
                    few = block[part]
                    body = self.connection.ask(_compression(few, overflow))
                    for memory in self._memories(body, few, overflow):
                        yield memory
                        bar.update()

    def _compressed(self, texts: list[str], overflow: Overflow) -> Steps[list[Memory]]:
        memories: list[Memory] = []
        for part in self._slices(map(weight_of, texts)) if texts else ():
            few = texts[part]
            [body] = yield [_compression(few, overflow)]
            memories += self._memories(body, few, overflow)
        return memories

    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Memories that the server computes when they are ranked or read; no request compresses them now."""
        given = list(checked_texts(texts))
        fingerprint = self.fingerprint
        known = self.cache.lookup(given, fingerprint)
        fetched = Fetched([text for text, memory in known.items() if memory is None], self._facts, self._whole)
        return [known[text] or RemoteMemory(text, fingerprint, fetched) for text in given]

    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        return await asyncio.to_thread(self.remember, list(checked_texts(texts)))

    async def afetch(self, memories: Sequence[Memory]) -> None:
        for fetched in {memory.fetched for memory in memories if isinstance(memory, RemoteMemory)}:
            if texts := fetched.missing():
                made = await self.acompress(texts)
                fetched.fill(made)
                for memory in made:
                    self.cache.put(memory)

    def _memories(self, body: bytes, texts: Sequence[str], overflow: Overflow) -> list[Memory]:
        memories = memories_from_wire(body, texts, (self.n_mem, self.hidden), self.fingerprint)
        for memory in memories if overflow == "truncate" else ():
            if (end := memory.spans[-1][1]) < len(memory.text):
                warnings.warn(f"truncated a text of {len(memory.text)} characters to its first {end}", stacklevel=2)
        return memories

    def _whole(self, texts: Sequence[str]) -> list[Memory]:
        made = self.compress(texts)
        for memory in made:
            self.cache.put(memory)
        return made

    def _facts(self, texts: Sequence[str]) -> list[Facts]:
        facts: list[Facts] = []
        for part in self._slices(map(weight_of, texts)):
            reply = self.connection.ask(Call(_COMPRESS, {"texts": texts[part], "return": "keys"}))
            for keys in reply["memories"]:
                spans = tuple((int(begin), int(end)) for begin, end in keys["spans"])
                facts.append((spans, int(keys["source_tokens"])))
        return facts

    # --- requests ----------------------------------------------------------------------------------------

    def _drive(self, steps: Steps[T]) -> T:
        return drive(steps, lambda calls: [self.connection.ask(call) for call in calls])

    async def _adrive(self, steps: Steps[T]) -> T:
        async def replies(calls: Sequence[Call]) -> list[Any]:
            return [await self.connection.aask(call) for call in calls]

        return await adrive(steps, lambda _: None, replies)

    def _slices(self, weights: Iterable[int], most: int = BLOCK) -> list[slice]:
        """Slices of items with these bytes that fit one request, each of at most `most` items; at least one slice."""
        size = int(self.load()["limits"]["body_bytes"] * _BODY_SHARE)
        found: list[slice] = []
        start, end, held = 0, 0, 0
        for weight in weights:
            if end > start and (end - start >= most or held + weight > size):
                found.append(slice(start, end))
                start, held = end, 0
            held += weight
            end += 1
        return [*found, slice(start, end)]

    def _as_documents(self, memories: Iterable[object]) -> list[dict[str, str]]:
        """The documents of a payload."""
        return [_document(memory) for memory in checked_memories(memories, lambda: self.fingerprint)]


class RemoteTokenizer:
    """The calls of a `ClaraTokenizer` that other modules use; each is a request to the server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def count(self, text: str) -> int:
        return int(self._ask("count", text))

    def count_plain(self, text: str) -> int:
        return int(self._ask("count_plain", text))

    def encode_plain(self, text: str) -> list[int]:
        return [int(id_) for id_ in self._ask("ids", text)]

    def windows(self, text: str, *, first_only: bool = False, reserve: int = 0) -> list[tuple[int, int]]:
        spans = self._ask("windows", text, first_only=first_only, reserve=reserve)
        return [(int(start), int(end)) for start, end in spans]

    def chat_prompt(self, messages: Sequence[Message], n_windows: int) -> list[int]:
        payload = {"what": "prompt", "messages": list(messages), "n_windows": n_windows}
        return [int(id_) for id_ in self._connection.ask(Call(_TOKENS, payload))["results"][0]]

    def _ask(self, what: str, text: str, **options: Any) -> Any:
        return self._connection.ask(Call(_TOKENS, {"what": what, "texts": [text], **options}))["results"][0]


def weight_of(text: str) -> int:
    """UTF-8 bytes of a text."""
    return len(text.encode("utf-8", "surrogatepass"))


class _LocalCache(MemoryCache):
    """A cache that skips memories whose tensors are on the server."""

    def put(self, memory: Memory, *, replace: bool = True) -> None:
        if not isinstance(memory, RemoteMemory):
            super().put(memory, replace=replace)


def _document(memory: Memory) -> dict[str, str]:
    """The document from which the server computes the same memory."""
    truncated = not isinstance(memory, RemoteMemory) and memory.spans[-1][1] < len(memory.text)
    return {"text": memory.text, **({"overflow": "truncate"} if truncated else {})}


def _compression(texts: Sequence[str], overflow: Overflow) -> Call:
    return Call(_COMPRESS, {"texts": list(texts), "overflow": overflow, "return": "tensors"}, parsed=False)
