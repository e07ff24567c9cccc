"""Citations from log-probabilities: which parts of an answer lose probability without which document.

Hiding a document lowers the probability of the tokens that came from it. The share of the probability that is lost is
the *score* of the document, in [0, 1]. This module runs no model.

Dimensions of shapes: ``docs`` documents, ``tokens`` of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from clara_core.engine.quotes import Span, split_sentences, split_words

if TYPE_CHECKING:
    from torch import Tensor

GROUNDED = 1.0  # an answer that loses more nats without any document came from the documents
CITED = 0.2  # lowest score of a cited document
_CITED_DROP = -math.log1p(-CITED)  # the same in nats
_Run: TypeAlias = tuple[int, int, int, float]  # document, start, end, nats
_NEUTRAL = 0.05  # a word that loses fewer nats does not depend on any document


@dataclass(frozen=True, slots=True)
class Citation:
    """A part of an answer and the document that supports it.

    Attributes:
        document: Index of the document in the order given.
        window: Index of its window.
        score: Share of the part's probability that is lost without the document.
        start: First character of the part in the answer's text.
        end: End of the part, exclusive.
        text: Text of the document: the sentence with the words of the part; if the document does not contain them, the
            most similar run of words; if none is similar, the text of the window.
        text_start: First character of `text` in the document.
        text_end: End of `text` in the document, exclusive.
        verbatim: Whether the document contains the words of the part.
    """

    document: int
    window: int
    score: float
    start: int
    end: int
    text: str
    text_start: int
    text_end: int
    verbatim: bool


@dataclass(frozen=True, slots=True)
class Checks:
    """Checks of an answer: each True, False, or None if not known.

    Attributes:
        cited_first: The document that it cites first is the best ranked one.
        verbatim: The cited documents contain its words. None for answers such as "yes".
        grounded: It is improbable without the documents, so it came from them and not from the weights.
    """

    cited_first: bool | None = None
    verbatim: bool | None = None
    grounded: bool | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """The documents that support a text of any origin.

    Attributes:
        text: The text.
        logprob: Sum of the log-probabilities of its tokens, given the documents and the question.
        scores: One a document: ``1 - p(without it) / p``. Documents with the same content get low scores.
        grounded: Whether the text came from the documents; None if it was attributed by attention.
        citations: Citations, highest score first; empty if the text is not grounded.
        judged_tokens: Positions that were computed for the attribution.
    """

    text: str
    logprob: float
    scores: tuple[float, ...]
    grounded: bool | None
    citations: tuple[Citation, ...]
    judged_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer that one document supports."""

    document: int
    score: float
    start: int  # first character of the part in the answer's text
    end: int  # end of the part, exclusive
    tokens: tuple[int, ...]  # indexes of the tokens of the part


def score(drop: float) -> float:
    """Share of a probability that is lost if its logarithm drops by so many nats."""
    return -math.expm1(-max(drop, 0.0))


def token_spans(pieces: Sequence[bytes], text: str) -> list[Span]:
    """Character span of each token in the text they decode to, clipped to `text`, which a stop string may have cut."""
    spans: list[Span] = []
    before, data = 0, b""
    for piece in pieces:
        data += piece
        end = len(data.decode("utf-8", "ignore"))
        spans.append((min(before, len(text)), min(end, len(text))))
        before = end
    return spans


def find_parts(text: str, spans: Sequence[Span], drops: Tensor) -> list[Part]:
    """Split an answer into parts by the document whose hiding costs most.

    `spans` has the characters of each token, and ``drops [docs, tokens]`` the nats that it loses without each document.
    The parts of each sentence are in order. A document that supports the sentence, but is not the best one for any part
    of it, gets the whole sentence. Documents with a score below `CITED` get no part.
    """
    found: list[Part] = []
    for sentence in split_sentences(text):
        inside = _within(spans, sentence)
        if inside:
            found += _parts_of(text, sentence, inside, spans, drops)
    whole = drops.sum(1)  # [docs]
    cited = {part.document for part in found}
    tokens = tuple(range(len(spans)))
    extent = _strip(text)
    found += [
        Part(document, score(drop), *extent, tokens)
        for document, drop in enumerate(whole.tolist())
        if drop >= _CITED_DROP and document not in cited
    ]
    return found


def attended_parts(text: str, spans: Sequence[Span], shares: Tensor) -> list[Part]:
    """Split an answer into parts by the document that each word paid most attention to; scores are mean shares.

    ``shares [docs, tokens]`` has the share of each document in the attention that a token paid to documents.
    """
    strongest = shares.new_zeros(shares.shape)
    for word in split_words(text):
        own = _within(spans, (word.start, word.end))
        if own:
            document = int(shares[:, own].sum(1).argmax())
            strongest[document, own] = shares[document, own]
    parts = find_parts(text, spans, strongest)
    return [replace(part, score=float(shares[part.document, list(part.tokens)].mean())) for part in parts]


def whole_parts(text: str, spans: Sequence[Span], scores: dict[int, float], tokens: Sequence[int]) -> list[Part]:
    """For each document with a score one part, from the first of the tokens to the last."""
    if not scores:
        return []
    start, end = min(spans[at][0] for at in tokens), max(spans[at][1] for at in tokens)
    first, last = _strip(text[start:end])
    return [Part(one, value, start + first, start + last, tuple(tokens)) for one, value in scores.items()]


def unexplained(text: str, spans: Sequence[Span], drops: Tensor, lost: Tensor) -> list[int]:
    """Tokens of words that lose probability without all documents, but not without any single one.

    ``lost [tokens]`` has the nats that each token loses without any document; `drops` is as in `find_parts`.
    """
    found: list[int] = []
    for word in split_words(text):
        own = _within(spans, (word.start, word.end))
        if own and float(lost[own].sum()) > GROUNDED and float(drops[:, own].sum(1).max()) < _CITED_DROP:
            found += own
    return list(dict.fromkeys(found))


def _parts_of(text: str, sentence: Span, inside: list[int], spans: Sequence[Span], drops: Tensor) -> list[Part]:
    totals = drops[:, inside].sum(1).tolist()  # [docs]
    cited = [document for document, total in enumerate(totals) if total >= _CITED_DROP]
    if not cited:
        return []
    runs = _runs_of(text, sentence, inside, spans, drops, cited) if len(cited) > 1 else [(cited[0], sentence)]
    if len({document for document, _ in runs}) == 1:
        runs = [(runs[0][0], sentence)]
    parts = []
    for document, (start, end) in runs:
        own = tuple(at for at in inside if _overlap(spans[at], (start, end)))
        if own:
            parts.append(Part(document, score(float(drops[document, list(own)].sum())), start, end, own))
    shown = {part.document for part in parts}
    parts += [Part(one, score(totals[one]), *sentence, tuple(inside)) for one in cited if one not in shown]
    return parts


def _runs_of(
    text: str, sentence: Span, inside: list[int], spans: Sequence[Span], drops: Tensor, cited: list[int]
) -> list[tuple[int, Span]]:
    """Runs of words that the same document supports; words that depend on none belong to the enclosing run."""
    start, end = sentence
    owned: list[_Run] = []
    for word in split_words(text[start:end]):
        place = (start + word.start, start + word.end)
        own = [at for at in inside if _overlap(spans[at], place)]
        if not own:
            continue
        nats = drops[cited][:, own].sum(1)  # [cited]
        most = float(nats.max())
        if most < _NEUTRAL:
            continue
        owned.append((cited[int(nats.argmax())], *place, most))
    joined = [
        (document, (first, last))
        for document, first, last, _ in _joined([run for run in _joined(owned) if run[3] >= _CITED_DROP])
    ]
    if joined:  # the words before the first run and after the last one belong to these runs
        joined[0] = (joined[0][0], (start, joined[0][1][1]))
        joined[-1] = (joined[-1][0], (joined[-1][1][0], end))
    return joined


def _joined(runs: Sequence[_Run]) -> list[_Run]:
    """Adjacent runs of the same document as one."""
    groups = [(document, list(some)) for document, some in groupby(runs, key=itemgetter(0))]
    return [(document, some[0][1], some[-1][2], sum(nats for *_, nats in some)) for document, some in groups]


def _within(spans: Sequence[Span], place: Span) -> list[int]:
    """Indexes of the spans that overlap a place."""
    return [at for at, span in enumerate(spans) if _overlap(span, place)]


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _strip(text: str) -> Span:
    start = len(text) - len(text.lstrip())
    return min(start, len(text.rstrip())), len(text.rstrip())
