"""Minimal components of other authors, and a recorder of events."""

from __future__ import annotations

import hashlib
from typing import Any, Self, TypeVar

import numpy as np
import pytest
from llama_index.core import Document
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from pydantic import Field, PrivateAttr

T = TypeVar("T")


def _reads_missing_values_as_others() -> bool:
    asked = MetadataFilters(filters=[MetadataFilter(key="x", value=1, operator=FilterOperator.NE)], condition=None)
    try:
        return bool(build_metadata_filter_fn(lambda _: {}, asked)("node"))
    except ValueError:  # a filter without a condition
        return False


needs_filters_of_today = pytest.mark.skipif(
    not _reads_missing_values_as_others(),
    reason="this LlamaIndex reads `!=` on missing values, or filters without a condition, otherwise",
)

QUESTION = "When was the bridge opened?"
TEXTS = (
    "Weldenia is a genus of flowering plants.",
    "The bridge over the Aln was opened in 1907.",
    "Short note.",
    "Captain Ada Quill sailed the Merganser.",
    "The company Brandt & Sons makes clocks.",
)


def documents() -> list[Document]:
    return [Document(text=text, doc_id=f"doc-{number}") for number, text in enumerate(TEXTS)]


def nodes(n: int = len(TEXTS), **fields: Any) -> list[TextNode]:
    """Nodes with the ids n-0, n-1, …, each from a source document doc-0, doc-1, …"""
    return [
        TextNode(
            id_=f"n-{number}",
            text=TEXTS[number % len(TEXTS)] + " " * (number // len(TEXTS)),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"doc-{number}")},
            **fields,
        )
        for number in range(n)
    ]


def unit(seed: str, length: int) -> list[float]:
    """A unit vector that depends only on a text, without any meaning."""
    digest = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    vector = np.random.default_rng(digest).standard_normal(length)
    return (vector / np.linalg.norm(vector)).tolist()


class HashEmbedding(BaseEmbedding):
    """An embedding model of another author."""

    length: int = 32

    def _get_query_embedding(self, query: str) -> list[float]:
        return unit(query, self.length)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return unit(query, self.length)

    def _get_text_embedding(self, text: str) -> list[float]:
        return unit(text, self.length)


class ScriptedLLM(CustomLLM):
    """An LLM of another author: returns its replies in order, and then always the last one."""

    lines: list[str] = Field(default_factory=lambda: ["YES"])
    _said: list[str] = PrivateAttr(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @property
    def prompts(self) -> list[str]:
        return self._said

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        line = self.lines[min(len(self._said), len(self.lines) - 1)]
        self._said.append(prompt)
        return CompletionResponse(text=line)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = self.complete(prompt, formatted=True).text

        def pieces() -> Any:
            yield CompletionResponse(text=text, delta=text)

        return pieces()


class Recorder(BaseEventHandler):
    """Listens to every event of LlamaIndex."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._events.append(event)

    @property
    def events(self) -> list[BaseEvent]:
        return self._events

    @property
    def names(self) -> list[str]:
        return [event.class_name() for event in self._events]

    def clear(self) -> None:
        self._events.clear()

    def __enter__(self) -> Self:
        get_dispatcher().add_event_handler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        get_dispatcher().event_handlers.remove(self)
