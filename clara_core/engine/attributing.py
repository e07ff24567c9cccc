"""From a prompt and something said to it to what it stands on: the passes, and what follows from them."""

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

_MOST_WINDOWS = 16  # of a document, that are hidden one by one to find the one that says it


@dataclass(frozen=True, slots=True)
class Said:
    """Something said to a prompt.

    Attributes:
        prompt: The prompt, with the documents that it reads.
        ids: Tokens of what is said.
        text: What is said.
        question: What was asked.
        logprobs: Of the tokens, where they were recorded while they were written: one row less to judge.
    """

    prompt: GenerateRequest
    ids: list[int]
    text: str
    question: str
    logprobs: Sequence[float] = ()

    def judged(self, tokenizer: ClaraTokenizer, hidden: Sequence[frozenset[int]]) -> JudgeRequest:
        """The request that judges it, with each of some sets of windows hidden."""
        prompt = self.prompt
        windows = tokenizer.window_spans(prompt.ids)
        return JudgeRequest(prompt.ids, prompt.slots, prompt.memories, windows, self.ids, hidden)


def attribute(said: Said, tokenizer: ClaraTokenizer) -> Steps[Attribution]:
    """What something stands on; needs a document and a token.

    Each document is hidden alone. Where none of them is missed although all together are, documents say the same, and
    each is read alone. Which window of a long document it was follows from its text or, where the words do not stand
    there, from hiding each window.
    """
    documents = said.prompt.documents
    windows = _windows_of(documents)
    everything = frozenset[int]().union(*windows)
    recorded = len(said.logprobs) == len(said.ids)
    hidden = [*([] if recorded else [frozenset[int]()]), *(windows if len(windows) > 1 else []), everything]
    first = said.judged(tokenizer, hidden)
    [logs] = yield [first]
    spent = _positions(first)
    full, rows = (torch.tensor(said.logprobs), logs) if recorded else (logs[0], logs[1:])
    nothing = rows[-1]  # [tokens], as `full`
    drops = full - (rows[:-1] if len(windows) > 1 else rows)  # [docs, tokens]
    lost = full - nothing
    spans = token_spans(tokenizer.token_bytes.join(said.ids), said.text)
    grounded = float(lost.sum()) > GROUNDED
    parts = find_parts(said.text, spans, drops) if grounded else []
    loose = unexplained(said.text, spans, drops, lost) if parts else list(range(len(said.ids)))
    if grounded and loose and len(windows) > 1:
        request = said.judged(tokenizer, [everything - own for own in windows])
        [alone] = yield [request]
        spent += _positions(request)
        missing = (full[loose] - alone[:, loose]).sum(1).tolist()  # [docs]
        keeping = _keeping(missing, documents)
        if not {part.document for part in parts} & keeping:  # else what is cited explains these tokens as well
            gains = (alone[:, loose] - nothing[loose]).sum(1).tolist()
            parts += whole_parts(said.text, spans, {one: score(gains[one]) for one in sorted(keeping)}, loose)
    parts = [_without_joint(part, parts, said.text, documents[part.document].text) for part in parts]
    quoted = [_cited(part, said, documents[part.document]) for part in parts]
    citations, more = yield from _with_windows(quoted, parts, said, tokenizer, full, windows)
    return Attribution(
        text=said.text,
        logprob=float(full.sum()),
        scores=tuple(score(drop) for drop in drops.sum(1).tolist()),
        grounded=grounded,
        citations=_best_first(citations),
        judged_tokens=spent + more,
    )


def attribute_by_attention(said: Said, paid: Tensor, tokenizer: ClaraTokenizer, logprob: float) -> Attribution:
    """What something that was written seems to stand on by the attention that was paid: no pass, and no certainty.

    Args:
        said: What was written.
        paid: ``[tokens, windows]``: shares of the attention of each token.
        tokenizer: Of the model.
        logprob: Of all tokens together.
    """
    documents = said.prompt.documents
    windows = _windows_of(documents)
    shares = torch.stack([paid[:, sorted(own)].sum(1) for own in windows])  # [docs, tokens]
    shares /= shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny)
    spans = token_spans(tokenizer.token_bytes.join(said.ids), said.text)
    citations = []
    for part in attended_parts(said.text, spans, shares):
        document = documents[part.document]
        own = sorted(windows[part.document])
        most = int(paid[list(part.tokens)][:, own].sum(0).argmax())
        by_attention = _citation(part, document, most, document.spans[most], verbatim=False)
        citations.append(_cited(part, said, document) or by_attention)
    return Attribution(
        text=said.text,
        logprob=logprob,
        scores=tuple(shares.mean(1).tolist()),
        grounded=None,
        citations=_best_first(citations),
        judged_tokens=0,
    )


def _windows_of(documents: Sequence[Memory]) -> list[frozenset[int]]:
    """Numbers of each document's windows in the prompt."""
    found, start = [], 0
    for document in documents:
        found.append(frozenset(range(start, start + document.n_windows)))
        start += document.n_windows
    return found


def _keeping(missing: Sequence[float], documents: Sequence[Memory]) -> set[int]:
    """Documents each of which keeps some tokens alone, and those of the same text (far in front they do it less).

    Args:
        missing: Nats that the tokens lose with each document alone.
        documents: The documents.
    """
    texts = {document.text for document, nats in zip(documents, missing, strict=True) if nats <= GROUNDED}
    return {at for at, document in enumerate(documents) if document.text in texts}


def _without_joint(part: Part, parts: Sequence[Part], text: str, source: str) -> Part:
    """A part without the word that joins it to the next one, such as "and", if it stands in its document without it."""
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


def _cited(part: Part, said: Said, document: Memory) -> Citation | None:
    """The citation of a part by the words of the document; None where they do not tell which window it was."""
    quote = find_quote(said.text[part.start : part.end], document.text, document.spans, said.question)
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
    said: Said,
    tokenizer: ClaraTokenizer,
    full: Tensor,
    windows: Sequence[frozenset[int]],
) -> Steps[tuple[list[Citation], int]]:
    """The same, with the window whose hiding costs a part most where its text does not tell."""
    unknown = [at for at, citation in enumerate(citations) if citation is None]
    if not unknown:
        return [one for one in citations if one is not None], 0
    rows = {at: sorted(windows[parts[at].document])[:_MOST_WINDOWS] for at in unknown}
    request = said.judged(tokenizer, [frozenset({window}) for some in rows.values() for window in some])
    [logs] = yield [request]
    pieces = dict(zip(rows, logs.split([len(some) for some in rows.values()]), strict=True))

    def seen(at: int, part: Part) -> Citation:
        tokens = torch.tensor(part.tokens)
        window = int((full[tokens] - pieces[at][:, tokens]).sum(1).argmax())
        document = said.prompt.documents[part.document]
        return _citation(part, document, window, document.spans[window], verbatim=False)

    found = [one or seen(at, parts[at]) for at, one in enumerate(citations)]
    return found, _positions(request)


def _best_first(citations: Iterable[Citation]) -> tuple[Citation, ...]:
    """Those of the document with the highest score first, and of a document in the order of the answer."""
    several = list(citations)
    best: dict[int, float] = {}
    for one in several:
        best[one.document] = max(best.get(one.document, 0.0), one.score)
    return tuple(sorted(several, key=lambda one: (-best[one.document], one.document, one.start)))


def _positions(request: JudgeRequest) -> int:
    return request.forked(range(len(request.hidden))).positions
