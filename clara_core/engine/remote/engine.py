"""`RemoteEngine`: the calls of an engine, answered by a server that holds the model."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, Unpack

from clara_core.checkpoint.config import Role
from clara_core.common.errors import ServerError
from clara_core.data.memory import Memory, MemoryCache
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.checks import (
    Message,
    Overflow,
    asked,
    asked_all,
    check_messages,
    check_overflow,
    checked_memories,
    checked_texts,
)
from clara_core.engine.options import EngineArguments
from clara_core.engine.protocol import Engine
from clara_core.engine.remote.http import Connection, key_from_environment
from clara_core.engine.remote.memory import Facts, Fetched, RemoteMemory
from clara_core.engine.remote.tokens import RemoteTokenizer
from clara_core.engine.remote.wire import answer_from_wire, logprobs_from_wire, memories_from_wire, tensors_from_wire
from clara_core.engine.sampling import Answer, Chunk
from clara_core.retrieval.ranking import Ranked

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK: Final = 64  # texts of a request
_BODY_SHARE: Final = 0.5  # of the server's limit: JSON writes some characters as six

_engines: dict[tuple[str, str | None], RemoteEngine] = {}
_engines_lock = threading.Lock()


class RemoteEngine(Engine):
    """The model of a server as an engine. Make it with `open_engine` or `ClaraEngine.from_pretrained`.

    Texts are sent, and the server finds or makes their memories: `remember` makes no request at all. Safe under threads
    and asyncio. Cancelling a task, closing a stream or losing the connection stops the work on the server's device.
    Copies are the object itself; a pickle carries the address, and the key comes from the environment again.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.arguments = EngineArguments(model=url)
        self.cache = _LocalCache()
        self.connection = Connection(url, key)
        self._told: dict[str, Any] | None = None
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, url: str, key: str | None = None) -> RemoteEngine:
        """The engine behind an address; the same object for the same address and key. Asks the server at first use.

        Args:
            url: Of the server, such as ``http://127.0.0.1:8010``.
            key: Of the server; None: the environment variable ``CLARA_API_KEY``, where there is one.
        """
        key = key or key_from_environment()
        with _engines_lock:
            return _engines.setdefault((url, key), cls(url, key))

    def __copy__(self) -> RemoteEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteEngine:
        return self

    def __reduce__(self) -> tuple[Callable[[str], RemoteEngine], tuple[str]]:
        return RemoteEngine.connect, (self.arguments.model,)

    def __repr__(self) -> str:
        return f"RemoteEngine({self.arguments.model!r})"

    # --- what it is --------------------------------------------------------------------------------------

    def load(self, *, show_progress: bool = False) -> dict[str, Any]:
        """Ask the server what it runs, once."""
        with self._lock:
            if self._told is None:
                told = self.connection.get("/v1/clara/info")
                try:
                    self.connection.fingerprint = str(told["fingerprint"])
                    self._told = dict(told)
                except (TypeError, KeyError) as exc:
                    raise ServerError(f"{self.connection.url} is no server of clara: it said {told!r:.100}") from exc
            return self._told

    def unload(self) -> None:
        """Forget what the server said, and close connections; the server's model stays where it is."""
        with self._lock:
            self._told = self.connection.fingerprint = None
        self.cache.clear()
        self.connection.close()

    async def _aload(self) -> dict[str, Any]:
        return self._told if self._told is not None else await asyncio.to_thread(self.load)

    @property
    def fingerprint(self) -> str:
        """Hash of the server's weights and rate."""
        return str(self.load()["fingerprint"])

    @property
    def n_mem(self) -> int:
        """Memory tokens of one window."""
        return int(self.load()["n_mem"])

    @property
    def hidden(self) -> int:
        """Width of a memory token."""
        return int(self.load()["hidden"])

    @property
    def dimension(self) -> int:
        """Length of a flattened memory."""
        return self.n_mem * self.hidden

    @property
    def window(self) -> int:
        """Most text tokens that one window holds."""
        return int(self.load()["window"])

    @property
    def context(self) -> int:
        """Most positions that a prompt and its answer may take together."""
        return int(self.load()["context"])

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
        """Of the server; each call is a request."""
        return RemoteTokenizer(self.connection)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return self.tokenizer.count_plain(text)

    # --- documents ---------------------------------------------------------------------------------------

    def compress(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> list[Memory]:
        """See `ClaraEngine.compress`; the tensors are fetched."""
        return list(self.compress_stream(texts, overflow, show_progress=show_progress))

    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        """See `ClaraEngine.compress_stream`."""
        check_overflow(overflow)
        given = checked_texts(texts)
        total = len(texts) if isinstance(texts, Sequence) else None
        bar = _bar(total) if show_progress else None
        try:
            while block := list(islice(given, BLOCK)):
                body = self.connection.fetch("/v1/clara/compress", _compression(block, overflow))
                for memory in self._memories(body, block, overflow):
                    yield memory
                    if bar is not None:
                        bar.update()
        finally:
            if bar is not None:
                bar.close()

    async def acompress(self, texts: Iterable[str], overflow: Overflow = "split") -> list[Memory]:
        """Awaitable `compress`."""
        check_overflow(overflow)
        given = list(checked_texts(texts))
        await self._aload()
        memories: list[Memory] = []
        for start in range(0, len(given), BLOCK):
            block = given[start : start + BLOCK]
            body = await self.connection.afetch("/v1/clara/compress", _compression(block, overflow))
            memories += await asyncio.to_thread(self._memories, body, block, overflow)
        return memories

    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Memories of documents that the server makes when they are ranked or read; no request is made for them."""
        given = list(checked_texts(texts))
        fingerprint = self.fingerprint
        known = self.cache.lookup(given, fingerprint)
        fetched = Fetched([text for text, memory in known.items() if memory is None], self._facts, self._whole)
        return [known[text] or RemoteMemory(text, fingerprint, fetched) for text in given]

    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        """Awaitable `remember`."""
        given = list(checked_texts(texts))
        await self._aload()
        return self.remember(given)

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
        for start in range(0, len(texts), BLOCK):
            payload = {"texts": texts[start : start + BLOCK], "return": "keys"}
            for told in self.connection.post("/v1/clara/compress", payload)["memories"]:
                spans = tuple((int(begin), int(end)) for begin, end in told["spans"])
                facts.append((spans, int(told["source_tokens"])))
        return facts

    # --- questions ---------------------------------------------------------------------------------------

    def reason(self, questions: Sequence[str]) -> Tensor:
        """See `ClaraEngine.reason`."""
        given = list(checked_texts(questions, "questions"))
        return self._reasoned(self.connection.fetch("/v1/clara/reason", {"questions": given}), len(given))

    async def areason(self, questions: Sequence[str]) -> Tensor:
        """Awaitable `reason`."""
        given = list(checked_texts(questions, "questions"))
        await self._aload()
        body = await self.connection.afetch("/v1/clara/reason", {"questions": given})
        return await asyncio.to_thread(self._reasoned, body, len(given))

    def _reasoned(self, body: bytes, count: int) -> Tensor:
        tokens = tensors_from_wire(body, {"tokens": 3})["tokens"]
        if tuple(tokens.shape) != (count, self.n_mem, self.hidden):
            raise ServerError(f"the server sent the shape {list(tokens.shape)} for {count} questions")
        return tokens

    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """See `ClaraEngine.score`; a request for each question."""
        given = list(checked_texts(questions, "questions"))
        return _scores([self.rank(question, memories) for question in given], len(memories))

    async def ascore(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Awaitable `score`."""
        given = list(checked_texts(questions, "questions"))
        rankings = [await self.arank(question, memories) for question in given]
        return await asyncio.to_thread(_scores, rankings, len(memories))

    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """See `ClaraEngine.rank`. What is too large for one request goes in several."""
        parts = self._ranking(question, memories, top_k)
        told = [self.connection.post("/v1/clara/rank", payload) for _, payload in parts]
        return _merged([start for start, _ in parts], told, top_k)

    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Awaitable `rank`."""
        await self._aload()
        parts = self._ranking(question, memories, top_k)
        told = [await self.connection.apost("/v1/clara/rank", payload) for _, payload in parts]
        return _merged([start for start, _ in parts], told, top_k)

    def _ranking(
        self, question: str, memories: Sequence[Memory], top_k: int | None
    ) -> list[tuple[int, dict[str, Any]]]:
        """The requests of a ranking, each with the place of its first document."""
        asked(question)
        texts = [memory.text for memory in checked_memories(memories, lambda: self.fingerprint)]
        limits = self.load()["limits"]
        parts: list[tuple[int, dict[str, Any]]] = []
        for start, part in _cut(texts, int(limits["documents"]), int(limits["body_bytes"] * _BODY_SHARE)):
            payload = {"question": question, "documents": [{"text": text} for text in part], "top_k": top_k}
            parts.append((start, payload))
        return parts

    # --- answers -----------------------------------------------------------------------------------------

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """See `ClaraEngine.paraphrase`."""
        [checked] = checked_memories([memory], lambda: self.fingerprint)
        payload = {"document": {"text": checked.text}, "instruction": instruction, "max_tokens": max_tokens}
        return answer_from_wire(self.connection.post("/v1/clara/paraphrase", payload, repeatable=False))

    def answer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """See `ClaraEngine.answer`."""
        return self.chat(asked(question), memories, **options)

    def answer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """See `ClaraEngine.answer_batch`."""
        return self.chat_batch(asked_all(items), **options)

    def stream(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> RemoteStream:
        """See `ClaraEngine.stream`."""
        return self.stream_chat(asked(question), memories, **options)

    def chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """See `ClaraEngine.chat`."""
        return self.chat_batch([(messages, memories)], **options)[0]

    def chat_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """See `ClaraEngine.chat_batch`."""
        payload = self._questions(conversations, options)
        return _answers(self.connection.post("/v1/clara/answer", payload, repeatable=False), len(conversations))

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> RemoteStream:
        """See `ClaraEngine.stream_chat`."""
        return RemoteStream(self.connection, self._questions([(messages, memories)], options))

    async def aanswer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Awaitable `answer`."""
        return await self.achat(asked(question), memories, **options)

    async def aanswer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Awaitable `answer_batch`."""
        return await self.achat_batch(asked_all(items), **options)

    async def achat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Awaitable `chat`."""
        return (await self.achat_batch([(messages, memories)], **options))[0]

    async def achat_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """Awaitable `chat_batch`."""
        await self._aload()
        payload = self._questions(conversations, options)
        return _answers(await self.connection.apost("/v1/clara/answer", payload), len(conversations))

    def astream(
        self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream`."""
        return self.astream_chat(asked(question), memories, **options)

    async def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""
        read_options(options)
        await self._aload()
        payload = self._questions([(messages, memories)], options)
        async with self.connection.aevents("/v1/clara/answer", payload) as events:
            answered = False
            async for event in events:
                chunk = _chunk(event)
                answered = chunk.answer is not None
                yield chunk
        if not answered:
            raise ServerError("the server ended a stream without an answer; ask again")

    def _questions(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], options: AnswerOptions
    ) -> dict[str, Any]:
        read_options(options)
        stop = options.get("stop")
        scores = options.get("scores")
        told = {
            **options,
            "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            "scores": None if scores is None else [float(score) for score in scores],
        }
        questions = []
        for messages, memories in conversations:
            check_messages(messages)
            read = checked_memories(memories, lambda: self.fingerprint)
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
            questions.append({"messages": turns, "documents": [{"text": memory.text} for memory in read]})
        return {"questions": questions, "options": told}


class _LocalCache(MemoryCache):
    """Keeps tensors that are here; what lies on the server is kept there."""

    def put(self, memory: Memory, *, replace: bool = True) -> None:
        if not isinstance(memory, RemoteMemory):
            super().put(memory, replace=replace)


class RemoteStream(Iterator[Chunk]):
    """The pieces of one answer of a server; the last one carries the whole `Answer`. Closing it stops the work."""

    def __init__(self, connection: Connection, payload: dict[str, Any]) -> None:
        self._scope = connection.events("/v1/clara/answer", payload)
        self._events: Iterator[dict[str, Any]] | None = self._scope.__enter__()
        self._text = ""
        self._cancelled = False

    def __next__(self) -> Chunk:
        if self._events is None:
            raise StopIteration
        if self._cancelled:
            self.close()
            return Chunk("", Answer(self._text, "cancelled", 0, 0, 0, 0))
        try:
            chunk = _chunk(next(self._events))
        except StopIteration:
            self.close()
            raise ServerError("the server ended a stream without an answer; ask again") from None
        except BaseException:
            self.close()
            raise
        self._text += chunk.text
        if chunk.answer is not None:
            for _ in self._events:  # nothing more comes, and the connection can be used again
                pass
            self.close()
        return chunk

    def cancel(self) -> None:
        """Stop writing. The last piece says "cancelled" and holds the text that arrived; its counts are 0."""
        self._cancelled = True

    def close(self) -> None:
        """Stop writing and listening."""
        if self._events is not None:
            self._events = None
            self._scope.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_events", None) is not None:
            self.close()


def _compression(texts: Sequence[str], overflow: Overflow) -> dict[str, Any]:
    return {"texts": list(texts), "overflow": overflow, "return": "tensors"}


def _bar(total: int | None) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="compressing", unit="doc")


def _cut(texts: Sequence[str], most: int, size: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Texts in parts of at most `most` and, but for a single one, about `size` bytes; at least one part."""
    start, held = 0, 0
    for index, text in enumerate(texts):
        weight = len(text.encode("utf-8", "surrogatepass"))
        if index > start and (index - start >= most or held + weight > size):
            yield start, texts[start:index]
            start, held = index, 0
        held += weight
    yield start, texts[start:]


def _merged(starts: Sequence[int], told: Sequence[Any], top_k: int | None) -> list[Ranked]:
    """The rankings of parts as one: scores do not depend on what else is ranked."""
    ranked = [
        Ranked(start + int(each["index"]), float(each["score"]), int(each["window"]))
        for start, part in zip(starts, told, strict=True)
        for each in part["results"]
    ]
    ranked.sort(key=lambda candidate: -candidate.score)
    return ranked if top_k is None else ranked[:top_k]


def _scores(rankings: Sequence[Sequence[Ranked]], count: int) -> Tensor:
    import torch

    scores = torch.zeros(len(rankings), count)
    for row, ranked in enumerate(rankings):
        for each in ranked:
            scores[row, each.index] = each.score
    return scores


def _answers(told: Any, count: int) -> list[Answer]:
    answers = [answer_from_wire(each) for each in told["answers"]]
    if len(answers) != count:
        raise ServerError(f"the server sent {len(answers)} answers to {count} questions")
    for answer in answers:
        _warn(answer)
    return answers


def _chunk(event: dict[str, Any]) -> Chunk:
    answer = event.get("answer")
    chunk = Chunk(
        str(event.get("text", "")),
        None if answer is None else answer_from_wire(answer),
        logprobs_from_wire(event.get("logprobs")),
    )
    if chunk.answer is not None:
        _warn(chunk.answer)
    return chunk


def _warn(answer: Answer) -> None:
    if answer.windows_left_out:
        warnings.warn(
            f"the documents do not fit the context: {answer.windows_left_out} windows were not read; split long "
            "documents to choose yourself",
            stacklevel=4,
        )
