"""Fidelity of memories: how well each name, number and piece of code of a passage can be read back from its memory.

The generator gets the memory with an instruction to repeat it, and the log-probabilities of the passage's own tokens
are measured. A span that is improbable there cannot be read from the memory. The numbers are valid for one model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara_core.data.memory import Memory
from clara_core.engine.evidence import token_spans
from clara_core.engine.quotes import split_sentences

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.engine.steps import Steps
    from clara_core.model.tokenizer import ClaraTokenizer

WEAK = 0.5  # a span with more risk counts as lost
_MUCH = 0.1  # a document with a larger share of weak spans should be read as text

# Code between backticks; paths and dotted or underscored identifiers; numbers; runs of words with capital letters.
_SPAN = re.compile(
    r"`[^`\n]+`"
    r"|(?:[\w.~-]*/)+[\w.~-]+|\w+(?:[._]\w+)+"
    r"|\d+(?:[.,:/]\d+)*"
    r"|[^\W\d_a-zß-öø-ÿ][^\W\d_]*(?:['’-][^\W\d_]+)*(?:\s+[^\W\d_a-zß-öø-ÿ][^\W\d_]*(?:['’-][^\W\d_]+)*)*"  # noqa: RUF001
)


@dataclass(frozen=True, slots=True)
class WeakSpan:
    """A name, a number or a piece of code of a document.

    Attributes:
        text: The span.
        start: First character of the span in the document.
        end: End of the span, exclusive.
        loss: Negative log-probability of its tokens given the memory, in nats.
        risk: ``1 - exp(-loss)``: the probability that it is misread.
    """

    text: str
    start: int
    end: int
    loss: float
    risk: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of a document can be read back from its memory.

    Attributes:
        windows: Mean loss of each window's tokens, in nats.
        loss: Mean over all tokens.
        spans: Names, numbers and code, in the order of the document.
    """

    windows: tuple[float, ...]
    loss: float
    spans: tuple[WeakSpan, ...]

    def weak(self, max_risk: float = WEAK) -> tuple[WeakSpan, ...]:
        """Spans with a risk above `max_risk`, highest risk first."""
        return tuple(sorted((one for one in self.spans if one.risk > max_risk), key=lambda one: -one.risk))

    @property
    def kept(self) -> float:
        """Share of the spans that are not weak; 1 without any span."""
        return 1 - len(self.weak()) / len(self.spans) if self.spans else 1.0

    @property
    def keep_text(self) -> bool:
        """Whether more than a tenth of the spans are weak: such a document is better read as text."""
        return len(self.weak()) > _MUCH * len(self.spans)


def find_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of the names, numbers and pieces of code of a text.

    A single capitalized word at the beginning of a sentence that does not occur elsewhere is not taken as a name.
    """
    starts = {start for start, _ in split_sentences(text)}
    found = []
    for match in _SPAN.finditer(text):
        start, end = match.span()
        plain = match[0].isalpha()
        if plain and start in starts and len(re.findall(rf"\b{re.escape(match[0])}\b", text)) == 1:
            continue
        found.append((start, end))
    return found


def measure_fidelity(memories: Sequence[Memory], instruction: str, tokenizer: ClaraTokenizer) -> Steps[list[Fidelity]]:
    """Measure how well documents are read back, by a prompt with ``{docs}`` for a memory; one request a window."""
    from clara_core.engine.requests import JudgeRequest  # imports torch, which a client of a server does not need

    prompt = tokenizer.paraphrase_prompt(instruction, 1)
    slots, windows = tokenizer.is_slot(prompt), tokenizer.window_spans(prompt)
    window_ids: list[list[list[int]]] = []
    requests: list[JudgeRequest] = []
    for memory in memories:
        ids = [tokenizer.encode_plain(memory.text[start:end]) for start, end in memory.spans]
        window_ids.append(ids)
        requests += [
            JudgeRequest(prompt, slots, memory.tokens[at], windows, own, [frozenset()])
            for at, own in enumerate(ids)
            if own
        ]
    results: list[Tensor] = yield [*requests]
    logs = iter(results)
    found = []
    for memory, ids in zip(memories, window_ids, strict=True):
        pieces = [(-next(logs)[0]).tolist() if own else [] for own in ids]
        found.append(_fidelity(memory, ids, pieces, tokenizer))
    return found


def _fidelity(
    memory: Memory, ids: Sequence[list[int]], losses: Sequence[list[float]], tokenizer: ClaraTokenizer
) -> Fidelity:
    places: list[tuple[int, int, float]] = []  # characters and loss of every token
    for (start, end), own, some in zip(memory.spans, ids, losses, strict=True):
        spans = token_spans(tokenizer.token_bytes.join(own), memory.text[start:end])
        places += [(start + first, start + last, loss) for (first, last), loss in zip(spans, some, strict=True)]
    weak = []
    for start, end in find_spans(memory.text):
        inside = [loss for first, last, loss in places if first < end and start < last]
        if inside:  # a span without tokens was truncated
            loss = sum(inside)
            weak.append(WeakSpan(memory.text[start:end], start, end, loss, -math.expm1(-loss)))
    every = [loss for some in losses for loss in some]
    means = tuple(sum(some) / len(some) if some else 0.0 for some in losses)
    return Fidelity(means, sum(every) / len(every) if every else 0.0, tuple(weak))
