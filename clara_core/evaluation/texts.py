"""How much of a text survives: BLEU, ROUGE, and the share of names and numbers that are said again.

All of it lies in [0, 1]. BLEU is that of `sacrebleu`, ROUGE that of `rouge-score`; both come with the extra `train`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

from clara_core.evaluation.means import check_lengths, mean

_ROUGE = ("rouge1", "rouge2", "rougeL")
_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001 - apostrophes
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# Words that begin many a sentence with a capital letter and are no names.
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
    """BLEU of a whole set of texts, as `sacrebleu` computes it, divided by 100.

    Short answers have no run of four words: the longest runs that there are count (`effective_order`).

    Raises:
        ValueError: No text, another number of gold texts than of predictions, or a text without gold.
        ImportError: sacrebleu is not installed.
    """
    check_lengths("predictions", predictions, "golds", golds)
    several = [[gold] if isinstance(gold, str) else list(gold) for gold in golds]
    if not all(several):
        raise ValueError("a text needs at least one gold text, got none")
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as exc:
        raise ImportError("BLEU needs sacrebleu: pip install 'clara-rag[train]'") from exc
    most = max(map(len, several))
    # None: no such gold text.
    streams = [[one[place] if place < len(one) else None for one in several] for place in range(most)]
    score = BLEU(effective_order=True).corpus_score(list(predictions), cast("list[list[str]]", streams))
    return min(1.0, float(score.score) / 100)  # rounding can push it past one


def rouge(prediction: str, gold: str) -> dict[str, float]:
    """``rouge1``, ``rouge2`` and ``rougeL``, each the F measure, without stemming.

    On ASCII text the numbers are those of `rouge-score` as it stands. It knows no other letters; here every letter
    and digit of any script is part of a word.

    Raises:
        ImportError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as exc:
        raise ImportError("ROUGE needs rouge-score: pip install 'clara-rag[train]'") from exc
    scores = RougeScorer(list(_ROUGE), tokenizer=_Words()).score(gold, prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def entities(text: str) -> list[str]:
    """Names and numbers of a text, each once, in order of appearance, as words in lower case.

    A *number* begins with a digit: ``1907``, ``3.5``, ``12:30``; commas between thousands are dropped. A *name* is a
    longest run of words with a capital letter that nothing but space divides; English function words at its beginning
    (The, In, I) are no part of it. There is no model behind this: "Founded" at the beginning of a sentence counts as a
    name, and scripts without capital letters have numbers only.
    """
    return list(dict.fromkeys(name for run in _runs(_THOUSANDS.sub("", text)) for name in _names(run)))


def entity_preservation(passage: str, again: str) -> float | None:
    """Share of the names and numbers of a passage that another text says, word for word but for the case.

    None where the passage has none. A name of several words survives as a whole or not at all.
    """
    wanted = entities(passage)
    if not wanted:
        return None
    said = f" {' '.join(_PIECE.findall(_THOUSANDS.sub('', again).casefold()))} "
    return mean(float(f" {entity} " in said) for entity in wanted)


def score_paraphrases(passages: Sequence[str], again: Sequence[str]) -> dict[str, float]:
    """Means over passages: ``rouge1``, ``rouge2``, ``rougeL``, ``bleu`` (of the whole set) and ``entities``.

    ``entities`` is the mean over the passages that have names or numbers, and missing where none has.

    Raises:
        ValueError: No passage, or another number of paraphrases.
        ImportError: sacrebleu or rouge-score is not installed.
    """
    check_lengths("passages", passages, "paraphrases", again)
    each = [rouge(said, passage) for passage, said in zip(passages, again, strict=True)]
    scores = {name: mean(one[name] for one in each) for name in _ROUGE}
    scores["bleu"] = bleu(again, passages)
    kept = [entity_preservation(passage, said) for passage, said in zip(passages, again, strict=True)]
    if known := [share for share in kept if share is not None]:
        scores["entities"] = mean(known)
    return scores


class _Words:
    """The tokenizer that `rouge-score` asks for."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


def _runs(text: str) -> Iterator[list[str]]:
    """Words and numbers between which stands nothing but space, or the point of an initial."""
    run: list[str] = []
    end = 0
    for match in _PIECE.finditer(text):
        gap = text[end : match.start()]
        initial = bool(run) and len(run[-1]) == 1 and gap.startswith(".")
        if run and gap[initial:].strip():
            yield run
            run = []
        run.append(match[0])
        end = match.end()
    yield run


def _names(run: list[str]) -> Iterator[str]:
    name: list[str] = []
    for word in run:
        if word[0].isupper() and (name or word.lower() not in _NO_NAMES):
            name.append(word.casefold())
            continue
        if name:
            yield " ".join(name)
            name = []
        if word[0].isdigit():
            yield word.casefold()
    if name:
        yield " ".join(name)
