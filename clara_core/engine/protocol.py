"""What an engine is to everyone who uses one: a model in this process, or one behind a server. Loads nothing itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, Unpack

from clara_core.engine.checks import Message, Overflow

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from clara_core.checkpoint.config import Role
    from clara_core.data.memory import Memory, MemoryCache
    from clara_core.engine.answer_options import AnswerOptions
    from clara_core.engine.evidence import Attribution
    from clara_core.engine.fidelity import Fidelity
    from clara_core.engine.options import EngineArguments
    from clara_core.engine.sampling import Answer, Chunk
    from clara_core.retrieval.ranking import Ranked


class EngineTokenizer(Protocol):
    """What others may ask the tokenizer of an engine."""

    def count(self, text: str) -> int:
        """Tokens of a text as a passage."""
        ...

    def windows(self, text: str, *, first_only: bool = False, reserve: int = 0) -> list[tuple[int, int]]:
        """Character spans of the windows that a text is cut into."""
        ...

    def count_plain(self, text: str) -> int:
        """Tokens of a text by itself."""
        ...

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text by itself."""
        ...

    def chat_prompt(self, messages: Sequence[Message], n_windows: int) -> list[int]:
        """Ids of a conversation over so many windows of documents."""
        ...


class Pieces(Iterator["Chunk"], Protocol):
    """The pieces of one answer; the last one carries the whole `Answer`. Closing it stops the work."""

    def cancel(self) -> None:
        """Stop writing; the pieces so far can still be read, and the last one says "cancelled"."""
        ...

    def close(self) -> None:
        """Stop writing and listening."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(ABC):
    """One CLaRa model: text in, memories, rankings and answers out.

    `ClaraEngine` holds it in this process, `RemoteEngine` asks a server for it. Components use these calls alone and do
    not ask which of the two they hold. What the calls mean is written at `ClaraEngine`.
    """

    arguments: EngineArguments
    cache: MemoryCache

    # --- what it is --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights and rate; memories carry it."""

    @property
    @abstractmethod
    def n_mem(self) -> int:
        """Memory tokens of one window."""

    @property
    @abstractmethod
    def hidden(self) -> int:
        """Width of a memory token."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of a flattened memory: ``n_mem * hidden``."""

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
    def dtype(self) -> torch.dtype:
        """Type of memory tokens."""

    @property
    @abstractmethod
    def roles(self) -> tuple[Role, ...]:
        """Roles that the checkpoint holds."""

    @property
    @abstractmethod
    def tokenizer(self) -> EngineTokenizer:
        """Counts tokens and cuts texts into windows."""

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""

    @abstractmethod
    def load(self, *, show_progress: bool = False) -> object:
        """Get ready now instead of at first use."""

    @abstractmethod
    def unload(self) -> None:
        """Let go of what is held; the next use gets ready again."""

    # --- documents and questions -------------------------------------------------------------------------

    @abstractmethod
    def compress(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> list[Memory]:
        """Compress documents, each into one memory, in the order given."""

    @abstractmethod
    def compress_stream(
        self, texts: Iterable[str], overflow: Overflow = "split", *, show_progress: bool = False
    ) -> Iterator[Memory]:
        """`compress`, one by one."""

    @abstractmethod
    def remember(self, texts: Iterable[str], *, show_progress: bool = False) -> list[Memory]:
        """Memories of documents; a text that was compressed before costs nothing."""

    @abstractmethod
    def reason(self, questions: Sequence[str]) -> Tensor:
        """Memory tokens of questions, ``[n, n_mem, hidden]``, on the processor."""

    @abstractmethod
    def score(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Cosine of each question with each document's best window: ``[n_questions, n_memories]``."""

    @abstractmethod
    def rank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """The documents for a question, best first."""

    # --- answers -----------------------------------------------------------------------------------------

    @abstractmethod
    def paraphrase(self, memory: Memory, instruction: str | None = None, max_tokens: int = 128) -> Answer:
        """Say a document again from its memory alone."""

    @abstractmethod
    def answer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Answer a question from compressed documents."""

    @abstractmethod
    def answer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Answer many questions together, each from its own documents."""

    @abstractmethod
    def stream(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Pieces:
        """The answer in pieces, as it is written."""

    @abstractmethod
    def chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Go on with a conversation; the last user turn may read compressed documents."""

    @abstractmethod
    def chat_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """Go on with many conversations together."""

    @abstractmethod
    def stream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Pieces:
        """`chat`, in pieces."""

    # --- what texts stand on -----------------------------------------------------------------------------

    @abstractmethod
    def attribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """What an answer to a question stands on, whoever wrote it."""

    @abstractmethod
    def logprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Log-probability of a text as the answer to a question."""

    @abstractmethod
    def fidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """What memories have kept of their texts."""

    # --- awaitable ---------------------------------------------------------------------------------------

    @abstractmethod
    async def acompress(self, texts: Iterable[str], overflow: Overflow = "split") -> list[Memory]:
        """Awaitable `compress`."""

    @abstractmethod
    async def aremember(self, texts: Iterable[str]) -> list[Memory]:
        """Awaitable `remember`."""

    @abstractmethod
    async def areason(self, questions: Sequence[str]) -> Tensor:
        """Awaitable `reason`."""

    @abstractmethod
    async def ascore(self, questions: Sequence[str], memories: Sequence[Memory]) -> Tensor:
        """Awaitable `score`."""

    @abstractmethod
    async def arank(self, question: str, memories: Sequence[Memory], top_k: int | None = None) -> list[Ranked]:
        """Awaitable `rank`."""

    @abstractmethod
    async def aanswer(self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]) -> Answer:
        """Awaitable `answer`."""

    @abstractmethod
    async def aanswer_batch(
        self, items: Sequence[tuple[str, Sequence[Memory]]], **options: Unpack[AnswerOptions]
    ) -> list[Answer]:
        """Awaitable `answer_batch`."""

    @abstractmethod
    async def achat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> Answer:
        """Awaitable `chat`."""

    @abstractmethod
    async def achat_batch(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Memory]]],
        **options: Unpack[AnswerOptions],
    ) -> list[Answer]:
        """Awaitable `chat_batch`."""

    @abstractmethod
    async def aattribute(self, question: str, memories: Sequence[Memory], answer: Answer | str) -> Attribution:
        """Awaitable `attribute`."""

    @abstractmethod
    async def alogprob(self, question: str, memories: Sequence[Memory], text: str) -> float:
        """Awaitable `logprob`."""

    @abstractmethod
    async def afidelity(self, memories: Sequence[Memory], instruction: str | None = None) -> list[Fidelity]:
        """Awaitable `fidelity`."""

    @abstractmethod
    def astream(
        self, question: str, memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream`; leaving the loop over it early stops the work."""

    @abstractmethod
    def astream_chat(
        self, messages: Sequence[Message], memories: Sequence[Memory] = (), **options: Unpack[AnswerOptions]
    ) -> AsyncIterator[Chunk]:
        """Asynchronous `stream_chat`."""
