"""The calls of an engine, which holds a model in this process or asks a server for it. Imports no torch.

A call that takes several passes is written once, as steps (`clara_core.engine.steps`): the blocking call and the
awaitable one run the same steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self, Unpack

from clara_core.engine.checks import as_conversations, check_overflow, checked_texts, user_turn
from clara_core.engine.steps import Steps, T

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clara_core.data.memory import Memory, MemoryCache
    from clara_core.engine.answer_options import AnswerOptions
    from clara_core.engine.checks import Conversations, Message, Overflow
    from clara_core.engine.evidence import Attribution
    from clara_core.engine.fidelity import Fidelity
    from clara_core.engine.options import EngineArguments
    from clara_core.engine.remote.instance import RemoteTokenizer
    from clara_core.engine.sampling import Answer, Chunk, Pieces
    from clara_core.model.checkpoint.config import Role
    from clara_core.model.tokenizer import ClaraTokenizer
    from clara_core.retrieval.ranking import Ranked


class Engine(ABC):
    """One CLaRa model: text in, memories, rankings and answers out.

    `ClaraEngine` holds it in this process, `RemoteEngine` asks a server for it. Components use only these calls, so
    they work with either. The calls that begin with ``a`` are awaitable: they do the same and never block the event
    loop, and cancelling the task, or a timeout around it, stops the work.

    Attributes:
        arguments: Options of the engine.
        cache: Memories of documents by text, used by `remember`.
    """

    arguments: EngineArguments
    cache: MemoryCache

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self

    # --- facts of the model ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights and rate, stored in each memory."""

    @property
    @abstractmethod
    def n_mem(self) -> int:
        """Memory tokens of one window."""

    @property
    @abstractmethod
    def hidden(self) -> int:
        """Width of a memory token."""

    @property
    def dimension(self) -> int:
        """Length of a flattened memory: ``n_mem * hidden``."""
        return self.n_mem * self.hidden

    @property
    @abstractmethod
    def window(self) -> int:
        """Most text tokens that one window holds."""

    @property
    @abstractmethod
    def context(self) -> int:
        """Most positions that a prompt and its answer may take together."""

    @property
    @abstractmethod
    def answer_top_k(self) -> int:
        """Documents to read for an answer unless the caller says otherwise: as many as the generator reads well."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of memory tokens."""

    @property
    @abstractmethod
    def roles(self) -> tuple[Role, ...]:
        """Roles that the checkpoint holds."""

    @property
    @abstractmethod
    def tokenizer(self) -> ClaraTokenizer | RemoteTokenizer:
        """Counts tokens and cuts texts into windows."""

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return self.tokenizer.count_plain(text)

    @abstractmethod
    def load(self, *, show_progress: bool = False) -> object:
        """Load the model, or connect to the server, now instead of at first use."""

    @abstractmethod
    def unload(self) -> None:
        """Free the model, or forget the server's facts; the next use loads again."""

    # --- documents and questions -------------------------------------------------------------------------

    def compress(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> list[Memory]:
        """Compress documents, each into one memory, in the order given.

        Args:
            texts: Any number of documents.
            overflow: Treatment of a text longer than the window: ``split`` it at sentence or word boundaries into
                several windows, raise an ``error``, or ``truncate`` it with a warning.
            show_progress: Draw a progress bar.

        Raises:
            TypeError: `texts` is a single string, or an item is not a string.
            WindowOverflow: A text is too long and ``overflow="error"``.
        """
        return list(self.compress_stream(texts, overflow, show_progress=show_progress))

    @abstractmethod
    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        """Like `compress`, but yields each memory once it is ready."""

    @abstractmethod
    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Like `compress`, but texts in `cache` are not compressed again."""

    def reason(self, questions: Sequence[str]) -> Tensor:
        """Memory tokens of questions, ``[n_questions, n_mem, hidden]``, on the CPU, in the engine's dtype.

        Raises:
            RoleError: The checkpoint has no query reasoner.
        """
        return self._drive(self._reasoned(questions))

    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Cosine of each question with the best window of each document: ``[n_questions, n_memories]``, float32."""
        return self._drive(self._scored(questions, memories))

    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Rank documents for a question, best first; `top_k` None or larger than their number: all of them."""
        return self._drive(self._ranked(question, memories, top_k))

    # --- answers and their evidence ----------------------------------------------------------------------

    @abstractmethod
    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """Write a paraphrase of a document from its memory alone."""

    def answer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question from compressed documents, read in the order given; without any, from the model alone.

        Args:
            question: The question.
            memories: Documents.
            **options: ``max_tokens=128``, ``stop=None``, ``temperature=0.0``, ``top_p=1.0``, ``seed=None``,
                ``verbatim=None``: see `Sampling`. ``logprobs=False``, ``top_logprobs=0``, ``citations=False``,
                ``min_confidence=None``, ``read="memory"``, ``scores=None``, ``as_text=()``, ``unsure_text=...``: see
                `answer_options.Wanted`.

        Raises:
            ContextOverflow: The documents do not fit the context. If there is a query reasoner, a document with more
                windows than the generator was trained to read is shortened first, to its best windows for the
                question, with a warning and a count in ``Answer.windows_left_out``.
            FingerprintMismatch: A memory was made by another model.
        """
        return self.chat(user_turn(question), memories, **options)

    def answer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Answer many questions in one batch, each from its own documents (any number for each)."""
        return self.chat_batch(as_conversations(items), **options)

    def stream(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Pieces:
        """Answer a question in pieces of text as they are generated. Closing the stream stops the work."""
        return self.stream_chat(user_turn(question), memories, **options)

    def chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Answer the last user turn of a conversation, which may read compressed documents.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``, in any order that ends with the
                user; turns are merged as chat templates require (`clara_core.model.chat_format.merge_turns`).
            memories: Documents.
            **options: As in `answer`.
        """
        return self.chat_batch([(messages, memories)], **options)[0]

    def chat_batch(self, conversations: Conversations, **options: Unpack[AnswerOptions]) -> list[Answer]:
        """Like `chat`, for many conversations in one batch, each with its own documents."""
        return self._drive(self._answered(conversations, options))

    @abstractmethod
    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Pieces:
        """Like `chat`, in pieces of text as they are generated."""

    def attribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """Attribute an answer of this engine, or any other text, to documents, in the order in which they were read.

        Raises:
            ValueError: There is no document, or the answer is empty.
        """
        return self._drive(self._attributed(question, memories, answer))

    def logprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Log-probability of any text as the answer to a question, in nats, without the token that ends the answer.

        Raises:
            ValueError: The text is empty (`memories` may be).
        """
        return self._drive(self._logprob(question, memories, text))

    def fidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """Measure how well names, numbers and code can be read back from memories.

        It takes one pass a window, which costs about as much as compressing it.

        `instruction` is the prompt that asks to repeat the text, with ``{docs}`` in the place of the memory; None: the
        one of the published training.
        """
        return self._drive(self._fidelity(memories, instruction))

    # --- awaitable ---------------------------------------------------------------------------------------

    async def acompress(self, texts: Iterable[str], overflow: Overflow = "split") -> list[Memory]:
        """Awaitable `compress`."""
        check_overflow(overflow)
        return await self._adrive(self._compressed(list(checked_texts(texts)), overflow))

    @abstractmethod
    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        """Awaitable `remember`."""

    @abstractmethod
    async def afetch(self, memories: Sequence[Memory]) -> None:
        """Fetch the tensors of memories that are on a server, so that reading `Memory.tokens` does not block."""

    async def areason(self, questions: Sequence[str]) -> Tensor:
        """Awaitable `reason`."""
        return await self._adrive(self._reasoned(questions))

    async def ascore(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Awaitable `score`."""
        return await self._adrive(self._scored(questions, memories))

    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Awaitable `rank`."""
        return await self._adrive(self._ranked(question, memories, top_k))

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

    async def achat_batch(self, conversations: Conversations, **options: Unpack[AnswerOptions]) -> list[Answer]:
        """Awaitable `chat_batch`."""
        return await self._adrive(self._answered(conversations, options))

    async def aattribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """Awaitable `attribute`."""
        return await self._adrive(self._attributed(question, memories, answer))

    async def alogprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Awaitable `logprob`."""
        return await self._adrive(self._logprob(question, memories, text))

    async def afidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """Awaitable `fidelity`."""
        return await self._adrive(self._fidelity(memories, instruction))

    def astream(
        self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream`; leaving the loop over it early stops the work."""
        return self.astream_chat(user_turn(question), memories, **options)

    @abstractmethod
    def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""

    # --- the calls as steps, which check their arguments, too, and the two ways to run them --------------

    @abstractmethod
    def _drive(self, steps: Steps[T]) -> T: ...

    @abstractmethod
    async def _adrive(self, steps: Steps[T]) -> T: ...

    @abstractmethod
    def _compressed(self, texts: list[str], overflow: Overflow) -> Steps[list[Memory]]: ...

    @abstractmethod
    def _reasoned(self, questions: Sequence[str]) -> Steps[Tensor]: ...

    @abstractmethod
    def _scored(self, questions: Sequence[str], memories: Sequence[Memory]) -> Steps[Tensor]: ...

    @abstractmethod
    def _ranked(self, question: str, memories: Sequence[Memory], top_k: int | None) -> Steps[list[Ranked]]: ...

    @abstractmethod
    def _answered(self, conversations: Conversations, options: AnswerOptions) -> Steps[list[Answer]]: ...

    @abstractmethod
    def _attributed(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Steps[Attribution]: ...

    @abstractmethod
    def _logprob(self, question: str, memories: Sequence[Memory], text: str) -> Steps[float]: ...

    @abstractmethod
    def _fidelity(self, memories: Sequence[Memory], instruction: str | None) -> Steps[list[Fidelity]]: ...
