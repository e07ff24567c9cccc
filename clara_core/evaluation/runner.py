"""Runs batches of questions: compresses and ranks their candidates, answers from the best ones, scores the answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara_core.common.errors import ContextOverflow
from clara_core.data.examples import RetrievalLine
from clara_core.evaluation.answers import cover_match, exact_match, f1
from clara_core.evaluation.outcomes import KEPT, Mode, Outcome, Ranker, Ranking, Reply, Sizes, line_key
from clara_core.evaluation.rankings import with_gold
from clara_core.evaluation.text_reader import TextReader
from clara_core.retrieval.bm25 import Bm25

if TYPE_CHECKING:
    from clara_core.data.memory import Memory
    from clara_core.engine.engine import ClaraEngine

Order = list[int]  # candidates, best first


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of every question.

    Attributes:
        modes: "normal" reads the first documents of the ranking, "oracle" makes sure that the gold passages are read.
        top_k: Documents that are read.
        ranker: Ranking that is read: "memory", "bm25", or "given" (the order of the line).
        bm25: Whether to measure the ranking by BM25, too.
        max_tokens: Most tokens of an answer.
    """

    modes: tuple[Mode, ...]
    top_k: int
    ranker: Ranker
    bm25: bool
    max_tokens: int

    @property
    def rankers(self) -> tuple[Ranker, ...]:
        """All rankers, the one that is read first."""
        return tuple(dict.fromkeys([self.ranker, "bm25"] if self.bm25 else [self.ranker]))


@dataclass(frozen=True, slots=True)
class _Reading:
    """The documents that are read for an answer.

    Attributes:
        at: Index of the line in the batch.
        documents: Indices of the candidates, in order.
        from_text: Whether they are read as text instead of memory.
    """

    at: int
    documents: tuple[int, ...]
    from_text: bool


class Runner:
    """Runs batches of questions.

    Args:
        engine: The engine.
        plan: The steps of every question.
        text: Baseline that answers from text, if any.
    """

    def __init__(self, engine: ClaraEngine, plan: Plan, text: TextReader | None = None) -> None:
        self.engine = engine
        self.plan = plan
        self.text = text
        # Memories and index of the last candidates, because the next question often has the same ones.
        self._memories: dict[str, Memory] = {}
        self._bm25: tuple[tuple[str, ...], Bm25] | None = None

    def run(self, lines: Sequence[RetrievalLine]) -> list[Outcome]:
        """Outcomes of a batch of lines, in order."""
        memories = self.memories([text for line in lines for text in line.docs])
        orders = self.rank(lines, memories)
        readings = [self._readings(at, line, orders[at]) for at, line in enumerate(lines)]
        answers = self._read(lines, list(dict.fromkeys(one for some in readings for one in some.values())), memories)
        return [
            Outcome(
                where=line.where,
                key=line_key(line),
                question=line.question,
                references=line.references,
                sizes=_sizes([memories[text] for text in line.docs]),
                rankings={name: _ranking(order, line) for name, order in orders[at].items()},
                replies=tuple(
                    self._measured(line, mode, system, reading.documents, answers[reading], memories)
                    for (mode, system), reading in readings[at].items()
                ),
            )
            for at, line in enumerate(lines)
        ]

    def memories(self, texts: Sequence[str]) -> dict[str, Memory]:
        """Memories by text; those of the last call are kept here, even if the engine's cache is small."""
        new = [text for text in dict.fromkeys(texts) if text not in self._memories]
        known = self._memories | dict(zip(new, self.engine.remember(new), strict=True))
        self._memories = {text: known[text] for text in texts}
        return self._memories

    # --- ranking -----------------------------------------------------------------------------------------

    def rank(self, lines: Sequence[RetrievalLine], memories: dict[str, Memory]) -> list[dict[Ranker, Order]]:
        """The orders of each line's candidates by ranker."""
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)  # lines by their candidates
        for at, line in enumerate(lines):
            alike[line.docs].append(at)
        orders: list[dict[Ranker, Order]] = [{} for _ in lines]
        for ranker in self.plan.rankers:
            made: dict[int, Order] = {}
            if ranker == "memory":
                made = self._by_memory(lines, alike, memories)
            elif ranker == "bm25":
                for docs, places in alike.items():
                    ranked = self._index(docs).rank([lines[at].question for at in places])
                    made |= dict(zip(places, ranked, strict=True))
            else:
                made = {at: list(range(len(line.docs))) for at, line in enumerate(lines)}
            for at, order in made.items():
                orders[at][ranker] = order
        return orders

    def _by_memory(
        self, lines: Sequence[RetrievalLine], alike: dict[tuple[str, ...], list[int]], memories: dict[str, Memory]
    ) -> dict[int, Order]:
        from clara_core.retrieval.ranking import score_memories

        questions = self.engine.reason([line.question for line in lines])  # [lines, n_mem, hidden]
        orders: dict[int, Order] = {}
        for docs, places in alike.items():
            scores = score_memories(questions[places], [memories[text] for text in docs])  # [places, docs]
            ranked: list[Order] = scores.argsort(dim=1, descending=True, stable=True).tolist()
            orders |= dict(zip(places, ranked, strict=True))
        return orders

    def _index(self, docs: tuple[str, ...]) -> Bm25:
        if self._bm25 is None or self._bm25[0] != docs:
            self._bm25 = (docs, Bm25(docs))
        return self._bm25[1]

    # --- reading -----------------------------------------------------------------------------------------

    def _readings(self, at: int, line: RetrievalLine, orders: dict[Ranker, Order]) -> dict[tuple[Mode, str], _Reading]:
        """The reading of a line for each mode and system; those of both modes are often equal."""
        systems = {"memory": orders[self.plan.ranker]}
        if self.text is not None:
            systems["text"] = orders[self.plan.ranker]
            if "bm25" in orders and self.plan.ranker != "bm25":
                systems["bm25_text"] = orders["bm25"]
        return {
            (mode, system): _Reading(at, self._chosen(order, line, mode), from_text=system != "memory")
            for mode in self.plan.modes
            for system, order in systems.items()
        }

    def _chosen(self, order: Order, line: RetrievalLine, mode: Mode) -> tuple[int, ...]:
        """The documents of a ranking that are read."""
        if mode == "oracle":
            return tuple(with_gold(order, line.pos_index, self.plan.top_k))
        return tuple(order[: self.plan.top_k])

    def _read(
        self, lines: Sequence[RetrievalLine], readings: Sequence[_Reading], memories: dict[str, Memory]
    ) -> dict[_Reading, tuple[str, str]]:
        """Answer and failure of each reading; each system answers all of its readings in one batch."""
        from_memory = [one for one in readings if not one.from_text]
        items = [
            (lines[one.at].question, [memories[lines[one.at].docs[place]] for place in one.documents])
            for one in from_memory
        ]
        answers = dict(zip(from_memory, self._from_memory(items), strict=True))
        if self.text is not None:
            from_text = [one for one in readings if one.from_text]
            texts = [(lines[one.at], [lines[one.at].docs[place] for place in one.documents]) for one in from_text]
            answers |= ((one, (text, "")) for one, text in zip(from_text, self.text.read(texts), strict=True))
        return answers

    def _from_memory(self, items: Sequence[tuple[str, Sequence[Memory]]]) -> list[tuple[str, str]]:
        """Answers, each with the reason if it failed."""
        try:
            answers = self.engine.answer_batch(items, max_tokens=self.plan.max_tokens)
        except ContextOverflow as exc:
            if len(items) == 1:
                return [("", str(exc))]
            return [one for item in items for one in self._from_memory([item])]
        return [(answer.text, "") for answer in answers]

    def _measured(
        self,
        line: RetrievalLine,
        mode: Mode,
        system: str,
        documents: tuple[int, ...],
        answer: tuple[str, str],
        memories: dict[str, Memory],
    ) -> Reply:
        text, failed = answer
        read = [memories[line.docs[place]] for place in documents]
        slots = sum(memory.n_windows for memory in read) * self.engine.n_mem
        measures = {"exact_match": exact_match, "cover_match": cover_match, "f1": f1}
        return Reply(
            mode=mode,
            system=system,
            documents=documents,
            text=text,
            **{name: 0.0 if failed else measure(text, line.references) for name, measure in measures.items()},
            memory_tokens=slots if system == "memory" else 0,
            source_tokens=sum(memory.source_tokens for memory in read),
            failed=failed,
        )


def _ranking(order: Order, line: RetrievalLine) -> Ranking:
    gold = set(line.pos_index)
    ranks = tuple(rank for rank, place in enumerate(order, start=1) if place in gold)
    return Ranking(tuple(order[:KEPT]), ranks)


def _sizes(memories: Sequence[Memory]) -> Sizes:
    return Sizes(
        passages=len(memories),
        memory_bytes=sum(memory.nbytes for memory in memories),
        text_bytes=sum(len(memory.text.encode("utf-8", "surrogatepass")) for memory in memories),
        memory_tokens=sum(memory.tokens.shape[0] * memory.tokens.shape[1] for memory in memories),
        text_tokens=sum(memory.source_tokens for memory in memories),
    )
