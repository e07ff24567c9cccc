"""The frozen weights with the public engine: a small part of the figures on the synthetic encyclopedia."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import evaluate_encyclopedia
from benchmarks.encyclopedia_tasks import (
    DOCUMENTS,
    World,
    best_first,
    bm25_ranking,
    family_of,
    make_world,
    memory_ranking,
    read,
    rerank,
    value_of,
    with_gold,
)
from benchmarks.evaluate_encyclopedia import Figure, below_floor
from clara_core import ClaraEngine, Memory
from clara_core.evaluation import score_rankings
from tools.pocket_factory.world import ENCYCLOPEDIA

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(200)


# --- the corpus ------------------------------------------------------------------------------------------


def test_the_corpus_is_held_out_and_the_same_every_time(world: World):
    again = make_world(200)
    assert again == world
    assert len(world.texts) == len(world.single) == 200
    assert len(world.double) == 100
    assert {family_of(question) for question in world.double} == {"pair", "compare", "same", "bridge"}
    assert {family_of(question) for question in world.single} == {"single"}
    assert all(value_of(question) for question in world.single)
    assert make_world(200, seed=1).texts != world.texts


def test_documents_hold_the_gold_and_the_first_of_the_others(world: World):
    ranking = [list(range(200))] * len(world.double)
    for question, documents in zip(world.double, with_gold(world.double, ranking), strict=True):
        assert len(set(documents)) == DOCUMENTS
        wrong = [index for index in range(200) if index not in question.gold]
        assert set(documents) == {*question.gold, *wrong[: DOCUMENTS - 2]}


def test_gold_stands_in_every_place(world: World):
    documents = with_gold(world.single, [list(range(200))] * 200)
    places = [few.index(question.gold[0]) for question, few in zip(world.single, documents, strict=True)]
    assert all(25 <= places.count(place) <= 55 for place in range(DOCUMENTS))


def test_best_first_orders_the_same_documents():
    assert best_first([[4, 1, 3]], [[3, 0, 4, 1, 2]]) == [[3, 4, 1]]


def test_reranking_orders_the_top_and_keeps_the_rest():
    assert rerank([[3, 1, 2, 0]], [[0, 1, 2, 3]], 3) == [[1, 2, 3, 0]]
    assert rerank([[3, 1, 2, 0]], [[0, 1, 2, 3]], 1) == [[3, 1, 2, 0]]


def test_bm25_finds_what_shares_words(world: World):
    ranking = bm25_ranking(world.single, world.texts)
    assert all(sorted(one) == list(range(200)) for one in ranking)
    scores = score_rankings(ranking, [question.gold for question in world.single])
    assert 0.6 < scores["recall@1"] < 0.95  # passages share words: the corpus is neither trivial nor impossible
    assert scores["recall@20"] > 0.95


# --- the frozen weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> ClaraEngine:
    return ClaraEngine.from_pretrained(ENCYCLOPEDIA, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def memories(engine: ClaraEngine, world: World) -> list[Memory]:
    return engine.compress(world.texts)


def test_it_finds_passages(engine: ClaraEngine, world: World, memories: list[Memory]):
    scores = score_rankings(memory_ranking(engine, world.single, memories), [q.gold for q in world.single])
    assert scores["recall@1"] >= 0.95
    assert scores["recall@5"] >= 0.99


def test_it_reads_one_passage_among_five(engine: ClaraEngine, world: World, memories: list[Memory]):
    asked = world.single[:60]
    ranking = memory_ranking(engine, asked, memories)
    reading = read(engine, asked, memories, best_first(with_gold(asked, ranking), ranking))
    right = reading.right()
    assert sum(right) / len(right) >= 0.80, reading.wrong()


def test_it_tells_passages_apart_by_their_names(engine: ClaraEngine, world: World, memories: list[Memory]):
    asked = world.single[:60]
    reading = read(engine, asked, memories, with_gold(asked, memory_ranking(engine, asked, memories)))
    right = reading.right()
    assert sum(right) / len(right) >= 0.70, reading.wrong()  # in any order; a guess would be right in one of five cases


def test_it_reads_two_passages(engine: ClaraEngine, world: World, memories: list[Memory]):
    asked = world.double[:60]
    ranking = memory_ranking(engine, asked, memories)
    reading = read(engine, asked, memories, best_first(with_gold(asked, ranking), ranking))
    right = reading.right()
    assert sum(right) / len(right) >= 0.40, reading.wrong()


def test_the_program_reports(world: World, tmp_path: Path, monkeypatch, capsys):
    """The program of `make eval` on a small corpus."""
    small = World(
        world.texts[:40], *([q for q in asked if max(q.gold) < 40][:6] for asked in (world.single, world.double))
    )
    monkeypatch.setattr(evaluate_encyclopedia, "make_world", lambda passages, seed: small)
    file = tmp_path / "figures.json"
    evaluate_encyclopedia.main(ENCYCLOPEDIA, quick=True, json_file=file)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads(file.read_text())
    assert {name: written[name] for name in printed} == printed
    figures = [*printed["retrieval"], *printed["reading"]]
    assert all(0 <= value <= 1 for figure in figures for value in (figure["value"], *figure["beside"].values()))
    assert all(figure["target"] for figure in figures if figure["floor"])
    assert printed["cost"]["bytes a document"] >= 16 * 256 * 4  # a window of float32
    hard = next(figure for figure in figures if figure["name"] == "one passage, best first")
    assert len(written["wrong"]["single"]) == round((1 - hard["value"]) * len(small.single))


def test_the_floor_is_checked():
    good, bad = Figure("good", 0.9, 0.95, 0.9), Figure("bad", 0.89, 0.95, 0.9)
    assert below_floor([good, bad, Figure("free", 0.0)]) == [bad]


def test_the_program_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evaluate_encyclopedia.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "--quick" in done.stdout
    assert "--check" in done.stdout
