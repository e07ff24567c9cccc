"""The passages that were written for the training, and the weights of hints that are fitted to such passages."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch

from benchmarks.typed_tasks import TYPED
from clara_core import ClaraEngine
from clara_core.engine.quoting.learned_hints import END_WEIGHTS, WEIGHTS, HintWeights
from tools.pocket_factory import hint_examples
from tools.pocket_factory.hint_examples import Asked, Examples, add_beginnings, add_ends, candidates, ends, questions
from tools.pocket_factory.hint_weights import Batch, EndBatch, Fit, main, write_weights
from tools.pocket_factory.typed import FOLDER, Typed, read_typed


@pytest.fixture(scope="module")
def pocket() -> ClaraEngine:
    return ClaraEngine.from_pretrained("pocket")


SHARED = 6  # words in a row that two passages may not share


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + SHARED]) for at in range(len(words) - SHARED + 1)}


def test_no_written_passage_repeats_one_that_is_measured() -> None:
    measured = set[tuple[str, ...]]()
    for name in ("typed.json", "typed_others.json"):
        for half in json.loads(TYPED.with_name(name).read_text(encoding="utf-8")).values():
            measured.update(*(runs(passage["text"]) for passage in half))
    written = [
        p for folder in (FOLDER, FOLDER / "hints") for held in (False, True) for p in read_typed(folder, held=held)
    ]
    assert len(written) > 2500
    assert [passage.text for passage in written if len(runs(passage.text) & measured) > 1] == []


def test_every_fifth_passage_of_a_file_is_held_out(tmp_path: Path) -> None:
    blocks = [f"# note\nNumber {number}0 is here.\n? Which is here? | Number {number}0" for number in range(1, 8)]
    (tmp_path / "notes.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    assert [passage.text for passage in read_typed(tmp_path, held=True)] == ["Number 50 is here."]
    assert len(read_typed(tmp_path)) == 6


@pytest.mark.parametrize("line", ["? Which? | Number 7", "Which?", "? Which?"])
def test_a_line_that_is_no_question_of_its_passage_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes.txt").write_text(f"# note\nNumber 10 is here.\n{line}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"notes\.txt, passage 1"):
        read_typed(tmp_path)


def test_a_passage_with_other_numbers_still_holds_its_answers() -> None:
    typed, rng = Typed(), random.Random(3)
    made = [typed.make(rng) for _ in range(300)]
    assert [a for m in made for _, a in m.asked if a not in m.text and a not in ("Yes", "No")] == []
    known = {passage.text for passage in typed.known}
    assert 0.2 < sum(m.text not in known for m in made) / len(made) < 0.6


def test_candidates_of_a_question_are_the_places_of_its_documents() -> None:
    texts = ["The shop opens at 9:30 on weekdays.", "It opens at noon."]
    sort, found = candidates(Asked("When does the shop open?", ("at 9:30", "9:30"), 0, (1, 0)), texts)
    assert sort == "time"
    assert [one.word for one in found if one.right] == ["at", "9:30"]
    assert [one.word for one in found[-3:]] == ["Yes", "No", "The documents do not say."]
    assert "word=it" in found[0].features


def test_a_question_is_asked_of_its_passage_or_of_those_that_a_search_finds() -> None:
    asked = questions(random.Random(1), read_typed()[:80])
    lost = [one for one in asked if one.own not in one.documents]
    assert 0.04 < len(lost) / len(asked) < 0.13
    assert {one.answers for one in lost} == {("The documents do not say.",)}
    assert {len(one.documents) for one in asked} == {1, 2, 3, 4, 5}
    assert 0.5 < sum(one.documents == (one.own,) for one in asked) / len(asked) < 0.75


def test_candidates_of_an_end_follow_the_text(pocket: ClaraEngine) -> None:
    text = "The shop in Mill Lane opens at 9:30 on weekdays, says Ada's aunt."
    asked = Asked("Where is the shop?", ("in Mill Lane", "Mill Lane"), 0, (0,))
    tokenizer = pocket.tokenizer
    [(sort, said, found), (_, shorter, _)] = ends(asked, text, tokenizer)
    assert sort == "place"
    assert tokenizer.decode(said).strip() == "in Mill Lane opens at"
    assert tokenizer.decode(shorter).strip() == "Mill Lane opens at"
    assert [tokenizer.decode(said[: one.tokens]).strip() for one in found if one.right] == ["in Mill Lane"]
    assert len(found) == 5
    [(_, said, found)] = ends(Asked("Who says so?", ("Ada",), 0, (0,)), text, tokenizer)
    assert [tokenizer.decode(said[: one.tokens]).strip() for one in found] == ["Ada", "Ada's", "Ada's aunt"]
    assert list(ends(Asked("Who?", ("No",), 0, (0,)), text, tokenizer)) == []


def test_the_model_tells_where_a_quotation_ends(pocket: ClaraEngine) -> None:
    """The logits of an example are those of the model after the words before."""
    text = "The shop in Mill Lane opens at 9:30 on weekdays."
    asked, memories = [Asked("When does the shop open?", ("at 9:30",), 0, (0,))], pocket.compress([text])
    found, firsts = Examples(), Examples()
    add_ends(found, pocket, asked, [text], memories, held=False)
    add_beginnings(firsts, pocket, asked, [text], memories, held=True)
    [end], [first] = found.content()["examples"], firsts.content()["examples"]
    [(_, said, known)] = ends(asked[0], text, pocket.tokenizer)
    with torch.inference_mode():
        [states] = hint_examples.last_states(pocket, asked, memories, [said])
        logits = pocket.load().model.head(states).float()
    going = torch.stack([logits[one.tokens, one.before] for one in known])
    stops = logits[[one.tokens for one in known]][:, sorted(pocket.tokenizer.eos_ids)].amax(1)
    torch.testing.assert_close(end["logits"].float(), stops - going, atol=0.05, rtol=0)
    assert bool(first["held"]) and not bool(end["held"])  # noqa: PT018
    assert int(first["right"].sum()) == 1


def example(rng: random.Random, held: bool, names: list[list[int]], right: list[bool]) -> dict[str, torch.Tensor]:
    return {
        "held": torch.tensor(held),
        "sort": torch.tensor(0),
        "logits": torch.tensor([rng.gauss(2.0 * one, 1.0) for one in right]),
        "rules": torch.zeros(len(right)),
        "right": torch.tensor(right),
        "sizes": torch.tensor([len(own) for own in names]),
        "names": torch.tensor([name for own in names for name in own], dtype=torch.int32),
    }


def beginnings(rng: random.Random, number: int) -> dict[str, torch.Tensor]:
    right = rng.randrange(4)
    names = [[0 if at == right else 1, 2 if rng.random() < 0.5 else 3] for at in range(4)]
    return example(rng, number % 5 == 4, names, [at == right for at in range(4)])


NAMES = ["word=right", "word=wrong", "at 1=a", "at 1=b", "refusal=yes"]


def test_a_feature_of_right_candidates_gets_a_weight(tmp_path: Path) -> None:
    rng = random.Random(0)
    content = {"names": NAMES, "sorts": ["who"], "examples": [beginnings(rng, number) for number in range(400)]}
    fit = Fit(content, Batch)
    before = fit.tested.shares(fit.tested.by_rules)["right among answers"]
    fit.run(1e-3, 1e-3, 40)
    assert before < fit.tested.shares(fit.tested.scores(fit.weights))["right among answers"] == 1.0
    write_weights(fit, tmp_path / "weights.safetensors", {"at 1=a": 0.5})
    weights = HintWeights.read(tmp_path / "weights.safetensors")
    table, shift = weights.table("who")

    def gain(group: str, value: str) -> float:
        sums = table[weights.find_rows(group, [value])[0]]
        return float(sums[0] + (sums[1:] + shift).relu() @ weights.out)

    assert gain("word", "right") > gain("word", "wrong") + 2
    assert abs(gain("at 1", "a") - 0.5 - gain("at 1", "b")) < 1


def test_examples_of_several_files_share_their_names(tmp_path: Path) -> None:
    rng = random.Random(1)
    examples = [beginnings(rng, number) for number in range(200)]
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    part = {"names": NAMES, "sorts": ["who"], "examples": examples}
    other = {"names": NAMES[::-1], "sorts": ["x", "who"], "examples": [
        {**one, "names": len(NAMES) - 1 - one["names"], "sort": torch.tensor(1)} for one in examples
    ]}  # fmt: skip
    for file, content in zip(files, (part, other), strict=True):
        torch.save({"beginnings": content, "ends": content}, file)
    main(files, tmp_path, rounds=4)
    for name in (WEIGHTS.name, END_WEIGHTS.name):
        weights = HintWeights.read(tmp_path / name)
        assert set(weights.rows) == {"word", "at 1"}
        assert list(weights.sorts) == ["", "who"]
        assert weights.table("who")[0].shape == (5, 1 + len(weights.out))


def test_a_quotation_ends_at_the_first_candidate_that_is_sure() -> None:
    one = example(random.Random(2), True, [[0], [0], [0]], [False, True, True])
    batch = EndBatch([one, one], torch.arange(1), torch.zeros(1, dtype=torch.long))
    assert batch.shares(torch.tensor([-1.0, 2.0, 1.0, 1.0, 2.0, 2.0])) == {"right": 0.5}
    assert batch.shares(torch.tensor([-1.0, -2.0, -1.0, -1.0, -2.0, 2.0])) == {"right": 0.5}
    scores = torch.tensor([-1.0, 2.0, 1.0, 1.0, 2.0, 2.0])
    end, go_on = torch.sigmoid(scores), torch.sigmoid(-scores)
    expected = -sum(
        (go_on[at] * (end[at + 1] + go_on[at + 1] * end[at + 2])).log() for at in (0, 3)
    ) / 2  # fmt: skip
    torch.testing.assert_close(batch.loss(scores).float(), expected)
