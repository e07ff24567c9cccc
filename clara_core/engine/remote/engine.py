"""`RemoteEngine`: a client of a server that holds the model, with the calls of an engine."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Unpack

from clara_core.common.errors import ServerError, ServerUnreachable
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.checks import Conversations, Message, check_messages, check_type, checked_texts
from clara_core.engine.remote.http import Call, Connection, key_from_environment
from clara_core.engine.remote.instance import RemoteInstance, weight_of
from clara_core.engine.remote.wire import (
    answer_from_wire,
    attribution_from_wire,
    fidelity_from_wire,
    logprobs_from_wire,
    tensors_from_wire,
)
from clara_core.engine.sampling import Answer, Chunk, Pieces
from clara_core.engine.steps import Steps
from clara_core.retrieval.ranking import Ranked

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.engine.evidence import Attribution
    from clara_core.engine.fidelity import Fidelity

_REASON: Final = "/v1/clara/reason"
_RANK: Final = "/v1/clara/rank"
_ANSWER: Final = "/v1/clara/answer"
_PARAPHRASE: Final = "/v1/clara/paraphrase"
_ATTRIBUTE: Final = "/v1/clara/attribute"
_LOGPROB: Final = "/v1/clara/logprob"
_FIDELITY: Final = "/v1/clara/fidelity"

_engines: dict[tuple[str, str | None], RemoteEngine] = {}
_engines_lock = threading.Lock()


class RemoteEngine(RemoteInstance):
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

    def __reduce__(self) -> tuple[Callable[[str], RemoteEngine], tuple[str]]:
        return RemoteEngine.connect, (self.arguments.model,)

    def __repr__(self) -> str:
        return f"RemoteEngine({self.arguments.model!r})"

    # --- questions ---------------------------------------------------------------------------------------

    def _reasoned(self, questions: Sequence[str]) -> Steps[Tensor]:
        import torch

        given = list(checked_texts(questions, "questions"))
        parts = self._slices(map(weight_of, given))
        bodies = yield [Call(_REASON, {"questions": given[part]}, parsed=False) for part in parts]
        found = []
        for body, part in zip(bodies, parts, strict=True):
            tokens, count = tensors_from_wire(body, {"tokens": 3})["tokens"], part.stop - part.start
            if tuple(tokens.shape) != (count, self.n_mem, self.hidden):
                raise ServerError(f"the server sent a tensor of the shape {list(tokens.shape)} for {count} questions")
            found.append(tokens)
        return torch.cat(found)

    def _scored(self, questions: Sequence[str], memories: Sequence[Memory]) -> Steps[Tensor]:
        """Makes one request for each question."""
        import torch

        given = list(checked_texts(questions, "questions"))
        scores = torch.zeros(len(given), len(memories))
        for row, question in enumerate(given):
            for each in (yield from self._ranked(question, memories, None)):
                scores[row, each.index] = each.score
        return scores

    def _ranked(self, question: str, memories: Sequence[Memory], top_k: int | None) -> Steps[list[Ranked]]:
        """Makes several requests if the documents are too large for one; a score does not depend on the others."""
        list(checked_texts([question], "questions"))
        documents = self._as_documents(memories)
        most = int(self.load()["limits"]["documents"])
        parts = self._slices((weight_of(each["text"]) for each in documents), most)
        replies = yield [
            Call(_RANK, {"question": question, "documents": documents[part], "top_k": top_k}) for part in parts
        ]
        ranked = [
            Ranked(part.start + int(each["index"]), float(each["score"]), int(each["window"]))
            for part, reply in zip(parts, replies, strict=True)
            for each in reply["results"]
        ]
        ranked.sort(key=lambda candidate: -candidate.score)
        return ranked if top_k is None else ranked[:top_k]

    # --- answers -----------------------------------------------------------------------------------------

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        [document] = self._as_documents([memory])
        payload = {"document": document, "instruction": instruction, "max_tokens": max_tokens}
        return answer_from_wire(self.connection.ask(Call(_PARAPHRASE, payload, repeatable=False)))

    def _answered(self, conversations: Conversations, options: AnswerOptions) -> Steps[list[Answer]]:
        payloads = self._question_payloads(conversations, options)
        replies = yield [Call(_ANSWER, each, repeatable=False) for each in payloads]
        answers = [answer_from_wire(each) for reply in replies for each in reply["answers"]]
        if len(answers) != len(conversations):
            raise ServerError(f"the server sent {len(answers)} answers to {len(conversations)} questions")
        for answer in answers:
            _warn(answer)
        return answers

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> RemoteStream:
        [payload] = self._question_payloads([(messages, memories)], options)
        return RemoteStream(self.connection, _ANSWER, payload)

    async def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        [payload] = await asyncio.to_thread(self._question_payloads, [(messages, memories)], options)
        async with self.connection.aevents(_ANSWER, payload) as events:
            answered = False
            async for event in events:
                chunk = _chunk_of(event)
                answered = chunk.answer is not None
                yield chunk
        if not answered:
            raise ServerError("the server ended a stream without an answer; ask again")

    def _question_payloads(self, conversations: Conversations, options: AnswerOptions) -> list[dict[str, Any]]:
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

    # --- evidence ----------------------------------------------------------------------------------------

    def _attributed(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Steps[Attribution]:
        [reply] = yield [Call(_ATTRIBUTE, self._text_payload(question, memories, answer))]
        return attribution_from_wire(reply)

    def _logprob(self, question: str, memories: Sequence[Memory], text: str) -> Steps[float]:
        [reply] = yield [Call(_LOGPROB, self._text_payload(question, memories, text))]
        return float(reply["logprob"])

    def _fidelity(self, memories: Sequence[Memory], instruction: str | None) -> Steps[list[Fidelity]]:
        documents = self._as_documents(memories)
        parts = self._slices(weight_of(each["text"]) for each in documents)
        replies = yield [Call(_FIDELITY, {"documents": documents[part], "instruction": instruction}) for part in parts]
        return [fidelity_from_wire(each) for reply in replies for each in reply["results"]]

    def _text_payload(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> dict[str, Any]:
        check_type("question", question, str, "a string")
        text = answer.draft or answer.text if isinstance(answer, Answer) else answer
        check_type("the answer", text, str, "a string or an Answer")
        return {"question": question, "documents": self._as_documents(memories), "text": text}


class RemoteStream(Pieces):
    """The pieces of one answer from a server; the last one carries the whole `Answer`. Closing it stops the work."""

    def __init__(self, connection: Connection, path: str, payload: dict[str, Any]) -> None:
        self._text = ""
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._scope = connection.events(path, payload)
        self._events: Iterator[dict[str, Any]] | None
        self._events, self._hang_up = self._scope.__enter__()
        self._running = True  # whether the connection is still used by this stream alone

    def __next__(self) -> Chunk:
        if self._events is None:
            raise StopIteration
        if self._cancelled.is_set():
            return self._cancelled_piece()
        try:
            chunk = _chunk_of(next(self._events))
        except BaseException as exc:
            if self._cancelled.is_set() and isinstance(exc, Exception):
                return self._cancelled_piece()
            self.close()
            if isinstance(exc, StopIteration):
                raise ServerError("the server ended a stream without an answer; ask again") from None
            raise
        self._text += chunk.text
        if chunk.answer is not None:
            self._end()
            with suppress(ServerUnreachable):  # read to the end, so that the connection can be reused
                for _ in self._events:
                    pass
            self.close()
        return chunk

    def cancel(self) -> None:
        """Close the connection now, which stops generation, also while another thread waits for the next piece.

        The next read gives the last piece: "cancelled", the text so far, counts of 0.
        """
        with self._lock:
            if self._running:
                self._cancelled.set()
                self._hang_up()

    def close(self) -> None:
        """Stop generation and end the stream."""
        self._end()
        if self._events is not None:
            self._events = None
            self._scope.__exit__(None, None, None)

    def _end(self) -> None:
        """From now on `cancel` does nothing: another request may use the connection next."""
        with self._lock:
            self._running = False

    def _cancelled_piece(self) -> Chunk:
        self.close()
        return Chunk("", Answer(self._text, "cancelled", 0, 0, 0, 0))

    def __del__(self) -> None:
        if getattr(self, "_events", None) is not None:
            self.close()


def _chunk_of(event: dict[str, Any]) -> Chunk:
    """The piece of an answer in an event of a stream."""
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
    """Warn of documents that were shortened, as a local engine does."""
    if answer.windows_left_out:
        warnings.warn(
            f"the documents do not fit the context: {answer.windows_left_out} windows were not read; split long "
            "documents to choose yourself",
            stacklevel=4,
        )
