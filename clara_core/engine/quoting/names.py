"""Names in a text: words with capital letters that follow each other."""

from __future__ import annotations

from typing import Final

import regex

from clara_core.engine.quoting.word_classes import FUNCTION

_WORD: Final = r"\w*(?:[-'\u2019](?!s\b)\w+)*"  # the owner's ending is no part of a name
_NAMES: Final = regex.compile(rf"\p{{Lu}}{_WORD}(?: [\p{{Lu}}\d]{_WORD})*")


def names_of(text: str) -> frozenset[str]:
    """The names of a text in small letters, each as long as it stands there: "new kallor", not "kallor".

    Also the first words of sentences are names here, as no list tells which are; articles and the like are cut off.
    """
    return frozenset(name for match in _NAMES.finditer(text) if (name := _without_article(match[0])))


def asked_names(question: str) -> frozenset[str]:
    """The names of a question, without its first word if that is alone."""
    begin, _, rest = question.strip().partition(" ")
    alone = not rest[:1].isupper()
    return names_of(rest if alone else f"{begin} {rest}")


def _without_article(name: str) -> str:
    words = name.lower().split(" ")
    while words and words[0] in FUNCTION:
        del words[0]
    return " ".join(words)
