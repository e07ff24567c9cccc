"""The synthetic encyclopedia: deterministic, with separate splits, and with correct answers."""

from __future__ import annotations

import random
import re
import statistics
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.pocket_factory.world import (
    KINDS,
    RELATIONS,
    VOCABULARY,
    Corpus,
    Question,
    Split,
    make_corpus,
    paraphrase,
    split_of,
)
from tools.pocket_factory.world.kinds import reference
from tools.pocket_factory.world.relations import MONTHS


def words_of(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Za-z]+", text.replace("'s ", " "))}


def all_texts(corpus: Corpus) -> list[str]:
    return [p.text for p in corpus.passages] + [q.text + " " + q.answer for q in corpus.questions]


def asked(corpus: Corpus, question: Question) -> list[tuple[int, str, str]]:
    """Passage, subject and value of the relation of a question, in the order of its text."""
    relation = question.kind.split(":")[-1]
    found = []
    for index in question.gold:
        passage = corpus.passages[index]
        fact = next(fact for fact in passage.facts if fact.relation == relation)
        found.append((index, reference(passage.kind, fact.subject), fact.value))
    return found


def check(corpus: Corpus) -> None:
    """Check properties of every corpus."""
    stated: dict[tuple[str, str], int] = {}
    kinds: dict[str, str] = {}
    for index, passage in enumerate(corpus.passages):
        assert passage.facts
        for fact in passage.facts:
            assert fact.value in passage.text
            assert fact.subject in passage.text
            assert (fact.subject, fact.relation) not in stated
            stated[fact.subject, fact.relation] = index
            assert fact.relation in KINDS[passage.kind].relations
            # A name belongs to one subject: a second passage about it has the same kind.
            assert kinds.setdefault(fact.subject, passage.kind) == passage.kind
        assert len({fact.subject for fact in passage.facts}) == 1
        assert passage.title[1:] == passage.facts[0].subject[1:]
    for question in corpus.questions:
        assert len(set(question.gold)) == len(question.gold)
        assert all(0 <= index < len(corpus.passages) for index in question.gold)
        assert question.text.endswith("?")
        assert "{" not in question.text
        if len(question.gold) == 1:
            check_single(corpus, question, stated)
        else:
            assert len(question.gold) == 2
            check_double(corpus, question)


def check_single(corpus: Corpus, question: Question, stated: dict[tuple[str, str], int]) -> None:
    (index,) = question.gold
    passage = corpus.passages[index]
    (fact,) = (fact for fact in passage.facts if fact.relation == question.kind)
    assert question.answer == fact.value
    assert question.answer in passage.text
    assert fact.subject in question.text
    assert stated[fact.subject, question.kind] == index


def check_double(corpus: Corpus, question: Question) -> None:
    form, _, relation = question.kind.partition(":")
    if form == "bridge":
        inner, outer = relation.split(".")
        first, second = (corpus.passages[index] for index in question.gold)
        middle = next(fact for fact in first.facts if fact.relation == inner)
        last = next(fact for fact in second.facts if fact.relation == outer)
        assert middle.value == last.subject
        assert question.answer == last.value
        assert question.answer not in question.text
        assert middle.subject in question.text
        return
    (_, a, left), (_, b, right) = asked(corpus, question)
    assert a != b
    assert a in question.text
    assert b in question.text
    if form == "pair":
        assert left != right
        assert question.answer == f"{left} and {right}"
        # In the order of the question; longer names first, so that "Sarn" is not found in "New Sarn".
        marked = question.text
        for name in sorted((a, b), key=len, reverse=True):
            marked = marked.replace(name, "#A" if name == a else "#B", 1)
        assert marked.index("#A") < marked.index("#B")
    elif form == "same":
        assert question.answer == ("yes" if left == right else "no")
    else:
        assert form == "compare"
        assert question.answer in (a, b)
        assert number(left) != number(right)
        most = a if number(left) > number(right) else b
        wants_most = re.search(r"more |longer|deeper|higher|heavier|later|larger|taller", question.text)
        assert (question.answer == most) == bool(wants_most), question


def number(value: str) -> float:
    """The number of a year, a date or a quantity, computed independently of the package."""
    parts = value.replace(",", "").split()
    if len(parts) == 3 and parts[1] in MONTHS:
        return int(parts[2]) * 10000 + MONTHS.index(parts[1]) * 100 + int(parts[0])
    return float(parts[0])


def test_equal_seeds_give_equal_corpora_and_other_seeds_do_not() -> None:
    one, two = (make_corpus(random.Random(7), 60) for _ in range(2))
    assert one == two
    assert one != make_corpus(random.Random(8), 60)
    random.seed(1)
    state = random.getstate()
    make_corpus(random.Random(7), 10)
    assert random.getstate() == state


def test_splits_share_no_invented_word() -> None:
    seen: dict[Split, set[str]] = {"train": set(), "test": set()}
    for split, words in seen.items():
        for seed in range(30):
            corpus = make_corpus(random.Random(seed), 120, split, two_passage=0.5)
            for text in [*all_texts(corpus), *(p.title for p in corpus.passages)]:
                words.update(words_of(text))
        invented = words - VOCABULARY
        assert len(invented) > 2000
        assert {split_of(word) for word in invented} == {split}
    # In the texts, both splits have only ordinary words in common.
    assert seen["train"] & seen["test"] <= VOCABULARY


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_question_of_a_large_corpus_is_right(split: Split) -> None:
    corpus = make_corpus(random.Random(3), 1000, split, two_passage=1.0)
    assert len(corpus.passages) == 1000
    assert sum(len(q.gold) == 1 for q in corpus.questions) == 3000
    check(corpus)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40), low=st.integers(1, 60))
def test_small_corpora_hold_the_same_promises(seed: int, size: int, low: int) -> None:
    corpus = make_corpus(random.Random(seed), size, words=(low, low + 60), two_passage=1.0)
    assert len(corpus.passages) == size
    check(corpus)
    for passage in corpus.passages:
        assert low <= len(passage.text.split()) <= low + 60


def test_two_passage_questions_come_in_equal_shares() -> None:
    forms: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    total = 0
    for seed in range(20):
        corpus = make_corpus(random.Random(seed), 96, two_passage=0.5)
        for question in corpus.questions:
            if len(question.gold) == 2:
                total += 1
                form = question.kind.split(":")[0]
                forms[form] += 1
                if form == "same":
                    answers[question.answer] += 1
    assert total == 20 * 48
    assert set(forms) == {"pair", "compare", "same", "bridge"}
    assert min(forms.values()) > 0.22 * total
    assert abs(answers["yes"] - answers["no"]) <= 20  # at most one apart in each corpus


def test_passages_are_short_mostly_and_within_bounds() -> None:
    passages = [p for seed in range(20) for p in make_corpus(random.Random(seed), 96).passages]
    lengths = [len(passage.text.split()) for passage in passages]
    assert min(lengths) >= 20
    assert max(lengths) <= 200
    assert 43 <= statistics.mean(lengths) <= 58
    assert 0.05 <= sum(length > 110 for length in lengths) / len(lengths) <= 0.15
    # Longer texts state more facts, and every number of facts from two to eight occurs.
    facts = [len(passage.facts) for passage in passages]
    assert statistics.correlation(lengths, facts) > 0.6
    assert set(range(2, 9)) <= set(facts)


def test_language_is_varied() -> None:
    assert len(RELATIONS) >= 18
    for relation in RELATIONS.values():
        assert len(set(relation.says)) >= 3, relation.name
        assert len(set(relation.asks)) >= 3, relation.name
        assert all("{s}" in text for text in (*relation.asks, *relation.role))
        assert all("{a}" in text and "{b}" in text for text in (*relation.pair, *relation.same))
        assert relation.predicates, relation.name
        assert relation.bridge_asks, relation.name
    used = {name for kind in KINDS.values() for name in kind.relations}
    assert used == set(RELATIONS)
    # They are used, not only listed.
    drawn: dict[str, set[str]] = {}
    for seed in range(40):
        for question in make_corpus(random.Random(seed), 96, two_passage=0.0).questions:
            words = question.text.split()
            drawn.setdefault(question.kind, set()).add(" ".join(words[:3]))
    assert set(drawn) == set(RELATIONS)


def test_passages_share_attributes_and_name_words() -> None:
    corpus = make_corpus(random.Random(11), 1000, "test")
    values: Counter[tuple[str, str]] = Counter()
    words: Counter[str] = Counter()
    doubles: Counter[str] = Counter()
    for passage in corpus.passages:
        values.update((fact.relation, fact.value) for fact in passage.facts)
        words.update(words_of(passage.title) - VOCABULARY)
        doubles[passage.title] += 1
    shared = sum(count for count in values.values() if count > 1) / values.total()
    assert shared > 0.4
    assert sum(count for count in words.values() if count > 1) / words.total() > 0.6
    assert max(doubles.values()) == 2
    assert 0.05 < sum(count == 2 for count in doubles.values()) / len(doubles) < 0.15


def test_few_kinds_make_passages_alike() -> None:
    corpus = make_corpus(random.Random(5), 60, kinds=3, two_passage=1.0)
    assert len({passage.kind for passage in corpus.passages}) == 3
    assert len(corpus.questions) > 60


def test_few_syllables_make_names_alike() -> None:
    def starts(corpus: Corpus) -> set[str]:
        return {word[:2] for p in corpus.passages if p.kind == "person" for word in p.title.split()}

    corpus = make_corpus(random.Random(6), 200, syllables=16)
    assert len(starts(corpus)) < 0.6 * len(starts(make_corpus(random.Random(6), 200)))
    assert {split_of(word) for p in corpus.passages if p.kind == "person" for word in p.title.split()} == {"train"}


def test_paraphrase_tells_the_same_facts_in_other_words() -> None:
    corpus = make_corpus(random.Random(5), 96)
    changed = 0
    for index, passage in enumerate(corpus.passages):
        text = paraphrase(random.Random(index), passage)
        assert text == paraphrase(random.Random(index), passage)
        assert passage.facts[0].subject in text
        assert all(fact.value in text for fact in passage.facts)
        # Every word belongs to the facts of the passage or is an ordinary word.
        told = words_of(" ".join(f"{fact.subject} {fact.value}" for fact in passage.facts))
        assert words_of(text) <= told | VOCABULARY
        changed += text != passage.text
    assert changed == len(corpus.passages)


def test_layout_adds_headings_and_paragraphs_and_changes_no_word_of_the_text() -> None:
    corpus = make_corpus(random.Random(5), 200, words=(20, 120), layout=0.5)
    check(corpus)
    laid_out = [passage for passage in corpus.passages if "\n" in passage.text]
    assert 70 <= len(laid_out) <= 130
    assert max(len(passage.text.split()) for passage in corpus.passages) <= 120
    headed = [p for p in laid_out if p.text.lstrip("# ").startswith(p.title + "\n\n")]
    assert len(headed) > 0.9 * len(laid_out)
    assert any(p.text.count("\n\n") > 1 for p in laid_out)
    assert not any("\n" in p.text for p in make_corpus(random.Random(5), 50).passages)


def test_dates_that_follow_each_other_are_in_order() -> None:
    after = {name: r.draw.after for name, r in RELATIONS.items() if r.draw.after}
    pairs = 0
    for seed in range(30):
        corpus = make_corpus(random.Random(seed), 200)
        facts = {(f.subject, f.relation): f.value for p in corpus.passages for f in p.facts}
        for (subject, relation), value in facts.items():
            earlier = facts.get((subject, after.get(relation, "")))
            if earlier is not None:
                pairs += 1
                assert int(earlier) <= int(value.split()[-1])
    assert after
    assert pairs > 100


def test_answers_are_short() -> None:
    corpus = make_corpus(random.Random(5), 300)
    single = [q.answer for q in corpus.questions if len(q.gold) == 1]
    assert max(len(answer.split()) for answer in single) <= 5
    assert {"year", "date", "quantity", "choice", "list", "person"} <= {
        relation.draw.kind for relation in RELATIONS.values()
    }


def test_a_batch_is_made_in_a_fraction_of_a_training_step() -> None:
    times = []
    for seed in range(5):
        start = time.process_time()
        make_corpus(random.Random(seed), 96)
        times.append(time.process_time() - start)
    assert min(times) < 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_passages": 0},
        {"n_passages": 5, "words": (20, 30)},
        {"n_passages": 5, "words": (0, 100)},
        {"n_passages": 5, "questions_per_passage": -1},
        {"n_passages": 5, "two_passage": -0.1},
        {"n_passages": 5, "kinds": 99},
        {"n_passages": 5, "syllables": 3},
    ],
)
def test_impossible_wishes_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"passage|words|negative|kinds|syllables"):
        make_corpus(random.Random(0), **arguments)  # type: ignore[arg-type]
