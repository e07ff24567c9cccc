"""Writes training sets about your own passages: a language model writes questions and paraphrases and checks them.

As in the paper (arXiv 2511.18659), each passage gets simple questions (one fact each), complex questions (several facts
combined) and a paraphrase. The same model compares them with the passage and adds missing facts, in up to ten rounds;
passages that are still not covered are dropped and counted. `clara_core.training.candidates` makes the sets of the
later stages from the result.
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
from clara_core.data.examples import is_unicode
from clara_core.data.jsonl import CompressionLine, write_lines
from clara_core.data.llm import Ask, asker, text_of
from clara_core.training.synthesis_draft import Draft, Unanswered
from clara_core.training.synthesis_journal import Journal, Outcome, passage_key
from clara_core.training.synthesis_replies import Pair, same_words

__all__ = ["HELD_OUT", "STAGE1", "SynthesisReport", "asynthesize", "synthesize"]

log = logging.getLogger(__name__)

STAGE1: Final = "stage1.jsonl"
HELD_OUT: Final = "held_out.jsonl"
_GIVE_UP = 5  # consecutive passages for which every call of the language model failed


@dataclass(frozen=True, slots=True)
class SynthesisReport:
    """Result of a run, including earlier runs in the same folder.

    Attributes:
        passages: Distinct passages.
        kept: Passages for which lines were written.
        resumed: Passages, kept or dropped, that an earlier run had finished.
        dropped: Number of dropped passages and documents by reason.
        faults: Number of unusable replies of the language model by fault.
        calls: Replies of the language model about finished passages.
        simple: Questions about one fact.
        complex: Questions about several facts.
        held_out: Held-out questions of both kinds.
        files: Files that were written.
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

    A run that was stopped or failed is resumed by a call with the same folder; only unfinished passages are repeated.
    ``stage1.jsonl`` is written at the end, also if the language model fails.

    Args:
        documents: LangChain Documents, LlamaIndex nodes or texts; each should fit the compressor's window.
        llm: A LangChain chat model, a LlamaIndex LLM, or a function from text to text, sync or async.
        out: Folder for ``journal.jsonl``, ``stage1.jsonl`` and, with `held_out`, ``held_out.jsonl``.
        max_rounds: Rounds after which a passage that is not covered is dropped.
        concurrency: Passages in progress at a time, each with one open call of the language model.
        timeout: Most seconds of a call of the language model.
        held_out: Share of the questions to hold out for evaluation, chosen by a hash of their words.
        show_progress: Show a progress bar.

    Raises:
        ValueError: An argument is out of range, or there is no passage.
        LLMError: The language model fails every time; finished passages are kept.
        DataError: The folder cannot be used, or another run uses it.
        RuntimeError: An event loop is running; use `asynthesize`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run = asynthesize(
            documents,
            asker(llm, asynchronous=False),
            out,
            max_rounds=max_rounds,
            concurrency=concurrency,
            timeout=timeout,
            held_out=held_out,
            show_progress=show_progress,
        )
        return asyncio.run(run)
    raise RuntimeError("synthesize() would block the running event loop; use `await asynthesize(...)`")


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
    """Async variant of `synthesize`; it uses the async method of the language model if there is one."""
    ask = asker(llm, asynchronous=True)
    if max_rounds < 1 or concurrency < 1 or timeout <= 0:
        raise ValueError(
            "max_rounds and concurrency must be at least 1 and timeout more than 0, "
            f"got {max_rounds}, {concurrency} and {timeout}"
        )
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be at least 0 and less than 1, got {held_out}")
    dropped: Counter[str] = Counter()
    passages = _passages(documents, dropped)
    if not passages:
        left_out = f"left out: {dict(dropped)}" if dropped else "no document was given"
        raise ValueError(f"there is no passage to write questions about; {left_out}")
    folder = Path(out)
    with Journal(folder) as journal:
        todo = {key: text for key, text in passages.items() if not _is_final(journal.outcomes.get(key), max_rounds)}
        work = _Work(ask, journal, max_rounds, timeout)
        try:
            await work.run(todo, concurrency, show_progress)
        finally:
            outcomes = [journal.outcomes[key] for key in passages if key in journal.outcomes]
            n_held_out, files = _write(folder, outcomes, passages, held_out)
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
        held_out=n_held_out,
        files=files,
    )
    if dropped:
        log.warning("synthesis left out %d passages: %s", dropped.total(), report.dropped)
    return report


def _passages(documents: Iterable[object], dropped: Counter[str]) -> dict[str, str]:
    """Passages by hash, in order; counts documents that are not usable passages."""
    passages: dict[str, str] = {}
    for document in documents:
        text = text_of(document)
        if not is_unicode(text):
            dropped["invalid Unicode"] += 1
        elif not text.strip():
            dropped["empty text"] += 1
        elif (key := passage_key(text)) in passages:
            dropped["same text as another"] += 1
        else:
            passages[key] = text
    return passages


def _is_final(outcome: Outcome | None, max_rounds: int) -> bool:
    """Whether a passage is finished: kept, or dropped after at least `max_rounds` rounds."""
    return outcome is not None and (not outcome.reason or outcome.rounds >= max_rounds)


class _Work:
    """Works on the passages of a run, several at a time.

    Attributes:
        unanswered: Number of passages without any reply, by reason; a later run tries them again.
        faults: Faults of these passages.
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
            f"the language model failed for {self._in_a_row} passages in a row, last with {self._last}; finished "
            f"passages are kept in {self.journal.path}: fix the cause and run again with the same folder"
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
        result = (draft.simple_pairs, draft.complex_pairs, draft.paraphrase or "") if not reason else ((), (), "")
        self.journal.add(Outcome(key, reason, rounds, draft.calls, *result, faults=dict(draft.faults)))


# --- output files ----------------------------------------------------------------------------------------


def _write(
    folder: Path, outcomes: Sequence[Outcome], passages: dict[str, str], held_out: float
) -> tuple[int, tuple[Path, ...]]:
    """Write the training lines and the held-out lines; returns the number of held-out questions and the files."""
    train: list[CompressionLine] = []
    evaluation: list[CompressionLine] = []
    for outcome in outcomes:
        if outcome.reason:
            continue
        docs = (passages[outcome.passage],)
        for pairs in (outcome.simple, outcome.complex):
            chosen = {pair for pair in pairs if _fraction(same_words(pair[0])) < held_out}
            train += _qa([pair for pair in pairs if pair not in chosen], docs)
            evaluation += _qa([pair for pair in pairs if pair in chosen], docs)
        train.append(CompressionLine("paraphrase", (), (outcome.paraphrase,), docs))
    write_lines(folder / STAGE1, train)
    if not held_out:
        (folder / HELD_OUT).unlink(missing_ok=True)  # written by an earlier run; its questions are training data now
        return 0, (folder / STAGE1,)
    write_lines(folder / HELD_OUT, evaluation)
    return sum(len(line.questions) for line in evaluation), (folder / STAGE1, folder / HELD_OUT)


def _qa(pairs: Sequence[Pair], docs: tuple[str, ...]) -> Iterator[CompressionLine]:
    if pairs:
        questions, answers = zip(*pairs, strict=True)
        yield CompressionLine("qa", questions, answers, docs)


def _fraction(text: str) -> float:
    """Hash a text to a number in [0, 1)."""
    return int(passage_key(text)[:8], 16) / 2**32
