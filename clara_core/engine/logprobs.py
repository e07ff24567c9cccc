"""Log-probabilities of the tokens of an answer, by the model's own distribution: temperature and top_p do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clara_core.model.devices import upload
from clara_core.model.token_bytes import TokenBytes

MOST_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, and how probable it was.

    Attributes:
        token: As text; an incomplete character is U+FFFD.
        logprob: Natural logarithm of its probability after all tokens before it.
        bytes: What it adds to the text. Joined, those of all tokens decode to the text of the answer, unless a stop
            string cut it.
        top: The most probable tokens at its place, best first, if they were asked for.
    """

    token: str
    logprob: float
    bytes: bytes
    top: tuple[TokenLogprob, ...] = ()


class TokenLog:
    """The log-probabilities of one answer while it is written.

    Args:
        pieces: The vocabulary.
        top: Alternatives that are kept at each place.

    Attributes:
        entries: The tokens so far, without the one that ends the answer.
    """

    def __init__(self, pieces: TokenBytes, top: int = 0) -> None:
        self.top = top
        self.entries: list[TokenLogprob] = []
        self._pieces = pieces
        self._first = True
        self._told = 0

    def record(self, token: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> None:
        """Add the next token."""
        others = tuple(_entry(self._pieces(other, first=self._first), value) for other, value in top)
        piece = self._pieces(token, first=self._first)
        self.entries.append(_entry(piece, logprob, others))
        self._first = self._first and token in self._pieces.special

    def untold(self) -> tuple[TokenLogprob, ...]:
        """Those that came since the last call."""
        new = tuple(self.entries[self._told :])
        self._told = len(self.entries)
        return new


@dataclass(frozen=True, slots=True)
class Measured:
    """The next-token distribution of a row, as far as it is recorded.

    Attributes:
        norm: Logarithm of the sum of the exponentials of all logits.
        best: The largest logit.
        top: The most probable tokens with their log-probabilities.
    """

    norm: float
    best: float
    top: tuple[tuple[int, float], ...]


def measure(logits: Tensor, logs: Sequence[TokenLog | None]) -> dict[int, Measured]:
    """The distributions of the rows whose tokens are recorded; costs nothing where there is none.

    Args:
        logits: ``[rows, vocab]``.
        logs: Of each row, or None.
    """
    rows = [row for row, log in enumerate(logs) if log is not None]
    if not rows:
        return {}
    most = max(log.top for log in logs if log is not None)
    chosen = logits if len(rows) == len(logits) else logits.index_select(0, upload(rows, logits.device))
    chosen = chosen.float()
    norms = chosen.logsumexp(1).tolist()
    best = chosen.topk(max(most, 1), dim=1)
    measured = {}
    for at, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        log = logs[rows[at]]
        top = [(token, value - norms[at]) for token, value in zip(tokens, values, strict=True)]
        measured[rows[at]] = Measured(norms[at], values[0], tuple(top[: 0 if log is None else log.top]))
    return measured


def _entry(piece: bytes, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(piece.decode("utf-8", "replace"), logprob, piece, top)
