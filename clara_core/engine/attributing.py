"""Attribution of a text to the documents of its prompt: the passes with documents hidden, and the citations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clara_core.data.memory import Memory
from clara_core.engine.evidence import (
    GROUNDED,
    Attribution,
    Citation,
    Part,
    attended_parts,
    find_parts,
    score,
    token_spans,
    unexplained,
    whole_parts,
)
from clara_core.engine.quotes import Span, find_quote, split_words, stands_in
from clara_core.engine.requests import GenerateRequest, JudgeRequest
from clara_core.engine.steps import Steps
from clara_core.model.tokenizer import ClaraTokenizer

_MOST_WINDOWS = 16  # of a document, hidden one by one to find the window that supports a part


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text as the continuation of a prompt."""

    prompt: GenerateRequest  # the prompt, with the documents that it reads
    ids: list[int]  # token ids of the text
    text: str
    question: str
    # log-probabilities of the tokens, if they were recorded during generation; this saves a row to judge
    logprobs: Sequence[float] = ()

    def judged(self, tokenizer: ClaraTokenizer, hidden: Sequence[frozenset[int]]) -> JudgeRequest:
        """The request for its log-probabilities, one row for each set of hidden windows."""
        prompt = self.prompt
        windows = tokenizer.window_spans(prompt.ids)
        return JudgeRequest(prompt.ids, prompt.slots, prompt.memories, windows, self.ids, hidden, prompt.kept)


def attribute(continuation: Continuation, tokenizer: ClaraTokenizer) -> Steps[Attribution]:
    """Attribute a text to the documents of its prompt; it needs at least one document and one token.

    Each document is hidden alone. If tokens lose probability without all documents but not without any single one,
    several documents have the same content, and each is read alone. The window of a long document is found by the words
    of the text or, if the document does not contain them, by hiding each window.
    """
    documents = continuation.prompt.documents
    windows = _windows_of(documents)
    everything = frozenset[int]().union(*windows)
    recorded = len(continuation.logprobs) == len(continuation.ids)
    hidden = [*([] if recorded else [frozenset[int]()]), *(windows if len(windows) > 1 else []), everything]
    first = continuation.judged(tokenizer, hidden)
    [logs] = yield [first]
    spent = first.positions
    full, rows = (torch.tensor(continuation.logprobs), logs) if recorded else (logs[0], logs[1:])
    nothing = rows[-1]  # [tokens], as `full`
    drops = full - (rows[:-1] if len(windows) > 1 else rows)  # [docs, tokens]
    lost = full - nothing
    spans = token_spans(tokenizer.token_bytes.join(continuation.ids), continuation.text)
    grounded = float(lost.sum()) > GROUNDED
    parts = find_parts(continuation.text, spans, drops) if grounded else []
    loose = unexplained(continuation.text, spans, drops, lost) if parts else list(range(len(continuation.ids)))
    if grounded and loose and len(windows) > 1:
        request = continuation.judged(tokenizer, [everything - own for own in windows])
        [alone] = yield [request]
        spent += request.positions
        missing = (full[loose] - alone[:, loose]).sum(1).tolist()  # [docs]
        keeping = _keeping(missing, documents)
        if not {part.document for part in parts} & keeping:  # otherwise a cited document explains these tokens
            gains = (alone[:, loose] - nothing[loose]).sum(1).tolist()
            parts += whole_parts(continuation.text, spans, {one: score(gains[one]) for one in sorted(keeping)}, loose)
    parts = [_without_joint(part, parts, continuation.text, documents[part.document].text) for part in parts]
    quoted = [_cited(part, continuation, documents[part.document]) for part in parts]
    citations, more = yield from _with_windows(quoted, parts, continuation, tokenizer, full, windows)
    return Attribution(
        text=continuation.text,
        logprob=float(full.sum()),
        scores=tuple(score(drop) for drop in drops.sum(1).tolist()),
        grounded=grounded,
        citations=_best_first(citations),
        judged_tokens=spent + more,
    )


def attribute_by_attention(
    continuation: Continuation, paid: Tensor, tokenizer: ClaraTokenizer, logprob: float
) -> Attribution:
    """Attribute a text to documents by the attention of its tokens: an estimate that needs no pass.

    ``paid [tokens, windows]`` has the share of each token's attention that each window gets.
    """
    documents = continuation.prompt.documents
    windows = _windows_of(documents)
    shares = torch.stack([paid[:, sorted(own)].sum(1) for own in windows])  # [docs, tokens]
    shares /= shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny)
    spans = token_spans(tokenizer.token_bytes.join(continuation.ids), continuation.text)
    citations = []
    for part in attended_parts(continuation.text, spans, shares):
        document = documents[part.document]
        own = sorted(windows[part.document])
        most = int(paid[list(part.tokens)][:, own].sum(0).argmax())
        by_attention = _citation(part, document, most, document.spans[most], verbatim=False)
        citations.append(_cited(part, continuation, document) or by_attention)
    return Attribution(
        text=continuation.text,
        logprob=logprob,
        scores=tuple(shares.mean(1).tolist()),
        grounded=None,
        citations=_best_first(citations),
        judged_tokens=0,
    )


def _windows_of(documents: Sequence[Memory]) -> list[frozenset[int]]:
    """For each document the indexes of its windows in the prompt."""
    found, start = [], 0
    for document in documents:
        found.append(frozenset(range(start, start + document.n_windows)))
        start += document.n_windows
    return found


def _keeping(missing: Sequence[float], documents: Sequence[Memory]) -> set[int]:
    """Indexes of the documents that explain some tokens alone, and of those with the same text.

    `missing` has the nats that the tokens lose if only one document is read, for each document. Copies are included
    because a copy far in front of the question explains the tokens less well.
    """
    texts = {document.text for document, nats in zip(documents, missing, strict=True) if nats <= GROUNDED}
    return {at for at, document in enumerate(documents) if document.text in texts}


def _without_joint(part: Part, parts: Sequence[Part], text: str, source: str) -> Part:
    """Drop a word such as "and" between two parts if the document contains the part without it."""
    words = split_words(text[part.start : part.end])
    if len(words) < 2 or stands_in(text[part.start : part.end], source):
        return part
    before, behind = (
        any(not split_words(text[end:start]) for start, end in gaps if end <= start)
        for gaps in ([(part.start, one.end) for one in parts], [(one.start, part.end) for one in parts])
    )
    cuts = [(part.start, part.start + words[-2].end)] * behind + [(part.start + words[1].start, part.end)] * before
    kept = (cut for cut in cuts if stands_in(text[slice(*cut)], source))
    start, end = next(kept, (part.start, part.end))
    return replace(part, start=start, end=end)


def _cited(part: Part, continuation: Continuation, document: Memory) -> Citation | None:
    """The citation of a part by its words in the document; None if they do not tell which window it was."""
    quote = find_quote(continuation.text[part.start : part.end], document.text, document.spans, continuation.question)
    if quote is None:
        return None if document.n_windows > 1 else _citation(part, document, 0, document.spans[0], verbatim=False)
    middle = (quote.start + quote.end) // 2
    window = next((at for at, (start, end) in enumerate(document.spans) if start <= middle < end), 0)
    return _citation(part, document, window, (quote.start, quote.end), verbatim=quote.verbatim)


def _citation(part: Part, document: Memory, window: int, span: Span, *, verbatim: bool) -> Citation:
    return Citation(
        document=part.document,
        window=window,
        score=part.score,
        start=part.start,
        end=part.end,
        text=document.text[span[0] : span[1]],
        text_start=span[0],
        text_end=span[1],
        verbatim=verbatim,
    )


def _with_windows(
    citations: Sequence[Citation | None],
    parts: Sequence[Part],
    continuation: Continuation,
    tokenizer: ClaraTokenizer,
    full: Tensor,
    windows: Sequence[frozenset[int]],
) -> Steps[tuple[list[Citation], int]]:
    """Complete the missing citations by the window whose hiding costs the part most; also counts positions."""
    unknown = [at for at, citation in enumerate(citations) if citation is None]
    if not unknown:
        return [one for one in citations if one is not None], 0
    rows = {at: sorted(windows[parts[at].document])[:_MOST_WINDOWS] for at in unknown}
    request = continuation.judged(tokenizer, [frozenset({window}) for some in rows.values() for window in some])
    [logs] = yield [request]
    pieces = dict(zip(rows, logs.split([len(some) for some in rows.values()]), strict=True))

    def by_hiding(at: int, part: Part) -> Citation:
        tokens = torch.tensor(part.tokens)
        window = int((full[tokens] - pieces[at][:, tokens]).sum(1).argmax())
        document = continuation.prompt.documents[part.document]
        return _citation(part, document, window, document.spans[window], verbatim=False)

    found = [one or by_hiding(at, parts[at]) for at, one in enumerate(citations)]
    return found, request.positions


def _best_first(citations: Iterable[Citation]) -> tuple[Citation, ...]:
    """Sort by the highest score of a document, then by the order in the answer."""
    several = list(citations)
    best: dict[int, float] = {}
    for one in several:
        best[one.document] = max(best.get(one.document, 0.0), one.score)
    return tuple(sorted(several, key=lambda one: (-best[one.document], one.document, one.start)))
