"""Questions in other words than their passage."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.pocket_factory.rewording import Rewording


def rewording(folder: Path, **files: str) -> Rewording:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return Rewording(folder)


def said(reworded: Rewording, question: str) -> set[str]:
    return {reworded(random.Random(seed), question) for seed in range(200)}


def test_words_and_phrases_stand_for_each_other(tmp_path: Path) -> None:
    reworded = rewording(tmp_path, a="visitors, guests\nstay, sleep over, spend the night\n")
    assert said(reworded, "Do visitors stay?") == {
        f"Do {who} {what}?" for who in ("visitors", "guests") for what in ("stay", "sleep over", "spend the night")
    }
    assert "Do visitors stay?" in said(reworded, "Do visitors spend the night?")


def test_the_longest_phrase_counts_and_the_first_letter_stays_a_capital(tmp_path: Path) -> None:
    reworded = rewording(tmp_path, a="how much, how many euros\nhow much does it cost, what is the price\n")
    assert said(reworded, "How much does it cost?") == {"How much does it cost?", "What is the price?"}


def test_names_stay(tmp_path: Path) -> None:
    reworded = rewording(tmp_path, a="baker, bread maker\n")
    assert said(reworded, "Is Mr Baker a baker?") == {"Is Mr Baker a baker?", "Is Mr Baker a bread maker?"}


def test_an_article_follows_its_word(tmp_path: Path) -> None:
    reworded = rewording(tmp_path, a="objection, complaint\n")
    assert said(reworded, "An objection in an hour?") == {"An objection in an hour?", "A complaint in an hour?"}


def test_the_first_group_counts_and_two_kinds_of_words_do_not_mix(tmp_path: Path) -> None:
    reworded = rewording(
        tmp_path, nouns="cost, fee\n", verbs="cost, sell for\nhow long, for how long\nhow many days, how long\n"
    )
    assert said(reworded, "What does it cost?") == {"What does it cost?"}
    assert said(reworded, "how long") == {"how long", "for how long"}
    assert said(reworded, "how many days") == {"how many days", "how long"}


@pytest.mark.parametrize("line", ["alone", "one, ", ", two"])
def test_a_line_is_a_group(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"a\.txt:1: expected at least two items"):
        rewording(tmp_path, a=line)


def test_all_groups_of_the_project_can_be_read() -> None:
    reworded = Rewording(Path(__file__).parents[2] / "tools" / "pocket_factory" / "rewording")
    assert len(reworded.others) > 5000
    assert said(reworded, "") == {""}
