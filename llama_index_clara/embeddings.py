"""A LlamaIndex embedding model made of the compressor and the query reasoner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.schema import BaseNode
from pydantic import Field, PrivateAttr, field_validator

from llama_index_clara._engine import EngineFields
from llama_index_clara._nodes import announced_long, begins_with_file, text_of

if TYPE_CHECKING:
    from clara_core.retrieval.vectors import VectorSpace

log = logging.getLogger(__name__)


class ClaraEmbedding(EngineFields, BaseEmbedding):
    """Embeds texts with the compressor and questions with the query reasoner, as unit vectors of the same space.

    A vector is a flattened memory: `dimension` numbers (65,536 for a 7B model at rate 16). With ``dimensions=m`` it is
    projected to m numbers, which approximately keeps cosines and fits databases with shorter vectors. The memory itself
    stays in the engine's cache, where a reranker or synthesizer of the same model finds it by the text.

    A text longer than the compressor's window becomes several windows, and its vector the mean of their directions,
    with a warning in the log: split documents with `ClaraNodeParser`. The parser also excludes metadata about a file,
    which an index would otherwise put before the text of a node.

    Example:
        ```python
        Settings.embed_model = ClaraEmbedding(model="pocket")
        index = VectorStoreIndex.from_documents(documents, transformations=[ClaraNodeParser(model="pocket")])
        ```
    """

    dimensions: int | None = Field(default=None, ge=1, description="Numbers of a vector; None is the full length.")
    overflow: Literal["split", "error", "truncate"] = Field(
        default="split", description="What to do with a text that is longer than the window."
    )

    _warned: set[str] = PrivateAttr(default_factory=set)  # each warning is logged once

    def __init__(self, engine: Any = None, **options: Any) -> None:
        """See `EngineFields`; ``model_name=`` means the same as ``model=``."""
        name = options.pop("model_name", None)
        if name is not None and options.setdefault("model", name) != name:
            raise ValueError(f"model= and model_name= mean the same, got {options['model']!r} and {name!r}")
        super().__init__(engine=engine, **options)
        self.model_name = self.model

    @field_validator("embeddings_cache")
    @classmethod
    def _check_cache(cls, value: Any) -> Any:
        return _no_cache(value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _no_cache(value) if name == "embeddings_cache" else value)

    @property
    def space(self) -> VectorSpace:
        """The vectors that this embedding model makes."""
        from clara_core.retrieval.vectors import VectorSpace

        return VectorSpace(self.engine, self.dimensions)

    # --- questions ---------------------------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._lists(self.space.questions(self.engine.reason([query])))[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        tokens = await (await self.aengine()).areason([query])
        return (await asyncio.to_thread(lambda: self._lists(self.space.questions(tokens))))[0]

    # --- nodes -------------------------------------------------------------------------------------------

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Set the embeddings of nodes, as a step of a pipeline."""
        vectors = self.get_text_embedding_batch([text_of(node) for node in nodes], **kwargs)
        return self._embedded(nodes, vectors)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """`__call__`, awaitable."""
        vectors = await self.aget_text_embedding_batch([text_of(node) for node in nodes], **kwargs)
        return self._embedded(nodes, vectors)

    @staticmethod
    def _embedded(nodes: Sequence[BaseNode], vectors: Sequence[Embedding]) -> Sequence[BaseNode]:
        for node, vector in zip(nodes, vectors, strict=True):
            node.embedding = vector
        return nodes

    # --- texts -------------------------------------------------------------------------------------------

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        engine = self.engine
        memories = engine.remember(texts) if self.overflow == "split" else engine.compress(texts, self.overflow)
        return self._vectors(memories)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        engine = await self.aengine()
        if self.overflow == "split":
            memories = await engine.aremember(texts)
            await engine.afetch(memories)
        else:
            memories = await engine.acompress(texts, self.overflow)
        return await asyncio.to_thread(self._vectors, memories)

    def _vectors(self, memories: Sequence[Any]) -> list[Embedding]:
        if any(begins_with_file(memory.text) for memory in memories):
            self._warn_once(
                "texts begin with metadata about their files, such as file_path, and are embedded with it. "
                "Split documents with ClaraNodeParser, or list those keys in excluded_embed_metadata_keys."
            )
        elif any(memory.n_windows > 1 and not announced_long(memory.text) for memory in memories):
            self._warn_once(
                f"texts with their metadata are longer than the window of {self.engine.window} tokens; their vectors "
                "are means of several windows. Split documents with ClaraNodeParser, as the last step before this one."
            )
        for memory in memories if self.overflow != "split" else ():
            if memory.spans[-1][1] == len(memory.text):  # nothing was truncated, so every component can use it
                self.engine.cache.put(memory)
        return self._lists(self.space.documents(memories))

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    @staticmethod
    def _lists(vectors: Any) -> list[Embedding]:
        lists: list[Embedding] = vectors.tolist()
        return lists


def _no_cache(value: Any) -> Any:
    if value is not None:
        # LlamaIndex's cache key is the text alone: a question would get the vector of a document with the same text.
        raise ValueError("embeddings_cache mixes questions and documents; leave it out: the engine has a cache")
    return value
