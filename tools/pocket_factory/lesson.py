"""Builds training steps: passages of all sorts with questions, in the prompts of the engine."""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.model.tokenizer import ANSWER_SYSTEM, PARAPHRASE_SYSTEM, ClaraTokenizer
from clara_core.retrieval.thesaurus import read_thesaurus
from clara_core.training.batch import Step
from clara_core.training.line_steps import leading_texts
from tools.pocket_factory.events import Events
from tools.pocket_factory.forms import letter, questions_and_answers, shortened
from tools.pocket_factory.frames import Frames, Made, read_frames
from tools.pocket_factory.prose import Prose
from tools.pocket_factory.relations import Relations
from tools.pocket_factory.rewording import Rewording
from tools.pocket_factory.told import Told
from tools.pocket_factory.typed import Typed
from tools.pocket_factory.values import Pools
from tools.pocket_factory.words import Words, content, go_on, keywords
from tools.pocket_factory.world import Corpus, Passage
from tools.pocket_factory.world.rows import VERBATIM_INSTRUCTION, Row, build_batch

VAGUE = 0.75  # share of the query reasoner's questions that do not name their subject, if a passage has some
LONG = 0.05  # share of the passages that may be longer than `Mix.words`
QUESTION = "Question:"
ANSWER = "Answer:"  # in its place: gives an answer, and asks for the question
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Taught(Step):
    """A training step, with the passages that are neither right nor wrong for a question of the query reasoner.

    Attributes:
        kinds: Kind of the passage of each window.
        texts: Text of the passage of each window.
        vague: For each question "", or the kind of its passage if the question does not name its subject, because
            other passages of this kind may answer it, too.
    """

    kinds: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    vague: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mix:
    """The contents of a step. A run reads ``mix.json`` in its folder again at every save.

    Attributes:
        passages: Number of passages of a step.
        sorts: Share of each sort of passages.
        repeat: Share of the passages that the model repeats.
        ask: Share of the passages with questions; a passage that is not repeated always has some.
        asked: Most questions of a row over one passage.
        several: Rows over two to five passages in a step.
        documents: Fewest and most passages of these rows.
        shuffled: Share of these rows with passages in any order; in the others the passage of the question comes first,
            as after a search.
        go_on: Share of the turns over one passage that give some words and ask for the words after them.
        reverse: Share of the passages with questions that also have a row which gives answers and asks for their
            questions.
        refuse: Share of the turns whose question has no answer.
        filler: Share of the synthetic passages that get a sentence of another sort at the beginning or the end.
        contrast: Questions that the query reasoner reads, at most one for each passage.
        keywords: Share of them that are a few words of the passage.
        system: Share of the rows with the system message.
        typo: Share of the questions that are written carelessly.
        reworded: Share of the questions that are asked in other words than written.
        text: Share of the rows with questions whose first passage, sometimes the second or all, is read as text.
        two: Share of the rows over several passages that need two of them.
        words: Most words of a passage; a few passages are longer.
        forms: Share of the synthetic passages written as a letter, as a chat, or as questions and answers.
        short: Share of the questions over one passage that call its subject by a pronoun or a short name.
    """

    passages: int = 24
    sorts: dict[str, float] = field(default_factory=lambda: {"prose": 0.28, "frame": 0.34, "event": 0.19, "open": 0.19})
    repeat: float = 0.65
    ask: float = 0.6
    asked: int = 4
    several: int = 2
    documents: tuple[int, int] = (2, 4)
    shuffled: float = 0.6
    go_on: float = 0.0
    reverse: float = 0.0
    refuse: float = 0.0
    filler: float = 0.1
    contrast: int = 8
    keywords: float = 0.3
    system: float = 0.15
    typo: float = 0.12
    reworded: float = 0.0
    text: float = 0.0
    two: float = 0.0
    words: int = 30
    forms: float = 0.16
    short: float = 0.2

    @classmethod
    def read(cls, path: Path) -> Mix:
        """The mix of a run's folder."""
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return cls(**found)


class Lesson:
    """Builds steps; a step depends on the seed and its number only."""

    def __init__(self, work: Path, seed: int) -> None:
        self.pools = Pools(json.loads((work / "pools.json").read_text()))
        self.prose = Prose(json.loads((work / "prose.json").read_text()))
        self.held_out = self.prose.split(300)
        self.frames = Frames(self.pools, read_frames(HERE / "frames"))
        self.situations = {frame.name for frame in self.frames.frames}
        self.events = Events(self.pools)
        self.relations = Relations(self.pools)
        self.told = Told(work, self.pools)
        self.typed = Typed()
        self.words = Words(self.pools, self.prose)
        self.reworded = Rewording(read_thesaurus())
        self.seed = seed

    # --- passages ------------------------------------------------------------------------------------------

    def passage(self, rng: random.Random, mix: Mix) -> Made:
        """A passage of a random sort, rarely longer than `Mix.words`."""
        for _ in range(6):
            made = self.any_length(rng, mix)
            if len(made.text.split()) <= mix.words or rng.random() < LONG:
                break
        return made

    def any_length(self, rng: random.Random, mix: Mix) -> Made:
        """A passage of a random sort and of any length."""
        sort = rng.choices(list(mix.sorts), list(mix.sorts.values()))[0]
        made = self.draw(rng, sort)
        x = rng.random()
        if sort in ("prose", "words"):
            return made
        if x < mix.forms:
            made = letter(rng, self.pools, made) if x < mix.forms / 2 else questions_and_answers(rng, made)
        elif rng.random() < mix.filler:
            extra = self.another_sentence(rng)
            made.text = f"{made.text} {extra}" if rng.random() < 0.6 else f"{extra} {made.text}"
        return made

    def draw(self, rng: random.Random, sort: str) -> Made:
        """A passage of a sort."""
        if sort == "prose":
            return self.prose.make(rng)
        if sort == "words":
            return self.words.make(rng)
        if sort == "frame":
            return self.frames.make(rng)
        if sort == "event":
            return self.events.make(rng)
        if sort == "typed":
            return self.typed.make(rng)
        return self.told.make(rng) if sort == "told" else self.relations.make(rng)

    def another_sentence(self, rng: random.Random) -> str:
        """A sentence about something else."""
        x = rng.random()
        if x < 0.4:
            text = rng.choice(self.prose.texts["examples"])
            text = text[0].upper() + text[1:]
            return text if text[-1] in ".!?" else text + "."
        if x < 0.7:
            return self.events.make(rng, 1).text
        return self.frames.make(rng, most=1).text

    def corpus(self, rng: random.Random, mix: Mix) -> list[Made]:
        """The passages of a step; about a third of them come in pairs of the same situation or the same sort."""
        found: list[Made] = []
        while len(found) < mix.passages:
            made = self.passage(rng, mix)
            found.append(made)
            x = rng.random()
            frame = next((f for f in self.frames.frames if f.name == made.kind), None)
            if frame is not None and x < 0.25:  # the same situation, another subject
                found.append(self.frames.make(rng, frame=frame))
            elif made.kind == "open" and x < 0.25:
                found.append(self.relations.about_one(rng))
        return found[: mix.passages]

    # --- a step --------------------------------------------------------------------------------------------

    def step(self, tokenizer: ClaraTokenizer, number: int, mix: Mix) -> Step:
        """One step."""
        rng = random.Random(f"{self.seed} {number}")
        made = self.corpus(rng, mix)
        pairs = []
        if mix.two:
            one, other, asked = self.relations.two(rng)
            pairs.append((len(made), len(made) + 1, asked))
            made += [one, other]
        passages = [Passage(m.subject, m.text, m.kind, ()) for m in made]
        pieces, windows = [], []
        for m in made:
            spans = tokenizer.windows(m.text)
            windows.append(range(len(pieces), len(pieces) + len(spans)))
            pieces += [m.text[start:end] for start, end in spans]
        corpus = Corpus(passages, [])
        rows, again = [], []
        for index, m in enumerate(made):
            repeated = len(windows[index]) <= 2 and (not m.asked or rng.random() < mix.repeat)
            if repeated:
                again.append(
                    Row(
                        (index,),
                        ((VERBATIM_INSTRUCTION, m.text),),
                        (((index,), (index,)),),
                        system=PARAPHRASE_SYSTEM if rng.random() < mix.system else "",
                    )
                )
            if m.asked and (not repeated or rng.random() < mix.ask):
                turns = self.turns(rng, m, made, index, mix)
                rows.append(self.row(rng, (index,), turns, mix))
            if m.asked and rng.random() < mix.reverse:
                rows.append(self.reverse(rng, m, index, mix))
        rows += [
            self.pair(rng, made, pairs, mix) if pairs and rng.random() < mix.two else self.several(rng, made, mix)
            for _ in range(mix.several)
        ]
        questions, gold, vague = self.contrast(rng, made, mix)
        return Taught(
            sequences=tokenizer.encode_passages(pieces),
            windows=windows,
            questions=tokenizer.encode_passages(questions),
            gold=gold,
            rows=build_batch(tokenizer, corpus, rows, windows),
            retold=build_batch(tokenizer, corpus, again, windows) if again else None,
            places=(str(number),),
            kinds=tuple(m.kind for m, own in zip(made, windows, strict=True) for _ in own),
            texts=tuple(m.text for m, own in zip(made, windows, strict=True) for _ in own),
            vague=vague,
        )

    def turns(
        self, rng: random.Random, m: Made, made: list[Made], index: int, mix: Mix
    ) -> list[tuple[str, str, tuple[int, ...]]]:
        """The questions of a row about one passage: (question, answer, passage)."""
        count = rng.randint(1, mix.asked)
        picked = self.pick(rng, m, count)
        turns: list[tuple[str, str, tuple[int, ...]]] = []
        for full, answer in picked:
            if rng.random() < mix.go_on and (more := go_on(rng, m.text)):
                turns.append((*more, (index,)))
                continue
            question = shortened(rng, full, m.subject) if rng.random() < mix.short else full
            if rng.random() < mix.refuse:
                miss = self.miss(rng, m, made, index)
                if miss:
                    turns.append((self.as_asked(rng, miss, mix), REFUSAL, (index,)))
                    continue
            turns.append((self.as_asked(rng, question, mix), answer, (index,)))
        return turns

    def reverse(self, rng: random.Random, m: Made, index: int, mix: Mix) -> Row:
        """A row that gives answers from a passage, and asks for the question of each."""
        turns = [
            (answer, self.as_asked(rng, question, mix), (index,)) for question, answer in self.pick(rng, m, mix.asked)
        ]
        return self.row(rng, (index,), turns, mix, opening=ANSWER)

    @staticmethod
    def pick(rng: random.Random, m: Made, count: int) -> list[tuple[str, str]]:
        """Choose questions, those with different answers first."""
        by_answer: dict[str, list[str]] = {}
        for question, answer in m.asked:
            by_answer.setdefault(answer, []).append(question)
        answers = list(by_answer)
        rng.shuffle(answers)
        return [(rng.choice(by_answer[a]), a) for a in answers[:count]]

    def miss(self, rng: random.Random, m: Made, made: list[Made], index: int) -> str | None:
        """A question that the passage does not answer."""
        if m.unanswerable and rng.random() < 0.6:
            return rng.choice(m.unanswerable)
        for _ in range(6):
            other = rng.choice(made)
            if (
                other is not m
                and other.asked
                and other.subject
                and other.kind not in ("example", "definition", "description")
            ):
                question, answer = rng.choice(other.asked)
                if (
                    "___" not in question
                    and "comes after" not in question
                    and other.subject in question
                    and other.subject not in m.text
                    and answer not in m.text
                ):
                    return question
        return None

    def several(self, rng: random.Random, made: list[Made], mix: Mix) -> Row:
        """A row over several passages, most of them similar."""
        asked = [i for i, m in enumerate(made) if m.asked]
        first = rng.choice(asked)
        wanted = min(rng.randint(*mix.documents), len(asked))
        kin = [i for i in asked if made[i].kind == made[first].kind and i != first]
        rng.shuffle(kin)
        documents = [first]
        while len(documents) < wanted:
            other = kin.pop() if kin and rng.random() < 0.6 else rng.choice(asked)
            if other not in documents:
                documents.append(other)
        if rng.random() < mix.shuffled:
            rng.shuffle(documents)
        turns = []
        for index in documents[: rng.randint(1, 3)] if rng.random() < 0.5 else [first]:
            m = made[index]
            named = [
                (q, a) for q, a in m.asked if m.subject and (m.subject.lower() in q.lower() or "___" in q)
            ] or m.asked
            options = [
                (q, a) for q, a in named if all(q not in [x for x, _ in made[d].asked] for d in documents if d != index)
            ]
            if not options:
                continue
            question, answer = rng.choice(options)
            if rng.random() < mix.refuse:
                miss = self.miss(rng, m, [x for i, x in enumerate(made) if i not in documents] or made, index)
                if miss and not any(miss in [q for q, _ in made[d].asked] for d in documents):
                    turns.append((self.as_asked(rng, miss, mix), REFUSAL, tuple(documents)))
                    continue
            turns.append((self.as_asked(rng, question, mix), answer, (index,)))
        if not turns:
            index = first
            question, answer = rng.choice(made[first].asked)
            turns = [(question, answer, (index,))]
        rng.shuffle(turns)
        return self.row(rng, tuple(documents), turns, mix)

    def pair(
        self, rng: random.Random, made: list[Made], pairs: list[tuple[int, int, list[tuple[str, str]]]], mix: Mix
    ) -> Row:
        """A row that needs two of its passages."""
        first, second, asked = rng.choice(pairs)
        others = [i for i in range(len(made)) if i not in (first, second)]
        documents = [first, second, *rng.sample(others, rng.randint(0, max(0, mix.documents[1] - 2)))]
        rng.shuffle(documents)
        turns = [(q, a, (first, second)) for q, a in rng.sample(asked, min(2, len(asked)))]
        return self.row(rng, tuple(documents), turns, mix)

    def row(
        self,
        rng: random.Random,
        documents: tuple[int, ...],
        turns: list[tuple[str, str, tuple[int, ...]]],
        mix: Mix,
        opening: str = QUESTION,
    ) -> Row:
        """A conversation over documents."""
        said = tuple(
            (("Background:\n{docs}\n\n" if number == 0 else "") + (opening + question).replace("{docs}", ""), answer)
            for number, (question, answer, _) in enumerate(turns)
        )
        about = tuple((gold, gold) for _, _, gold in turns)
        system = ANSWER_SYSTEM if rng.random() < mix.system else ""
        as_text = documents[: leading_texts(rng, len(documents))] if rng.random() < mix.text else ()
        return Row(documents, said, about, system=system, as_text=frozenset(as_text))

    def contrast(
        self, rng: random.Random, made: list[Made], mix: Mix
    ) -> tuple[list[str], list[tuple[int, ...]], tuple[str, ...]]:
        """Questions for the query reasoner, the passages that answer each, and `Taught.vague`."""
        questions: list[str] = []
        gold: list[tuple[int, ...]] = []
        vague: list[str] = []
        order = list(range(len(made)))
        rng.shuffle(order)
        for index in order[: mix.contrast]:
            m = made[index]
            plain = [q for q, _ in m.asked if "___" not in q and "comes after" not in q]
            named = [
                q
                for q in plain
                if not m.subject or m.kind == "event" or m.subject.lower() in q.lower() or m.subject.split()[-1] in q
            ]
            clear = bool(named)
            if m.kind in self.situations and rng.random() < VAGUE:
                telling = set(content(m.text))
                vaguer = [q for q in (shortened(rng, q, m.subject) for q in plain) if telling & set(content(q))]
                named, clear = (vaguer, False) if vaguer else (named, clear)
            if not named or rng.random() < mix.keywords:
                question = keywords(rng, m.text)
                if question is None:
                    continue
                clear = True
            else:
                question = rng.choice(named)
            questions.append(self.as_asked(rng, question, mix))
            gold.append(tuple(i for i, x in enumerate(made) if i == index or any(question == q for q, _ in x.asked)))
            vague.append("" if clear else m.kind)
        return questions, gold, tuple(vague)

    def as_asked(self, rng: random.Random, question: str, mix: Mix) -> str:
        """A question as people ask it: perhaps in other words, perhaps typed carelessly."""
        if "___" not in question and rng.random() < mix.reworded:
            question = self.reworded(rng, question)
        return self.careless(rng, question, mix)

    @staticmethod
    def careless(rng: random.Random, question: str, mix: Mix) -> str:
        """A question as people type it: in lower case, without a question mark, with a typo."""
        x = rng.random()
        if "___" in question or x > 2.5 * mix.typo:
            return question
        if x < mix.typo:
            question = question.lower() if rng.random() < 0.7 else question
            question = question.rstrip("?.") if rng.random() < 0.7 else question
        if x > 1.6 * mix.typo and len(question) > 12:
            words = question.split()
            short = [i for i, w in enumerate(words) if w.isalpha() and w.islower() and len(w) > 3]
            if short:
                i = rng.choice(short)
                w = words[i]
                k = rng.randrange(1, len(w) - 1)
                words[i] = rng.choice(
                    (
                        w[:k] + w[k + 1 :],
                        w[:k] + w[k + 1] + w[k] + w[k + 2 :],
                        w[:k] + w[k] + w[k:],
                        w[:k] + rng.choice(string.ascii_lowercase) + w[k + 1 :],
                    )
                )
                question = " ".join(words)
        if rng.random() < 0.1:
            question = rng.choice(("Please tell me: ", "Hi, ", "I want to know: ", "quick question: ")) + question
        return re.sub(r"\s+", " ", question)


if __name__ == "__main__":
    import sys

    lesson, rng = Lesson(Path(sys.argv[1]), 1), random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for _ in range(14):
        m = lesson.passage(rng, Mix())
        print(f"\n## {m.kind} / {m.subject}\n{m.text}")
        for q, a in Lesson.pick(rng, m, 4):
            print("   ", q, "->", a)
        print("    NOT:", m.unanswerable[:2])
