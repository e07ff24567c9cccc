"""Log-probabilities of the tokens of an answer, by the model's own distribution: temperature and top_p do not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

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
        logprob: Of the token that was chosen.
        top: The most probable tokens with their log-probabilities.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


class Measurement:
    """The distributions of some rows, on their way to the host."""

    def __init__(self, tops: Mapping[int, int], found: Sequence[Tensor]) -> None:
        self._tops, self._found = tops, found

    def read(self) -> dict[int, Measured]:
        """By row, once the device has been waited for."""
        if not self._tops:
            return {}
        chosen, tokens, values = (part.tolist() for part in self._found)
        pairs = (tuple(zip(*row, strict=True)) for row in zip(tokens, values, strict=True))
        return {
            row: Measured(logprob, best[:top])
            for (row, top), logprob, best in zip(self._tops.items(), chosen, pairs, strict=True)
        }


def measure(logits: Tensor, logs: Sequence[TokenLog | None], tokens: Tensor) -> Measurement:
    """The distributions of the rows whose tokens are recorded; costs nothing where there is none.

    Args:
        logits: ``[rows, vocab]``.
        logs: Of each row, or None.
        tokens: The token that each row takes, ``[rows]``.
    """
    tops = {row: log.top for row, log in enumerate(logs) if log is not None}
    if not tops:
        return Measurement({}, [])
    from clara_core.model.devices import download, upload

    if len(tops) < len(logits):
        rows = upload(list(tops), logits.device)
        logits, tokens = logits.index_select(0, rows), tokens.index_select(0, rows)
    logprobs = logits.float().log_softmax(1)  # [recorded rows, vocab]
    best = logprobs.topk(max(tops.values()), dim=1)
    return Measurement(tops, [*map(download, (logprobs.gather(1, tokens[:, None])[:, 0], best.indices, best.values))])


def _entry(piece: bytes, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(piece.decode("utf-8", "replace"), logprob, piece, top)
