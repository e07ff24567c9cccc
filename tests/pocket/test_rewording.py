"""Questions in other words than their passage."""

from __future__ import annotations

import random

from clara_core.retrieval.thesaurus import read_thesaurus
from tools.pocket_factory.rewording import Rewording


def rewording(*sections: str) -> Rewording:
    return Rewording([[tuple(line.split(", ")) for line in section.splitlines()] for section in sections])


def said(reworded: Rewording, question: str) -> set[str]:
    return {reworded(random.Random(seed), question) for seed in range(200)}


def test_words_and_phrases_stand_for_each_other() -> None:
    reworded = rewording("visitors, guests\nstay, sleep over, spend the night\n")
    assert said(reworded, "Do visitors stay?") == {
        f"Do {who} {what}?" for who in ("visitors", "guests") for what in ("stay", "sleep over", "spend the night")
    }
    assert "Do visitors stay?" in said(reworded, "Do visitors spend the night?")


def test_the_longest_phrase_counts_and_the_first_letter_stays_a_capital() -> None:
    reworded = rewording("how much, how many euros\nhow much does it cost, what is the price\n")
    assert said(reworded, "How much does it cost?") == {"How much does it cost?", "What is the price?"}


def test_the_first_person_is_a_capital() -> None:
    reworded = rewording("do i have to, must i")
    assert said(reworded, "When do I have to pay?") == {"When do I have to pay?", "When must I pay?"}


def test_names_stay() -> None:
    reworded = rewording("baker, bread maker\n")
    assert said(reworded, "Is Mr Baker a baker?") == {"Is Mr Baker a baker?", "Is Mr Baker a bread maker?"}


def test_an_article_follows_its_word() -> None:
    reworded = rewording("objection, complaint\n")
    assert said(reworded, "An objection in an hour?") == {"An objection in an hour?", "A complaint in an hour?"}


def test_the_first_group_counts_and_two_kinds_of_words_do_not_mix() -> None:
    reworded = rewording("cost, fee", "cost, sell for\nhow long, for how long\nhow many days, how long")
    assert said(reworded, "What does it cost?") == {"What does it cost?"}
    assert said(reworded, "how long") == {"how long", "for how long"}
    assert said(reworded, "how many days") == {"how many days", "how long"}


def test_the_thesaurus_can_be_used() -> None:
    reworded = Rewording(read_thesaurus())
    assert len(reworded.others) > 5000
    assert said(reworded, "") == {""}
