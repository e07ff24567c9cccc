"""Training rows for the generator.

A row is one conversation over a few documents, with several questions one after another, so that the documents are read
once for all of them. Only the assistant's turns have labels.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from clara_core.model.tokenizer import (
    ANSWER_SYSTEM,
    PARAPHRASE_INSTRUCTION,
    PARAPHRASE_SYSTEM,
    ClaraTokenizer,
)
from clara_core.training.batch import Pointers, RowBatch, row_batch
from clara_core.training.line_steps import leading_texts
from clara_core.training.losses import IGNORE
from tools.pocket_factory.world import Corpus, Passage, Question, paraphrase

VERBATIM_INSTRUCTION = "Background: {docs} Repeat the text word for word."
VERBATIM_ABOUT_INSTRUCTION = "Background: {docs} Repeat the text about {title} word for word."
ABOUT_INSTRUCTION = "Background: {docs} Say in other words what the text says about {title}."
LONGEST_RETOLD = 300  # characters
NEIGHBOURS = (0.4, 0.4, 0.15, 0.05)  # shares: same kind and similar name, same kind, similar name, any
TAIL = 2  # tokens at the end of a question that should attend to the right document, as the answer does
OPENING = "Background:\n"  # before the documents
MISRANKED = 0.04  # share of the rows with text in any order; so about as often as a search ranks a wrong one first
SYSTEM_SHARE = 0.3  # share of rows with the system message, which has more tokens than a question and teaches little


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation.

    Attributes:
        documents: Indices of the passages in the order of their slots; empty if their text is in the prompt.
        turns: Pairs of user text and assistant text; ``{docs}`` in the first marks the place of the documents.
        about: For each turn the passages to attend to: those of the question, and those of each part of the answer.
        system: System message; none if empty.
        text: Whether the prompt contains the documents as text instead of memory, as in the stage of the base decoder.
        as_text: The passages whose text stands in the place of their slots, beside the memories of the others.
    """

    documents: tuple[int, ...]
    turns: tuple[tuple[str, str], ...]
    about: tuple[tuple[tuple[int, ...], ...], ...]
    system: str = ANSWER_SYSTEM
    text: bool = False
    as_text: frozenset[int] = frozenset()


def question_rows(
    rng: random.Random,
    corpus: Corpus,
    *,
    n_rows: int,
    n_documents: tuple[int, int],
    n_questions: int,
    pairs: float = 0.5,
    shuffled: float = 1.0,
    text: bool = False,
    mixed: float = 0.0,
) -> list[Row]:
    """Rows with questions about a few passages of the corpus.

    Args:
        rng: Random generator.
        corpus: Passages and questions.
        n_rows: Number of rows.
        n_documents: Fewest and most documents of a row.
        n_questions: Most questions of a row.
        pairs: Share of the rows over several documents whose question needs two of them.
        shuffled: Share of the rows with documents in any order. In the others the document of the question comes first,
            as after a ranking; if there are two, one of them.
        text: Whether the documents are given as text.
        mixed: Share of the rows that read text as an engine does after a search: their best ranked document, sometimes
            the second or all of them, beside the memories of the others.
    """
    by_passage: dict[int, list[Question]] = defaultdict(list)
    for question in corpus.questions:
        for gold in question.gold:
            by_passage[gold].append(question)
    single = list(by_passage)
    over_two = [question for question in corpus.questions if len(question.gold) > 1]
    neighbours = Neighbours.of(corpus, single)
    rows = []
    for number in range(n_rows):
        wanted = rng.randint(*n_documents)
        first = [single[number % len(single)]]
        if wanted > 1 and over_two and rng.random() < pairs:
            asked = rng.choice(over_two)
            first = rng.sample(asked.gold, len(asked.gold))
        documents = first + _others(rng, set(first), neighbours, wanted - len(first))
        known = set(first)
        expanded = bool(mixed) and rng.random() < mixed
        if rng.random() < (MISRANKED if expanded else shuffled):
            rng.shuffle(documents)
            known = set(documents)
        elif len(first) > 1:
            # A search ranks one of the two first; the other may be anywhere.
            rest = documents[1:]
            rng.shuffle(rest)
            documents = [documents[0], *rest]
        picked = _pick(rng, corpus.passages, by_passage, known, n_questions)
        system = ANSWER_SYSTEM if rng.random() < SYSTEM_SHARE else ""
        about = tuple(map(_looked_at, picked))
        as_text = frozenset(documents[: leading_texts(rng, len(documents))]) if expanded else frozenset()
        rows.append(Row(tuple(documents), _turns(picked), about, system=system, text=text, as_text=as_text))
    return rows


def _others(rng: random.Random, first: set[int], neighbours: Neighbours, count: int) -> list[int]:
    """Other passages, most of them hard to distinguish: of the same kind, with a similar name, or both."""
    kin = set().union(*(neighbours.kin[index] for index in first)) - first
    namesakes = set().union(*(neighbours.namesakes[index] for index in first)) - first
    near = [sorted(group) for group in (kin & namesakes, kin, namesakes)]
    for group in near:
        rng.shuffle(group)
    others: list[int] = []
    while len(others) < min(count, len(neighbours.everything) - len(first)):
        [group] = rng.choices((*near, neighbours.everything), NEIGHBOURS)
        other = group.pop() if group and group is not neighbours.everything else rng.choice(neighbours.everything)
        if other not in first and other not in others:
            others.append(other)
    return others


def _pick(
    rng: random.Random,
    passages: list[Passage],
    by_passage: dict[int, list[Question]],
    about: set[int],
    most: int,
) -> list[Question]:
    """Questions that these passages answer, in any order, but those about two passages first."""
    known = {id(question): question for index in sorted(about) for question in by_passage[index]}
    answered = [question for question in known.values() if set(question.gold) <= about]
    both = [question for question in answered if len(question.gold) > 1]
    one = [question for question in answered if len(question.gold) == 1]
    # First come relations that several of the passages state, so that only the name decides the answer.
    told = Counter(relation for index in about for relation in {fact.relation for fact in passages[index].facts})
    rng.shuffle(one)
    one.sort(key=lambda question: told[question.kind] == 1)
    picked = [*rng.sample(both, min(len(both), 2)), *one][:most]
    rng.shuffle(picked)
    return picked


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Chooses the passages that share a row.

    Attributes:
        everything: Passages to choose from.
        kin: For each passage of the corpus, those of the same kind, which state the same relations.
        namesakes: For each passage, those whose title shares a word with its title.
    """

    everything: list[int]
    kin: list[set[int]]
    namesakes: list[set[int]]

    @classmethod
    def of(cls, corpus: Corpus, everything: Iterable[int]) -> Neighbours:
        """The neighbours among some of the passages."""
        chosen = list(everything)
        by_kind: dict[str, set[int]] = defaultdict(set)
        by_word: dict[str, set[int]] = defaultdict(set)
        for index in chosen:
            passage = corpus.passages[index]
            by_kind[passage.kind].add(index)
            for word in passage.title.split():
                by_word[word].add(index)
        kin = [by_kind[passage.kind] for passage in corpus.passages]
        namesakes = [set().union(*(by_word[word] for word in p.title.split())) for p in corpus.passages]
        return cls(chosen, kin, namesakes)


def paraphrase_rows(
    rng: random.Random, corpus: Corpus, n_rows: int, verbatim: float = 0.0, n_documents: tuple[int, int] = (1, 1)
) -> list[Row]:
    """Rows that repeat one passage, some of them word for word.

    If there are several documents, they are in any order, and the instruction names one of them by its title. Such a
    row has more tokens that teach which memory belongs to which name than any other.
    """
    short = [index for index, passage in enumerate(corpus.passages) if len(passage.text) <= LONGEST_RETOLD]
    neighbours = Neighbours.of(corpus, short)
    rows = []
    for index in rng.sample(short, min(n_rows, len(short))):
        passage = corpus.passages[index]
        wanted = rng.randint(*n_documents)
        others = _others(rng, {index}, neighbours, wanted - 1)
        documents = [index, *(other for other in others if corpus.passages[other].title != passage.title)]
        rng.shuffle(documents)
        instruction, again = PARAPHRASE_INSTRUCTION, passage.text
        if rng.random() >= verbatim:
            again = paraphrase(rng, passage)
            if len(documents) > 1:
                instruction = ABOUT_INSTRUCTION.replace("{title}", passage.title)
        elif verbatim:
            instruction = VERBATIM_INSTRUCTION
            if len(documents) > 1:
                instruction = VERBATIM_ABOUT_INSTRUCTION.replace("{title}", passage.title)
        system = PARAPHRASE_SYSTEM if rng.random() < SYSTEM_SHARE else ""
        rows.append(Row(tuple(documents), ((instruction, again),), (((index,), (index,)),), system=system))
    return rows


def _looked_at(question: Question) -> tuple[tuple[int, ...], ...]:
    """The passages of a question, and those of each part of its answer; parts are joined by one "and"."""
    if question.kind.startswith("bridge:"):  # the first passage only tells the name of the second one's subject
        return (question.gold, question.gold[1:])
    if question.kind.startswith("pair:") and question.answer.count(" and ") == 1:
        return (question.gold, question.gold[:1], question.gold[1:])
    return (question.gold, question.gold)


def _turns(questions: list[Question]) -> tuple[tuple[str, str], ...]:
    first, *rest = questions
    opening = (OPENING + "{docs}\n\nQuestion:" + first.text, first.answer)
    return (opening, *((f"Question:{question.text}", question.answer) for question in rest))


def build_batch(
    tokenizer: ClaraTokenizer, corpus: Corpus, rows: list[Row], windows: list[range], *, whole: bool = False
) -> RowBatch:
    """Rows as tensors, shortest first.

    Args:
        tokenizer: Tokenizer of the checkpoint.
        corpus: Corpus of the rows.
        rows: The rows.
        windows: For each passage of the corpus the numbers of its compressed windows.
        whole: Whether every token has a label, not only the answers.
    """
    read = [tuple(w for d in _compressed(row) for w in windows[d]) for row in rows]
    markup = [_markup(tokenizer, corpus, row, windows) for row in rows]
    ids = tokenizer.encode_markup_batch(markup)
    turns = [_turn_said(tokenizer, row) for row in ids]
    labels = [
        [token if whole or turn is not None else IGNORE for token, turn in zip(row, [None, *said], strict=False)]
        for row, said in zip(ids, turns, strict=True)
    ]
    is_slot = [tokenizer.is_slot(row) for row in ids]
    if any(row.text for row in rows):
        return row_batch(ids, labels, is_slot, read)
    triples = zip(rows, ids, is_slot, strict=True)
    sources = [_sources(tokenizer, row, windows, own, slots) for row, own, slots in triples]
    wanted = [_wanted(tokenizer, *known) for known in zip(rows, ids, turns, strict=True)]
    return row_batch(ids, labels, is_slot, read, Pointers(sources, wanted))


def _compressed(row: Row) -> list[int]:
    """The passages of a row that are read from their memories."""
    return [] if row.text else [document for document in row.documents if document not in row.as_text]


def _sources(
    tokenizer: ClaraTokenizer, row: Row, windows: list[range], ids: list[int], is_slot: list[bool]
) -> list[int]:
    """For each position the document it belongs to as one bit: of a slot, or of text in its place; 0 elsewhere."""
    owners = [document for document in row.documents for _ in windows[document]]
    separator, user = tokenizer.token_id("<SEP>"), tokenizer.token_id("<|user|>")
    sources, before = [], 0
    opened = ids.index(user) + len(tokenizer.encode_plain(OPENING))
    for at, (token, slot) in enumerate(zip(ids, is_slot, strict=True)):
        owner = owners[before] if before < len(owners) else None
        known = owner is not None and (slot or (owner in row.as_text and at > opened and token != separator))
        sources.append(_bits(row, (owner,)) if owner is not None and known else 0)
        before += token == separator
    return sources


def _turn_said(tokenizer: ClaraTokenizer, ids: list[int]) -> list[int | None]:
    """For each position the turn to whose answer the next token belongs, or None."""
    assistant, eos = tokenizer.token_id("<|assistant|>"), min(tokenizer.eos_ids)
    turns: list[int | None] = []
    turn, answering = -1, False
    for token in ids:
        turn += token == assistant
        answering = token == assistant or (answering and token != eos)
        turns.append(turn if answering else None)
    return turns


def _wanted(tokenizer: ClaraTokenizer, row: Row, ids: list[int], said: list[int | None]) -> list[int]:
    """For each position the documents that its next token comes from; `said` is the result of `_turn_said`."""
    between = tokenizer.token_id("▁and")
    wanted, part = [], 1
    for at, (token, turn) in enumerate(zip(ids, said, strict=True)):
        if turn is None:
            part = 1
            # At the end of a question it is already certain which document has the answer.
            soon = next((ahead for ahead in said[at + 1 : at + TAIL + 1] if ahead is not None), None)
            wanted.append(0 if soon is None else _bits(row, row.about[soon][0]))
        else:
            parts = row.about[turn]
            part = min(part + (token == between), len(parts) - 1)
            wanted.append(_bits(row, parts[part]))
    return wanted


def _bits(row: Row, passages: Iterable[int]) -> int:
    """Documents of a row as a bit set."""
    return sum(1 << row.documents.index(index) for index in passages)


def _markup(tokenizer: ClaraTokenizer, corpus: Corpus, row: Row, windows: list[range]) -> str:
    if row.text:
        docs = "\n".join(corpus.passages[index].text for index in row.documents)
    else:
        docs = "".join(
            _as_text(tokenizer, corpus.passages[index].text)
            if index in row.as_text
            else tokenizer.slots * len(windows[index])
            for index in row.documents
        )
    parts = [f"<s><|system|>{row.system}" if row.system else "<s>"]
    for user, answer in row.turns:
        parts.append(f"<|user|>{user.replace('{docs}', docs)}<|assistant|>{answer}</s>")
    return "".join(parts)


def _as_text(tokenizer: ClaraTokenizer, text: str) -> str:
    """A passage as text, in pieces of a window, as the engine reads it."""
    return "".join(f"{text[start:end]}<SEP>" for start, end in tokenizer.windows(text))
