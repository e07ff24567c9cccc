"""Questions about real sentences: derived from parse trees, and answered by the passages made from them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.pocket.test_factory import POOLS
from tools.pocket_factory.told import Told, questions, read_clause
from tools.pocket_factory.trees import WordNet
from tools.pocket_factory.values import Pools

# Sentences and their parses by link-grammar 5.12.
STRUCK = (
    "He struck the table with his elbow.",
    "(S (NP he) (VP struck.v-d (NP (NP the table.n) (PP with (NP his elbow.n)))) .)",
)
STUCK = (
    "He stuck his head in the window.",
    "(S (NP he) (VP stuck.v-d (NP (PP (NP his head.n) (PP in.r (NP the window.n))))) .)",
)
LOCKED = (
    "The cellar was locked carefully.",
    "(S (NP the cellar.n) (VP was.v-d (VP locked.v-d (ADVP carefully.e))) .)",
)
TUTORED = ("She tutored him in 1907.", "(S (NP she) (VP tutored.v-d (NP him) (PP in.r (NP 1907{!<YEAR-DATE>}))) .)")
VAGUE = ("They explored it.", "(S (NP they) (VP explored.v-d (NP it)) .)")
FRAGMENT = ("A mass of molten rock.", "(S a mass.n (PP (S (VP of molten.a rock.n-u)) .))")

NOUNS = {"table": "06", "elbow": "08", "head": "08", "window": "06", "cellar": "06", "teacher": "18"}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    """A few words in the format of WordNet's files."""
    folder = tmp_path_factory.mktemp("wordnet")
    (folder / "index.verb").write_text("strike v\nstick v\nlock v\ntutor v\nexplore v\n")
    (folder / "verb.exc").write_text("struck strike\nstuck stick\n")
    rows = [f"{number:08d} {kind} n 01 {noun} 0" for number, (noun, kind) in enumerate(NOUNS.items())]
    (folder / "data.noun").write_text("\n".join(rows))
    index = [f"{noun} n 1 0 1 1 {number:08d}" for number, noun in enumerate(NOUNS)]
    (folder / "index.noun").write_text("\n".join(index))
    return WordNet(folder)


def test_verbs_have_a_base_form_and_nouns_a_sort(words: WordNet):
    assert [words.base(verb) for verb in ("struck", "Locked", "explores", "tutored", "xyzzed")] == [
        "strike",
        "lock",
        "explore",
        "tutor",
        None,
    ]
    assert words.sort("the two old teachers of the school") == "person"
    assert words.sort("a quark") == ""


@pytest.mark.parametrize(
    "sentence, expected",
    [
        (
            STRUCK,
            {
                "Who struck the table with his elbow?": "{P}",
                "What did {P} strike with his elbow?": "the table",
                "With what did {P} strike the table?": "with his elbow",
                "What did {P} strike the table with?": "his elbow",
            },
        ),
        (
            STUCK,
            {
                "Who stuck his head in the window?": "{P}",
                "What did {P} stick in the window?": "his head",
                "Where did {P} stick his head?": "in the window",
            },
        ),
        (LOCKED, {"What was locked carefully?": "the cellar", "How was the cellar locked?": "carefully"}),
        (
            TUTORED,
            {
                "Who tutored {Q} in 1907?": "{P}",
                "Whom did {P} tutor in 1907?": "{Q}",
                "When did {P} tutor {Q}?": "in 1907",
            },
        ),
    ],
    ids=["struck", "stuck", "locked", "tutored"],
)
def test_a_parse_is_asked_about(sentence: tuple[str, str], expected: dict[str, str], words: WordNet):
    clause = read_clause(*sentence, words)
    assert clause is not None
    assert dict(questions(clause, words)) == expected


@pytest.mark.parametrize("sentence", [VAGUE, FRAGMENT], ids=["vague", "fragment"])
def test_what_points_elsewhere_or_is_no_sentence_is_not_asked_about(sentence: tuple[str, str], words: WordNet):
    assert read_clause(*sentence, words) is None


def test_answers_stand_in_the_passage_and_no_mark_is_left(words: WordNet, tmp_path: Path):
    clauses = [clause for sentence in (STRUCK, STUCK, LOCKED, TUTORED) if (clause := read_clause(*sentence, words))]
    known = [(clause.stated, clause.ask(""), questions(clause, words)) for clause in clauses]
    (tmp_path / "told.json").write_text(json.dumps(known))
    told, rng = Told(tmp_path, Pools(POOLS)), random.Random(1)
    seen = set()
    for _ in range(300):
        made = told.make(rng)
        assert made.asked
        assert "{" not in made.text + str(made.asked)
        assert all(answer.lower() in made.text.lower() for _, answer in made.asked)
        assert len({question for question, _ in made.asked}) == len(made.asked)
        seen |= {question.split()[0] for question, _ in made.asked}
    assert {"Who", "What", "Where", "When", "Why", "How", "With"} <= seen  # some are about added phrases
