"""What an answer stands on: from log-probabilities with documents hidden to citations. Knows no model.

Hiding a document makes the tokens of an answer that came from it improbable. What is left of the probability is 1 minus
the *score* of the document, so a score lies in [0, 1].

Letters of shapes: ``docs`` documents, ``tokens`` of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clara_core.engine.quotes import Span, split_sentences, split_words

if TYPE_CHECKING:
    from torch import Tensor

GROUNDED = 1.0  # nats that an answer loses without any document, if it came from them
CITED = 0.2  # score of a document from which on it is cited
_CITED_DROP = -math.log1p(-CITED)  # the same in nats
_NEUTRAL = 0.05  # nats of a word that hiding a document does not concern


@dataclass(frozen=True, slots=True)
class Citation:
    """A part of an answer, and what it stands on.

    Attributes:
        document: Index of the document as they were given.
        window: Index of its window.
        score: Of the document for this part: the share of its probability that is lost without the document.
        start: Where the part begins in the answer's text, in characters.
        end: Where it ends.
        text: What the document says: the sentence with the words of the part; where they do not stand in it, the
            nearest run of words; where none is like them, the text of the window.
        text_start: Where that begins in the document's text, in characters.
        text_end: Where it ends.
        verbatim: Whether the words of the part stand in it.
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
    """What speaks for an answer; each True, False or None (not known).

    Attributes:
        cited_first: The document that it stands on is the one that the search ranks first.
        verbatim: Its words stand in what it cites. None of answers such as "yes", which never do.
        grounded: It would be improbable without the documents, so it came from them and not from the weights.
    """

    cited_first: bool | None = None
    verbatim: bool | None = None
    grounded: bool | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """What a text stands on, whoever wrote it.

    Attributes:
        text: The text.
        logprob: Sum of its tokens' log-probabilities, behind the question and the documents.
        scores: One a document: ``1 - p(without it) / p``. Documents that say the same hide each other here.
        grounded: Whether it came from the documents; None where only attention was looked at.
        citations: Those of the highest score first; none where the text is not grounded.
        judged_tokens: Positions that this took.
    """

    text: str
    logprob: float
    scores: tuple[float, ...]
    grounded: bool | None
    citations: tuple[Citation, ...]
    judged_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer that stands on one document.

    Attributes:
        document: Index of the document.
        score: For this part.
        start: In the text of the answer, in characters.
        end: Where it ends.
        tokens: Which tokens of the answer belong to it.
    """

    document: int
    score: float
    start: int
    end: int
    tokens: tuple[int, ...]


def score(drop: float) -> float:
    """Share of a probability that is lost with so many nats."""
    return -math.expm1(-max(drop, 0.0))


def token_spans(pieces: Sequence[bytes], text: str) -> list[Span]:
    """Characters of each token in a text that they decode to; what a stop string cut off lies behind its end."""
    spans: list[Span] = []
    before, data = 0, b""
    for piece in pieces:
        data += piece
        end = len(data.decode("utf-8", "ignore"))
        spans.append((min(before, len(text)), min(end, len(text))))
        before = end
    return spans


def find_parts(text: str, spans: Sequence[Span], drops: Tensor) -> list[Part]:
    """Parts of an answer by the document whose hiding costs them most.

    Args:
        text: The answer.
        spans: Characters of its tokens.
        drops: ``[docs, tokens]``: nats that each token loses without each document.

    Returns:
        list: Of each sentence the parts in their order; a document that matters for the sentence but for no part of it
            most has the whole sentence. Nothing of documents with less than `CITED`.
    """
    found: list[Part] = []
    for sentence in split_sentences(text):
        inside = [at for at, span in enumerate(spans) if _overlap(span, sentence)]
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
    """Parts of an answer by the document that each word paid most attention to; their scores are mean shares.

    Args:
        text: The answer.
        spans: Characters of its tokens.
        shares: ``[docs, tokens]``: of the attention that each token paid to documents.
    """
    strongest = shares.new_zeros(shares.shape)
    for word in split_words(text):
        own = [at for at, span in enumerate(spans) if _overlap(span, (word.start, word.end))]
        if own:
            document = int(shares[:, own].sum(1).argmax())
            strongest[document, own] = shares[document, own]
    parts = find_parts(text, spans, strongest)
    return [replace(part, score=float(shares[part.document, list(part.tokens)].mean())) for part in parts]


def whole_parts(text: str, spans: Sequence[Span], scores: dict[int, float], tokens: Sequence[int]) -> list[Part]:
    """The same tokens, and all between them, for each of some documents."""
    if not scores:
        return []
    start, end = min(spans[at][0] for at in tokens), max(spans[at][1] for at in tokens)
    first, last = _strip(text[start:end])
    return [Part(one, value, start + first, start + last, tuple(tokens)) for one, value in scores.items()]


def unexplained(text: str, spans: Sequence[Span], drops: Tensor, lost: Tensor) -> list[int]:
    """Tokens of the words that need the documents and none of them alone, as where two say the same.

    Args:
        text: The answer.
        spans: Characters of its tokens.
        drops: As in `find_parts`.
        lost: ``[tokens]``: nats without any document.
    """
    found: list[int] = []
    for word in split_words(text):
        own = [at for at, span in enumerate(spans) if _overlap(span, (word.start, word.end))]
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
    """Runs of words that the same document is behind; words that none concerns belong to a run that encloses them."""
    start, end = sentence
    owned: list[tuple[int, int, int, float]] = []  # document, start, end, nats
    for word in split_words(text[start:end]):
        place = (start + word.start, start + word.end)
        own = [at for at in inside if _overlap(spans[at], place)]
        if not own:
            continue
        nats = drops[cited][:, own].sum(1)  # [cited]
        most = float(nats.max())
        if most < _NEUTRAL:
            continue
        document = cited[int(nats.argmax())]
        if owned and owned[-1][0] == document:
            owned[-1] = (document, owned[-1][1], place[1], owned[-1][3] + most)
        else:
            owned.append((document, *place, most))
    kept = [one for one in owned if one[3] >= _CITED_DROP]
    joined: list[tuple[int, Span]] = []
    for document, first, last, _ in kept:
        if joined and joined[-1][0] == document:
            joined[-1] = (document, (joined[-1][1][0], last))
        else:
            joined.append((document, (first, last)))
    if joined:  # what stands before the first and behind the last belongs to them
        joined[0] = (joined[0][0], (start, joined[0][1][1]))
        joined[-1] = (joined[-1][0], (joined[-1][1][0], end))
    return joined


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _strip(text: str) -> Span:
    start = len(text) - len(text.lstrip())
    return min(start, len(text.rstrip())), len(text.rstrip())
