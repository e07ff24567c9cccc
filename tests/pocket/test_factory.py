"""The generator of everyday passages and questions: its questions fit its passages."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara_core import ClaraEngine
from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.hub import BUNDLED
from clara_core.model.tokenizer import load_tokenizer
from clara_core.training.model_setup import write_model
from clara_core.training.objective import Objective, Terms
from tools.pocket_factory.average import average
from tools.pocket_factory.base import CONFIG
from tools.pocket_factory.frames import SLOT, Frames, Made, read_frames
from tools.pocket_factory.grow import grow
from tools.pocket_factory.lesson import Lesson, Mix
from tools.pocket_factory.look import HANDBOOK, right, typed
from tools.pocket_factory.remember import Earlier, Remembering
from tools.pocket_factory.train import Plan, Run
from tools.pocket_factory.values import Pools
from tools.pocket_factory.vocabulary import open_old
from tools.pocket_factory.words import content, go_on, keywords, other_form
from tools.pocket_factory.world import ENCYCLOPEDIA

FOLDER = Path(__file__).parents[2] / "tools" / "pocket_factory"
POOLS = {
    "given": ["Alva", "Bertil", "Chidi", "Dorota", "Emil"],
    "family": ["Okafor", "Lindqvist", "Moreau", "Tanaka"],
    "companies": ["Brack & Sons", "Nolte Group"],
    "cities": ["Lund", "Oderin", "Port Vell", "Kassel"],
    "countries": ["Norway", "Chile"],
    "nouns": ["kettle", "orchard", "ladder", "engine", "letter", "river", "window"],
    "adjectives": ["old", "narrow", "bright", "heavy"],
    "starts": ["al", "be", "ch"],
    "chain": {"al": ["v", "b"], "lv": ["a"], "va": ["$"], "be": ["r"], "er": ["t", "$"]},
}
PROSE = {
    "descriptions": [f"gridtool {n} is a small program that draws maps of old towns for printers." for n in range(900)],
    "glosses": [["noun", f"thing {n}", "a tool that is used to open old doors"] for n in range(900)],
    "examples": [f"the {n} boats came back before the storm" for n in range(900)],
    "definitions": [f"A vessel of {n} tons that carries grain along the coast." for n in range(900)],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few names and sentences in the format of the collected sources."""
    work = tmp_path_factory.mktemp("work")
    (work / "pools.json").write_text(json.dumps(POOLS))
    (work / "prose.json").write_text(json.dumps(PROSE))
    return work


@pytest.fixture(scope="module")
def lesson(work: Path) -> Lesson:
    return Lesson(work, 1)


def test_every_template_can_be_filled(lesson: Lesson):
    rng = random.Random(1)
    for frame in lesson.frames.frames:
        for block in frame.blocks:
            known = {name for statement in block.statements for name, _ in SLOT.findall(statement)}
            assert set(block.questions) | set(block.yes_no) <= known, frame.name
        for _ in range(20):
            assert lesson.frames.make(rng, frame=frame).text


def test_every_sort_can_be_drawn():
    pools, rng = Pools(POOLS), random.Random(2)
    for sort in (*pools.words, *pools.patterns, *pools.made_here):
        drawn = {pools.draw(rng, sort) for _ in range(40)}
        assert all(value and "{" not in value and "a~" not in value for value in drawn), sort


@pytest.mark.parametrize("sort", ["frame", "event", "open", "prose", "words"])
def test_answers_are_words_of_the_passage(lesson: Lesson, sort: str):
    rng = random.Random(3)
    for _ in range(150):
        made = lesson.draw(rng, sort)
        for question, answer in made.asked:
            if answer not in ("Yes", "No"):
                assert answer.lower() in made.text.lower(), (made.text, question, answer)


def test_a_question_has_one_answer(lesson: Lesson):
    rng = random.Random(4)
    for sort in ("frame", "open"):
        for _ in range(150):
            made = lesson.draw(rng, sort)
            answers: dict[str, set[str]] = {}
            for question, answer in made.asked:
                answers.setdefault(question, set()).add(answer)
            assert not set(made.unanswerable) & set(answers), made
            if sort == "open":
                assert all(len(found) == 1 for found in answers.values()), made


def test_two_passages_decide_a_comparison(lesson: Lesson):
    rng = random.Random(5)
    for _ in range(100):
        one, other, asked = lesson.relations.two(rng)
        for question, answer in asked:
            if question.startswith("Which has the"):
                assert answer in (one.subject, other.subject)
            elif " and " in answer:
                assert answer == f"{one.asked[0][1]} and {other.asked[0][1]}"


def test_a_step_holds_the_products_own_prompts(lesson: Lesson):
    tokenizer = load_tokenizer(str(BUNDLED["pocket"] / "base"), CONFIG)
    mix = Mix(passages=12, several=4, go_on=0.3, refuse=0.5, reverse=1.0, two=0.5, system=1.0)
    step = lesson.step(tokenizer, 0, mix)
    again = lesson.step(tokenizer, 0, mix)
    assert step.sequences == again.sequences
    assert step.rows is not None
    prompt = tokenizer.answer_prompt("Where is it?", 1)
    opening = prompt[: prompt.index(tokenizer.memory_ids[0])]
    assert all(row[: len(opening)] == opening for row in step.rows.ids)
    refused = [tokenizer.decode(row) for row in step.rows.ids if REFUSAL in tokenizer.decode(row)]
    assert refused
    assert any("Go on from" in tokenizer.decode(row) for row in step.rows.ids)
    assert all(0 <= gold < len(step.windows) for few in step.gold for gold in few)
    for row, windows in zip(step.rows.slots, step.rows.windows, strict=True):
        assert int(row.sum()) == len(windows) * tokenizer.config.n_mem


def test_a_reversed_row_gives_answers_and_asks_for_their_questions(lesson: Lesson):
    rng, mix = random.Random(2), Mix(asked=5, typo=0.0)
    for sort in ("frame", "open", "event"):
        made = lesson.draw(rng, sort)
        row = lesson.reverse(rng, made, 3, mix)
        assert row.documents == (3,)
        first, *rest = row.turns
        assert first[0].startswith("Background:\n{docs}\n\nAnswer:")
        assert all(said.startswith("Answer:") for said, _ in rest)
        asked = {question for question, _ in made.asked}
        for said, question in row.turns:
            assert any(question.endswith(one) for one in asked)  # perhaps after "Please tell me: "
            [answer] = {answer for one, answer in made.asked if question.endswith(one)} & {
                said.rpartition("Answer:")[2]
            }
            assert answer
    tokenizer = load_tokenizer(str(BUNDLED["pocket"] / "base"), CONFIG)
    step = lesson.step(tokenizer, 0, Mix(passages=6, reverse=1.0))
    assert step.rows is not None
    assert any("Answer:" in tokenizer.decode(ids) for ids in step.rows.ids)


def test_a_search_is_a_few_telling_words_of_the_passage():
    text = "The ferry to Skarholm leaves at 7:10 and the crossing takes 50 minutes."
    searches = {keywords(random.Random(seed), text) for seed in range(80)}
    assert len(searches) > 40
    assert any("Skarholm" in search for search in searches if search)
    told = {word[:4] for word in content(text)} | {"7:10", "50"}
    for search in searches:
        assert search is not None
        assert sum(word[:4].strip("?") in told for word in (search.lower().split())) >= 2, search
    assert keywords(random.Random(1), "It is at the end.") is None


def test_what_follows_some_words_is_read_on_from_there():
    text = "The ferry to Skarholm leaves at 7:10 and the crossing takes 50 minutes.\nTickets are sold on board."
    found = [asked for seed in range(200) if (asked := go_on(random.Random(seed), text))]
    assert len(set(found)) > 40
    for question, answer in found:
        given = question.removeprefix('Go on from "').removesuffix('"')
        assert f"{given} {answer}" in text
        assert 4 <= len(answer.split()) <= 14
    assert go_on(random.Random(1), "Too short a text.") is None


def test_words_take_other_endings():
    rng = random.Random(3)
    assert {other_form(rng, "boats") for _ in range(30)} == {"boat", "boats", "boated", "boating"}
    assert other_form(rng, "ferries") == "ferry"
    assert other_form(rng, "Skarholm") == "Skarholm"


def test_questions_are_held_against_earlier_passages_too(lesson: Lesson):
    opened = open_old("pocket")
    terms = Terms(contrastive=1.0, alignment=0.0, tau=0.05)
    mix = Mix(passages=6, several=1, contrast=6)
    first, second = (
        replace(step, vague=("",) * len(step.questions))
        for step in (lesson.step(opened.tokenizer, number, mix) for number in (0, 1))
    )
    earlier = Earlier(50)
    with torch.no_grad():
        alone = Remembering(opened.model, terms, earlier)(first)
        assert len(earlier.kept) == len(first.sequences)
        # Before the first step there are no earlier passages: it is the plain objective and the reverse loss.
        plain = Objective(opened.model, terms)(first)
        assert alone.losses["contrastive"] == pytest.approx(float(plain.losses["contrastive"]), rel=1e-4)
        assert float(alone.losses["reverse"]) > 0
        more = Remembering(opened.model, terms, earlier)(second)
        assert float(more.losses["contrastive"]) > float(Objective(opened.model, terms)(second).losses["contrastive"])
        assert len(earlier.kept) == len(first.sequences) + len(second.sequences)


def test_a_vague_question_is_not_held_against_its_own_kind(lesson: Lesson):
    opened = open_old("pocket")
    terms = Terms(contrastive=1.0, alignment=0.0, tau=0.05)
    step = lesson.step(opened.tokenizer, 0, Mix(passages=4, several=1, contrast=4))
    [first] = [question for question, gold in enumerate(step.gold) if 0 in gold][:1]
    kinds = ("recipe", "recipe", *("lease" for _ in step.kinds[2:]))
    step = replace(step, kinds=kinds, vague=tuple("recipe" if n == first else "" for n in range(len(step.questions))))
    with torch.no_grad():
        objective = Remembering(opened.model, terms, Earlier(50))
        objective.earlier.add(("recipe", "lease"), opened.model.encode(step.sequences[:2], Role.COMPRESSOR))
        objective(step)
    assert objective.scores is not None
    windows = [*kinds, "recipe", "lease"]
    out = [column for column, score in enumerate(objective.scores[first]) if score < -1]
    own = {window for passage in step.gold[first] for window in step.windows[passage]}
    assert out == [n for n, kind in enumerate(windows) if kind == "recipe" and n not in own]
    others = [n for n in range(len(step.questions)) if n != first]
    assert (objective.scores[others] >= -1).all()


def test_a_frame_that_is_no_frame_is_refused(tmp_path: Path):
    (tmp_path / "wrong.txt").write_text("[name] X=place it=It\nno statement\n")
    with pytest.raises(ValueError, match="no statement"):
        read_frames(tmp_path)
    assert isinstance(Frames(Pools(POOLS), read_frames(FOLDER / "frames")).make(random.Random(6)), Made)


def test_typed_sentences_are_judged():
    assert len(typed()) > 40
    assert right("The stairs.", "the stairs")
    assert not right("the lift", "the stairs")
    assert right("The documents do not say.", None)
    assert not right("Paris", None)


def test_the_handbook_holds_the_answers_to_its_questions():
    entries = json.loads((HANDBOOK / "questions.json").read_text(encoding="utf-8"))
    assert len(entries) >= 20
    assert sum(not entry["answers"] for entry in entries) == 2
    for entry in entries:
        text = "".join((HANDBOOK / "data" / name).read_text(encoding="utf-8") for name in entry["files"])
        assert bool(entry["answers"]) == bool(text)
        assert entry["answers"] in ([], ["No"]) or any(answer in text for answer in entry["answers"]), entry


def test_a_run_goes_on_from_what_it_saved(work: Path, tmp_path: Path):
    """Each call makes one step: the second run continues the first one, and writes a checkpoint that loads."""
    (tmp_path / "mix.json").write_text(json.dumps({"passages": 3, "several": 1, "contrast": 2}))
    run = Run(work, tmp_path, "pocket", new_vocabulary=False)
    run.learn(hours=1e-9)
    assert run.progress.step == 1
    again = Run(work, tmp_path, "pocket", new_vocabulary=False)
    assert vars(again.progress) == vars(run.progress)
    for name, weight in again.master_weights.weights.items():
        assert torch.equal(weight, run.master_weights.weights[name]), name
    engine = ClaraEngine.from_pretrained(str(tmp_path / "checkpoint"), device="cpu", dtype="float32")
    assert len(engine.roles) == 3


def test_a_checkpoint_with_more_layers_says_the_same(tmp_path: Path):
    """The copies add nothing until they are trained, and their gradients are not zero."""
    old, new = open_old("pocket"), grow("pocket", [1, 2])
    assert new.model.decoder.config.num_hidden_layers == old.model.decoder.config.num_hidden_layers + 2
    ids = old.tokenizer.encode_passages(["The ferry leaves at half past nine."])
    for role in Role:
        assert torch.equal(new.model.hidden_states(ids, role), old.model.hidden_states(ids, role)), role
    new.model.hidden_states(ids, Role.COMPRESSOR).square().sum().backward()
    layers = new.model.trunk.layers
    assert layers[2].mlp.down_proj.base.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="expected some of 0 to"):
        grow("pocket", [99])
    write_model(tmp_path / "grown", new, "stage2", "# grown\n", base_trained=True)
    answers = []
    for name in ("pocket", str(tmp_path / "grown")):
        engine = ClaraEngine.from_pretrained(name, device="cpu", dtype="float32")
        memories = engine.compress(["The ferry leaves at half past nine."])
        answers.append(engine.answer("When does the ferry leave?", memories, verbatim=False).text)
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize("copied", [[], [1]])
def test_a_checkpoint_with_a_wider_block_says_the_same(tmp_path: Path, copied: list[int]):
    """Nothing reads the new neurons until they are trained, and the gradients of what reads them are not zero."""
    old, new = open_old(ENCYCLOPEDIA), grow(ENCYCLOPEDIA, copied, 800)
    width = old.model.decoder.config.intermediate_size
    ids = old.tokenizer.encode_passages(["The ferry leaves at half past nine."])
    write_model(tmp_path / "wide", new, "stage2", "# wide\n", base_trained=True)
    config = json.loads((tmp_path / "wide" / "base" / "config.json").read_text())
    assert config["intermediate_size"] == 800 > width
    assert config["num_hidden_layers"] == old.model.decoder.config.num_hidden_layers + len(copied)
    with torch.no_grad():
        for role in (None, *Role):
            before, after = (opened.model.hidden_states(ids, role) for opened in (old, new))
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(new.model.head(after), old.model.head(before), rtol=1e-4, atol=1e-4)
        memories = [opened.model.encode(ids, Role.COMPRESSOR) for opened in (old, new)]
        torch.testing.assert_close(*memories, rtol=1e-4, atol=1e-4)
    new.model.hidden_states(ids, [Role.COMPRESSOR]).square().sum().backward()
    for layer in new.model.trunk.layers:
        gate, up, down = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        for drawn in (gate, up):
            weight = drawn.base.weight
            assert weight[width:].std().item() == pytest.approx(weight[:width].std().item(), rel=0.1)
            assert not drawn.lora_B[:, width:].any()
        assert not down.base.weight[:, width:].any()
        assert not down.lora_A[:, width:].any()
        assert (down.base.weight.grad[:, width:].abs().amax(0) > 0).all()
        if down.lora_B.any():  # otherwise the other factor is trained first
            assert down.lora_A.grad[:, width:].abs().max() > 0


def test_a_width_that_is_not_above_the_present_one_is_refused():
    with pytest.raises(ValueError, match="got 704, expected more than 704"):
        grow(ENCYCLOPEDIA, [], 704)
    with pytest.raises(ValueError, match="expected some of 0 to"):
        grow(ENCYCLOPEDIA, [])


def test_the_mean_of_checkpoints(tmp_path: Path):
    """Of a checkpoint and its mirror image, with the files of the last one."""
    pocket = BUNDLED["pocket"]
    mirrored = tmp_path / "mirrored"
    shutil.copytree(pocket, mirrored)
    tensors = {file.relative_to(pocket): load_file(file) for file in pocket.rglob("*.safetensors")}
    for name, held in tensors.items():
        save_file({key: -value for key, value in held.items()}, mirrored / name)
    average(tmp_path / "mean", [(0.25, mirrored), (0.75, pocket)])
    for name, held in tensors.items():
        found = load_file(tmp_path / "mean" / name)
        assert found.keys() == held.keys()
        assert all(torch.equal(found[key], value / 2) for key, value in held.items())
    assert ClaraEngine.from_pretrained(str(tmp_path / "mean")).roles
    with pytest.raises(ValueError, match=r"must add up to 1, got 1\.5"):
        average(tmp_path / "other", [(0.5, mirrored), (1.0, pocket)])
    with pytest.raises(ValueError, match="different names or shapes"):
        average(tmp_path / "other", [(0.5, BUNDLED["pocket"].parents[1] / "tests/data/encyclopedia"), (0.5, pocket)])


def test_the_rate_rises_stays_and_falls():
    plan = Plan(rate=1.0, fall=0.5, warm_up=10)
    assert plan.at(0, 0.0) == pytest.approx(0.1)
    assert plan.at(100, 0.4) == 1.0
    assert plan.at(100, 0.75) == pytest.approx(0.5)
    assert plan.at(100, 1.0) == pytest.approx(0.02)
