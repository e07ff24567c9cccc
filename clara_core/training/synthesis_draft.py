"""The material of one passage while it is being made: what is lacking is asked for, then the whole is compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from clara_core.data.llm import Ask
from clara_core.training.synthesis_prompts import complex_prompt, paraphrase_prompt, simple_prompt, verify_prompt
from clara_core.training.synthesis_replies import Pair, read_pairs, read_paraphrase, read_verdict, same_words

__all__ = ["Draft", "Unanswered"]

ATTEMPTS = 3  # to get any reply to a prompt
WAIT = 1.0  # seconds before the second attempt; twice as long before the next


class Unanswered(Exception):
    """The language model raised, or gave no reply in time, as often as it was tried; the cause is the last error."""


class Draft:
    """Questions and paraphrase of one passage.

    Args:
        passage: The text.
        ask: The language model.
        timeout: Seconds that a reply may take.

    Attributes:
        paraphrase: The passage in other words; None until there is a usable one.
        faults: What was wrong with replies, and how often.
        calls: Replies of the language model.
    """

    def __init__(self, passage: str, ask: Ask, timeout: float) -> None:
        self.passage, self.timeout = passage, timeout
        self.paraphrase: str | None = None
        self.faults: Counter[str] = Counter()
        self.calls = 0
        self._ask = ask
        self._pairs: dict[str, Pair] = {}  # by the words of the question: simple and complex ones
        self._complex: set[str] | None = None  # which of them are complex; None until the model said which there are
        self._rejected: set[Pair] = set()  # unsupported, not to be taken a second time
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
        """Go through rounds until the model finds the passage covered.

        Returns:
            tuple: Why the passage is to be dropped, empty where it is covered, and the rounds it took.

        Raises:
            Unanswered: The language model did nothing but fail.
        """
        for number in range(1, max_rounds + 1):
            if await self._round():
                return "", number
        return self._reason(), max_rounds

    async def _round(self) -> bool:
        """Ask for what is lacking, then for a comparison; whether everything is covered."""
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
        # A fact may have been asked for by nothing but a wrong pair: then the rest is compared once more.
        return not (wrong or self._missing or self._lost)

    def _add(self, pairs: Iterable[Pair]) -> set[str]:
        """Take in pairs whose question is new; returns which."""
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
            return "coverage never confirmed"
        return "facts still missing after the last round"
