"""Writes examples for `hint_weights`: questions about typed passages that the model was not trained on.

    python -m tools.pocket_factory.hint_examples pocket work/hints.pt
    python -m tools.pocket_factory.hint_examples pocket work/typed.pt --folder tools/pocket_factory/typed
    python -m tools.pocket_factory.hint_examples pocket work/world.pt --world 2500

A question is asked of its own passage, or of those that a search by words finds; a fifth of these lack its own.
The candidates of its beginning are the places at which a quotation may begin, "Yes", "No", and the refusal, each with
the model's logit for its first token. The candidates of its end are the ends of words along the text from each right
beginning, each with the model's logit for ending there less the one for going on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from clara_core import ClaraEngine, Memory
from clara_core.engine.quoting.end_features import ends_of
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.place_features import Features
from clara_core.engine.quoting.verbatim import REFUSAL, may_begin
from clara_core.model.checkpoint.config import Role
from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.retrieval.bm25 import Bm25
from clara_core.retrieval.words import place_spans
from tools.pocket_factory.typed import FOLDER, HELD, TypedPassage, read_typed
from tools.pocket_factory.world import make_corpus

SEARCHED = 0.4  # share of the questions that are asked of the passages that a search finds, if it finds their own
AMONG = 150  # passages that are searched; among thousands of them many answer a question like "price?"
MOST_DOCUMENTS = 5
LOST = 0.2  # share of these that are asked without their own passage
SHUFFLED = 0.25  # share of these whose passages are not in the order of the search
ROWS = 24  # of a pass of the model
BEGINNINGS = 3  # of a question whose ends are examples
BEYOND = 2  # candidates after the last right end
MOST = 30.0  # nats; larger differences of logits are this one
NO_ANSWER = ("Yes", "No", REFUSAL)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the forms of its answer, and the indexes of its documents."""

    question: str
    answers: tuple[str, ...]
    own: int
    documents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that may begin so: its first word, whether it is right, its gain by rules, and its features."""

    word: str
    right: bool
    rules: float
    features: list[str]


@dataclass(frozen=True, slots=True)
class End:
    """Where a quotation may end: after so many of its tokens, before this one."""

    tokens: int
    before: int | None
    right: bool
    features: list[str]


@dataclass(slots=True)
class Examples:
    """Examples with numbers for the names of their features and sorts."""

    names: dict[str, int] = field(default_factory=dict)
    sorts: dict[str, int] = field(default_factory=dict)
    found: list[dict[str, Tensor]] = field(default_factory=list)

    def add(
        self, sort: str, held: bool, logits: Tensor, rules: Sequence[float], right: Sequence[bool],
        features: Sequence[Sequence[str]],
    ) -> None:  # fmt: skip
        """Add an example, with a row for each candidate."""
        names = [self.names.setdefault(name, len(self.names)) for own in features for name in own]
        self.found.append({
            "held": torch.tensor(held),
            "sort": torch.tensor(self.sorts.setdefault(sort, len(self.sorts))),
            "logits": logits.half(),
            "rules": torch.tensor(rules).half(),
            "right": torch.tensor(right),
            "sizes": torch.tensor([len(own) for own in features], dtype=torch.int16),
            "names": torch.tensor(names, dtype=torch.int32),
        })  # fmt: skip

    def content(self) -> dict[str, object]:
        """What `torch.save` writes: the examples that have a right candidate."""
        kept = [one for one in self.found if bool(one["right"].any())]
        return {"names": list(self.names), "sorts": list(self.sorts), "examples": kept}


def questions(rng: random.Random, passages: Sequence[TypedPassage]) -> list[Asked]:
    """Every question of the passages, with documents."""
    order = rng.sample(range(len(passages)), len(passages))
    found = []
    for start in range(0, len(order), AMONG):
        among = order[start : start + AMONG]
        index = Bm25([passages[at].text for at in among])
        for own in among:
            passage = passages[own]
            for question, answers in (*passage.asked, *((q, (REFUSAL,)) for q in passage.unanswerable)):
                documents: tuple[int, ...] = (own,)
                if rng.random() < SEARCHED:
                    ranked = [among[at] for at in index.rank([question])[0][: rng.randint(2, MOST_DOCUMENTS)]]
                    documents = _documents(rng, ranked, own)
                found.append(Asked(question, answers if own in documents else (REFUSAL,), own, documents))
    return found


def _documents(rng: random.Random, ranked: Sequence[int], own: int) -> tuple[int, ...]:
    """The documents of a search, some without the right one or in any order; the right one alone if it is not found."""
    if own not in ranked or len(ranked) == 1:
        return (own,)
    if rng.random() < LOST:
        return tuple(at for at in ranked if at != own)
    return tuple(rng.sample(ranked, len(ranked)) if rng.random() < SHUFFLED else ranked)


def world_passages(count: int, *, held: bool) -> list[TypedPassage]:
    """Passages of the invented encyclopedia, of its training's names, with the questions that one passage answers."""
    made = make_corpus(random.Random(held), count // HELD if held else count, split="train", words=(20, 200))
    asked: list[list[tuple[str, tuple[str, ...]]]] = [[] for _ in made.passages]
    for question in made.questions:
        if len(question.gold) == 1:
            asked[question.gold[0]].append((question.text, (question.answer,)))
    return [TypedPassage("world", one.text, tuple(own), ()) for one, own in zip(made.passages, asked, strict=True)]


def candidates(asked: Asked, texts: Sequence[str]) -> tuple[str, list[Candidate]]:
    """The sort of a question, and the candidates of its beginning."""
    hints = LearnedHints(asked.question, [texts[at] for at in asked.documents])
    found = []
    for number, at in enumerate(asked.documents):
        text, columns = texts[at], hints.columns(number)
        for index, (start, end) in enumerate(place_spans(text)):
            if may_begin(text, start):
                right = at == asked.own and bool(_right_ends(asked, text, start))
                own = _names({group: values[index] for group, values in columns.items()})
                found.append(Candidate(text[start:end], right, hints.by_rules(number, start, text[start:end]), own))
    for answer in NO_ANSWER:
        own = _names(hints.features_of_other(answer))
        found.append(Candidate(answer, answer in asked.answers, hints.other_by_rules(answer), own))
    return hints.sort, found


def ends(asked: Asked, text: str, tokenizer: ClaraTokenizer) -> Iterator[tuple[str, list[int], list[End]]]:
    """For each right beginning: the sort of the question, the tokens from there on, and the candidates of the end."""
    if asked.answers[0] in NO_ANSWER:
        return
    hints = LearnedHints(asked.question, [text])
    [words] = hints.documents
    [(ids, spans)] = tokenizer.encode_spans([text])
    beginnings = {start: _right_ends(asked, text, start) for start in words.at if may_begin(text, start)}
    for start, right in islice(((start, right) for start, right in beginnings.items() if right), BEGINNINGS):
        known = ends_of(words, hints.kind, words.at[start])
        word = text[start : min(known)]
        # The first word is encoded by itself, as in a quotation.
        said = list(tokenizer.encode_spans([word])[0][0])
        first = next((at + 1 for at, span in enumerate(spans) if span[1] == start + len(word)), len(ids) + 1)
        found: list[End] = []
        for at in range(first, len(ids) + 1):
            end = spans[at - 1][1]
            said += ids[at - 1 : at] if at > first else []
            if end in known and (at == len(ids) or spans[at][0] >= end):
                found.append(End(len(said), ids[at] if at < len(ids) else None, end in right, _names(known[end])))
        last = max((number for number, one in enumerate(found) if one.right), default=None)
        if last is not None:
            found = found[: last + 1 + BEYOND]
            yield hints.sort, said[: found[-1].tokens], found


def _names(features: Features) -> list[str]:
    return [f"{group}={value}" for group, value in features.items() if value]


def _right_ends(asked: Asked, text: str, start: int) -> set[int]:
    """Where the right answers end that begin at a character."""
    found = ((start + len(answer), answer) for answer in asked.answers)
    return {
        end for end, answer in found if text[start:end].lower() == answer.lower() and not text[end : end + 1].isalnum()
    }


# --- with the model's logits ------------------------------------------------------------------------------------


def last_states(
    engine: ClaraEngine, asked: Sequence[Asked], memories: Sequence[Memory], said: Sequence[Sequence[int]]
) -> list[Tensor]:
    """For each question the states ``[tokens + 1, hidden]`` from the end of its prompt to the end of what is said."""
    model, tokenizer = engine.load().model, engine.tokenizer
    several = [[memories[at] for at in one.documents] for one in asked]
    prompts = [
        tokenizer.answer_prompt(one.question, sum(memory.n_windows for memory in own))
        for one, own in zip(asked, several, strict=True)
    ]
    rows = [[*prompt, *own] for prompt, own in zip(prompts, said, strict=True)]
    slots = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
    for row, ids in enumerate(prompts):
        slots[row, : len(ids)] = torch.tensor(tokenizer.is_slot(ids))
    filled = torch.cat([memory.tokens.flatten(0, 1) for own in several for memory in own])
    states = model.hidden_states(rows, Role.GENERATOR, memories=filled, slots=slots)
    return [own[len(ids) - 1 : len(row)] for own, ids, row in zip(states, prompts, rows, strict=True)]


def add_beginnings(
    into: Examples, engine: ClaraEngine, asked: Sequence[Asked], texts: Sequence[str], memories: Sequence[Memory], *,
    held: bool,
) -> None:  # fmt: skip
    """Add an example of a beginning for each question."""
    for some in _parts(asked):
        with torch.inference_mode():
            states = torch.stack([own[0] for own in last_states(engine, some, memories, [()] * len(some))])
            logits = engine.load().model.head(states).float()
        for one, row in zip(some, logits, strict=True):
            sort, every = candidates(one, texts)
            known = [each for each in every if each.word.strip()]
            first = [ids[0] for ids, _ in engine.tokenizer.encode_spans([each.word for each in known])]
            rules, right = [each.rules for each in known], [each.right for each in known]
            into.add(sort, held, row[first], rules, right, [each.features for each in known])


def add_ends(
    into: Examples, engine: ClaraEngine, asked: Sequence[Asked], texts: Sequence[str], memories: Sequence[Memory], *,
    held: bool,
) -> None:  # fmt: skip
    """Add an example of an end for each right beginning of each question."""
    model, tokenizer = engine.load().model, engine.tokenizer
    stops = sorted(tokenizer.eos_ids)
    for some in _parts(asked):
        known = [(one, *found) for one in some for found in ends(one, texts[one.own], tokenizer)]
        if not known:
            continue
        with torch.inference_mode():
            every = last_states(engine, [one for one, *_ in known], memories, [said for _, _, said, _ in known])
            for (_, sort, _, found), states in zip(known, every, strict=True):
                logits = model.head(states[[end.tokens for end in found]]).float()
                going = [float(row[end.before]) if end.before is not None else -MOST
                         for row, end in zip(logits, found, strict=True)]  # fmt: skip
                ending = (logits[:, stops].amax(1) - torch.tensor(going)).clamp(-MOST, MOST)
                into.add(sort, held, ending, [0.0] * len(found), [end.right for end in found],
                         [end.features for end in found])  # fmt: skip


def _parts(asked: Iterable[Asked]) -> Iterator[list[Asked]]:
    """Questions with equally many documents side by side."""
    rest = sorted(asked, key=lambda one: len(one.documents))
    for start in range(0, len(rest), ROWS):
        yield rest[start : start + ROWS]


def main(
    checkpoint: Annotated[str, typer.Argument(help="Bundled name or folder.")],
    file: Annotated[Path, typer.Argument(help="File to write.")],
    folder: Annotated[list[Path] | None, typer.Option(help="Folders of typed passages.")] = None,
    world: Annotated[int, typer.Option(help="So many passages of the invented encyclopedia instead.")] = 0,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Write the features and the model's logits of all candidates."""
    torch.set_num_threads(threads)
    rng, engine = random.Random(1), ClaraEngine.from_pretrained(checkpoint)
    beginnings, endings = Examples(), Examples()
    for held in (False, True):
        if world:
            passages = world_passages(world, held=held)
        else:
            passages = [one for each in folder or [FOLDER / "hints"] for one in read_typed(each, held=held)]
        texts = [passage.text for passage in passages]
        asked, memories = questions(rng, passages), engine.compress(texts)
        add_beginnings(beginnings, engine, asked, texts, memories, held=held)
        add_ends(endings, engine, asked, texts, memories, held=held)
    torch.save({"beginnings": beginnings.content(), "ends": endings.content()}, file)
    for name, found in (("beginnings", beginnings), ("ends", endings)):
        print(f"{len(found.found)} {name}, {len(found.names)} features")


if __name__ == "__main__":
    typer.run(main)
