"""The engine's calls for asyncio: they submit the same requests and never block the event loop.

Tokenizing and loading run in a thread. Cancelling a task, or a timeout around it, stops the work on the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Unpack

from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.checks import Message, Overflow, check_overflow, checked_texts
from clara_core.engine.evidence_calls import EvidenceCalls
from clara_core.engine.evidence_streams import examined_stream
from clara_core.engine.examining import Chat
from clara_core.engine.inputs import Documents
from clara_core.engine.requests import EncodeRequest, GenerateRequest
from clara_core.engine.sampling import Answer, Chunk
from clara_core.engine.streams import off_loop, results, stream_async
from clara_core.retrieval.ranking import Ranked, rank_memories, score_memories

BLOCK = 64  # texts to tokenize at a time; a cancelled task stops between blocks


class AsyncCalls(EvidenceCalls):
    """Awaitable versions of the calls of `ClaraEngine`, with the same arguments and results."""

    async def acompress(self, texts: Iterable[str], overflow: Overflow = "split") -> list[Memory]:
        """Awaitable `compress`."""
        check_overflow(overflow)
        given = list(checked_texts(texts))
        memories: list[Memory] = []
        for start in range(0, len(given), BLOCK):
            prepared: list[Documents] = []

            def submit(
                block: list[str] = given[start : start + BLOCK], out: list[Documents] = prepared
            ) -> list[EncodeRequest]:
                documents, request = self._submit_documents(block, overflow)
                out.append(documents)
                return [request]

            requests = await off_loop(submit)
            await results(requests)
            memories += await asyncio.to_thread(self._collect, prepared[0], requests[0])
        return memories

    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        """Awaitable `remember`."""
        given = list(checked_texts(texts))
        known = await asyncio.to_thread(lambda: self.cache.lookup(given, self.fingerprint))
        made = await self.acompress([text for text, memory in known.items() if memory is None])
        return self.cache.complete(given, known, made)

    async def afetch(self, memories: Sequence[Memory]) -> None:
        """Does nothing: the tensors are in this process already."""

    async def areason(self, questions: Sequence[str]) -> Tensor:
        """Awaitable `reason`."""

        def submit() -> list[EncodeRequest]:
            request = self._question_request(questions)
            if request is None:
                return []
            self._submit(request)
            return [request]

        tokens = await results(await off_loop(submit))
        return tokens[0] if tokens else self._no_questions()

    async def ascore(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Awaitable `score`."""
        memories = await asyncio.to_thread(self._checked, memories)
        return await asyncio.to_thread(score_memories, await self.areason(questions), memories)

    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Awaitable `rank`."""
        memories = await asyncio.to_thread(self._checked, memories)
        tokens = await self.areason([question])
        return await asyncio.to_thread(rank_memories, tokens[0], memories, top_k)

    async def achat_batch(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Awaitable `chat_batch`."""
        sampling, wanted = read_options(options)
        several: list[Chat] = []

        def submit() -> list[GenerateRequest]:
            several.extend(self._ask(messages, memories, sampling, wanted) for messages, memories in conversations)
            requests = [one.request for one in several]
            self._submit_all(requests)
            return requests

        answers = await results(await off_loop(submit))
        if not wanted.afterwards:
            return answers
        return await self._adrive(lambda: self._examined(several, answers, wanted))

    def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""
        sampling, wanted = read_options(options)
        if wanted.afterwards:
            return examined_stream(self, lambda: self._ask(messages, memories, sampling, wanted), wanted)
        return stream_async(lambda: self._ask(messages, memories, sampling, wanted).request, self._submit)
