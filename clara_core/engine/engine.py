"""The shared engine: text in, memories, rankings and answers out. A process has one instance of each model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Never, Unpack, cast

from torch import Tensor

from clara_core.data.examples import RetrievalLine
from clara_core.data.memory import Memory
from clara_core.engine.answer_options import AnswerOptions, read_options
from clara_core.engine.async_engine import AsyncCalls
from clara_core.engine.calibrating import BATCH, Judged, fit_calibration, judge_answers, without_gold
from clara_core.engine.calibration import Calibration
from clara_core.engine.checks import Message, Overflow, check_overflow, checked_texts
from clara_core.engine.door import connect, is_server
from clara_core.engine.evidence_streams import ExaminedStream
from clara_core.engine.inputs import Documents
from clara_core.engine.options import EngineArguments, engine_arguments
from clara_core.engine.requests import EncodeRequest
from clara_core.engine.sampling import Answer, Chunk, Sampling
from clara_core.engine.streams import AnswerStream
from clara_core.model.tokenizer import PARAPHRASE_INSTRUCTION
from clara_core.retrieval.ranking import Ranked, rank_memories, score_memories

__all__ = ["Answer", "Chunk", "ClaraEngine"]

BLOCK = 256  # texts to tokenize and queue at a time; two blocks are in progress at once

_engines: dict[EngineArguments, ClaraEngine] = {}
_engines_lock = threading.Lock()


class ClaraEngine(AsyncCalls):
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
        cuda_graphs: str = "auto",
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
            cuda_graphs: ``auto`` captures decode steps as CUDA graphs where that works, ``off`` never does.
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

    def __copy__(self) -> ClaraEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ClaraEngine:
        return self

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
                        pending.append(self._submit_documents(block, overflow))
                        if len(pending) == 1:
                            continue  # the next block is tokenized while the device works on this one
                    memories = self._collect(*pending[0])
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

    def reason(self, questions: Sequence[str]) -> Tensor:
        """Memory tokens of questions, ``[n_questions, n_mem, hidden]``, on the CPU, in the engine's dtype.

        Raises:
            RoleError: The checkpoint has no query reasoner.
        """
        request = self._question_request(questions)
        if request is None:
            return self._no_questions()
        tokens: Tensor = self._wait([request])[0]
        return tokens

    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Cosine of each question with the best window of each document: ``[n_questions, n_memories]``, float32."""
        memories = self._checked(memories)
        return score_memories(self.reason(questions), memories)

    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Rank documents for a question, best first; `top_k` None or larger than their number: all of them."""
        memories = self._checked(memories)
        return rank_memories(self.reason([question])[0], memories, top_k)

    # --- answers -----------------------------------------------------------------------------------------

    def chat_batch(
        self, conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Like `chat`, for many conversations in one batch, each with its own documents."""
        sampling, wanted = read_options(options)
        several = [self._ask(messages, memories, sampling, wanted) for messages, memories in conversations]
        answers = self._wait([one.request for one in several])
        return self._drive(self._examined(several, answers, wanted)) if wanted.afterwards else answers

    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AnswerStream:
        """Like `chat`, in pieces of text as they are generated."""
        sampling, wanted = read_options(options)
        chat = self._ask(messages, memories, sampling, wanted)
        if wanted.afterwards:
            return ExaminedStream(self, chat, wanted)
        return AnswerStream(chat.request, self._submit)

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
        from tqdm.auto import tqdm

        lines = without_gold(lines, unanswerable)
        judged: list[Judged] = []
        with tqdm(total=len(lines), desc="calibrating", unit="question", disable=not show_progress) as bar:
            for some in judge_answers(self, lines, top_k):
                judged += some
                bar.update(min(len(lines) - bar.n, BATCH))
        return fit_calibration(self, judged, unanswerable, top_k)


def _from_arguments(arguments: dict[str, Any]) -> ClaraEngine:
    return ClaraEngine.from_pretrained(**arguments)
