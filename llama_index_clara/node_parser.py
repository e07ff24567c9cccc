"""A node parser that cuts documents into pieces that fit the compressor's window."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from llama_index.core.node_parser.interface import MetadataAwareTextSplitter
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, ImageDocument, MetadataMode
from llama_index.core.utils import get_tqdm_iterable
from pydantic import Field

from llama_index_clara._engine import EngineFields
from llama_index_clara._nodes import announce_long, text_of, without_file

log = logging.getLogger(__name__)

_JOINT = 4  # tokens by which metadata and text together may exceed the sum of both
_LEAST = 4  # metadata must leave 1 / _LEAST of a window for the text; otherwise nodes take several windows


class ClaraNodeParser(EngineFields, MetadataAwareTextSplitter):
    """Cuts texts at sentence ends, else between words, into pieces that fill the compressor's window without overlap.

    Tokens are counted with the compressor's own tokenizer and include the metadata of each piece that is embedded. The
    pieces joined together equal the text exactly; a document without text has no pieces.

    Metadata about a *file* (``file_path``, ``file_name``, type, size and dates) stays in the metadata but is not
    compressed: its keys are added to the nodes' excluded keys, and no other component of this package reads them. To
    include such a value in the text, give it another key: ``document.metadata["report"] = ...``.

    Example:
        ```python
        Settings.node_parser = ClaraNodeParser(model="pocket")
        ```
    """

    holds_weights: ClassVar[bool] = False  # only the tokenizer

    chunk_size: int | None = Field(default=None, ge=8, description="Tokens of a piece; None is the whole window.")

    def split_text(self, text: str) -> list[str]:
        """Pieces of a text without metadata."""
        return self.split_text_metadata_aware(text, "")

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """Pieces of a text; each will be preceded by the metadata."""
        window = self.engine.window
        size = min(self.chunk_size or window, window)
        taken = self._taken(metadata_str)
        room = size - taken if size - taken >= size // _LEAST else size // 2
        return [text[start:end] for start, end in self.engine.tokenizer.windows(text, reserve=window - room)]

    def _taken(self, metadata_str: str) -> int:
        """Tokens of each piece besides its text."""
        return self.engine.tokenizer.count(f"{metadata_str}\n\n") + _JOINT if metadata_str else 0

    def _get_metadata_str(self, node: BaseNode) -> str:
        """The text around the text of each piece."""
        if not self.include_metadata:
            return ""
        (empty,) = build_nodes_from_splits([""], node)
        empty.metadata = node.metadata
        return text_of(empty)

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        pieces: list[BaseNode] = []
        crowded: list[tuple[int, BaseNode]] = []
        long: list[str] = []
        for node in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            text = node.get_content(metadata_mode=MetadataMode.NONE)
            if not text.strip() and not isinstance(node, ImageDocument):
                continue
            around = self._get_metadata_str(node)
            splits = self.split_text_metadata_aware(text, around)
            made = build_nodes_from_splits(splits, without_file(node), ref_doc=node, id_func=self.id_func)
            pieces += made
            taken = self._taken(around)
            if taken > min(self.chunk_size or self.engine.window, self.engine.window) // 2:
                wholes = [text_of(piece.model_copy(update={"metadata": node.metadata})) for piece in made]
                several = [whole for whole in wholes if len(self.engine.tokenizer.windows(whole)) > 1]
                long += several
                if several or len(made) > 1:
                    crowded.append((taken, node))
        self._warn(crowded, long, len(pieces))
        return pieces

    def _warn(self, crowded: list[tuple[int, BaseNode]], long: list[str], n_pieces: int) -> None:
        """Warn once if metadata takes much of the windows."""
        if not crowded:
            return
        announce_long(long)
        taken, node = max(crowded, key=lambda pair: pair[0])
        read = set(node.metadata) - {*without_file(node).excluded_embed_metadata_keys}
        longest = max(read, key=lambda key: len(str(node.metadata[key])), default="")
        log.warning(
            "the metadata of %d documents takes up to %d tokens of each node, and a window has %d%s; list keys such as "
            "%r in excluded_embed_metadata_keys",
            len(crowded), taken, self.engine.window,
            f": {len(long)} of {n_pieces} nodes take more than one window" if long else "", longest,
        )  # fmt: skip

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress, **kwargs)
