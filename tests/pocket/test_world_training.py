"""Losses compared with plain formulas, contents of training rows, and a run that is continued after a stop."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_core import ClaraEngine, UnknownOption
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.hub import BUNDLED
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.model.tokenizer import load_tokenizer
from clara_core.training.batch import split_rows
from clara_core.training.losses import (
    IGNORE,
    alignment_loss,
    answer_loss,
    contrastive_loss,
    cosine_scores,
    pointing_loss,
    straight_through_top_k,
)
from clara_core.training.plot import plot_run, read_metrics
from tools.pocket_factory.base import CONFIG
from tools.pocket_factory.world import make_corpus
from tools.pocket_factory.world.rows import build_batch, paraphrase_rows, question_rows
from tools.pocket_factory.world.stages import WorldConfig
from tools.pocket_factory.world.train import CONFIG_FILE, train_world, world_trainer


def test_answer_loss_is_the_mean_over_labelled_tokens_of_the_batch() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.full((2, 5), IGNORE)
    labels[0, 2], labels[0, 3], labels[1, 4] = 3, 1, 6
    expected = 0.0
    for row, position, token in ((0, 2, 3), (0, 3, 1), (1, 4, 6)):
        expected -= math.log(float(torch.softmax(logits[row, position - 1], -1)[token]))
    assert float(answer_loss(logits, labels)) == pytest.approx(expected / 3, abs=1e-5)


def test_alignment_loss_compares_the_two_means() -> None:
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    memory = torch.tensor([[False, False, True, True], [False, True, False, False]])
    text = torch.tensor([[True, True, False, False], [True, False, False, False]])
    first = states[0, 2:].mean(0) - states[0, :2].mean(0)
    second = states[1, 1] - states[1, 0]
    expected = (first.square().sum() + second.square().sum()) / 6
    assert torch.allclose(alignment_loss(states, memory, text), expected)


def test_contrastive_loss_counts_every_positive() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.9, 0.4]])
    positives = torch.tensor([[True, False, True], [False, False, False]])
    top, rest = [math.exp(value / 0.1) for value in (0.5, 0.3)], math.exp(0.1 / 0.1)
    expected = -math.log(sum(top) / (sum(top) + rest))
    assert float(contrastive_loss(scores, positives, tau=0.1)) == pytest.approx(expected, abs=1e-5)


def test_cosine_scores_of_shared_and_own_candidates_agree() -> None:
    generator = torch.Generator().manual_seed(3)
    questions, memories = torch.randn(2, 8, generator=generator), torch.randn(5, 8, generator=generator)
    shared = cosine_scores(questions, memories)
    own = cosine_scores(questions, memories.expand(2, 5, 8))
    assert torch.allclose(shared, own, atol=1e-6)
    assert float(shared[1, 2]) == pytest.approx(
        float(torch.cosine_similarity(questions[1], memories[2], dim=0)), abs=1e-6
    )


def test_pointing_loss_wants_attention_on_the_right_documents() -> None:
    attention = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    sources = torch.tensor([[1, 1, 2, 0, 0], [1, 2, 4, 0, 0]])
    wanted = torch.tensor([[0, 0, 0, 2, 0], [0, 0, 0, 5, 2]])
    right = {(0, 3): [2], (1, 3): [0, 2], (1, 4): [1]}
    expected = 0.0
    for (row, place), columns in right.items():
        for head in range(3):
            paid = attention[row, head, place].tolist()
            expected -= math.log(sum(paid[column] for column in columns) / sum(paid[:3])) / 3
    loss = pointing_loss(attention, sources, wanted)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert attention.grad is not None
    assert (attention.grad[0, :, 3, 2] < 0).all()  # more of it lowers the loss
    assert (attention.grad[0, :, 3, :2] > 0).all()
    assert not attention.grad[..., 3:].any()  # positions that are not slots do not count


def test_straight_through_top_k_is_exact_forward_and_soft_backward() -> None:
    scores = torch.tensor([[0.11, 0.15, 0.13, 0.02]], requires_grad=True)
    weights, chosen = straight_through_top_k(scores, 2, tau=0.02)
    assert chosen.tolist() == [[1, 2]]
    assert torch.equal(weights.detach().round(decimals=5), torch.eye(4)[[1, 2]][None])
    values = torch.tensor([1.0, -2.0, 0.5, 3.0])
    exact = values.double()
    (weights[0] @ values).sum().backward()

    def soft(at: torch.Tensor) -> torch.Tensor:
        first = torch.softmax(at / 0.02, -1)
        without_best = at / 0.02 + torch.log(1 - torch.tensor([0.0, 1.0, 0.0, 0.0]) + 1e-8)
        return (first + torch.softmax(without_best, -1)) @ exact

    step = 1e-4
    for index in range(4):
        nudge = torch.zeros(4)
        nudge[index] = step
        at = scores.detach()[0].double()
        numeric = (soft(at + nudge.double()) - soft(at - nudge.double())) / (2 * step)
        assert float(scores.grad[0, index]) == pytest.approx(float(numeric), rel=2e-3, abs=2e-3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps in every stage."""
    out = tmp_path_factory.mktemp("run")
    train_world(tiny_config(out))
    return out


# One stage of each kind: text, one passage, several passages, a frozen base, retrieval, end to end, and mixed prompts.
LESSONS = (
    "base",
    "stage1",
    "stage1_2",
    "stage1_2_namesakes",
    "stage2_pretrain_retrieval",
    "stage2",
    "stage1_2_mixed",
)


def tiny_config(out: Path, steps: int = 2, names: Sequence[str] = LESSONS, **given: Any) -> WorldConfig:
    """Short stages of the encyclopedia with small corpora."""
    config = WorldConfig.read(CONFIG_FILE, out=out, tensorboard=False, seed=5)
    lessons = {
        stage.name: config.lessons[stage.name]
        | {"steps": steps, "passages": 8, "words": (stage.words[0], min(stage.words[1], 80)), "asked": 4}
        | {"rows": min(stage.rows, 2), "paraphrases": min(stage.paraphrases, 1)}
        for stage in config.stages
        if stage.name in names
    }
    return config.model_copy(update={"lessons": lessons, **given})


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class Killed(BaseException):
    """Ends a run like a kill, without saving."""


@pytest.mark.parametrize("name", ["finished", "pocket"])
def test_tokenizers_are_written_for_every_version_of_transformers(name: str, request: pytest.FixtureRequest) -> None:
    folder = BUNDLED["pocket"] if name == "pocket" else request.getfixturevalue(name) / "checkpoints" / "stage2"
    settings = json.loads((folder / "base" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.heavy
def test_every_lesson_of_the_encyclopedia_runs(tmp_path: Path) -> None:
    names = list(WorldConfig.read(CONFIG_FILE).lessons)
    train_world(tiny_config(tmp_path, steps=1, names=names))
    assert [line["stage"] for line in metrics(tmp_path)] == names
    assert {folder.name for folder in (tmp_path / "checkpoints").iterdir()} == set(names) - {"base"}


@pytest.mark.slow
@pytest.mark.parametrize("step", [9, pytest.param(3, marks=pytest.mark.heavy)])
def test_a_run_of_many_lessons_goes_on_as_if_it_had_not_been_stopped(finished: Path, tmp_path: Path, step: int) -> None:
    shutil.copytree(finished / "base", tmp_path / "base")  # its tokenizer need not be trained again
    config = tiny_config(tmp_path, save_every=1)
    trainer = world_trainer(config)
    learn = trainer._step
    done = 0

    def learn_until_killed(*arguments: Any) -> Any:
        nonlocal done
        if done == step:
            raise Killed
        done += 1
        return learn(*arguments)

    trainer._step = learn_until_killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()
    train_world(config)
    assert metrics(tmp_path) == metrics(finished)


def test_configs_name_the_nearest_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'stage1' has no option 'shufled'; did you mean 'shuffled'"):
        WorldConfig.read(CONFIG_FILE, ["lessons.stage1.shufled=1"])
    with pytest.raises(UnknownOption, match="no option 'sede'; did you mean 'seed'"):
        WorldConfig.read(CONFIG_FILE, ["sede=1"])
    with pytest.raises(ValueError, match="first must be one of base"):
        _ = WorldConfig.read(CONFIG_FILE, ["first=stage3"]).stages


@pytest.mark.slow
def test_the_checkpoint_of_a_run_holds_every_role_and_the_stages_teach_their_own_weights(finished: Path) -> None:
    contrastive = read_checkpoint(finished / "checkpoints" / "stage2_pretrain_retrieval")
    instructed = read_checkpoint(finished / "checkpoints" / "stage1_2_namesakes")
    final = read_checkpoint(finished / "checkpoints" / "stage2")
    assert set(final.roles) == set(Role)

    def moved(one: object, other: object, role: Role) -> bool:
        return any(not torch.equal(one.adapters[role][key], other.adapters[role][key]) for key in one.adapters[role])

    assert moved(instructed, contrastive, Role.REASONER)
    assert not moved(instructed, contrastive, Role.COMPRESSOR)
    assert not moved(instructed, contrastive, Role.GENERATOR)
    assert moved(contrastive, final, Role.GENERATOR)
    assert moved(contrastive, final, Role.REASONER)
    assert not moved(contrastive, final, Role.COMPRESSOR)
    mixed = read_checkpoint(finished / "checkpoints" / "stage1_2_mixed")
    assert {role for role in Role if moved(final, mixed, role)} == {Role.GENERATOR}
    assert (final.config.mixed, mixed.config.mixed) == (False, True)


@pytest.mark.slow
def test_rows_teach_the_answers_and_nothing_else(finished: Path) -> None:
    tokenizer = load_tokenizer(str(finished / "base"), CONFIG)
    rng = random.Random(7)
    corpus = make_corpus(rng, 24, questions_per_passage=4, two_passage=1.0)
    rows = question_rows(rng, corpus, n_rows=8, n_documents=(1, 4), n_questions=4)
    for row in rows:
        known = {question.text: set(question.gold) for question in corpus.questions}
        for user, _ in row.turns:
            assert known[user.rpartition("Question:")[2]] <= set(row.documents)
    counts = [len(tokenizer.windows(passage.text)) for passage in corpus.passages]
    windows = [range(sum(counts[:index]), sum(counts[: index + 1])) for index in range(len(counts))]
    assert max(counts) > 1
    batch = build_batch(tokenizer, corpus, [*rows, *paraphrase_rows(rng, corpus, 4, verbatim=0.5)], windows)
    taught = [tokenizer.decode([t for t in labels.tolist() if t != IGNORE]) for labels in batch.labels]
    said = sorted(" ".join(answer for _, answer in row.turns) for row in rows)
    assert [text for text in said if text not in taught] == []
    for ids, slots, read in zip(batch.ids, batch.slots, batch.windows, strict=True):
        assert int(slots.sum()) == len(read) * CONFIG.n_mem == sum(tokenizer.is_slot(ids))
    read = {tuple(window for document in row.documents for window in windows[document]) for row in rows}
    assert read <= set(batch.windows)
    taught_rows = {tuple(window for d in row.documents for window in windows[d]): row for row in rows}
    assert batch.sources is not None
    assert batch.wanted is not None
    for number, read in enumerate(batch.windows):
        # The document of each window is one bit, and a turn attends to the documents of its question.
        row = taught_rows.get(read)
        bits = batch.sources[number][batch.slots[number]].tolist()
        assert bits[:: CONFIG.n_mem] == bits[CONFIG.n_mem - 1 :: CONFIG.n_mem]
        assert not batch.sources[number][~batch.slots[number]].any()
        if row is not None:
            expected = [1 << row.documents.index(d) for d in row.documents for _ in windows[d]]
            assert bits[:: CONFIG.n_mem] == expected
            about = {sum(1 << row.documents.index(d) for d in part) for parts in row.about for part in parts}
            assert set(batch.wanted[number].tolist()) == about | {0}
            answers = batch.labels[number, 1:] != IGNORE
            assert (batch.wanted[number, :-1][answers] != 0).all()
    halves = split_rows(batch)
    assert [row for half in halves for row in half.ids] == batch.ids
    assert [row for half in halves for row in half.windows] == batch.windows
    for half, start in zip(halves, (0, len(halves[0].ids)), strict=True):
        assert half.wanted is not None
        length = half.wanted.shape[1]
        assert torch.equal(half.wanted, batch.wanted[start : start + len(half.ids), :length])


def test_a_mixed_row_is_the_prompt_that_the_engine_reads(encyclopedia: ClaraEngine) -> None:
    """Text stands in the place of a passage's slots, and its tokens belong to that passage, as slots do."""
    tokenizer, rng = encyclopedia.tokenizer, random.Random(3)
    corpus = make_corpus(rng, 24, words=(20, 120), questions_per_passage=4)
    cut = [tokenizer.windows(passage.text) for passage in corpus.passages]
    counts = [len(spans) for spans in cut]
    windows = [range(sum(counts[:index]), sum(counts[: index + 1])) for index in range(len(counts))]
    rows = question_rows(rng, corpus, n_rows=40, n_documents=(1, 4), n_questions=1, mixed=0.4)
    kinds = {min(len(row.as_text), 1) + (row.as_text == set(row.documents)) for row in rows}
    assert kinds == {0, 1, 2}  # no text, some, all
    for row in rows:
        batch = build_batch(tokenizer, corpus, [row], windows)
        [ids], [read] = batch.ids, batch.windows
        layout: list[str | None] = []
        for document in row.documents:
            text = corpus.passages[document].text
            layout += [text[start:end] if document in row.as_text else None for start, end in cut[document]]
        question = row.turns[0][0].rpartition("Question:")[2]
        prompt = tokenizer.chat_prompt([{"role": "user", "content": question}], layout)
        user = tokenizer.token_id("<|user|>")
        prompt, asked = (some[some.index(user) :] for some in (prompt, ids))
        assert asked[: len(prompt)] == prompt
        assert read == tuple(w for d in row.documents if d not in row.as_text for w in windows[d])
        assert batch.sources is not None
        sources, ends = batch.sources[0].tolist(), tokenizer.token_id("<SEP>")
        for place, document in enumerate(row.documents):
            owned = [token for token, source in zip(ids, sources, strict=True) if source == 1 << place]
            assert len(owned) == len(set(owned)) * counts[document] or document in row.as_text
            if document in row.as_text:
                assert tokenizer.decode(owned).split() == corpus.passages[document].text.split()
        assert not any(source for token, source in zip(ids, sources, strict=True) if token == ends)


@pytest.mark.slow
def test_the_curve_of_a_run_is_drawn(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = read_metrics(finished)
    assert [line["stage"] for line in lines] == [name for name in tiny_config(tmp_path).lessons for _ in range(2)]
    assert all(before["hours"] <= after["hours"] for before, after in pairwise(lines))
    plot_run(finished, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_checkpoint_is_taught_further(finished: Path, tmp_path: Path) -> None:
    start = finished / "checkpoints" / "stage1_2_namesakes"
    trainer = world_trainer(tiny_config(tmp_path, steps=1, names=LESSONS[:-1], start=str(start), first="stage2"))
    given = read_checkpoint(start)
    taken = trainer.model.export_adapter(Role.GENERATOR)
    assert all(torch.equal(taken[key], given.adapters[Role.GENERATOR][key]) for key in taken)
    trainer.run()
    assert [line["stage"] for line in metrics(tmp_path)] == ["stage2"]
    assert (tmp_path / "checkpoints" / "stage2" / "adapters.safetensors").exists()
    card = (tmp_path / "checkpoints" / "stage2" / "README.md").read_text(encoding="utf-8")
    assert str(start) in card
    assert "| stage2 | 1 |" in card
