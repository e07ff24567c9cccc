"""A language model of templates: writes training data for the harbour gazette from the text that it is shown.

It takes the place of a real LLM where there is none: deterministic, offline, fast, and as honest as one, for it sees
nothing but the prompts of `clara_core.training.synthesis`. Like a real one it is not perfect: in some passages it
overlooks a fact at first, so that the verification has something to find.
"""

from __future__ import annotations

import hashlib
import json
import random
import re

from examples.domain.grammar import Entry, Fact, read_entry
from examples.domain.make_domain import state

OVERLOOKS = 5  # in one of so many passages a fact is left out at first

_PASSAGE = re.compile(r"<passage-(?P<tag>\w+)>\n(?P<text>.*)\n</passage-(?P=tag)>", re.DOTALL)


def templated_llm(prompt: str) -> str:
    """Reply to a prompt of the synthesis with JSON; refuses in words what it does not understand."""
    shown = _PASSAGE.search(prompt)
    entry = read_entry(shown["text"]) if shown else None
    if shown is None or entry is None or not entry.facts:
        return "I am sorry, I cannot find an entry of the gazette here."
    task = prompt[shown.end() :]
    rng = random.Random(hashlib.sha256(prompt.encode()).digest())
    if '"wrong": [' in task:
        return _verdict(entry, task)
    if '{"paraphrase":' in task:
        return json.dumps({"paraphrase": _retold(rng, entry)})
    pairs = _complex(rng, entry) if "two or more facts" in task else _simple(rng, entry, shown["text"], task)
    return json.dumps({"pairs": [{"question": question, "answer": answer} for question, answer in pairs]})


def _simple(rng: random.Random, entry: Entry, text: str, task: str) -> list[tuple[str, str]]:
    """Questions for one fact each: two phrasings of every fact, or of those that were found missing."""
    facts = list(entry.facts)
    missing = re.search(r"for all of these, as far as the passage states them: (\[.*?\])\. ", task)
    if missing:
        named = json.loads(missing[1])
        facts = [fact for fact in facts if _fact_line(entry, fact) in named] or facts
    elif len(facts) > 1 and hashlib.sha256(text.encode()).digest()[0] % OVERLOOKS == 0:
        facts.pop()
    return [
        (_question(template, entry), fact.value)
        for fact in facts
        for template in rng.sample(fact.relation.asks, min(2, len(fact.relation.asks)))
    ]


def _complex(rng: random.Random, entry: Entry) -> list[tuple[str, str]]:
    """Questions over two facts at once: both values, or the subject that both are true of."""
    if len(entry.facts) < 2:
        return []
    first, second = rng.sample(entry.facts, 2)
    both = f"What are the {first.relation.noun} and the {second.relation.noun} of {entry.subject}?"
    left, right = (rng.choice(fact.relation.predicates).replace("{v}", fact.value) for fact in (first, second))
    which = f"Which {entry.kind.name} {left} and {right}?"
    return [(both, f"{first.value} and {second.value}"), (which, entry.subject)]


def _retold(rng: random.Random, entry: Entry) -> str:
    """The facts in another order and other words."""
    facts = [(fact.relation, fact.value) for fact in rng.sample(entry.facts, len(entry.facts))]
    common = ("a " if entry.kind.name[0] not in "aeiou" else "an ") + entry.kind.name
    sentences = [f"{entry.subject} is {common}.", *state(rng, entry.kind, entry.subject, facts)]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _verdict(entry: Entry, task: str) -> str:
    """Compare pairs and paraphrase with the passage, fact by fact."""
    pairs = json.loads(re.search(r"Pairs: (\[.*\])\n", task)[1])  # type: ignore[index]
    retold = read_entry(json.loads(re.search(r"Paraphrase: (\".*\")\n", task)[1]))  # type: ignore[index]
    told = set(retold.facts) if retold and retold.subject == entry.subject else set()
    expected = {_question(ask, entry): fact.value for fact in entry.facts for ask in fact.relation.asks}
    asked = {pair["question"] for pair in pairs if expected.get(pair["question"]) == pair["answer"]}
    wrong = [pair["number"] for pair in pairs if expected.get(pair["question"], pair["answer"]) != pair["answer"]]
    missing = [fact for fact in entry.facts if not asked & {_question(ask, entry) for ask in fact.relation.asks}]
    lost = [fact for fact in entry.facts if fact not in told]
    return json.dumps(
        {
            "missing": [_fact_line(entry, fact) for fact in missing],
            "lost": [_fact_line(entry, fact) for fact in lost],
            "wrong": wrong,
        }
    )


def _question(template: str, entry: Entry) -> str:
    return template.replace("{s}", entry.subject)


def _fact_line(entry: Entry, fact: Fact) -> str:
    """A fact as one short sentence."""
    return f"The {fact.relation.noun} of {entry.subject} is {fact.value}."
