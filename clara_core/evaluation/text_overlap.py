"""Metrics of text overlap, all in [0, 1]: BLEU, ROUGE, and the share of preserved names and numbers.

BLEU is computed by `sacrebleu`, ROUGE by `rouge-score`; both are part of the extra `train`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from clara_core.evaluation.aggregate import check_lengths

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

_ROUGE = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001 - apostrophes
_SENTENCE_END = re.compile(r"[.!?…:]|\n\s*\n")
_POSSESSIVE = re.compile(r"['’]s\b", re.IGNORECASE)  # noqa: RUF001 - apostrophes
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Words that often begin a sentence, with a capital letter, and are not names.
_FUNCTION_WORDS = (
    "a about after all also although an and another any are as at be because been before being both but by can could "
    "despite did do does during each either every few for from further had has have he her here his how however i if "
    "in into is it its later many more most much must my neither no nor not of off on once one only or other our "
    "over several she should since so some such than that the their them then there these they this those though "
    "through thus to today two under until up upon was we were what when where whether which while who whose why will "
    "with within without would yet you your"
)
_NO_NAMES = frozenset(_FUNCTION_WORDS.split())


def bleu(predictions: Sequence[str], golds: Sequence[str | Sequence[str]]) -> float:
    """Corpus BLEU by `sacrebleu`, divided by 100.

    For answers shorter than four words, n-grams up to their length count (`effective_order`).

    Raises:
        ValueError: There is no text, the lengths differ, or a text has no gold text.
        ImportError: sacrebleu is not installed.
    """
    check_lengths("predictions", predictions, "golds", golds)
    several = [[gold] if isinstance(gold, str) else list(gold) for gold in golds]
    if not all(several):
        raise ValueError("a text needs at least one gold text, got none")
    metric = load_bleu()(effective_order=True)
    most = max(map(len, several))
    # sacrebleu takes None for a missing gold text.
    streams = [[one[place] if place < len(one) else None for one in several] for place in range(most)]
    score = metric.corpus_score(list(predictions), cast("list[list[str]]", streams))
    return min(1.0, float(score.score) / 100)  # may exceed 1 by rounding


def rouge(prediction: str, gold: str) -> dict[str, float]:
    """``rouge1``, ``rouge2`` and ``rougeL``, each the F measure, without stemming.

    On ASCII text the scores are those of `rouge-score`. Its tokenizer drops other letters; here words consist of
    letters and digits of any script.

    Raises:
        ImportError: rouge-score is not installed.
    """
    scores = load_rouge()(list(_ROUGE), tokenizer=_Words()).score(gold, prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def entities(text: str) -> list[str]:
    """Names and numbers of a text, each once, in order of appearance and in lower case.

    A *number* begins with a digit: ``1907``, ``3.5``, ``12:30``; thousands separators are removed. A *name* is a
    maximal run of capitalized words that only space separates, without an English function word at its
    beginning (The, In, I) or a possessive s. A single word that occurs only once, at the beginning of a sentence, is
    not a name ("Founded in 1907"). No model is used; in scripts without capital letters only numbers are found.
    """
    found = [(name, opens and place == 0) for run, opens in _runs(_plain(text)) for name, place in _names(run)]
    often = Counter(name for name, _ in found)
    # Numbers and names of several words are kept.
    doubtful = {name for name, first in found if first and name.isalpha() and often[name] == 1}
    return [name for name in often if name not in doubtful]


def entity_preservation(passage: str, again: str) -> float | None:
    """Share of the names and numbers of a passage that another text repeats word for word, without regard to case.

    None if the passage has none. A name of several words counts only as a whole.
    """
    found = entities(passage)
    if not found:
        return None
    return 1 - len(lost_entities(passage, again)) / len(found)


def lost_entities(passage: str, again: str) -> list[str]:
    """Names and numbers of a passage that another text does not repeat."""
    # Split before folding case: the folded form of some letters contains a character that is not a letter.
    text = f" {' '.join(piece.casefold() for piece in _PIECE.findall(_plain(again)))} "
    return [entity for entity in entities(passage) if f" {entity} " not in text]


def score_paraphrases(passages: Sequence[str], again: Sequence[str]) -> dict[str, float]:
    """Means over passages: ``rouge1``, ``rouge2``, ``rougeL``, ``bleu`` (of the whole set) and ``entities``.

    ``entities`` is the mean over the passages with names or numbers; it is missing if there are none.

    Raises:
        ValueError: There is no passage, or the lengths differ.
        ImportError: sacrebleu or rouge-score is not installed.
    """
    check_lengths("passages", passages, "paraphrases", again)
    each = [rouge(text, passage) for passage, text in zip(passages, again, strict=True)]
    scores = {name: fmean(one[name] for one in each) for name in _ROUGE}
    scores["bleu"] = bleu(again, passages)
    kept = [entity_preservation(passage, text) for passage, text in zip(passages, again, strict=True)]
    if known := [share for share in kept if share is not None]:
        scores["entities"] = fmean(known)
    return scores


def load_bleu() -> type[BLEU]:
    """Import the BLEU metric of sacrebleu.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as exc:
        raise ImportError("BLEU needs sacrebleu: pip install 'clara-rag[train]'") from exc
    return BLEU


def load_rouge() -> Any:
    """Import the scorer of rouge-score.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as exc:
        raise ImportError("ROUGE needs rouge-score: pip install 'clara-rag[train]'") from exc
    return RougeScorer


class _Words:
    """A tokenizer with the interface of `rouge-score`."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _plain(text: str) -> str:
    """Remove thousands separators and possessive s."""
    return _POSSESSIVE.sub("", _THOUSANDS.sub("", text))


def _runs(text: str) -> Iterator[tuple[list[str], bool]]:
    """Runs of words separated only by space or the point of an initial, and whether they open a sentence."""
    run: list[str] = []
    end, opens = 0, True
    for match in _PIECE.finditer(text):
        gap = text[end : match.start()]
        initial = bool(run) and len(run[-1]) == 1 and gap.startswith(".")
        if run and gap[initial:].strip():
            yield run, opens
            run, opens = [], bool(_SENTENCE_END.search(gap))
        run.append(match[0])
        end = match.end()
    yield run, opens


def _names(run: list[str]) -> Iterator[tuple[str, int]]:
    """Names and numbers of a run, each with the index of its first word."""
    name: list[str] = []
    for place, word in enumerate([*run, ""]):
        if word[:1].isupper() and (name or word.lower() not in _NO_NAMES):
            name.append(word.casefold())
            continue
        if name:
            yield " ".join(name), place - len(name)
            name = []
        if word[:1].isdigit():
            yield word.casefold(), place
