"""Engine calls about existing texts: attribution to documents, log-probability, fidelity of memories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from clara_core.checkpoint.config import Role
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import Wanted
from clara_core.engine.attributing import Continuation, attribute
from clara_core.engine.checks import Message, user_turn
from clara_core.engine.evidence import Attribution
from clara_core.engine.examining import Chat, examine
from clara_core.engine.fidelity import Fidelity, measure_fidelity
from clara_core.engine.requests import Request
from clara_core.engine.runtime import EngineInstance
from clara_core.engine.sampling import Answer, Sampling
from clara_core.engine.steps import Steps, together
from clara_core.engine.streams import off_loop, results
from clara_core.model.tokenizer import PARAPHRASE_INSTRUCTION

T = TypeVar("T")


class EvidenceCalls(EngineInstance):
    """Calls about texts that were generated or written before."""

    def attribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """Attribute an answer of any origin to the documents.

        Args:
            question: The question.
            memories: The documents, in the order in which they were read.
            answer: An answer of this engine, or any text.

        Raises:
            ValueError: There is no document, or the answer is empty.
        """
        return self._drive(self._attributed(question, memories, answer))

    async def aattribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """Awaitable `attribute`."""
        return await self._adrive(lambda: self._attributed(question, memories, answer))

    def logprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Log-probability of a text as the answer to a question, in nats, without the token that ends the answer.

        Args:
            question: The question.
            memories: The documents; may be empty.
            text: Any text.

        Raises:
            ValueError: The text is empty.
        """
        return self._drive(self._logprob(question, memories, text))

    async def alogprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Awaitable `logprob`."""
        return await self._adrive(lambda: self._logprob(question, memories, text))

    def fidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """Measure how well names, numbers and code can be read back from memories.

        It takes one pass a window, which costs about as much as compressing it.

        Args:
            memories: Documents.
            instruction: Prompt that asks to repeat the text, with ``{docs}`` in the place of the memory; None: the one
                of the published training.
        """
        return self._drive(self._fidelity(memories, instruction))

    async def afidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """Awaitable `fidelity`."""
        return await self._adrive(lambda: self._fidelity(memories, instruction))

    # --- steps, for blocking and asynchronous calls ------------------------------------------------------

    def _attributed(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Steps[Attribution]:
        text = answer.draft or answer.text if isinstance(answer, Answer) else answer
        continuation = self._as_continuation(question, memories, text)
        if not continuation.prompt.documents:
            raise ValueError("memories is empty: an answer is attributed to documents, give at least one")
        return attribute(continuation, self.tokenizer)

    def _fidelity(self, memories: Sequence[Memory], instruction: str | None) -> Steps[list[Fidelity]]:
        self._require(Role.GENERATOR)
        return measure_fidelity(self._checked(memories), instruction or PARAPHRASE_INSTRUCTION, self.tokenizer)

    def _logprob(self, question: str, memories: Sequence[Memory], text: str) -> Steps[float]:
        request = self._as_continuation(question, memories, text).judged(self.tokenizer, [frozenset()])
        [logs] = yield [request]
        return float(logs.sum())

    def _as_continuation(self, question: str, memories: Sequence[Memory], text: object) -> Continuation:
        if not isinstance(text, str):
            raise TypeError(f"the answer must be a string or an Answer, got {type(text).__name__}: {text!r:.60}")
        messages = user_turn(question)
        prompt = self._chat_request(messages, memories, Sampling(max_tokens=1))
        windows = sum(memory.n_windows for memory in prompt.documents)
        ids = self.tokenizer.continuation_ids(messages, windows, text)
        if not ids:
            raise ValueError(f"the answer is empty: {text!r}; it must have at least one token")
        return Continuation(prompt, ids, text, question)

    def _ask(self, messages: Sequence[Message], memories: Sequence[Memory], sampling: Sampling, wanted: Wanted) -> Chat:
        memories = self._checked(memories)
        if wanted.scores is not None and len(wanted.scores) != len(memories):
            raise ValueError(f"scores must have one number a document: got {len(wanted.scores)} for {len(memories)}")
        request = self._chat_request(messages, memories, sampling, wanted.as_text)
        if wanted.attends:
            self._watch(request)
        return Chat(messages, memories, sampling, request)

    def _examined(self, several: Sequence[Chat], answers: Sequence[Answer], wanted: Wanted) -> Steps[list[Answer]]:
        """Examine answers together."""
        work = [examine(self, one, answer, wanted) for one, answer in zip(several, answers, strict=True)]
        return (yield from together(work))

    def _drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._wait)

    async def _adrive(self, make: Callable[[], Steps[T]]) -> T:
        """Run steps without blocking the event loop: the code between two waits runs in a thread."""
        given: list[Any] | None = None
        steps: Steps[T] | None = None
        found: list[T] = []

        def advance() -> list[Request]:
            nonlocal steps
            try:
                if steps is None:
                    steps = make()
                requests = next(steps) if given is None else steps.send(given)
            except StopIteration as done:
                found.append(done.value)
                return []
            self._submit_all(requests)
            return requests

        while True:
            requests = await off_loop(advance)
            if found:
                return found[0]
            given = await results(requests)


def drive(steps: Steps[T], wait: Callable[[list[Request]], list[Any]]) -> T:
    """Run steps to their end; `wait` submits requests and returns their results."""
    try:
        requests = next(steps)
        while True:
            requests = steps.send(wait(requests))
    except StopIteration as done:
        value: T = done.value
        return value
