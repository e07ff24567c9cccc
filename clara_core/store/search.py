"""The search calls of a store, the same for every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara_core.engine.protocol import Engine
from clara_core.engine.quoting.answerability import answer_shares
from clara_core.retrieval.filters import check_filter
from clara_core.retrieval.ranking import diversify, fuse, memory_relevance, relevances, text_relevance
from clara_core.store.backend import Backend, Candidate, Matches, Rows, Snapshot, Space, reads
from clara_core.store.records import Hit, Record

Filter: TypeAlias = Mapping[str, Any] | Callable[[Record], bool]
"""A filter: a dict as in `clara_core.retrieval.filters`, or a function of the document."""

Vectors: TypeAlias = Tensor | NDArray[np.float32]
"""Memories of questions that are computed already, in this process or in a database."""

Mode = Literal["memory", "text", "hybrid"]
MODES: Final = get_args(Mode)
DEFAULT_MODE: Final[Mode] = "hybrid"
DEFAULT_OVERSAMPLE: Final = 10
DEFAULT_TEXT_WEIGHT: Final = 0.4  # compared with others in docs/retrieval.md

_FUSED: Final = 30  # fewest documents of each ranking that are fused
_WIDER: Final = 4  # factor by which a search is widened if a function accepts too few documents
_NARROWEST: Final = 16  # smallest number of documents to search for then


@dataclass(frozen=True, slots=True)
class Search:
    """The options of a search, checked at creation."""

    k: int
    mode: Mode
    exact: bool = False
    oversample: int = DEFAULT_OVERSAMPLE
    text_weight: float = DEFAULT_TEXT_WEIGHT
    rerank: int = 0
    fetch_k: int | None = None  # documents that maximal marginal relevance chooses from; None: it is not applied
    lambda_mult: float = 0.5
    with_memories: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        for name, count in (("k", self.k), ("oversample", self.oversample), ("fetch_k", self.fetch_k)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.rerank < 0:
            raise ValueError(f"rerank must be at least 0, got {self.rerank}")
        for name, share in (("text_weight", self.text_weight), ("lambda_mult", self.lambda_mult)):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")


class _Found(NamedTuple):
    """A document with its score in the mode of the search."""

    candidate: Candidate
    relevance: float
    parts: tuple[float, float] = (0.0, 0.0)  # in ``hybrid`` the relevances by memory and by words

    def scored(self, score: float) -> _Found:
        """The document with another score."""
        return self._replace(candidate=replace(self.candidate, score=score), relevance=score)


class StoreSearch:
    """The search methods of `MemoryStore`."""

    engine: Engine | None
    _backend: Backend

    @overload
    def search(  # type: ignore[overload-overlap]  # a string is a sequence of strings, and is one question
        self, question: str, k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        vectors: Vectors | None = None, exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT, rerank: int = 0, with_memories: bool = False,
    ) -> list[Hit]: ...  # fmt: skip

    @overload
    def search(
        self, question: Sequence[str], k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        vectors: Vectors | None = None, exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT, rerank: int = 0, with_memories: bool = False,
    ) -> list[list[Hit]]: ...  # fmt: skip

    @overload
    def search(
        self, question: Vectors, k: int = 4, *, filter: Filter | None = None, mode: Mode | None = None,
        vectors: Vectors | None = None, exact: bool = False, oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT, rerank: int = 0, with_memories: bool = False,
    ) -> list[Hit] | list[list[Hit]]: ...  # fmt: skip

    def search(
        self,
        question: str | Sequence[str] | Vectors,
        k: int = 4,
        *,
        filter: Filter | None = None,  # noqa: A002
        mode: Mode | None = None,
        vectors: Vectors | None = None,
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT,
        rerank: int = 0,
        with_memories: bool = False,
    ) -> list[Hit] | list[list[Hit]]:
        """Return the documents that answer a question, best first; for several questions a list each, in one pass.

        Args:
            question: One or several questions in words, or their memories from the query reasoner: ``[D]`` for one,
                ``[Q, n_mem, hidden]`` or ``[Q, D]`` for several, with ``D = n_mem * hidden``.
            k: Maximum number of documents.
            filter: Which documents may be found: a dict as in `clara_core.retrieval.filters`, or a function of a
                `Record`, which is applied to the results, best first, until `k` have passed.
            mode: ``memory`` by cosine, ``text`` by words (BM25), ``hybrid`` by both; None is ``hybrid`` for texts
                and ``memory`` for tensors.
            vectors: Memories of the questions in words, if they are computed already, in one of the shapes above.
            exact: Compare with all memories instead of the best ``oversample * k`` by their keys.
            oversample: Candidates by key for each document to find.
            text_weight: Weight of the words in ``hybrid``, in [0, 1].
            rerank: How many of the best documents of ``hybrid`` are ranked again by whether they hold an answer. It
                costs about a millisecond a document. Their scores then depend on each other, and so on the filter.
            with_memories: Include its memory in each hit.

        Raises:
            FingerprintMismatch: The memories are of another model than the engine (not for ``mode="text"``).
        """
        words, given, one = _questions(question, vectors)
        mode = mode or ("memory" if words is None else DEFAULT_MODE)
        how = Search(k, mode, exact, oversample, text_weight, rerank, with_memories=with_memories)
        if mode != "memory" and words is None:
            raise ValueError(f"mode={mode!r} needs the words of the question, got a tensor; use mode='memory'")
        found = self._results(words, given, filter, how)
        return found[0] if one else found

    def search_mmr(
        self,
        question: str | Vectors,
        k: int = 4,
        *,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
        with_memories: bool = False,
    ) -> list[Hit]:
        """Choose `k` documents that do not repeat each other from the `fetch_k` most similar to a question.

        Args:
            question: As in `search`, but a single one.
            k: Maximum number of documents.
            fetch_k: Number of documents to choose from; at least `k` are used.
            lambda_mult: 1 is relevance only, 0 is diversity only.
            filter: As in `search`.
            exact: As in `search`.
            oversample: As in `search`.
            with_memories: As in `search`.

        Returns:
            list: In the order of choice; scores are cosines.
        """
        words, given, one = _questions(question, None)
        if not one:
            raise ValueError("search_mmr takes one question: a string, or a tensor [D]")
        how = Search(
            k, "memory", exact, oversample, fetch_k=fetch_k, lambda_mult=lambda_mult, with_memories=with_memories
        )
        return self._results(words, given, filter, how)[0]

    @reads
    def _results(
        self, words: list[str] | None, given: Tensor | None, condition: Filter | None, how: Search
    ) -> list[list[Hit]]:
        """The results of each question, from its words, its given vector, or both."""
        check_condition(condition)
        count = len(words) if words is not None else len(given) if given is not None else 0
        snapshot = self._backend.latest()
        if snapshot is None or not count:
            return [[] for _ in range(count)]
        tokens = None if how.mode == "text" else self._vectors(words, given, snapshot.space)
        if callable(condition):
            found = _find(_Accepting(snapshot, condition), None, words, tokens, how)
        else:
            found = _find(snapshot, None if condition is None else snapshot.passing(condition), words, tokens, how)
        if how.fetch_k is not None and tokens is not None and found[0]:
            windows = snapshot.windows([each.candidate for each in found[0]])
            chosen = diversify(tokens[0].flatten(), windows, how.k, how.lambda_mult)
            found = [[found[0][index] for index in chosen]]
        if how.mode == "hybrid" and how.rerank and words is not None:
            found = _reranked(snapshot, words, found, how)
        return _hits(snapshot, found, with_memories=how.with_memories)

    def _vectors(self, words: list[str] | None, given: Tensor | None, space: Space) -> Tensor:
        """Memories of questions as ``[Q, n_mem, hidden]``."""
        if self.engine is not None:
            space.check_model(self.engine.fingerprint, self._backend.uri)
        if given is not None:
            dimension = space.n_mem * space.hidden
            if given.numel() != len(given) * dimension:
                raise ValueError(f"questions for this store have {space.n_mem} x {space.hidden} = {dimension} "
                                 f"numbers, got the shape {list(given.shape)}")  # fmt: skip
            if not bool(given.isfinite().all()):
                raise ValueError("a question holds NaN or infinity")
            return given.reshape(len(given), space.n_mem, space.hidden)
        if self.engine is None:
            raise ValueError("a search by memory needs a model: open the store with engine= or model=, or search with "
                             "mode='text'")  # fmt: skip
        return self.engine.reason(words or [])


# --- one question ----------------------------------------------------------------------------------------


def check_condition(condition: Filter | None) -> None:
    """Refuse a filter that is neither a function nor a dict that `check_filter` accepts."""
    if condition is not None and not callable(condition):
        check_filter(condition)


@dataclass(slots=True)
class _Accepting:
    """The searches of a snapshot among the documents that a function accepts; it is called once for each document.

    Lance cannot evaluate a Python function, and applying it to every document would read them all. So a search is
    widened until enough documents are accepted. Each ranking is filtered before two are fused, so that a function finds
    the same documents as an equivalent dict.
    """

    snapshot: Snapshot
    accept: Callable[[Record], bool]
    known: dict[int, bool] = field(default_factory=dict)

    def nearest(
        self, questions: Tensor, k: int, allowed: Rows | None, *, exact: bool, oversample: int
    ) -> list[list[Candidate]]:

        def accepted(question: Tensor) -> list[Candidate]:
            nearest = partial(self.snapshot.nearest, question, allowed=allowed, exact=exact, oversample=oversample)
            return self._accepted(lambda wanted: nearest(wanted)[0], k)

        return list(map(accepted, questions.split(1)))

    def matching(self, question: str, k: int, allowed: Rows | None) -> Matches:
        found = self._accepted(lambda wanted: self.snapshot.matching(question, wanted, allowed).candidates, k)
        return Matches(found, self.snapshot.matching(question, 1, allowed).unit)

    def _accepted(self, search: Callable[[int], Sequence[Candidate]], k: int) -> list[Candidate]:
        wanted = max(_NARROWEST, _WIDER * k)
        while True:
            found = search(wanted)
            if rows := sorted({each.row for each in found}.difference(self.known)):
                there = self.snapshot.at_rows(np.array(rows, np.uint64), with_memories=False)
                self.known |= {row: bool(self.accept(record)) for row, (record, _) in there.items()}
            accepted = [each for each in found if self.known[each.row]]
            if len(accepted) >= k or len(found) < wanted:
                return accepted[:k]
            wanted *= _WIDER


def _find(
    snapshot: Snapshot | _Accepting,
    allowed: Rows | None,
    words: list[str] | None,
    tokens: Tensor | None,
    how: Search,
) -> list[list[_Found]]:
    """The results of each question in the mode of the search."""

    def nearest(tokens: Tensor, k: int, among: Rows | None, oversample: int) -> list[list[Candidate]]:
        return snapshot.nearest(tokens, k, among, exact=how.exact, oversample=oversample)

    if tokens is None:
        by_words = [snapshot.matching(question, how.k, allowed) for question in words or ()]
        return [[_Found(each, text_relevance(each.score, own.unit)) for each in own.candidates] for own in by_words]
    if how.mode == "memory" or words is None:
        most = max(how.k, how.fetch_k or 0)
        by_memory = nearest(tokens, most, allowed, how.oversample)
        return [[_Found(each, memory_relevance(each.score)) for each in own] for own in by_memory]
    depth = max(how.k, _FUSED)
    by_memory = nearest(tokens, depth, allowed, max(2, how.oversample * how.k // depth))
    result = []
    for question, own, near in zip(words, tokens, by_memory, strict=True):
        having = snapshot.matching(question, depth, allowed)
        # Documents found in only one ranking also get their score in the other one.
        [others] = nearest(own[None], depth, _rows(having.candidates, near), 1)
        known = snapshot.matching(question, 2 * depth, _rows(near, having.candidates)).candidates
        result.append(_fused([*others, *near], Matches([*having.candidates, *known], having.unit), how))
    return result


def _rows(candidates: Sequence[Candidate], without: Sequence[Candidate]) -> Rows:
    rows = {each.row for each in candidates} - {each.row for each in without}
    return np.array(sorted(rows), np.uint64)


def _fused(near: Sequence[Candidate], matches: Matches, how: Search) -> list[_Found]:
    """Fuse both rankings; of equal scores the document that was added first comes first."""
    known = {each.row: each for each in [*matches.candidates, *near]}  # the window of `near` wins
    found = {each.row: each.score for each in near}
    cosines = {row: found[row] for row in sorted(found, key=lambda row: (known[row].order, row))}
    texts = {each.row: each.score for each in matches.candidates}
    parts = relevances(cosines, texts, matches.unit)
    ranked = fuse(parts, how.text_weight)[: max(how.k, how.rerank)]
    return [_Found(replace(known[row], score=score), score, parts[row]) for row, score in ranked]


def _reranked(
    snapshot: Snapshot, words: Sequence[str], found: Sequence[Sequence[_Found]], how: Search
) -> list[list[_Found]]:
    """The best documents of each question, ranked again by how probable it is that they hold its answer.

    A score is the mean of the fused one and of this probability, which is 0 for documents that are not ranked again.
    """
    rows = sorted({each.candidate.row for own in found for each in own[: how.rerank]})
    there = snapshot.at_rows(np.array(rows, np.uint64), with_memories=False) if rows else {}
    result = []
    for question, own in zip(words, found, strict=True):
        best = own[: how.rerank]
        texts = [there[each.candidate.row][0].text for each in best]
        shares = answer_shares(question, texts, [each.parts for each in best])
        shares += [0.0] * (len(own) - len(shares))
        ranked = [each.scored((each.relevance + share) / 2) for each, share in zip(own, shares, strict=True)]
        result.append(sorted(ranked, key=lambda one: -one.relevance)[: how.k])
    return result


def _hits(snapshot: Snapshot, found: Sequence[Sequence[_Found]], *, with_memories: bool) -> list[list[Hit]]:
    """The documents that were found; each hit has its own copy of the metadata."""
    rows = sorted({each.candidate.row for documents in found for each in documents})
    there = snapshot.at_rows(np.array(rows, np.uint64), with_memories=with_memories) if rows else {}

    def hit(found: _Found) -> Hit:
        record, memory = there[found.candidate.row]
        metadata, each = copy.deepcopy(record.metadata), found.candidate
        return Hit(record.id, record.text, metadata, each.score, found.relevance, each.window, memory)

    return [[hit(each) for each in documents] for documents in found]


def _questions(
    question: str | Sequence[str] | Vectors, vectors: Vectors | None
) -> tuple[list[str] | None, Tensor | None, bool]:
    """The words of questions, their vectors, and whether it is a single question."""
    if isinstance(question, Tensor | np.ndarray):
        if vectors is not None:
            raise ValueError("give vectors as question=, or words as question= with vectors=, not both")
        tokens = torch.as_tensor(question)
        return (None, tokens[None], True) if tokens.ndim == 1 else (None, tokens, False)
    words = [question] if isinstance(question, str) else list(question)
    for index, each in enumerate(words):
        if not isinstance(each, str):
            raise TypeError(
                f"question[{index}] must be a string, got {type(each).__name__}; pass vectors as one tensor or array"
            )
    if vectors is None:
        return words, None, isinstance(question, str)
    given = torch.as_tensor(vectors)
    given = given[None] if given.ndim == 1 else given
    if len(given) != len(words):
        raise ValueError(f"one vector a question is needed, got {len(given)} for {len(words)}")
    return words, given, isinstance(question, str)
