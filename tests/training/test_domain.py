"""The harbour gazette: a domain that the start weights do not know, with training data only from its texts."""

from __future__ import annotations

import json
import random
import re
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import end_to_end_gain
from clara_core import ClaraEngine
from clara_core.data.jsonl import TrainingSet, read_objects
from clara_core.evaluation import over_corpus, read_questions
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.training.metrics_log import read_lines as read_metrics
from clara_core.training.synthesis import synthesize
from clara_core.training.synthesis_prompts import complex_prompt, paraphrase_prompt, simple_prompt, verify_prompt
from examples.domain.demo import Plan, run, show
from examples.domain.grammar import read_entry
from examples.domain.language import FIRST, KINDS, LAST
from examples.domain.make_domain import LONGEST, SHORTEST, UNSEEN, make_domain, write_domain
from examples.domain.templated_llm import templated_llm
from tools.pocket_factory.world import ENCYCLOPEDIA, SYLLABLES, make_corpus
from tools.pocket_factory.world import KINDS as OLD_KINDS
from tools.pocket_factory.world import RELATIONS as OLD_RELATIONS

RELATIONS = [relation for kind in KINDS for relation in kind.relations]


@pytest.fixture(scope="module")
def domain():
    return make_domain(300)


def pairs_of(prompt):
    return {(pair["question"], pair["answer"]) for pair in json.loads(templated_llm(prompt))["pairs"]}


# --- the corpus ------------------------------------------------------------------------------------------


def test_it_is_the_same_every_time(domain):
    assert make_domain(300) == domain
    assert make_domain(300, seed=8).documents != domain.documents


def test_passages_have_the_promised_lengths_and_shares(domain):
    lengths = [len(document.text.split()) for document in domain.documents]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    assert len({document.id for document in domain.documents}) == len(domain.documents) == 300
    assert sum(not document.seen for document in domain.documents) == UNSEEN * 300


def test_nothing_of_it_is_in_the_world_of_the_weights_it_starts_from(domain):
    assert not {kind.name for kind in KINDS} & set(OLD_KINDS)
    assert not {relation.name for relation in RELATIONS} & set(OLD_RELATIONS)
    old = {text for relation in OLD_RELATIONS.values() for text in (*relation.says, *relation.asks)}
    assert not old & {t for r in RELATIONS for t in (*r.predicates, *r.sentences, *r.asks, *r.held_out)}
    assert not {syllable.lower() for syllable in FIRST + LAST} & set(SYLLABLES)
    invented = re.compile(rf"\b(?:{'|'.join(FIRST)})(?:{'|'.join(LAST)})\b", re.IGNORECASE)
    names = {word for document in domain.documents for word in invented.findall(document.text)}
    assert len(names) > 100
    corpus = make_corpus(random.Random(0), 300)
    assert not any(invented.search(passage.text) for passage in corpus.passages)


def test_held_out_questions_use_no_training_phrase():
    asks = {ask for relation in RELATIONS for ask in relation.asks}
    assert not asks & {ask for relation in RELATIONS for ask in relation.held_out}
    assert all(len(relation.asks) >= 2 and len(relation.held_out) >= 2 for relation in RELATIONS)


def test_answers_stand_in_their_passage_word_for_word(domain):
    texts = {document.id: document.text for document in domain.documents}
    assert all(question.answer in texts[question.gold] for question in domain.questions)


def test_files_hold_the_domain(domain, tmp_path):
    write_domain(domain, tmp_path)
    documents = [found["text"] for _, found in read_objects(tmp_path / "documents.jsonl")]
    assert documents == [document.text for document in domain.documents if document.seen]
    lines = read_questions(tmp_path / "held_out.jsonl")
    assert [line.question for line in lines] == [question.question for question in domain.questions]
    assert set(over_corpus(lines)[0].docs) == {document.text for document in domain.documents}
    assert all(line.answer in line.docs[0] for line in lines)


def test_too_small_a_domain_is_refused():
    with pytest.raises(ValueError, match="at least 10 passages, got 9"):
        make_domain(9)


# --- reading it ------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_grammar_reads_from_the_text_what_the_generator_wrote(seed):
    domain = make_domain(24, seed)
    texts = {document.id: document.text for document in domain.documents}
    for question in domain.questions:
        entry = read_entry(texts[question.gold])
        assert (question.relation, question.answer) in {(fact.relation.name, fact.value) for fact in entry.facts}
        assert entry.subject in question.question


def test_the_grammar_says_nothing_where_the_text_does_not():
    assert read_entry("The Grubix is a heron. It sings in spring.") is None
    entry = read_entry("The Grubix is a ship. It was seen in 1950. The Drubix carries tea.")
    assert entry.subject == "the Grubix"
    assert entry.facts == ()


# --- the templated LLM -----------------------------------------------------------------------------------

PASSAGE = (
    "The Grubix is a ship. It left the yard in 1950 and carries tea. The captain of the Grubix is Flonoff Twisash."
)


def test_it_answers_from_the_text_that_it_is_shown():
    def answers(text):
        return {answer for _, answer in pairs_of(simple_prompt(text, ["anything"]))}

    assert answers(PASSAGE) == {"1950", "tea", "Flonoff Twisash"}
    changed = PASSAGE.replace("1950", "1777").replace("tea", "red sand")
    assert answers(changed) == {"1777", "red sand", "Flonoff Twisash"}


def test_it_combines_two_facts_and_retells_all():
    both, which = sorted(pairs_of(complex_prompt(PASSAGE)), key=lambda pair: pair[1] == "the Grubix")
    assert " and " in both[1]
    assert which[0].startswith("Which ship ")
    retold = json.loads(templated_llm(paraphrase_prompt(PASSAGE)))["paraphrase"]
    assert retold != PASSAGE
    assert set(read_entry(retold).facts) == set(read_entry(PASSAGE).facts)


def test_its_verdict_finds_what_is_missing_lost_and_wrong():
    pairs = [("When did the Grubix leave the yard?", "1950"), ("What does the Grubix carry?", "salt")]
    found = json.loads(templated_llm(verify_prompt(PASSAGE, pairs, "The Grubix is a ship. It carries tea.")))
    assert found["missing"] == [
        "The cargo of the Grubix is tea.",
        "The captain of the Grubix is Flonoff Twisash.",
    ]
    assert found["wrong"] == [2]
    assert found["lost"] == [
        "The year of launching of the Grubix is 1950.",
        "The captain of the Grubix is Flonoff Twisash.",
    ]
    again = pairs_of(simple_prompt(PASSAGE, found["missing"]))
    assert {answer for _, answer in again} == {"tea", "Flonoff Twisash"}


@pytest.mark.parametrize("prompt", ["", "Write a poem.", simple_prompt("A text about nothing at all.")])
def test_it_refuses_in_words(prompt):
    assert "{" not in templated_llm(prompt)


def test_synthesis_covers_every_fact_and_takes_no_held_out_question(domain, tmp_path):
    seen = [document.text for document in domain.documents if document.seen][:60]
    report = synthesize(seen, templated_llm, tmp_path)
    assert report.kept == len(seen)
    assert report.calls > 4 * len(seen)  # facts that were overlooked at first were requested again
    lines = list(TrainingSet(tmp_path / "stage1.jsonl", "stage1"))
    asked = {}
    for line in [line for line in lines if line.kind == "qa"]:
        asked.setdefault(line.docs[0], set()).update(zip(line.questions, line.answers, strict=True))
    for text in seen:
        assert {fact.value for fact in read_entry(text).facts} <= {answer for _, answer in asked[text]}
    assert not {q.question for q in domain.questions} & {question for pairs in asked.values() for question, _ in pairs}


# --- a short adaptation ----------------------------------------------------------------------------------

CHANGES = {
    "stage1": ["steps=24", "batch_size=8"],
    "stage1_2": ["steps=12", "batch_size=16"],
    "contrastive": ["steps=12", "batch_size=16"],
    "stage2": ["steps=8", "batch_size=16"],
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    plan = Plan(tmp_path_factory.mktemp("domain"), ENCYCLOPEDIA, passages=15, replay=12, measured=26, changes=CHANGES)
    return plan, run(plan)


def test_a_run_of_one_step_a_stage_ends_in_a_checkpoint_and_figures(tmp_path, capsys):
    changes = {stage: ["steps=1", "batch_size=2"] for stage in CHANGES}
    plan = Plan(tmp_path, ENCYCLOPEDIA, passages=10, replay=12, measured=6, changes=changes)
    result = run(plan)
    assert [len(losses(plan, stage, "norm")) for stage in CHANGES] == [1] * len(CHANGES)
    assert json.loads((plan.out / "result.json").read_text()) == result
    assert result["before"].keys() == result["after"].keys()
    assert set(read_checkpoint(plan.out / "checkpoint").roles) == set(Role)
    show(result)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def losses(plan, stage, name):
    return [line[name] for line in read_metrics(plan.out / stage / "metrics.jsonl")]


@pytest.mark.heavy
def test_every_stage_learns(adapted):
    plan, _ = adapted
    answers = losses(plan, "stage1", "answer")
    assert statistics.mean(answers[-4:]) < 0.6 * statistics.mean(answers[:4])
    for stage, changes in CHANGES.items():
        assert f"steps={len(losses(plan, stage, 'norm'))}" in changes


@pytest.mark.heavy
def test_figures_of_both_worlds_stand_in_the_result_and_in_the_card(adapted, capsys):
    plan, result = adapted
    assert json.loads((plan.out / "result.json").read_text()) == result
    card = (plan.out / "checkpoint" / "README.md").read_text()
    for name, scores in result["before"].items():
        assert scores.keys() == result["after"][name].keys() == {"recall@1", "recall@5", "exact match"}
        assert f"| {name} | " in card
    assert result["after"]["gazette"]["recall@1"] >= result["before"]["gazette"]["recall@1"]
    assert result["after"]["old world, one passage"]["recall@5"] >= 0.95
    show(result)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


@pytest.mark.heavy
def test_the_result_is_a_checkpoint_that_answers_in_the_new_words(adapted):
    plan, result = adapted
    engine = ClaraEngine.from_pretrained(result["checkpoint"])
    lines = over_corpus(read_questions(plan.out / "data" / "held_out.jsonl"))
    said = engine.answer_batch([(line.question, engine.remember(line.docs[:1])) for line in lines], max_tokens=8)
    old = ClaraEngine.from_pretrained(ENCYCLOPEDIA)
    before = old.answer_batch([(line.question, old.remember(line.docs[:1])) for line in lines], max_tokens=8)
    assert [one.text for one in said] != [one.text for one in before]
    engine.unload()


@pytest.mark.heavy
def test_a_finished_run_is_not_trained_again(adapted):
    plan, result = adapted
    weights = (plan.out / "stage2" / "checkpoint" / "adapters.safetensors").read_bytes()
    written = (plan.out / "stage2" / "metrics.jsonl").read_bytes()
    again = run(plan)
    assert again["after"] == result["after"]
    assert (plan.out / "stage2" / "metrics.jsonl").read_bytes() == written
    assert (plan.out / "stage2" / "checkpoint" / "adapters.safetensors").read_bytes() == weights


@pytest.mark.heavy
def test_the_end_to_end_stage_is_compared_with_and_without_the_gradient(adapted, capsys):
    plan, _ = adapted
    out = plan.out / "gain"
    end_to_end_gain.main(plan.out, start="stage1_2", seeds=2, steps=2, out=out)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {len(result["gazette: recall@1"][arm]) for arm in ("with", "without")} == {2}
    start = read_checkpoint(plan.out / "stage1_2" / "checkpoint").adapters[Role.REASONER]
    for arm, taught in (("with-1", True), ("without-1", False)):
        reasoner = read_checkpoint(out / arm / "checkpoint").adapters[Role.REASONER]
        assert any(not torch.equal(reasoner[name], start[name]) for name in start) == taught
