"""The calls of a store that answer questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import torch
from torch import Tensor

from clara_core.errors import FingerprintMismatch
from clara_core.store import search as steps
from clara_core.store.reading import passing_rows, rows_at
from clara_core.store.records import Hit
from clara_core.store.scan import KeyScan
from clara_core.store.schema import Layout
from clara_core.store.search import Found, Snapshot
from clara_core.store.table import Table
from clara_core.store.upkeep import is_indexed

if TYPE_CHECKING:
    from clara_core.engine import ClaraEngine

Filter = Mapping[str, Any]
Mode = Literal["memory", "text", "hybrid"]

MODES: Final = ("memory", "text", "hybrid")
DEFAULT_MODE: Final[Mode] = "hybrid"
DEFAULT_OVERSAMPLE: Final = 10
DEFAULT_TEXT_WEIGHT: Final = 0.5  # what measures best in docs/retrieval.md

_FUSED: Final = 30  # documents of each ranking, at least, that are fused


@dataclass(frozen=True, slots=True)
class Search:
    """How to search; checked when it is made."""

    k: int
    mode: Mode
    exact: bool
    oversample: int
    text_weight: float

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.oversample < 1:
            raise ValueError(f"oversample must be at least 1, got {self.oversample}")
        if not 0.0 <= self.text_weight <= 1.0:
            raise ValueError(f"text_weight must lie in [0, 1], got {self.text_weight}")


class StoreSearch:
    """What answers questions; `MemoryStore` is this and more."""

    engine: ClaraEngine | None
    _table: Table
    _scan: KeyScan

    @overload
    def search(  # type: ignore[overload-overlap]  # a string is a sequence of strings, and is one question
        self, question: str, k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE, text_weight: float = DEFAULT_TEXT_WEIGHT,
    ) -> list[Hit]: ...  # fmt: skip

    @overload
    def search(
        self, question: Sequence[str], k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE, text_weight: float = DEFAULT_TEXT_WEIGHT,
    ) -> list[list[Hit]]: ...  # fmt: skip

    @overload
    def search(
        self, question: Tensor, k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE, text_weight: float = DEFAULT_TEXT_WEIGHT,
    ) -> list[Hit] | list[list[Hit]]: ...  # fmt: skip

    def search(
        self,
        question: str | Sequence[str] | Tensor,
        k: int = 4,
        *,
        filter: Filter | None = None,  # noqa: A002
        mode: Mode | None = None,
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT,
    ) -> list[Hit] | list[list[Hit]]:
        """The documents that answer a question best, best first; of several questions a list each, in one pass.

        Args:
            question: A question, several, or what the query reasoner made of them: ``[D]`` for one,
                ``[Q, n_mem, hidden]`` or ``[Q, D]`` for several, ``D = n_mem * hidden``.
            k: Most documents to find.
            filter: Which documents may be found, as in `clara_core.filters`.
            mode: ``memory`` by cosine, ``text`` by words (BM25), ``hybrid`` by both; None is ``hybrid`` for texts and
                ``memory`` for tensors.
            exact: Compare with all memories instead of the best ``oversample * k`` by their keys.
            oversample: Candidates by key for one document.
            text_weight: Weight of the words in ``hybrid``, in [0, 1].

        Raises:
            FingerprintMismatch: The memories are of another model than the engine (not where ``mode="text"``).
        """
        asked, one = _questions(question)
        mode = mode or (DEFAULT_MODE if isinstance(asked, list) else "memory")
        how = Search(k, mode, exact, oversample, text_weight)
        if mode != "memory" and not isinstance(asked, list):
            raise ValueError(f"mode={mode!r} needs the words of the question, got a tensor; use mode='memory'")
        snapshot = self._snapshot(filter)
        if snapshot is None or not len(asked):
            result: list[list[Hit]] = [[] for _ in range(len(asked))]
        else:
            result = steps.hits(snapshot.dataset, self._found(snapshot, asked, how))
        return result[0] if one else result

    def search_mmr(
        self,
        question: str | Tensor,
        k: int = 4,
        *,
        fetch_k: int = 20,
        balance: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
    ) -> list[Hit]:
        """Of the `fetch_k` documents most like a question `k` that do not repeat each other.

        Args:
            question: As in `search`, but one.
            k: Most documents to find.
            fetch_k: How many to choose from; at least `k` are.
            balance: 1 is relevance alone, 0 is diversity alone.
            filter: As in `search`.
            exact: As in `search`.
            oversample: As in `search`.

        Returns:
            list: In the order of choice; scores are cosines.
        """
        from clara_core.ranking import diversify

        asked, one = _questions(question)
        if not one:
            raise ValueError("search_mmr takes one question: a string, or a tensor [D]")
        Search(k, "memory", exact, oversample, 0.0)
        if not 0.0 <= balance <= 1.0:
            raise ValueError(f"balance must lie in [0, 1], got {balance}")
        snapshot = self._snapshot(filter)
        if snapshot is None:
            return []
        vectors = self._vectors(asked, snapshot.layout)
        how = Search(max(k, fetch_k), "memory", exact, oversample, 0.0)
        found = self._by_memory(snapshot, vectors, how)[0]
        if not found:
            return []
        ordered = sorted(found, key=lambda document: document.row)
        rows = torch.tensor([document.row for document in ordered]).numpy()
        tokens = snapshot.layout.tokens(rows_at(snapshot.dataset, rows, ["memory"])["memory"])
        place = {document.row: index for index, document in enumerate(ordered)}
        candidates = tokens.flatten(1)[[place[document.row] for document in found]]  # best first
        chosen = diversify(vectors[0].flatten(), candidates, k, balance)
        return steps.hits(snapshot.dataset, [[found[index] for index in chosen]])[0]

    # --- within ------------------------------------------------------------------------------------------

    def _snapshot(self, condition: Filter | None) -> Snapshot | None:
        if (dataset := self._table.latest()) is None:
            return None
        allowed = None if condition is None else passing_rows(dataset, condition)["_rowid"].to_numpy()
        return Snapshot(dataset, Layout.of(dataset.schema, self._table.uri), allowed)

    def _found(self, snapshot: Snapshot, asked: list[str] | Tensor, how: Search) -> list[list[Found]]:
        if how.mode == "memory" or isinstance(asked, Tensor):
            return self._by_memory(snapshot, self._vectors(asked, snapshot.layout), how)
        if how.mode == "text":
            return [steps.by_text(snapshot, question, how.k) for question in asked]
        depth = max(how.k, _FUSED)
        deep = Search(depth, "memory", how.exact, max(2, how.oversample * how.k // depth), 0.0)
        words = [steps.by_text(snapshot, question, deep.k) for question in asked]
        memory = self._by_memory(snapshot, self._vectors(asked, snapshot.layout), deep)
        return [steps.fused(*both, how.text_weight, how.k) for both in zip(memory, words, strict=True)]

    def _by_memory(self, snapshot: Snapshot, questions: Tensor, how: Search) -> list[list[Found]]:
        if not snapshot.rows:
            return [[] for _ in questions]
        if how.exact or snapshot.rows <= how.oversample * how.k:
            return steps.by_everything(snapshot, questions, how.k)
        if is_indexed(snapshot.dataset):
            nominate = steps.by_index(snapshot, questions)
        else:
            nominate = steps.by_scan(snapshot, self._scan.at(snapshot.dataset, snapshot.layout), questions)
        return steps.by_memory(snapshot, questions, nominate, how.k, how.oversample)

    def _vectors(self, asked: list[str] | Tensor, layout: Layout) -> Tensor:
        """``[Q, n_mem, hidden]``."""
        if isinstance(asked, Tensor):
            dimension = layout.n_mem * layout.hidden
            if asked.numel() != len(asked) * dimension:
                raise ValueError(f"questions for this store have {layout.n_mem} x {layout.hidden} = {dimension} "
                                 f"numbers, got the shape {list(asked.shape)}")  # fmt: skip
            if not bool(asked.isfinite().all()):
                raise ValueError("a question holds NaN or infinity")
            return asked.reshape(len(asked), layout.n_mem, layout.hidden)
        if self.engine is None:
            raise ValueError("a search by memory needs a model: open the store with engine= or model=, or ask with "
                             "mode='text'")  # fmt: skip
        check_engine(self.engine, layout, self._table.uri)
        return self.engine.reason(asked)


def check_engine(engine: ClaraEngine, layout: Layout, uri: str) -> None:
    """Refuse an engine that cannot read the memories of a store.

    Raises:
        FingerprintMismatch: It is of another model; says both and what to do.
    """
    if engine.fingerprint != layout.fingerprint:
        raise FingerprintMismatch(
            f"the store at {uri} holds memories of the model {layout.fingerprint[:12]}, the engine is "
            f"{engine.fingerprint[:12]}: open it with the model that wrote it, or add its texts to a store in another "
            "folder with this one; get, iteration and mode='text' work as it is"
        )


def _questions(question: str | Sequence[str] | Tensor) -> tuple[list[str] | Tensor, bool]:
    """The questions as several, and whether it was one."""
    if isinstance(question, str):
        return [question], True
    if isinstance(question, Tensor):
        return (question[None], True) if question.ndim == 1 else (question, False)
    asked = list(question)
    for index, each in enumerate(asked):
        if not isinstance(each, str):
            raise TypeError(f"question[{index}] must be a string, got {type(each).__name__}; vectors go as one tensor")
    return asked, False
