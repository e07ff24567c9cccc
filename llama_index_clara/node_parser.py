"""Documents cut to what the compressor reads at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from llama_index.core.node_parser.interface import MetadataAwareTextSplitter
from llama_index.core.schema import BaseNode
from pydantic import Field

from llama_index_clara._engine import EngineFields

log = logging.getLogger(__name__)

_JOINT = 4  # tokens by which metadata and text together may differ from the sum of both


class ClaraNodeParser(EngineFields, MetadataAwareTextSplitter):
    """Cuts texts at sentences, else words, into pieces that fill the compressor's window and overlap nowhere.

    Tokens are counted by the compressor's own tokenizer, and the metadata that stands before each piece is counted
    with it. The pieces put together are the text, to the character.

    Example:
        ```python
        Settings.node_parser = ClaraNodeParser(model="pocket")
        ```
    """

    holds_weights: ClassVar[bool] = False  # only the tokenizer

    chunk_size: int | None = Field(default=None, ge=8, description="Tokens of a piece; None is the whole window.")

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized components and traces."""
        return "ClaraNodeParser"

    def split_text(self, text: str) -> list[str]:
        """Pieces of a text without metadata."""
        return self.split_text_metadata_aware(text, "")

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """Pieces of a text before each of which the metadata will stand."""
        tokenizer, window = self.engine.tokenizer, self.engine.window
        free = min(self.chunk_size or window, window)
        taken = tokenizer.count(f"{metadata_str}\n\n") + _JOINT if metadata_str else 0
        if taken > free // 2:
            log.warning(
                "the metadata takes %d of the %d tokens of a window: nodes will take more than one window; "
                "list keys in excluded_embed_metadata_keys and excluded_llm_metadata_keys",
                taken, free,
            )  # fmt: skip
            taken = free // 2
        return [text[start:end] for start, end in tokenizer.windows(text, reserve=window - free + taken)]

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress, **kwargs)
