"""Makes the questions and the paraphrase of one passage: requests missing parts, then verifies the whole."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from clara_core.data.llm import Ask
from clara_core.training.synthesis_prompts import complex_prompt, paraphrase_prompt, simple_prompt, verify_prompt
from clara_core.training.synthesis_replies import Pair, read_pairs, read_paraphrase, read_verdict, same_words

__all__ = ["Draft", "Unanswered"]

ATTEMPTS = 3  # calls of the language model for a prompt, if they fail
WAIT = 1.0  # seconds before the second attempt; doubled for each further one


class Unanswered(Exception):
    """Every attempt at a prompt failed or timed out; the cause is the last error."""


class Draft:
    """Questions and paraphrase of one passage.

    Args:
        passage: The text.
        ask: The language model.
        timeout: Most seconds of a call of the language model.

    Attributes:
        paraphrase: Paraphrase of the passage; None until there is a usable one.
        faults: Number of unusable replies by fault.
        calls: Replies of the language model.
    """

    def __init__(self, passage: str, ask: Ask, timeout: float) -> None:
        self.passage, self.timeout = passage, timeout
        self.paraphrase: str | None = None
        self.faults: Counter[str] = Counter()
        self.calls = 0
        self._ask = ask
        self._pairs: dict[str, Pair] = {}  # simple and complex pairs by the words of the question
        self._complex: set[str] | None = None  # keys of the complex pairs; None until there is a usable reply
        self._rejected: set[Pair] = set()  # unsupported by the passage, not to be accepted again
        self._missing: tuple[str, ...] = ()
        self._lost: tuple[str, ...] = ()
        self._compared = False

    @property
    def simple_pairs(self) -> tuple[Pair, ...]:
        """Pairs about one fact each."""
        return tuple(pair for words, pair in self._pairs.items() if words not in (self._complex or ()))

    @property
    def complex_pairs(self) -> tuple[Pair, ...]:
        """Pairs that combine several facts."""
        return tuple(pair for words, pair in self._pairs.items() if words in (self._complex or ()))

    async def finish(self, max_rounds: int) -> tuple[str, int]:
        """Run rounds until the language model confirms that the passage is covered.

        Returns:
            tuple: The reason to drop the passage (empty if it is covered) and the number of rounds.

        Raises:
            Unanswered: Every call of the language model for a prompt failed.
        """
        for number in range(1, max_rounds + 1):
            if await self._round():
                return "", number
        return self._reason(), max_rounds

    async def _round(self) -> bool:
        """Request missing parts, then a verification; returns whether the passage is covered."""
        if self._missing or not self.simple_pairs:
            self._add(read_pairs(await self._reply(simple_prompt(self.passage, self._missing)), self.faults) or ())
        if self._complex is None:
            pairs = read_pairs(await self._reply(complex_prompt(self.passage)), self.faults)
            self._complex = None if pairs is None else self._add(pairs)
        if self.paraphrase is None:
            reply = await self._reply(paraphrase_prompt(self.passage, self._lost))
            self.paraphrase = read_paraphrase(reply, self.passage, self.faults)
        if not self.simple_pairs or self._complex is None or self.paraphrase is None:
            return False
        return await self._compare(self.paraphrase)

    async def _compare(self, paraphrase: str) -> bool:
        pairs = list(self._pairs.items())
        prompt = verify_prompt(self.passage, [pair for _, pair in pairs], paraphrase)
        verdict = read_verdict(await self._reply(prompt), self.faults)
        if verdict is None:
            return False
        self._compared = True
        wrong = [item for number, item in enumerate(pairs, start=1) if number in verdict.wrong]
        for words, pair in wrong:
            del self._pairs[words]
            self._rejected.add(pair)
            self.faults["pair not supported"] += 1
        self._missing, self._lost = verdict.missing, verdict.lost
        if self._lost:
            self.paraphrase = None
        # The wrong pairs may have been the only ones about a fact, so the remaining pairs are verified once more.
        return not (wrong or self._missing or self._lost)

    def _add(self, pairs: Iterable[Pair]) -> set[str]:
        """Add pairs with a new question; returns their keys."""
        added = set()
        for pair in pairs:
            words = same_words(pair[0])
            if words in self._pairs:
                self.faults["question asked twice"] += 1
            elif pair in self._rejected:
                self.faults["unsupported pair again"] += 1
            else:
                self._pairs[words] = pair
                added.add(words)
        return added

    async def _reply(self, prompt: str) -> str:
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(WAIT * 2 ** (attempt - 1))
            try:
                reply = await asyncio.wait_for(self._ask(prompt), self.timeout)
            except Exception as exc:  # noqa: BLE001 - a foreign model may raise anything
                late = isinstance(exc, TimeoutError)
                self.faults["no reply in time" if late else f"the language model raised {type(exc).__name__}"] += 1
                error = exc
            else:
                self.calls += 1
                return reply
        raise Unanswered(f"{type(error).__name__}: {error}") from error

    def _reason(self) -> str:
        if not self.simple_pairs:
            return "no usable question"
        if self._complex is None:
            return "no usable reply about complex questions"
        if self.paraphrase is None and not self._lost:
            return "no usable paraphrase"
        if not self._compared:
            return "coverage was never verified"
        return "facts still missing after the last round"
