"""Training stages over files: trained weights, results, and splitting a batch without changing the numbers."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_core.common.errors import DataError
from clara_core.data.examples import STAGES, Stage, check_line
from clara_core.engine.options import EngineArguments
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import Checkpoint, export_peft, read_checkpoint
from clara_core.training import train
from clara_core.training.batch import Step
from clara_core.training.config import TrainingConfig
from clara_core.training.line_steps import LineReader, LineSteps
from clara_core.training.model_setup import checkpoint_gradients, open_checkpoint, write_model
from clara_core.training.objective import Objective, Terms
from clara_core.training.schedule import scheduled
from tests.engines import open_engine
from tests.tiny import Tiny, build
from tests.training.lessons import config_for, lines_of, metrics, passage, write


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A checkpoint with all roles."""
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def without_reasoner(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A checkpoint that has no query reasoner."""
    return build(tmp_path_factory.mktemp("without_reasoner"), "llama", roles=("encoder_adapter", "decoder_adapter"))


def moved(one: Checkpoint, other: Checkpoint) -> set[Role]:
    """Roles whose adapters have changed."""
    shared = set(one.adapters) & set(other.adapters)
    return {
        role
        for role in shared
        if any(not torch.equal(one.adapters[role][key].float(), value) for key, value in other.adapters[role].items())
    }


@pytest.mark.parametrize(
    "stage, learned",
    [
        ("stage1", {Role.COMPRESSOR, Role.GENERATOR}),
        ("stage1_2", {Role.COMPRESSOR, Role.GENERATOR}),
        ("contrastive", {Role.REASONER}),
        ("stage2", {Role.REASONER, Role.GENERATOR}),
    ],
)
def test_each_stage_teaches_its_own_weights(tiny: Tiny, tmp_path: Path, stage: Stage, learned: set[Role]) -> None:
    result = train(config_for(tiny, tmp_path, stage))
    before, after = read_checkpoint(tiny.folder), read_checkpoint(result.checkpoint)
    assert moved(before, after) == learned
    added = len(after.config.added_tokens)
    tables = [checkpoint.embeddings["model.embed_tokens.weight"] for checkpoint in (before, after)]
    assert torch.equal(tables[0][:-added], tables[1][:-added])
    assert torch.equal(tables[0], tables[1]) == (Role.COMPRESSOR not in learned)
    lines = metrics(result.metrics)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    card = (result.checkpoint / "README.md").read_text(encoding="utf-8")
    assert f"`{stage}.jsonl`" in card
    assert f"| {stage} | 4 |" in card


def test_a_plain_base_becomes_a_checkpoint_stage_by_stage(tiny: Tiny, tmp_path: Path) -> None:
    shape = {"window": 64, "rate": 8, "lora_r": 4, "top_k": 2}
    model: dict[str, Any] = {"model": None, "shape": shape}
    for stage in STAGES:
        config = config_for(tiny, tmp_path, stage, steps=2, out=tmp_path / stage, **model)
        model = {"model": str(train(config).checkpoint)}
    start = read_checkpoint(tmp_path / "stage1_2" / "checkpoint")
    assert set(start.roles) == {Role.COMPRESSOR, Role.GENERATOR}
    engine = open_engine(tiny).__class__.from_pretrained(str(tmp_path / "stage2" / "checkpoint"), device="cpu")
    assert set(engine.roles) == set(Role)
    memories = engine.compress([passage(number) for number in range(4)])
    assert len(engine.rank("Where does the newt live?", memories)) == 4
    assert isinstance(engine.answer("Where does the newt live?", memories, max_tokens=4).text, str)
    assert "stage2" in (tmp_path / "stage2" / "checkpoint" / "README.md").read_text(encoding="utf-8")
    engine.unload()


def test_the_query_reasoner_starts_as_a_copy_of_the_compressor(without_reasoner: Tiny, tmp_path: Path) -> None:
    result = train(config_for(without_reasoner, tmp_path, "contrastive", lr=1e-12))
    after = read_checkpoint(result.checkpoint)
    for key, value in after.adapters[Role.COMPRESSOR].items():
        assert torch.allclose(after.adapters[Role.REASONER][key], value, atol=1e-9)


@pytest.mark.parametrize("stage", STAGES)
def test_passes_and_kept_memories_change_no_number(tiny: Tiny, tmp_path: Path, stage: Stage) -> None:
    whole = train(config_for(tiny, tmp_path, stage, dropout=0.0, memory_room_mb=0, out=tmp_path / "whole"))
    cut = train(
        config_for(tiny, tmp_path, stage, dropout=0.0, micro_batch_size=3, gradient_checkpointing=True, save_every=1)
    )
    for one, other in zip(metrics(whole.metrics), metrics(cut.metrics), strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    assert set(metrics(whole.metrics)[0]) > {"norm", "lr"}


def test_recomputed_gradients_are_those_that_are_kept(tiny: Tiny) -> None:
    lines = [check_line(line, "stage1_2", "") for line in lines_of("stage1_2")[:3]]
    gradients = []
    for recompute in (False, True):
        opened = open_checkpoint(arguments(tiny))
        if recompute:
            checkpoint_gradients(opened.model)
        opened.model.train()
        step = LineReader(opened.tokenizer, opened.model.context, 2).step(lines)
        losses = Objective(opened.model, Terms())(step).losses
        torch.stack(list(losses.values())).sum().backward()
        gradients.append({name: weight.grad for name, weight in opened.model.named_parameters() if "lora_" in name})
    assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())
    assert any(float(value.abs().max()) > 1e-4 for value in gradients[0].values())


@pytest.mark.parametrize("stage", ["stage1", "stage1_2", "contrastive"])
def test_gradients_are_finite_differences(tiny: Tiny, stage: Stage) -> None:
    """Not for the end-to-end stage, whose gradient is not that of its loss: see the straight-through test."""
    opened = open_checkpoint(arguments(tiny))
    lines = [check_line(line, stage, "") for line in lines_of(stage)[:3]]
    step = LineReader(opened.tokenizer, opened.model.context, 2, answers=False).step(lines)
    terms = Terms(frozen=stage == "contrastive", in_batch=False, contrastive=1.0, tau=0.5)
    objective = Objective(opened.model, terms)

    def loss() -> torch.Tensor:
        return torch.stack(list(objective(step).losses.values())).sum()

    loss().backward()
    role = Role.REASONER if stage == "contrastive" else Role.COMPRESSOR
    layer = list(opened.model.routed.values())[2]
    gradient = layer.lora_B.grad[layer.block(role)]
    place = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    with torch.no_grad():
        weight = layer.lora_B[layer.block(role)]
        values = []
        for nudge in (0.01, -0.02):
            weight[place] += nudge
            values.append(float(loss()))
    assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / 0.02, rel=0.03)


def test_in_batch_negatives_are_the_candidates_of_all(tiny: Tiny) -> None:
    opened = open_checkpoint(arguments(tiny))
    lines = [check_line(line, "contrastive", "") for line in lines_of("contrastive")[:3]]
    step = LineReader(opened.tokenizer, opened.model.context, 2, answers=False).step(lines)
    assert len(step.windows) < sum(len(line.docs) for line in lines)  # a passage of two lines is one document
    memories = opened.model.encode(step.sequences, Role.COMPRESSOR).flatten(1)
    asked = opened.model.encode(step.questions, Role.REASONER).flatten(1)
    scores = torch.nn.functional.cosine_similarity(asked[:, None], memories[None], dim=-1)
    best = torch.stack([scores[:, own.start : own.stop].amax(1) for own in step.windows], dim=1) / 0.05
    assert step.candidates is not None
    for in_batch in (False, True):
        outcome = Objective(opened.model, Terms(frozen=True, contrastive=1.0, tau=0.05, in_batch=in_batch))(step)
        wanted = 0.0
        for row, own, gold in zip(best, step.candidates, step.gold, strict=True):
            among = row if in_batch else row[list(own)]
            wanted -= float((row[list(gold)].logsumexp(0) - among.logsumexp(0)).detach()) / 3
        assert float(outcome.losses["contrastive"].detach()) == pytest.approx(wanted, abs=1e-4)


def test_without_the_gradient_through_the_choice_the_query_reasoner_rests(tiny: Tiny, tmp_path: Path) -> None:
    result = train(config_for(tiny, tmp_path, "stage2", top_k_gradient=False))
    assert moved(read_checkpoint(tiny.folder), read_checkpoint(result.checkpoint)) == {Role.GENERATOR}


def test_candidates_of_different_numbers_are_read_as_far_as_they_go(tiny: Tiny) -> None:
    opened = open_checkpoint(arguments(tiny))
    found = lines_of("stage2")[:2]
    found[0] |= {"docs": found[0]["docs"][1:2], "pos_index": [0]}
    lines = [check_line(line, "stage2", "") for line in found]
    reader = LineReader(opened.tokenizer, opened.model.context, 3)
    terms = Terms(frozen=True, end_to_end=True, top_k=3)
    both = Objective(opened.model, terms)(reader.step(lines))
    alone = [Objective(opened.model, terms)(reader.step([line])) for line in lines]
    counts = [reader.step([line]).counts["answer tokens"] for line in lines]
    wanted = sum(float(one.losses["answer"].detach()) * count for one, count in zip(alone, counts, strict=True))
    assert float(both.losses["answer"].detach()) == pytest.approx(wanted / sum(counts), abs=1e-4)


def test_trained_weights_do_not_inherit_how_the_old_ones_answered_best(tiny: Tiny, tmp_path: Path) -> None:
    opened = open_checkpoint(arguments(tiny))
    config = opened.model.config
    opened.model.config = config.model_copy(update={"verbatim": True, "answer_top_k": 1})
    written = write_model(tmp_path / "trained", opened, config.training_stage, "# card\n", base_trained=False)
    assert written.config.model_copy(update={"decoder_model_name": config.decoder_model_name}) == config


def test_a_mixed_lesson_reads_some_documents_as_text(tiny: Tiny, tmp_path: Path) -> None:
    result = train(config_for(tiny, tmp_path, "stage1_2", mixed=0.5, learn=("generator",)))
    before, after = read_checkpoint(tiny.folder), read_checkpoint(result.checkpoint)
    assert (before.config.mixed, after.config.mixed) == (False, True)
    assert moved(before, after) == {Role.GENERATOR}  # memories are unchanged
    opened = open_checkpoint(arguments(tiny))
    lines = [check_line(line, "stage1_2", "") for line in lines_of("stage1_2")]
    reader = LineReader(opened.tokenizer, opened.model.context, 2, mixed=0.5)
    source = LineSteps(lines, reader, seed=1, batch=12, micro=12)
    texts = memories = 0
    for number in range(4):
        [step], [again] = source(number), source(number)
        assert step.rows.ids == again.rows.ids
        for ids, windows in zip(step.rows.ids, step.rows.windows, strict=True):
            shown = opened.tokenizer.decode(ids)
            [line] = [line for line in lines if line.question in shown]
            as_text = [text for text in line.docs if text[:40] in shown]  # a long one is in pieces
            assert sum(opened.tokenizer.is_slot(ids)) == len(windows) * opened.model.config.n_mem
            assert bool(windows) is (len(as_text) < len(line.docs))
            assert list(line.docs[: len(as_text)]) == as_text
            texts, memories = texts + len(as_text), memories + len(line.docs) - len(as_text)
    assert 0.3 < texts / (texts + memories) < 0.4
    for step in (reader.step(lines), *source.passes(lines)):  # held-out lines are read from memories
        assert all(len(own) >= 2 for own in step.rows.windows)
    with pytest.raises(ValueError, match="mixed is for stage1_2"):
        config_for(tiny, tmp_path, "stage2", mixed=0.2)


def test_a_line_whose_texts_do_not_fit_is_refused_before_it_is_drawn(tiny: Tiny) -> None:
    opened = open_checkpoint(arguments(tiny))
    found = lines_of("stage1_2")[0]
    line = check_line(found | {"docs": [" ".join(found["docs"]) * 2, "Short."]}, "stage1_2", "lines.jsonl:1")
    [row] = LineReader(opened.tokenizer, opened.model.context, 2).step([line]).rows.ids
    LineReader(opened.tokenizer, len(row), 2).check(line)
    with pytest.raises(DataError, match=r"lines.jsonl:1: with its documents as text \(mixed\)"):
        LineReader(opened.tokenizer, len(row), 2, mixed=0.2).check(line)


def test_early_stop_takes_the_best_weights(tiny: Tiny, tmp_path: Path) -> None:
    given = {"held_out": 0.25, "eval_every": 1, "dropout": 0.0, "lr": 0.05, "schedule": "constant"}
    result = train(config_for(tiny, tmp_path, "stage1", steps=30, patience=2, **given))
    looks = [line["held_out"] for line in metrics(result.metrics)]
    assert len(looks) < 30
    best = looks.index(min(looks)) + 1
    assert len(looks) == best + 2
    again = train(config_for(tiny, tmp_path, "stage1", steps=best, out=tmp_path / "again", **given))
    assert read_checkpoint(result.checkpoint).identity == read_checkpoint(again.checkpoint).identity


def test_epochs_see_every_line_once_and_processes_share_them(tiny: Tiny) -> None:
    opened = open_checkpoint(arguments(tiny))
    lines = [check_line(line, "stage1", str(number)) for number, line in enumerate(lines_of("stage1"))]
    reader = LineReader(opened.tokenizer, opened.model.context, 2)

    def places(steps: list[Step]) -> list[str]:
        return [place for step in steps for place in step.places]

    one = LineSteps(lines, reader, seed=1, batch=5, micro=2)
    two = [LineSteps(lines, reader, seed=1, batch=5, micro=2, process=index, processes=2) for index in (0, 1)]
    assert one.per_epoch == 3
    first, second = ([places(one(number)) for number in numbers] for numbers in (range(3), range(3, 6)))
    assert sorted(chain(*first), key=int) == sorted(chain(*second), key=int) == [str(n) for n in range(12)]
    assert first != second
    assert all(sorted(places(two[0](n)) + places(two[1](n))) == sorted(places(one(n))) for n in range(3))


def test_rates_climb_and_fall() -> None:
    rates = [scheduled("cosine", 1.0, 100, 0.03, number) for number in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[51] == pytest.approx(0.5, abs=0.02)
    assert all(later < earlier for earlier, later in pairwise(rates[3:]))
    assert rates[-1] < 1e-3
    assert {scheduled("constant", 5e-6, 10, 0.03, number) for number in range(10)} == {5e-6}


def test_a_warning_says_how_many_golds_are_missing(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = lines_of("stage2")
    for line in lines[:3]:
        del line["pos_index"]
    config = config_for(tiny, tmp_path, "stage2", data=write(tmp_path / "gaps.jsonl", lines), steps=1)
    with caplog.at_level(logging.WARNING):
        train(config)
    assert "3 of 12 questions (25.0 %) name no gold passage" in caplog.text


@pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")
def test_a_trained_adapter_is_one_of_peft(tiny: Tiny, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    result = train(config_for(tiny, tmp_path, "stage1_2"))
    checkpoint = read_checkpoint(result.checkpoint)
    export_peft(checkpoint, Role.GENERATOR, tmp_path / "peft")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.base), tmp_path / "peft").eval()
    opened = open_checkpoint(arguments(tiny, model=str(result.checkpoint)))
    opened.model.eval()
    ids = [5, 8, 13, 21, 34]
    with torch.no_grad():
        states = opened.model.hidden_states([ids], Role.GENERATOR)
        wanted = plain.base_model.model.model(torch.tensor([ids])).last_hidden_state
    assert torch.allclose(states, wanted, atol=1e-4)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_adapters_learn_over_a_quantized_base(tiny: Tiny, tmp_path: Path) -> None:
    result = train(config_for(tiny, tmp_path, "stage1", quantization="nf4", steps=2))
    assert all(0 < line["norm"] < 1e3 for line in metrics(result.metrics))
    assert moved(read_checkpoint(tiny.folder), read_checkpoint(result.checkpoint)) == {Role.COMPRESSOR, Role.GENERATOR}


def test_passes_in_bfloat16_keep_masters_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    exact = train(config_for(tiny, tmp_path, "stage1_2", dropout=0.0, dtype="float32", out=tmp_path / "exact"))
    half = train(config_for(tiny, tmp_path, "stage1_2", dropout=0.0, dtype="bfloat16"))
    for one, other in zip(metrics(exact.metrics), metrics(half.metrics), strict=True):
        assert one["answer"] == pytest.approx(other["answer"], rel=0.02)
    tensors = read_checkpoint(half.checkpoint).adapters[Role.GENERATOR]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_tensorboard_and_the_bar_are_written_where_asked(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    train(config_for(tiny, tmp_path, "stage1", steps=1, tensorboard=True), progress=True)
    assert list((tmp_path / "run" / "tensorboard" / "stage1").glob("events.*"))
    assert "stage1" in capsys.readouterr().err


def arguments(tiny: Tiny, **given: Any) -> EngineArguments:
    values = {"model": str(tiny.folder), "base_model": str(tiny.base), "device": "cpu", "dtype": "float32"}
    return EngineArguments(**values | {"attn_implementation": "eager"} | given).resolved()


def test_the_config_is_made_of_the_recipe_of_the_stage(tiny: Tiny, tmp_path: Path) -> None:
    config = TrainingConfig(stage="stage2", model="pocket", data=("x.jsonl",), out=tmp_path)
    assert (config.lr, config.schedule, config.batch_size, config.memory_tokens) == (5e-6, "constant", 32, False)
    assert config.roles == (Role.REASONER, Role.GENERATOR)
