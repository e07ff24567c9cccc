"""`RemoteEngine`: a client of a server that holds the model, with the calls of an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Unpack

from clara_core.common.errors import ServerError
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.checks import Message, check_messages, checked_texts
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

    Requests carry texts, and the server looks up or computes their memories, so `remember` compresses nothing. It is
    safe to use from threads and from asyncio. Cancelling a task, closing a stream or losing the connection stops the
    work on the server's device. A copy is the object itself; a pickle holds the address, and the key is read from the
    environment again. Calls and arguments are those of `ClaraEngine`.
    """

    @classmethod
    def connect(cls, url: str, key: str | None = None) -> RemoteEngine:
        """The client of a server; equal arguments give the same object. The server is asked at first use.

        Args:
            url: Address of the server, such as ``http://127.0.0.1:8010``.
            key: Key of the server; None: the environment variable ``CLARA_API_KEY``, if it is set.
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
        given = list(checked_texts(questions, "questions"))
        parts = self._slices(map(weight_of, given))
        return self._reasoned([self.connection.fetch(_REASON, {"questions": given[part]}) for part in parts], parts)

    async def areason(self, questions: Sequence[str]) -> Tensor:
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
                raise ServerError(f"the server sent a tensor of the shape {list(tokens.shape)} for {count} questions")
            found.append(tokens)
        return torch.cat(found)

    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Makes one request for each question."""
        given = list(checked_texts(questions, "questions"))
        return _scores([self.rank(question, memories) for question in given], len(memories))

    async def ascore(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        given = list(checked_texts(questions, "questions"))
        rankings = [await self.arank(question, memories) for question in given]
        return await asyncio.to_thread(_scores, rankings, len(memories))

    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Makes several requests if the documents are too large for one."""
        parts = self._ranking_payloads(question, memories, top_k)
        replies = [self.connection.post(_RANK, payload) for _, payload in parts]
        return _merged([start for start, _ in parts], replies, top_k)

    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        await self._aload()
        parts = self._ranking_payloads(question, memories, top_k)
        replies = [await self.connection.apost(_RANK, payload) for _, payload in parts]
        return _merged([start for start, _ in parts], replies, top_k)

    def _ranking_payloads(
        self, question: str, memories: Sequence[Memory], top_k: int | None
    ) -> list[tuple[int, dict[str, Any]]]:
        """The payloads of a ranking, each with the index of its first document."""
        list(checked_texts([question], "questions"))
        documents = self._as_documents(memories)
        most = int(self.load()["limits"]["documents"])
        return [
            (part.start, {"question": question, "documents": documents[part], "top_k": top_k})
            for part in self._slices((weight_of(each["text"]) for each in documents), most)
        ]

    # --- answers -----------------------------------------------------------------------------------------

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        [document] = self._as_documents([memory])
        payload = {"document": document, "instruction": instruction, "max_tokens": max_tokens}
        return answer_from_wire(self.connection.post("/v1/clara/paraphrase", payload, repeatable=False))

    def chat_batch(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        parts = self._question_payloads(conversations, options)
        replies = [self.connection.post(_ANSWER, each, repeatable=False) for each in parts]
        return _answers(replies, len(conversations))

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> RemoteStream:
        [payload] = self._question_payloads([(messages, memories)], options)
        return RemoteStream(self.connection, _ANSWER, payload)

    async def achat_batch(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        await self._aload()
        parts = self._question_payloads(conversations, options)
        replies = [await self.connection.apost(_ANSWER, each, repeatable=False) for each in parts]
        return _answers(replies, len(conversations))

    async def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        read_options(options)
        await self._aload()
        [payload] = self._question_payloads([(messages, memories)], options)
        async with self.connection.aevents(_ANSWER, payload) as events:
            answered = False
            async for event in events:
                chunk = chunk_of(event)
                answered = chunk.answer is not None
                yield chunk
        if not answered:
            raise ServerError("the server ended a stream without an answer; ask again")

    def _question_payloads(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], options: AnswerOptions
    ) -> list[dict[str, Any]]:
        """The payloads of conversations."""
        read_options(options)
        stop, scores = options.get("stop"), options.get("scores")
        sent = {
            **options,
            "stop": stop if stop is None or isinstance(stop, str) else list(stop),
            "scores": None if scores is None else list(scores),
        }
        questions, weights = [], []
        for messages, memories in conversations:
            check_messages(messages)
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
            documents = self._as_documents(memories)
            questions.append({"messages": turns, "documents": documents})
            weights.append(sum(weight_of(text) for each in (*turns, *documents) for text in each.values()))
        return [{"questions": questions[part], "options": sent} for part in self._slices(weights)]


def _merged(starts: Sequence[int], replies: Sequence[Any], top_k: int | None) -> list[Ranked]:
    """Merge the rankings of parts; a score does not depend on the other documents."""
    ranked = [
        Ranked(start + int(each["index"]), float(each["score"]), int(each["window"]))
        for start, part in zip(starts, replies, strict=True)
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


def _answers(replies: Sequence[Any], count: int) -> list[Answer]:
    answers = [answer_from_wire(each) for part in replies for each in part["answers"]]
    if len(answers) != count:
        raise ServerError(f"the server sent {len(answers)} answers to {count} questions")
    for answer in answers:
        warn(answer)
    return answers
