"""The shared engine: text in, memories, rankings and answers out. One instance a model in the whole process."""

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
from clara_core.engine.calibrating import Judged, fit_calibration, judge_answers, without_gold
from clara_core.engine.calibration import Calibration
from clara_core.engine.checks import Message, Overflow, as_conversations, check_overflow, checked_texts, user_turn
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

BLOCK = 256  # texts that are tokenized and queued at a time; two blocks are on their way

_engines: dict[EngineArguments, ClaraEngine] = {}
_engines_lock = threading.Lock()


class ClaraEngine(AsyncCalls):
    """One CLaRa model, shared by everyone in the process who asks for the same one.

    Make it with `from_pretrained`. Safe under threads and asyncio: calls become requests of one worker, which batches
    them. Copies are the object itself; a pickle carries the arguments and resolves them again.
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
        reasoner: str = "auto",
        kv_cache_bytes: int | None = None,
        **unknown: Never,
    ) -> ClaraEngine:
        """The engine of these arguments; the same object for the same ones. Weights load at first use.

        Args:
            model: A Hub id (``apple/CLaRa-7B-E2E``), a folder, or the bundled name ``pocket``, which answers (and says
                so once) where none is named. The address of a server (``http://…``) gives its `RemoteEngine`, as
                `clara_core.open_engine` does.
            compression: The rate, where a repo holds several: its subfolder ``compression-N``. None: the smallest,
                which keeps most of a text.
            base_model: The base decoder, if not the one that the checkpoint names.
            revision: Branch, tag or commit of a Hub repo.
            token: Access token for the Hub.
            cache_dir: Where downloads are kept.
            local_files_only: Never use the network.
            device: ``auto`` or a torch device.
            dtype: ``auto`` (bfloat16 on a GPU, float32 elsewhere), ``float32``, ``bfloat16``, ``float16``.
            quantization: ``int8`` or ``nf4`` (bitsandbytes; ``int8`` on a processor needs no package).
            attn_implementation: ``auto``, ``sdpa``, ``eager`` or ``flash_attention_2``.
            cpu_kernels: What multiplies on a processor: ``auto`` (measured when a model loads, and remembered),
                ``mkl`` or ``onednn``.
            reasoner: ``encoder`` lets the compressor read questions where a checkpoint has no query reasoner.
            kv_cache_bytes: Set aside for the keys and values of all answers being written; None: most of what is free
                when the first one is. Whoever gave a number last decides, from the next `unload` on.
            **unknown: There are no others.

        Raises:
            UnknownOption: Another option; names the nearest right one.
            ValueError: A value that no engine can have.
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
        return _resolve_again, (self.arguments.public(),)

    # --- documents ---------------------------------------------------------------------------------------

    def compress(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> list[Memory]:
        """Compress documents, each into one memory, in the order given.

        Args:
            texts: Any number of documents.
            overflow: What to do with a text longer than the window: ``split`` it at sentence or word boundaries into
                several windows, raise an ``error``, or ``truncate`` it with a warning.
            show_progress: Draw a progress bar.

        Raises:
            WindowOverflow: A text is too long and ``overflow="error"``.
        """
        return list(self.compress_stream(texts, overflow, show_progress=show_progress))

    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        """Like `compress`, but yields memories as they are made: any number of texts in bounded memory."""
        from tqdm.auto import tqdm

        check_overflow(overflow)
        total = len(texts) if isinstance(texts, Sequence) else None
        with tqdm(total=total, desc="compressing", unit="doc", disable=not show_progress) as bar:
            under_way: list[tuple[Documents, EncodeRequest]] = []
            try:
                for block in _blocks(checked_texts(texts)):
                    # The next block is tokenized while the device works on the last one.
                    under_way.append(self._submit_documents(block, overflow))
                    if len(under_way) > 1:
                        memories = self._collect(*under_way[0])
                        del under_way[0]  # only now: if the waiting is interrupted, it has to be cancelled too
                        for memory in memories:
                            yield memory
                            bar.update()
                while under_way:
                    memories = self._collect(*under_way[0])
                    del under_way[0]
                    for memory in memories:
                        yield memory
                        bar.update()
            finally:
                for _, request in under_way:
                    request.cancel()

    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Memories of documents by way of `cache`: a text that was compressed before costs nothing."""
        given = list(checked_texts(texts))
        known = self.cache.lookup(given, self.fingerprint)
        unknown = [text for text, memory in known.items() if memory is None]
        made = self.compress(unknown, show_progress=show_progress and bool(unknown))
        return self.cache.complete(given, known, made)

    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """Say a document again from its memory alone; ``{docs}`` in the instruction is the document's place."""
        sampling = Sampling(max_tokens=max_tokens)
        memories = self._checked([memory])
        ids = self.tokenizer.paraphrase_prompt(instruction or PARAPHRASE_INSTRUCTION, memory.n_windows)
        answer: Answer = self._wait([self._prompt_request(ids, memories, sampling)])[0]
        return answer

    # --- questions ---------------------------------------------------------------------------------------

    def reason(self, questions: Sequence[str]) -> Tensor:
        """Memory tokens of questions, ``[n, n_mem, hidden]``, on the processor.

        Raises:
            RoleError: The checkpoint has no query reasoner.
        """
        request = self._question_request(questions)
        if request is None:
            return self._no_questions()
        tokens: Tensor = self._wait([request])[0]
        return tokens

    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Cosine of each question with each document's best window: ``[n_questions, n_memories]``, float32."""
        memories = self._checked(memories)
        return score_memories(self.reason(questions), memories)

    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """The documents for a question, best first; `top_k` larger than their number means all."""
        memories = self._checked(memories)
        return rank_memories(self.reason([question])[0], memories, top_k)

    # --- answers -----------------------------------------------------------------------------------------

    def answer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question from compressed documents, in the order given; without any, from the model alone.

        Args:
            question: The question.
            memories: Documents.
            **options: ``max_tokens=128``, ``stop=None``, ``temperature=0.0``, ``top_p=1.0``, ``seed=None``: see
                `Sampling`. ``logprobs=False``, ``top_logprobs=0``, ``citations=False``, ``min_confidence=None``,
                ``read="memory"``, ``scores=None``, ``unsure_text=...``: see `answer_options.Wanted`.

        Raises:
            ContextOverflow: The documents do not fit the context. Only a document of more windows than the generator
                was trained to read is shortened first, where there is a query reasoner: to its best windows for the
                question, with a warning and a count in ``Answer.windows_left_out``.
            FingerprintMismatch: A memory was made by another model.
        """
        return self.chat(user_turn(question), memories, **options)

    def answer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Answer many questions together, each from its own documents (any number for each)."""
        return self.chat_batch(as_conversations(items), **options)

    def stream(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> AnswerStream:
        """The answer in pieces, as it is written. Closing the stream stops the work."""
        return self.stream_chat(user_turn(question), memories, **options)

    def chat(
        self,
        messages: Sequence[Message],
        memories: Sequence[Memory] = (),
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Go on with a conversation; the last user turn may read compressed documents.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``, in any order that ends with the
                user; turns are merged as chat templates want them (`clara_core.model.chat_format.merge_turns`).
            memories: Documents.
            **options: As in `answer`.
        """
        return self.chat_batch([(messages, memories)], **options)[0]

    def chat_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """Go on with many conversations together, each over its own documents."""
        sampling, wanted = read_options(options)
        several = [self._ask(messages, memories, sampling, wanted) for messages, memories in conversations]
        answers = self._wait([one.request for one in several])
        return self._drive(self._examined(several, answers, wanted)) if wanted.afterwards else answers

    def stream_chat(
        self,
        messages: Sequence[Message],
        memories: Sequence[Memory] = (),
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream:
        """Like `chat`, in pieces."""
        sampling, wanted = read_options(options)
        asked_for = self._ask(messages, memories, sampling, wanted)
        if wanted.afterwards:
            return ExaminedStream(self, asked_for, wanted)
        return AnswerStream(asked_for.request, self._submit)

    # --- how sure answers may be -------------------------------------------------------------------------

    def calibrate(
        self, lines: Sequence[RetrievalLine], progress: bool = False, *, top_k: int = 5, unanswerable: float = 0.3
    ) -> Calibration:
        """How sure answers of this model may be, from questions with known answers; writes nothing and sets nothing.

        Each question is asked over the best ranked of its candidates. An answer is right if one of the line's answers
        stands in it, word for word but for the case.

        Args:
            lines: Questions with candidates, as `clara_core.evaluation.read_questions` gives them. Of questions like
                those that will be asked, over documents like those that will be read; 300 or more.
            progress: Draw a progress bar.
            top_k: Documents that are read for a question.
            unanswerable: Share of the questions whose gold documents are taken away, so that confidence also knows what
                answers without any ground look like.

        Raises:
            ValueError: Too few lines, or nearly all answers right, or wrong.
        """
        from tqdm.auto import tqdm

        lines = without_gold(lines, unanswerable)
        judged: list[Judged] = []
        with tqdm(total=len(lines), desc="calibrating", unit="question", disable=not progress) as bar:
            for some in judge_answers(self, lines, top_k):
                judged += some
                bar.update(min(len(lines) - bar.n, 16))
        return fit_calibration(self, judged, unanswerable, top_k)


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    while block := list(islice(texts, BLOCK)):
        yield block


def _resolve_again(arguments: dict[str, Any]) -> ClaraEngine:
    return ClaraEngine.from_pretrained(**arguments)
