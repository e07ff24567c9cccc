"""Parses the replies of a language model in synthesis to pairs, a paraphrase or a verdict.

Replies are untrusted. Their length is limited, JSON is found anywhere in them (in a code fence, between remarks, cut
off), and its content is checked. Unusable content is counted by fault.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from clara_core.data.examples import is_unicode

__all__ = ["LONGEST_REPLY", "Pair", "Verdict", "read_pairs", "read_paraphrase", "read_verdict", "same_words"]

Pair: TypeAlias = tuple[str, str]

# Lengths are in characters.
LONGEST_REPLY = 32_000
MOST_PAIRS = 64  # of one reply
LONGEST_QUESTION = 600
LONGEST_ANSWER = 1_200
MOST_FACTS = 24  # of one verdict
LONGEST_FACT = 300
_FAILED_STARTS = 100  # brackets tried that do not begin JSON; bounds the time of a reply like "[[[[[…"
_DEEPEST = 6  # levels of lists and objects around a pair

_QUESTION_KEYS = frozenset({"question", "q", "query"})
_ANSWER_KEYS = frozenset({"answer", "a", "response"})
_QUESTION_MARKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")
# What models write if there is no answer. The list is short because "unknown", "none" and "Na" can be answers.
_NO_ANSWERS = frozenset({"n/a", "not mentioned", "not specified", "not stated", "not provided", "i don't know"})
_START = re.compile(r'\{\s*["}]|\[\s*[\[{"\]]')  # start of an object or list, but not "[1]" or "{you}" in a remark
_DECODER = json.JSONDecoder(strict=False)  # models put line breaks into strings
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The language model's verification of pairs and paraphrase against the passage.

    Attributes:
        missing: Facts that no pair asks for.
        lost: Facts that the paraphrase leaves out.
        wrong: Numbers of unsupported pairs, from 1.
    """

    missing: tuple[str, ...]
    lost: tuple[str, ...]
    wrong: frozenset[int]


def read_pairs(reply: str, faults: Counter[str]) -> list[Pair] | None:
    """Parse the usable pairs of question and answer in a reply.

    Args:
        reply: Reply of the model.
        faults: Counter of faults, which is updated.

    Returns:
        list: Pairs with distinct questions; empty if the reply is an empty list; None if nothing is usable.
    """
    values = _json_values(reply, faults)
    candidates = [pair for value in values for pair in _pairs(value, _DEEPEST)]
    pairs: dict[str, Pair] = {}
    for question, answer in candidates[:MOST_PAIRS]:
        fault = _pair_fault(question, answer)
        if fault is None and same_words(question) in pairs:
            fault = "question asked twice"
        if fault is None:
            pairs[same_words(question)] = (question.strip(), answer.strip())
        else:
            faults[fault] += 1
    if len(candidates) > MOST_PAIRS:
        faults["too many pairs"] += 1
    if pairs:
        return list(pairs.values())
    if not candidates and any(_is_empty(value) for value in values):
        return []
    if values and not candidates:
        faults["JSON without the requested fields"] += 1
    return None


def read_paraphrase(reply: str, passage: str, faults: Counter[str]) -> str | None:
    """Parse the paraphrase in a reply; None if it is not usable."""
    values = _unwrapped(_json_values(reply, faults))
    texts = [text for value in values if (text := _only_text(value)) is not None]
    if not texts:
        if values:
            faults["JSON without the requested fields"] += 1
        return None
    text = texts[0].strip()
    if not same_words(text) or not is_unicode(text):
        faults["paraphrase empty"] += 1
    elif same_words(text) == same_words(passage):
        faults["paraphrase copied"] += 1
    elif len(text) > 2 * len(passage) + 200:
        faults["paraphrase too long"] += 1
    else:
        return text
    return None


def read_verdict(reply: str, faults: Counter[str]) -> Verdict | None:
    """Parse the verdict in a reply; None if there is none."""
    values = _unwrapped(_json_values(reply, faults))
    for value in values:
        fields = {_key(name): found for name, found in value.items()} if isinstance(value, dict) else {}
        missing, lost, wrong = fields.get("missing"), fields.get("lost", []), fields.get("wrong", [])
        # A verdict that was cut off does not parse, so it is never read as one without missing facts.
        if isinstance(missing, list) and isinstance(lost, list) and isinstance(wrong, list):
            return Verdict(_facts(missing), _facts(lost), frozenset(_numbers(wrong)))
    if values:
        faults["JSON without the requested fields"] += 1
    return None


def same_words(text: str) -> str:
    """Normalize a text for comparison: without differences of case, spaces or ASCII punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_ASCII_PUNCTUATION).split())


# --- finding JSON ----------------------------------------------------------------------------------------


def _json_values(reply: str, faults: Counter[str]) -> list[Any]:
    """The outermost complete objects and lists of a reply; if one was cut off, the complete ones inside it."""
    if len(reply) > LONGEST_REPLY:
        faults["reply too long"] += 1
        reply = reply[:LONGEST_REPLY]
    reply = reply.rpartition("</think>")[2]  # remove the reasoning of the model
    if not reply.strip():
        faults["empty reply"] += 1
        return []
    values, position, failed = [], 0, 0
    while failed < _FAILED_STARTS and (start := _START.search(reply, position)):
        try:
            value, position = _DECODER.raw_decode(reply, start.start())
        except (ValueError, RecursionError):
            position, failed = start.start() + 1, failed + 1
        else:
            values.append(value)
    if failed:
        faults["JSON broken or cut off"] += 1
    elif not values:
        faults["no JSON"] += 1
    return values


# --- reading values --------------------------------------------------------------------------------------


def _pairs(value: Any, depth: int) -> Iterator[Pair]:
    """The pairs in nested lists and objects; a missing answer is empty."""
    if depth and isinstance(value, list):
        for item in value:
            yield from _pairs(item, depth - 1)
    elif depth and isinstance(value, dict):
        if (pair := _pair(value)) is not None:
            yield pair
        else:
            for item in value.values():
                yield from _pairs(item, depth - 1)


def _pair(fields: dict[str, Any]) -> Pair | None:
    by_key = {_key(name): found for name, found in fields.items()}
    question = next((found for name, found in by_key.items() if name in _QUESTION_KEYS), None)
    if isinstance(question, str):
        answers = [found for name, found in by_key.items() if name in _ANSWER_KEYS]
        return question, _plain(answers[0]) if answers else ""
    # The keys are in another language: recognize the question by its mark.
    texts = [_plain(found) for found in fields.values()]
    if len(texts) == 2 and texts[0].rstrip().endswith(_QUESTION_MARKS):
        return texts[0], texts[1]
    return None


def _plain(value: Any) -> str:
    """A text, or a number as text; empty for other values."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _pair_fault(question: str, answer: str) -> str | None:
    if not same_words(question):
        return "no question"
    if not answer.strip() or answer.strip().rstrip(".").casefold() in _NO_ANSWERS:
        return "no answer"
    if same_words(answer) == same_words(question):
        return "answer repeats the question"
    if len(question) > LONGEST_QUESTION or len(answer) > LONGEST_ANSWER:
        return "question or answer too long"
    if not is_unicode(question + answer):
        return "invalid Unicode"
    return None


def _unwrapped(values: list[Any]) -> list[Any]:
    """Flatten lists by one level."""
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _only_text(value: Any) -> str | None:
    """The only text in an object, under ``paraphrase`` or under a key of another language."""
    if not isinstance(value, dict):
        return None
    named = [found for name, found in value.items() if _key(name) == "paraphrase"]
    texts = [found for found in (named or value.values()) if isinstance(found, str)]
    return texts[0] if len(texts) == 1 else None


def _facts(items: list[Any]) -> tuple[str, ...]:
    """Facts as texts; other values are kept as JSON, because they still report a missing fact."""
    texts = [item.strip() if isinstance(item, str) else json.dumps(item) for item in items]
    return tuple(text[:LONGEST_FACT] for text in texts[:MOST_FACTS] if text and is_unicode(text))


def _numbers(items: list[Any]) -> Iterator[int]:
    for item in items:
        number = item.get("number") if isinstance(item, dict) else item
        if isinstance(number, str) and number.isdecimal() and len(number) < 4:
            number = int(number)
        if isinstance(number, int):
            yield number


def _is_empty(value: Any) -> bool:
    """Whether a value is an empty list, or an object with one: ``[]`` or ``{"pairs": []}``."""
    return value == [] or (isinstance(value, dict) and any(found == [] for found in value.values()))


def _key(name: str) -> str:
    return name.strip().casefold()
