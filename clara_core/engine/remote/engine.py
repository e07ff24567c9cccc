"""`RemoteEngine`: the calls of an engine, answered by a server that holds the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

from clara_core.common.errors import ServerError
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.checks import Message, as_conversations, check_messages, checked_texts, user_turn
from clara_core.engine.remote.evidence import RemoteEvidence
from clara_core.engine.remote.http import key_from_environment
from clara_core.engine.remote.instance import weight_of
from clara_core.engine.remote.streams import RemoteStream, chunk_of, warn
from clara_core.engine.remote.wire import answer_from_wire, tensors_from_wire
from clara_core.engine.sampling import Answer, Chunk
from clara_core.retrieval.ranking import Ranked

if TYPE_CHECKING:
    from torch import Tensor

_REASON: Final = "/v1/clara/reason"
_RANK: Final = "/v1/clara/rank"
_ANSWER: Final = "/v1/clara/answer"

_engines: dict[tuple[str, str | None], RemoteEngine] = {}
_engines_lock = threading.Lock()


class RemoteEngine(RemoteEvidence):
    """The model of a server as an engine. Make it with `open_engine` or `ClaraEngine.from_pretrained`.

    Texts are sent, and the server finds or makes their memories: `remember` makes no request at all. Safe under threads
    and asyncio. Cancelling a task, closing a stream or losing the connection stops the work on the server's device.
    Copies are the object itself; a pickle carries the address, and the key comes from the environment again.
    """

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

    # --- questions ---------------------------------------------------------------------------------------

    def reason(self, questions: Sequence[str]) -> Tensor:
        """See `ClaraEngine.reason`."""
        given = list(checked_texts(questions, "questions"))
        parts = self._slices(map(weight_of, given))
        return self._reasoned([self.connection.fetch(_REASON, {"questions": given[part]}) for part in parts], parts)

    async def areason(self, questions: Sequence[str]) -> Tensor:
        """Awaitable `reason`."""
        given = list(checked_texts(questions, "questions"))
        await self._aload()
        parts = self._slices(map(weight_of, given))
        bodies = [await self.connection.afetch(_REASON, {"questions": given[part]}) for part in parts]
        return await asyncio.to_thread(self._reasoned, bodies, parts)

    def _reasoned(self, bodies: Sequence[bytes], parts: Sequence[slice]) -> Tensor:
        import torch

        found = []
        for body, part in zip(bodies, parts, strict=True):
            tokens, count = tensors_from_wire(body, {"tokens": 3})["tokens"], part.stop - part.start
            if tuple(tokens.shape) != (count, self.n_mem, self.hidden):
                raise ServerError(f"the server sent the shape {list(tokens.shape)} for {count} questions")
            found.append(tokens)
        return torch.cat(found)

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
        told = [self.connection.post(_RANK, payload) for _, payload in parts]
        return _merged([start for start, _ in parts], told, top_k)

    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Awaitable `rank`."""
        await self._aload()
        parts = self._ranking(question, memories, top_k)
        told = [await self.connection.apost(_RANK, payload) for _, payload in parts]
        return _merged([start for start, _ in parts], told, top_k)

    def _ranking(
        self, question: str, memories: Sequence[Memory], top_k: int | None
    ) -> list[tuple[int, dict[str, Any]]]:
        """The requests of a ranking, each with the place of its first document."""
        list(checked_texts([question], "questions"))
        documents = self._sent(memories)
        most = int(self.load()["limits"]["documents"])
        return [
            (part.start, {"question": question, "documents": documents[part], "top_k": top_k})
            for part in self._slices((weight_of(each["text"]) for each in documents), most)
        ]

    # --- answers -----------------------------------------------------------------------------------------

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """See `ClaraEngine.paraphrase`."""
        [document] = self._sent([memory])
        payload = {"document": document, "instruction": instruction, "max_tokens": max_tokens}
        return answer_from_wire(self.connection.post("/v1/clara/paraphrase", payload, repeatable=False))

    def answer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """See `ClaraEngine.answer`."""
        return self.chat(user_turn(question), memories, **options)

    def answer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """See `ClaraEngine.answer_batch`."""
        return self.chat_batch(as_conversations(items), **options)

    def stream(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> RemoteStream:
        """See `ClaraEngine.stream`."""
        return self.stream_chat(user_turn(question), memories, **options)

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
        told = [
            self.connection.post(_ANSWER, each, repeatable=False) for each in self._questions(conversations, options)
        ]
        return _answers(told, len(conversations))

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> RemoteStream:
        """See `ClaraEngine.stream_chat`."""
        [payload] = self._questions([(messages, memories)], options)
        return RemoteStream(self.connection, _ANSWER, payload)

    async def aanswer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Awaitable `answer`."""
        return await self.achat(user_turn(question), memories, **options)

    async def aanswer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Awaitable `answer_batch`."""
        return await self.achat_batch(as_conversations(items), **options)

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
        parts = self._questions(conversations, options)
        told = [await self.connection.apost(_ANSWER, each, repeatable=False) for each in parts]
        return _answers(told, len(conversations))

    def astream(
        self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream`."""
        return self.astream_chat(user_turn(question), memories, **options)

    async def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""
        read_options(options)
        await self._aload()
        [payload] = self._questions([(messages, memories)], options)
        async with self.connection.aevents(_ANSWER, payload) as events:
            answered = False
            async for event in events:
                chunk = chunk_of(event)
                answered = chunk.answer is not None
                yield chunk
        if not answered:
            raise ServerError("the server ended a stream without an answer; ask again")

    def _questions(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], options: AnswerOptions
    ) -> list[dict[str, Any]]:
        """The requests of conversations."""
        read_options(options)
        stop, scores = options.get("stop"), options.get("scores")
        told = {
            **options,
            "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            "scores": None if scores is None else list(scores),
        }
        questions, weights = [], []
        for messages, memories in conversations:
            check_messages(messages)
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
            documents = self._sent(memories)
            questions.append({"messages": turns, "documents": documents})
            weights.append(sum(weight_of(text) for each in (*turns, *documents) for text in each.values()))
        return [{"questions": questions[part], "options": told} for part in self._slices(weights)]


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


def _answers(told: Sequence[Any], count: int) -> list[Answer]:
    answers = [answer_from_wire(each) for part in told for each in part["answers"]]
    if len(answers) != count:
        raise ServerError(f"the server sent {len(answers)} answers to {count} questions")
    for answer in answers:
        warn(answer)
    return answers
