"""The compressor as an embedding model, for any vector store."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from langchain_core.embeddings import Embeddings
from pydantic import Field

from langchain_clara._engine import EngineFields

if TYPE_CHECKING:
    from clara_core import Memory
    from clara_core.retrieval.vectors import Array, VectorSpace


class ClaraEmbeddings(EngineFields, Embeddings):
    """Memories as vectors for other stores: the compressor embeds documents, the query reasoner embeds questions.

    A vector is a flattened memory of length one, so cosine, inner product and Euclidean distance give the same
    ranking. `ClaraVectorStore` searches the memories themselves and does not need this class. Many other stores do
    not accept vectors of 65,536 numbers (a document of the 7B model at rate 16): `dimensions` makes them shorter.

    Setup:
        ```bash
        pip install 'clara-rag[langchain]'
        ```

    Key init args:
        dimensions: int | None
            Length of the vectors; None is the full length ``n_mem * hidden``.
        overflow: "mean" | "error"
            What to do with a text that is longer than the compressor's window.
        model, compression, dtype, ... or engine:
            See `EngineFields`.

    Instantiate:
        ```python
        from langchain_clara import ClaraEmbeddings

        embeddings = ClaraEmbeddings(model="pocket", dimensions=1024)
        ```

    Embed:
        ```python
        embeddings.embed_documents(["The stone bridge was opened in 1907."])
        embeddings.embed_query("When was the stone bridge opened?")
        ```

    Async:
        ```python
        await embeddings.aembed_query("When was the stone bridge opened?")
        ```

    A text has one vector as a document and another one as a question: use a separate cache of embeddings for each.
    """

    dimensions: int | None = Field(default=None, ge=1)
    """Length of the vectors, by a seeded orthogonal projection; None is the full length.

    The error of a cosine has a standard deviation of ``(1 - cosine²) / sqrt(dimensions)``: 0.03 at 1,024 for texts that
    have nothing in common, less for similar texts.
    """
    seed: int = 0
    """Seed of the projection; only vectors with the same seed are comparable."""
    overflow: Literal["mean", "error"] = "mean"
    """For a text longer than the window: the mean of its windows' vectors with a warning, or a `WindowOverflow`."""
    show_progress: bool = False
    """Draw a progress bar while documents are compressed."""

    # --- LangChain's interface -------------------------------------------------------------------

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents, in order; texts in the engine's cache are not compressed again.

        Raises:
            WindowOverflow: A text is longer than the window and ``overflow="error"``.
        """
        if not texts:
            return []
        memories = self.shared_engine.remember(texts, show_progress=self.show_progress)
        return _lists(self.memory_vectors(memories))

    def embed_query(self, text: str) -> list[float]:
        """Vector of a question."""
        return _lists(self.space.questions(self.shared_engine.reason([text])))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents`, awaitable; no thread is occupied while the device works."""
        if not texts:
            return []
        engine = await self.ashared_engine()
        memories = await engine.aremember(texts)
        await engine.afetch(memories)
        return await asyncio.to_thread(lambda: _lists(self.memory_vectors(memories)))

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query`, awaitable."""
        engine = await self.ashared_engine()
        tokens = await engine.areason([text])
        return (await asyncio.to_thread(lambda: _lists(self.space.questions(tokens))))[0]

    # --- arrays ----------------------------------------------------------------------------------

    @property
    def space(self) -> VectorSpace:
        """The vectors that these embeddings make."""
        from clara_core.retrieval.vectors import VectorSpace

        return VectorSpace(self.shared_engine, self.dimensions, self.seed)

    def memory_vectors(self, memories: Sequence[Memory]) -> Array:
        """Vectors ``[n, length]`` of memories, in float32; `embed_documents` returns them as lists."""
        long = [memory for memory in memories if memory.n_windows > 1]
        if long:
            window = self.shared_engine.window
            which = f"the window of {window} tokens, such as {long[0].text[:60]!r}… of {long[0].source_tokens} tokens"
            if self.overflow == "error":
                from clara_core import WindowOverflow

                raise WindowOverflow(f"{len(long)} texts do not fit {which}; {_HOW}")
            warnings.warn(
                f"{len(long)} texts are longer than {which}: their vectors are means of their windows; {_HOW}",
                stacklevel=2,
            )
        return self.space.documents(memories)


_HOW = "split them with ClaraTextSplitter, or search them in a ClaraVectorStore, which keeps every window"


def _lists(vectors: Array) -> list[list[float]]:
    """Vectors as lists of Python floats."""
    lists: list[list[float]] = vectors.tolist()
    return lists
