"""Questions about real sentences (who, what, where, when, why, how), derived from the trees of `parse`.

    python -m tools.pocket_factory.told WORK     # reads WORK/parsed.jsonl, writes WORK/told.json

`Told` draws passages of a few of these sentences, with new names in place of pronouns.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools.pocket_factory.frames import Made
from tools.pocket_factory.trees import Node, WordNet, flat, read_tree
from tools.pocket_factory.values import Pools

BE = {"is", "are", "was", "were"}
AUXILIARY = {*BE, "has", "have", "had", "can", "could", "will", "would", "shall", "should", "may", "might", "must"}
AUXILIARY |= {"do", "does", "did"}
NUMBER = re.compile(
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|\d+) ", re.IGNORECASE
)
PRONOUNS = {"he", "she", "i"}
LEFT = re.compile(
    r"\b(me|my|we|us|our|you|your|it|its|they|them|their|this|that|these|those|there|here|such|not|never|no)\b|n't"
)
TIME = re.compile(
    r"\b(\d{4}|January|February|March|April|May|June|July|August|September|October|November|December|century|centuries|"
    r"\w+day|days?|nights?|mornings?|evenings?|noon|midnight|weeks?|months?|years?|hours?|minutes?|seconds?|winter|summer|"
    r"spring|autumn|dawn|dusk|weekends?|holidays?|age|time|times|decades?)\b"
)
SPAN = re.compile(
    r"\b(days?|nights?|weeks?|months?|years?|hours?|minutes?|seconds?|centuries|decades?|while|time|life|ages)\b"
)
PLACES = {"location", "artifact", "object", "body", "plant", "substance"}
WHERE = {
    "under",
    "behind",
    "above",
    "below",
    "beside",
    "near",
    "through",
    "across",
    "along",
    "over",
    "inside",
    "outside",
}
WHERE |= {"between", "among", "beneath", "around", "into", "onto", "toward", "towards", "past", "up", "down"}
LAST = {"With what", "With whom", "For what", "From what", "To whom", "About what", "By whom", "By what"}
Asked = list[tuple[str, str]]


@dataclass
class Clause:
    """A sentence as a subject, its verbs and the phrases after them.

    Attributes:
        subject: Words of the subject; {P} for a pronoun.
        who: Whether the subject is a person.
        what: Whether WordNet knows what the subject is.
        verbs: The verbs as in the sentence.
        helper: The auxiliary verb of a question.
        rest: The verbs after the subject of a question.
        pieces: The phrases after the verbs.
        chunks: Words of these phrases; {Q} for a pronoun.
    """

    subject: str
    who: bool
    what: bool
    verbs: list[str]
    helper: str
    rest: list[str]
    pieces: list[Node]
    chunks: list[str]

    @property
    def is_equation(self) -> bool:
        """Whether the sentence has the form "A is B"."""
        return len(self.verbs) == 1 and self.verbs[0] in BE

    @property
    def is_passive(self) -> bool:
        """Whether the sentence is in the passive voice, so that "by" may name who did it."""
        return len(self.verbs) > 1 and self.verbs[0] in BE and not self.verbs[-1].endswith("ing")

    @property
    def whole(self) -> str:
        """The sentence without its subject."""
        return " ".join([*self.verbs, *self.chunks])

    @property
    def stated(self) -> str:
        """The sentence without its full stop."""
        return f"{self.subject[0].upper()}{self.subject[1:]} {self.whole}"

    def ask(self, word: str, at: int | None = None, tail: str = "") -> str:
        """A question that leaves out the phrase `at`."""
        others = [chunk for number, chunk in enumerate(self.chunks) if number != at]
        text = " ".join(x for x in (word, self.helper, self.subject, *self.rest, *others, tail) if x) + "?"
        return re.sub(r"\s+([,'])", r"\1", text)


def read_clause(text: str, tree: str, words: WordNet) -> Clause | None:
    """The clause of a sentence; None if the rules cannot ask about it."""
    root = read_tree(text, tree)
    if root is None or root.label != "S" or text.endswith("?"):
        return None
    parts = [p for p in root.parts if text[p.start : p.end] not in ".!"]
    if [p.label for p in parts[:2]] != ["NP", "VP"] or any(p.label not in ("PP", "SBAR", "ADVP") for p in parts[2:]):
        return None
    subject, verb_phrase, *more = parts
    said, after = text[subject.start : subject.end], text[subject.end :]
    pronoun = said.lower() in PRONOUNS
    pieces = [p for p in flat([*verb_phrase.parts, *more], text) if text[p.start : p.end] not in (".", "!", ",")]
    chain = []
    while pieces and pieces[0].label == "" and pieces[0].tag.startswith("v"):
        chain.append(pieces.pop(0))
    if not chain or not pieces or any(p.label in ("S", "WHNP", "VP") for p in pieces):
        return None
    if LEFT.search(after) or "," in said or (not pronoun and LEFT.search(said.lower())):
        return None
    verbs = [text[v.start : v.end] for v in chain]
    first, past = verbs[0].lower(), chain[0].tag.endswith("-d")
    if said == "I" and not past:
        return None  # with a name as subject the verb would have another form
    base = words.base(first)
    if first in AUXILIARY and (len(verbs) > 1 or first in BE):
        helper, rest = first, verbs[1:]
    elif len(verbs) > 1 or base is None or text.startswith("by ", pieces[0].start):
        return None
    else:
        helper, rest = "did" if past else "does" if base != first else "do", [base]
    tag, sort = subject.parts[-1].tag, words.sort(said)
    named = bool(re.match(r"(?!The )[A-Z]\w+ [A-Z]", said)) or tag in ("m", "f", "b")
    proper = named or len(said) == 1 or tag in ("l", "i") or bool(re.match(r"(?!The )\S*.[A-Z]", said))
    return Clause(
        subject="{P}" if pronoun else said if proper else said[0].lower() + said[1:],
        who=pronoun or named or sort == "person",
        what=bool(sort),
        verbs=verbs,
        helper=helper,
        rest=rest,
        pieces=pieces,
        chunks=[_shown(part, text) for part in pieces],
    )


def _shown(part: Node, text: str) -> str:
    phrase = text[part.start : part.end].rstrip(".!")
    if phrase.lower() == "him" or (part.label == "NP" and phrase.lower() == "her"):
        return "{Q}"
    return re.sub(r"^(\w+) (him|her)$", r"\1 {Q}", phrase)


def questions(clause: Clause, words: WordNet) -> Asked:
    """Questions about a sentence, with answers in its own words."""
    asked: Asked = []
    if clause.who or clause.what:
        asked.append((f"{'Who' if clause.who else 'What'} {clause.whole}?", clause.subject))
    for at, (part, phrase) in enumerate(zip(clause.pieces, clause.chunks, strict=True)):
        if part.label == "NP" and at == 0:
            asked += _object(clause, phrase, words)
        elif part.label == "PP" and " " in phrase and (word := preposition(phrase, words, clause.is_passive)):
            asked.append((clause.ask(word, at), phrase))
            if word in LAST:
                before, inner = phrase.split(" ", 1)
                asked.append((clause.ask(word.split()[1].capitalize(), at, before), inner))
        elif part.label == "SBAR" and phrase.startswith("because "):
            asked.append((clause.ask("Why", at), phrase))
        elif part.label == "ADVP" and re.fullmatch(r"(?!only|recently|really|early)\w+ly", phrase):
            asked.append((clause.ask("How", at), phrase))
    fit = [(q, a) for q, a in asked if len(a) <= 60 and a.lower() in clause.stated.lower()]
    return [(q, a) for q, a in fit if a.split()[-1] not in ("his", "her", "a", "the", "of", "as")]


def _object(clause: Clause, phrase: str, words: WordNet) -> Asked:
    person = phrase == "{Q}" or words.sort(phrase) == "person"
    if clause.is_equation:
        return [] if re.match(r"\w+ing\b", phrase) else [(clause.ask("Who" if clause.who else "What", 0), phrase)]
    if TIME.search(phrase) and not re.match(r"(the|a|an|his|her) ", phrase):
        return []
    if NUMBER.match(phrase):
        number, noun = phrase.split(" ", 1)
        return [(clause.ask(f"How many {noun}", 0), number)]
    return [(clause.ask("Whom" if person else "What", 0), phrase)]


def preposition(phrase: str, words: WordNet, passive: bool) -> str:
    """Question words for a prepositional phrase; "" if they are not clear."""
    prep, inner = phrase.lower().split(" ", 1)
    sort = "person" if "{q}" in inner else words.sort(inner)
    timely = sort == "time" or bool(TIME.search(phrase))
    who = "whom" if sort == "person" else "what"
    if prep in ("in", "at", "on"):
        return "When" if timely else "Where" if sort in PLACES else ""
    if prep in WHERE:
        return "" if timely else "Where"
    if prep in ("after", "before", "during"):
        return "When"
    if prep in ("since", "until", "till"):
        return f"{'Since' if prep == 'since' else 'Until'} when" if timely else ""
    if prep == "for":
        return "How long" if SPAN.search(inner) else f"For {who}"
    if prep == "to":
        return "To whom" if who == "whom" else "Where" if sort in PLACES else "To what"
    if prep == "from":
        return "From whom" if who == "whom" else "From where" if sort == "location" else "From what"
    if prep == "by":
        return f"By {who}" if passive and not timely else ""
    if prep == "about" and re.match(r"\d|half|two|three|four|a ", inner):
        return ""
    return f"{prep.capitalize()} {who}" if prep in ("with", "about", "against", "without") else ""


class Told:
    """Draws passages of one to four real sentences; some get a time, a place, a reason or a companion."""

    def __init__(self, work: Path, pools: Pools) -> None:
        self.pools = pools
        file = work / "told.json"
        self.known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []

    def make(self, rng: random.Random) -> Made:
        """A passage about one person, or about several.

        Raises:
            SystemExit: There are no sentences.
        """
        if not self.known:
            raise SystemExit(
                "no told.json in the folder of sources: run parse.py and told.py, or set `told` to 0 in mix.json"
            )
        count = rng.choice((1, 1, 2, 2, 3, 4))
        one = self.pools.draw(rng, "person" if rng.random() < 0.7 else "given")
        parts: list[str] = []
        asked: list[tuple[str, str]] = []
        for number, (sentence, body, known) in enumerate(rng.sample(self.known, count)):
            stated = sentence
            names = {"{P}": one if number == 0 or rng.random() < 0.5 else self.pools.draw(rng, "given")}
            names["{Q}"] = self.pools.draw(rng, "given")
            facts = [tuple(fact) for fact in known]
            if rng.random() < 0.45:
                before, sort, word = rng.choice(ADDED)
                value = self.pools.draw(rng, sort)
                if not any(word.split()[-1].lower() in q.lower().split()[:2] for q, _ in facts):
                    stated = f"{stated} {before} {value}".replace("  ", " ")
                    facts.append((f"{word} {body}", value))
            parts.append(_named(stated, names) + ".")
            asked += [(_named(q, names), _named(a, names)) for q, a in facts]
        seen = Counter(q for q, _ in asked)
        return Made(
            one if one in " ".join(parts) else "", " ".join(parts), [x for x in asked if seen[x[0]] == 1], [], "told"
        )


def _named(text: str, names: dict[str, str]) -> str:
    return text.replace("{P}", names["{P}"]).replace("{Q}", names["{Q}"])


# Additions to a sentence: the words before a value, the sort of the value, and the question words for it.
ADDED = (
    ("in", "year", "When"),
    ("in", "year", "In which year"),
    ("on", "date", "When"),
    ("on", "date", "On what date"),
    ("on", "day", "On which day"),
    ("at", "clock", "At what time"),
    ("at", "clock", "When"),
    ("in", "place", "Where"),
    ("in", "place", "In which town"),
    ("", "prepspot", "Where"),
    ("because", "clause", "Why"),
    ("because", "clause", "For what reason"),
    ("together with", "person", "With whom"),
    ("together with", "person", "Together with whom"),
    ("for", "duration", "For how long"),
    ("for", "duration", "How long"),
    ("with", "object", "With what"),
    ("", "frequency", "How often"),
)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    words = WordNet(work / "x" / "usr" / "share" / "wordnet")
    lines = [json.loads(line) for line in (work / "parsed.jsonl").read_text(encoding="utf-8").splitlines()]
    clauses = [clause for text, tree in lines if (clause := read_clause(text, tree, words))]
    known = [(clause.stated, clause.ask(""), asked) for clause in clauses if (asked := questions(clause, words))]
    (work / "told.json").write_text(json.dumps(known), encoding="utf-8")
    print(f"{len(known):,} sentences with {sum(len(asked) for _, _, asked in known):,} questions")
