"""A simulated language model for synthesis. It understands one form of sentence, and tests can make it fail.

Its passages consist of sentences such as "The founder of Aln Bridge is Ada Quill.", with one fact each. So its replies
and its comparisons really depend on the prompt.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

FACT = re.compile(r"The (\w+) of ([\w ]+) is ([\w ]+)\.")
PASSAGE = re.compile(r"<passage-(\w+)>\n(.*?)\n</passage-\1>", re.DOTALL)
Spoil = Callable[[str, int, str], str]  # (kind of prompt, number of earlier requests for this passage, reply) -> reply

NAMES = ("Aln Bridge", "Wye Mill", "Tarn Hall", "Esk Dock", "Ure Lock", "Ouse Weir", "Lune Quay", "Swale Ford")
TEXTS = [
    f"The founder of {name} is Ada Quill {number}. The year of {name} is {1900 + number}. "
    f"The colour of {name} is dark green {number}."
    for number, name in enumerate(NAMES)
]


def honest(kind: str, number: int, reply: str) -> str:
    """The unchanged reply."""
    return reply


class Teacher:
    """The model as a function from text to text.

    Args:
        spoil: Changes replies, or raises errors.
        omit: Sentences with this word are overlooked unless the prompt names them.
    """

    def __init__(self, spoil: Spoil = honest, omit: str = "") -> None:
        self.spoil, self.omit = spoil, omit
        self.prompts: list[tuple[str, str]] = []  # kind, prompt
        self.asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, prompt: str) -> str:
        kind, passage = kind_of(prompt), passage_of(prompt)
        with self._lock:
            self.prompts.append((kind, prompt))
            number = self.asked[kind, passage]
            self.asked[kind, passage] += 1
        return self.spoil(kind, number, json.dumps(getattr(self, f"_{kind}")(prompt, FACT.findall(passage))))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.prompts]

    def _simple(self, prompt: str, facts: list[tuple[str, str, str]]) -> Any:
        wanted = [fact for fact in facts if not self.omit or self.omit not in fact]
        if again := re.search(r'states them: (\[".*?"\])\.', prompt):
            wanted = [fact for fact in facts if sentence(fact) in json.loads(again[1])]
        return {"pairs": [{"question": f"What is the {what} of {of}?", "answer": is_} for what, of, is_ in wanted]}

    def _complex(self, prompt: str, facts: list[tuple[str, str, str]]) -> Any:
        return {
            "pairs": [
                {"question": f"What are the {one[0]} and the {two[0]} of {one[1]}?", "answer": f"{one[2]}, {two[2]}"}
                for one, two in pairwise(facts)
            ]
        }

    def _paraphrase(self, prompt: str, facts: list[tuple[str, str, str]]) -> Any:
        return {"paraphrase": " ".join(f"{is_} is what {of} has as its {what}." for what, of, is_ in facts)}

    def _verify(self, prompt: str, facts: list[tuple[str, str, str]]) -> Any:
        # The last such lines, because a passage may contain some, too.
        pairs = json.loads(re.findall(r"^Pairs: (.*)$", prompt, re.MULTILINE)[-1])
        paraphrase = json.loads(re.findall(r"^Paraphrase: (.*)$", prompt, re.MULTILINE)[-1])
        asked = {(pair["question"], pair["answer"]) for pair in pairs}
        return {
            "missing": [sentence(f) for f in facts if (f"What is the {f[0]} of {f[1]}?", f[2]) not in asked],
            "lost": [sentence(fact) for fact in facts if fact[2] not in paraphrase],
            "wrong": [pair["number"] for pair in pairs if not any(fact[2] in pair["answer"] for fact in facts)],
        }


def sentence(fact: Sequence[str]) -> str:
    return "The {} of {} is {}.".format(*fact)


def passage_of(prompt: str) -> str:
    return PASSAGE.search(prompt)[2]


def kind_of(prompt: str) -> str:
    """The kind of a prompt, by the keys that the reply must have."""
    if '"missing"' in prompt:
        return "verify"
    if '{"paraphrase"' in prompt:
        return "paraphrase"
    return "complex" if "two or more facts" in prompt else "simple"


taught = Teacher()  # for a command line
