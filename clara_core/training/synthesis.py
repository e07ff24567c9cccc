"""Training sets from your own passages: a language model writes questions and paraphrases and checks their coverage.

As in the paper (arXiv 2511.18659): from each passage simple questions (one fact each), complex ones (several facts put
together) and a paraphrase. The same model compares them with the passage; what is missing is asked for again, up to ten
rounds; what still fails is dropped and counted. `clara_core.training.candidates` makes the sets of the later stages
from the result.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from clara_core.common.errors import LLMError
from clara_core.data.jsonl import CompressionLine, write_lines
from clara_core.data.llm import Ask, asker, text_of
from clara_core.training.synthesis_draft import Draft, Unanswered
from clara_core.training.synthesis_journal import Journal, Outcome, passage_key
from clara_core.training.synthesis_replies import Pair, same_words

__all__ = ["HELD_OUT", "STAGE1", "SynthesisReport", "asynthesize", "synthesize"]

log = logging.getLogger(__name__)

STAGE1: Final = "stage1.jsonl"
HELD_OUT: Final = "held_out.jsonl"
_GIVE_UP = 5  # passages one after the other for which the language model did nothing but fail


@dataclass(frozen=True, slots=True)
class SynthesisReport:
    """What came of a run, together with the runs that it went on from.

    Attributes:
        passages: Different passages that were given.
        kept: Passages that lines were written for.
        resumed: Passages, kept or dropped, that an earlier run had finished.
        dropped: Why passages or documents were left out, and how many.
        faults: What was wrong with replies of the language model, and how often.
        calls: Replies of the language model about finished passages.
        simple: Questions about one fact.
        complex: Questions about several.
        held_out: Questions of both kinds that were kept from training.
        files: What was written.
    """

    passages: int
    kept: int
    resumed: int
    dropped: dict[str, int]
    faults: dict[str, int]
    calls: int
    simple: int
    complex: int
    held_out: int
    files: tuple[Path, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.kept} of {self.passages} passages kept ({self.resumed} finished by an earlier run)",
            f"{self.simple} simple and {self.complex} complex questions ({self.held_out} of them held out)",
            f"{self.calls} replies of the language model",
        ]
        lines += [f"dropped: {count} x {reason}" for reason, count in self.dropped.items()]
        lines += [f"fault: {count} x {fault}" for fault, count in self.faults.items()]
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


def synthesize(
    documents: Iterable[object],
    llm: Any,
    out: str | Path,
    *,
    max_rounds: int = 10,
    concurrency: int = 8,
    timeout: float = 120.0,
    held_out: float = 0.0,
    show_progress: bool = False,
) -> SynthesisReport:
    """Write a training set of stage 1 about documents, each of which is one passage.

    A run that was killed, or that stopped because the language model failed, goes on where it stood when it is started
    again with the same folder: at most the passages under way are lost. ``stage1.jsonl`` is written at the end, also
    when the language model gave out.

    Args:
        documents: LangChain Documents, LlamaIndex nodes or texts; each should fit the compressor's window.
        llm: A LangChain chat model, a LlamaIndex LLM, or a function from text to text, awaitable or not.
        out: Folder for ``journal.jsonl``, ``stage1.jsonl`` and, with `held_out`, ``held_out.jsonl``.
        max_rounds: Rounds after which a passage that is not covered is dropped.
        concurrency: Passages that are worked on at a time; each waits for one reply at a time.
        timeout: Seconds that a reply may take.
        held_out: Share of the questions that is kept from training, in the layout of stage 1, to measure with. Which
            ones follows from their words alone.
        show_progress: Show a bar.

    Raises:
        LLMError: The language model fails every time; what is done is kept.
        DataError: The folder cannot be used, or another run uses it.
        RuntimeError: An event loop is running; use `asynthesize`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        ask = asker(llm, asynchronous=False)
        return asyncio.run(_synthesize(documents, ask, out, max_rounds, concurrency, timeout, held_out, show_progress))
    raise RuntimeError("an event loop is running, which synthesize() would block; use `await asynthesize(...)`")


async def asynthesize(
    documents: Iterable[object],
    llm: Any,
    out: str | Path,
    *,
    max_rounds: int = 10,
    concurrency: int = 8,
    timeout: float = 120.0,  # noqa: ASYNC109 - of each reply, not of the call
    held_out: float = 0.0,
    show_progress: bool = False,
) -> SynthesisReport:
    """Awaitable `synthesize`; a model's own asynchronous call is used where it has one."""
    ask = asker(llm, asynchronous=True)
    return await _synthesize(documents, ask, out, max_rounds, concurrency, timeout, held_out, show_progress)


async def _synthesize(
    documents: Iterable[object],
    ask: Ask,
    out: str | Path,
    max_rounds: int,
    concurrency: int,
    timeout: float,  # noqa: ASYNC109
    held_out: float,
    show_progress: bool,
) -> SynthesisReport:
    if max_rounds < 1 or concurrency < 1 or timeout <= 0:
        raise ValueError(
            "max_rounds and concurrency must be at least 1 and timeout more than 0, "
            f"got {max_rounds}, {concurrency} and {timeout}"
        )
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a share from 0 to less than 1, got {held_out}")
    dropped: Counter[str] = Counter()
    passages = _passages(documents, dropped)
    if not passages:
        raise ValueError(f"there is no passage to work on; left out: {dict(dropped) or 'nothing, none was given'}")
    folder = Path(out)
    with Journal(folder) as journal:
        todo = {key: text for key, text in passages.items() if not _is_final(journal.outcomes.get(key), max_rounds)}
        work = _Work(ask, journal, max_rounds, timeout)
        try:
            await work.run(todo, concurrency, show_progress)
        finally:
            outcomes = [journal.outcomes[key] for key in passages if key in journal.outcomes]
            apart, files = _write(folder, outcomes, passages, held_out)
    dropped.update(outcome.reason for outcome in outcomes if outcome.reason)
    dropped.update(work.unanswered)
    faults = sum((Counter(outcome.faults) for outcome in outcomes), work.faults)
    kept = [outcome for outcome in outcomes if not outcome.reason]
    report = SynthesisReport(
        passages=len(passages),
        kept=len(kept),
        resumed=len(passages) - len(todo),
        dropped=dict(dropped.most_common()),
        faults=dict(faults.most_common()),
        calls=sum(outcome.calls for outcome in outcomes),
        simple=sum(len(outcome.simple) for outcome in kept),
        complex=sum(len(outcome.complex) for outcome in kept),
        held_out=apart,
        files=files,
    )
    if dropped:
        log.warning("synthesis left out %d passages: %s", dropped.total(), report.dropped)
    return report


def _passages(documents: Iterable[object], dropped: Counter[str]) -> dict[str, str]:
    """Texts by hash, in order; what cannot be a passage is counted."""
    passages: dict[str, str] = {}
    for document in documents:
        text = text_of(document)
        try:
            key = passage_key(text)
        except UnicodeEncodeError:
            dropped["no Unicode text"] += 1
            continue
        if not text.strip():
            dropped["empty text"] += 1
        elif key in passages:
            dropped["same text as another"] += 1
        else:
            passages[key] = text
    return passages


def _is_final(outcome: Outcome | None, max_rounds: int) -> bool:
    """Whether a passage need not be asked about any more: kept, or dropped after as many rounds as are wanted now."""
    return outcome is not None and (not outcome.reason or outcome.rounds >= max_rounds)


class _Work:
    """The passages of a run, several at a time.

    Attributes:
        unanswered: Reasons of passages that the language model only failed for; a later run asks again.
        faults: What went wrong with them.
    """

    def __init__(self, ask: Ask, journal: Journal, max_rounds: int, timeout: float) -> None:
        self.ask, self.journal, self.max_rounds, self.timeout = ask, journal, max_rounds, timeout
        self.unanswered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._in_a_row = 0
        self._last: Unanswered | None = None

    async def run(self, passages: dict[str, str], concurrency: int, show_progress: bool) -> None:
        """Work on all passages.

        Raises:
            LLMError: The language model fails every time.
        """
        from tqdm.auto import tqdm

        waiting = iter(passages.items())
        with tqdm(total=len(passages), desc="synthesizing", unit="passage", disable=not show_progress) as bar:

            async def worker() -> None:
                for key, text in waiting:
                    await self._one(key, text)
                    bar.update()

            workers = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(passages)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        if not self.journal.outcomes:
            self._give_up()

    def _give_up(self) -> NoReturn:
        raise LLMError(
            f"the language model failed for {self._in_a_row} passages in a row, last with {self._last}; what is done "
            f"is kept in {self.journal.path}: mend the cause and run again with the same folder"
        ) from (self._last and self._last.__cause__)

    async def _one(self, key: str, text: str) -> None:
        draft = Draft(text, self.ask, self.timeout)
        try:
            reason, rounds = await draft.finish(self.max_rounds)
        except Unanswered as exc:
            self.faults.update(draft.faults)
            self.unanswered["the language model failed"] += 1
            self._in_a_row += 1
            self._last = exc
            if self._in_a_row >= _GIVE_UP:
                self._give_up()
            return
        self._in_a_row = 0
        made = (draft.simple_pairs, draft.complex_pairs, draft.paraphrase or "") if not reason else ((), (), "")
        self.journal.add(Outcome(key, reason, rounds, draft.calls, *made, faults=dict(draft.faults)))


# --- what is written -------------------------------------------------------------------------------------


def _write(
    folder: Path, outcomes: Sequence[Outcome], passages: dict[str, str], held_out: float
) -> tuple[int, tuple[Path, ...]]:
    """Write lines to train on and lines to measure with; how many questions the latter hold, and the files."""
    train: list[CompressionLine] = []
    apart: list[CompressionLine] = []
    for outcome in outcomes:
        if outcome.reason:
            continue
        docs = (passages[outcome.passage],)
        for pairs in (outcome.simple, outcome.complex):
            kept_out = {pair for pair in pairs if _fraction(same_words(pair[0])) < held_out}
            train += _qa([pair for pair in pairs if pair not in kept_out], docs)
            apart += _qa([pair for pair in pairs if pair in kept_out], docs)
        train.append(CompressionLine("paraphrase", (), (outcome.paraphrase,), docs))
    write_lines(folder / STAGE1, train)
    if not held_out:
        (folder / HELD_OUT).unlink(missing_ok=True)  # of an earlier run: its questions are trained on now
        return 0, (folder / STAGE1,)
    write_lines(folder / HELD_OUT, apart)
    return sum(len(line.questions) for line in apart), (folder / STAGE1, folder / HELD_OUT)


def _qa(pairs: Sequence[Pair], docs: tuple[str, ...]) -> Iterator[CompressionLine]:
    if pairs:
        questions, answers = zip(*pairs, strict=True)
        yield CompressionLine("qa", questions, answers, docs)


def _fraction(text: str) -> float:
    """A number in [0, 1) that follows from a text."""
    return int(passage_key(text)[:8], 16) / 2**32
