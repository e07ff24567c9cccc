"""The shared engine: text in, memories, rankings and answers out. A process has one instance of each model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Never, Unpack, cast

import torch
from torch import Tensor

from clara_core.data.examples import RetrievalLine
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, Wanted, read_options
from clara_core.engine.attributing import Continuation, attribute
from clara_core.engine.calibrating import fit_calibration
from clara_core.engine.calibration import Calibration
from clara_core.engine.checks import Conversations, Message, Overflow, check_overflow, checked_texts, user_turn
from clara_core.engine.door import connect, is_server
from clara_core.engine.evidence import Attribution
from clara_core.engine.examining import examine_all
from clara_core.engine.fidelity import Fidelity, measure_fidelity
from clara_core.engine.inputs import Chat, Documents, prepare_documents
from clara_core.engine.options import EngineArguments, engine_arguments
from clara_core.engine.requests import EncodeRequest
from clara_core.engine.runtime import EngineInstance
from clara_core.engine.sampling import Answer, Chunk, Sampling
from clara_core.engine.steps import Steps
from clara_core.engine.streams import AnswerStream, stream_async
from clara_core.model.checkpoint.config import Role
from clara_core.model.tokenizer import PARAPHRASE_INSTRUCTION
from clara_core.retrieval.ranking import Ranked, rank_memories, score_memories

__all__ = ["Answer", "Chunk", "ClaraEngine"]

BLOCK = 256  # texts to tokenize and queue at a time; two blocks are in progress at once
AWAITED_BLOCK = 64  # texts of a block of an awaitable call; a cancelled task stops between blocks

_engines: dict[EngineArguments, ClaraEngine] = {}
_engines_lock = threading.Lock()


class ClaraEngine(EngineInstance):
    """One CLaRa model, shared by all callers in the process that ask for the same arguments.

    Make it with `from_pretrained`. It is safe to use from threads and from asyncio: calls become requests to one
    worker, which batches them. A copy is the object itself; a pickle holds the arguments and resolves them again.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        compression: int | None = None,
        base_model: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | None = None,
        attn_implementation: str = "auto",
        cpu_kernels: str = "auto",
        cuda_graphs: str = "off",
        reasoner: str = "auto",
        kv_cache_bytes: int | None = None,
        **unknown: Never,
    ) -> ClaraEngine:
        """The engine of these arguments; equal arguments give the same object. Weights load at first use.

        Args:
            model: A Hub id (``apple/CLaRa-7B-E2E``), a folder, or the bundled model ``pocket``, which is the default
                (announced once). The address of a server (``http://…``) gives a `RemoteEngine`, as
                `clara_core.open_engine` does.
            compression: The rate, if a repo holds several: its subfolder ``compression-N``. None: the smallest, which
                keeps most of a text.
            base_model: Hub id or folder of the base decoder, if not the one that the checkpoint names.
            revision: Branch, tag or commit of a Hub repo.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            device: ``auto`` or a torch device.
            dtype: ``auto`` (bfloat16 on a GPU, float32 elsewhere), ``float32``, ``bfloat16``, ``float16``.
            quantization: ``int8`` or ``nf4`` (bitsandbytes; ``int8`` on a CPU needs no package).
            attn_implementation: ``auto``, ``sdpa``, ``eager`` or ``flash_attention_2``.
            cpu_kernels: Matrix kernels on a CPU: ``auto`` (measured when a model loads, and cached),
                ``mkl`` or ``onednn``.
            cuda_graphs: ``auto`` captures decode steps as CUDA graphs where that works; not yet run on a card.
            reasoner: ``encoder`` lets the compressor read questions if a checkpoint has no query reasoner.
            kv_cache_bytes: Bytes of the KV cache of all running answers; None: most of the free memory at the first
                answer. The last number that a caller gave applies, from the next `unload` on.
            **unknown: Not accepted.

        Raises:
            UnknownOption: An option is unknown; the message names the nearest known one.
            ValueError: A value is invalid.
        """
        given = {name: value for name, value in locals().items() if name not in ("cls", "unknown")}
        if is_server(model):
            return cast("ClaraEngine", connect(str(model), {**given, **unknown}))  # another class with the same calls
        arguments = engine_arguments("ClaraEngine.from_pretrained", {**given, **unknown})
        with _engines_lock:
            engine = _engines.setdefault(arguments, cls(arguments))
            engine.arguments = engine.arguments.joined(arguments)
            return engine

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], ClaraEngine], tuple[dict[str, Any]]]:
        return _from_arguments, (self.arguments.public(),)

    # --- documents ---------------------------------------------------------------------------------------

    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        """Like `compress`, but yields each memory once it is ready: any number of texts in bounded memory."""
        from tqdm.auto import tqdm

        check_overflow(overflow)
        given, total = checked_texts(texts), len(texts) if isinstance(texts, Sequence) else None
        with tqdm(total=total, desc="compressing", unit="doc", disable=not show_progress) as bar:
            pending: list[tuple[Documents, EncodeRequest]] = []
            try:
                while (block := list(islice(given, BLOCK))) or pending:
                    if block:
                        pending.append(self._tokenized(block, overflow))
                        self._submit(pending[-1][1])
                        if len(pending) == 1:
                            continue  # the next block is tokenized while the device works on this one
                    documents, request = pending[0]
                    memories = documents.memories(request.future.result(), self.fingerprint)
                    del pending[0]  # only now: an interrupted wait has to cancel this request, too
                    for memory in memories:
                        yield memory
                        bar.update()
            finally:
                for _, request in pending:
                    request.cancel()

    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Like `compress`, but takes known texts from the engine's `cache` and adds the memories of new ones to it."""
        given = list(checked_texts(texts))
        known = self.cache.lookup(given, self.fingerprint)
        unknown = [text for text, memory in known.items() if memory is None]
        made = self.compress(unknown, show_progress=show_progress and bool(unknown))
        return self.cache.complete(given, known, made)

    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        """Awaitable `remember`."""
        given = list(checked_texts(texts))
        known = await asyncio.to_thread(lambda: self.cache.lookup(given, self.fingerprint))
        made = await self.acompress([text for text, memory in known.items() if memory is None])
        return self.cache.complete(given, known, made)

    async def afetch(self, memories: Sequence[Memory]) -> None:
        """Does nothing: the tensors are in this process already."""

    def _compressed(self, texts: list[str], overflow: Overflow) -> Steps[list[Memory]]:
        memories: list[Memory] = []
        for start in range(0, len(texts), AWAITED_BLOCK):
            documents, request = self._tokenized(texts[start : start + AWAITED_BLOCK], overflow)
            [tokens] = yield [request]
            memories += documents.memories(tokens, self.fingerprint)
        return memories

    def _tokenized(self, texts: list[str], overflow: Overflow) -> tuple[Documents, EncodeRequest]:
        self._require(Role.COMPRESSOR)
        documents = prepare_documents(texts, self.tokenizer, overflow)
        return documents, documents.request()

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """Write a paraphrase of a document from its memory alone.

        Args:
            memory: The document.
            instruction: Prompt with ``{docs}`` in the place of the document; None: one of the published training.
            max_tokens: Most tokens of the paraphrase.
        """
        sampling = Sampling(max_tokens=max_tokens)
        memories = self._checked([memory])
        ids = self.tokenizer.paraphrase_prompt(instruction or PARAPHRASE_INSTRUCTION, memory.n_windows)
        answer: Answer = self._wait([self._prompt_request(ids, memories, sampling)])[0]
        return answer

    # --- questions ---------------------------------------------------------------------------------------

    def _reasoned(self, questions: Sequence[str]) -> Steps[Tensor]:
        request = self._question_request(questions)
        if request is None:
            return torch.zeros(0, self.n_mem, self.hidden, dtype=self.dtype)
        tokens: list[Tensor] = yield [request]
        return tokens[0]

    def _scored(self, questions: Sequence[str], memories: Sequence[Memory]) -> Steps[Tensor]:
        memories = self._checked(memories)
        return score_memories((yield from self._reasoned(questions)), memories)

    def _ranked(self, question: str, memories: Sequence[Memory], top_k: int | None) -> Steps[list[Ranked]]:
        memories = self._checked(memories)
        tokens = yield from self._reasoned([question])
        return rank_memories(tokens[0], memories, top_k)

    # --- answers -----------------------------------------------------------------------------------------

    def _ask(self, messages: Sequence[Message], memories: Sequence[Memory], sampling: Sampling, wanted: Wanted) -> Chat:
        memories = self._checked(memories)
        if wanted.scores is not None and len(wanted.scores) != len(memories):
            raise ValueError(f"scores must have one number a document: got {len(wanted.scores)} for {len(memories)}")
        request = self._chat_request(messages, memories, sampling, wanted.as_text)
        self._prepare_evidence(request, wanted)
        return Chat(messages, memories, sampling, request)

    def _answered(self, conversations: Conversations, options: AnswerOptions) -> Steps[list[Answer]]:
        sampling, wanted = read_options(options)
        several = [self._ask(messages, memories, sampling, wanted) for messages, memories in conversations]
        answers: list[Answer] = yield [one.request for one in several]
        if wanted.afterwards:
            answers = yield from examine_all(self, several, answers, wanted)
        return answers

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AnswerStream:
        """Like `chat`, in pieces of text as they are generated."""
        sampling, wanted = read_options(options)
        return AnswerStream(self, self._ask(messages, memories, sampling, wanted), wanted)

    def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""
        sampling, wanted = read_options(options)
        return stream_async(self, lambda: self._ask(messages, memories, sampling, wanted), wanted)

    # --- evidence ----------------------------------------------------------------------------------------

    def _attributed(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Steps[Attribution]:
        text = answer.draft or answer.text if isinstance(answer, Answer) else answer
        continuation = self._as_continuation(question, memories, text)
        if not continuation.prompt.documents:
            raise ValueError("memories is empty: an answer is attributed to documents, give at least one")
        return (yield from attribute(continuation, self.tokenizer))

    def _logprob(self, question: str, memories: Sequence[Memory], text: str) -> Steps[float]:
        request = self._as_continuation(question, memories, text).judged(self.tokenizer, [frozenset()])
        [logs] = yield [request]
        return float(logs.sum())

    def _fidelity(self, memories: Sequence[Memory], instruction: str | None) -> Steps[list[Fidelity]]:
        self._require(Role.GENERATOR)
        memories = self._checked(memories)
        return (yield from measure_fidelity(memories, instruction or PARAPHRASE_INSTRUCTION, self.tokenizer))

    def _as_continuation(self, question: str, memories: Sequence[Memory], text: object) -> Continuation:
        if not isinstance(text, str):
            raise TypeError(f"the answer must be a string or an Answer, got {type(text).__name__}: {text!r:.60}")
        messages = user_turn(question)
        prompt = self._chat_request(messages, memories, Sampling(max_tokens=1, verbatim=False))  # generates nothing
        windows = sum(memory.n_windows for memory in prompt.documents)
        ids = self.tokenizer.continuation_ids(messages, windows, text)
        if not ids:
            raise ValueError(f"the answer is empty: {text!r}; it must have at least one token")
        return Continuation(prompt, ids, text, question)

    # --- confidence --------------------------------------------------------------------------------------

    def calibrate(
        self, lines: Sequence[RetrievalLine], *, top_k: int = 5, unanswerable: float = 0.3, show_progress: bool = False
    ) -> Calibration:
        """Fit the confidence of this model's answers to questions with known answers; neither writes nor sets it.

        Each question is answered from its best ranked candidates. An answer is right if it contains one of the line's
        answers, word for word, ignoring case.

        Args:
            lines: Questions with candidates, as returned by `clara_core.evaluation.read_questions`: 300 or more, with
                questions and documents like those in use.
            top_k: Documents to read for a question.
            unanswerable: Share of the questions whose gold documents are removed, so that the fit also sees answers
                that no document supports.
            show_progress: Draw a progress bar.

        Raises:
            ValueError: There are too few lines, or nearly all answers are right, or nearly all are wrong.
        """
        return fit_calibration(self, lines, top_k, unanswerable, show_progress=show_progress)


def _from_arguments(arguments: dict[str, Any]) -> ClaraEngine:
    return ClaraEngine.from_pretrained(**arguments)
