"""Log-probabilities of the tokens of an answer, by the model's own distribution, without temperature and top_p."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.model.token_bytes import TokenBytes

MOST_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer with its log-probability.

    Attributes:
        token: Its text; an incomplete character is U+FFFD.
        logprob: Natural logarithm of its probability given all tokens before it.
        bytes: UTF-8 bytes that it adds to the text. Joined, those of all tokens decode to the text of the answer,
            unless a stop string cut it.
        top: The most probable tokens at its position, best first, if they were asked for.
    """

    token: str
    logprob: float
    bytes: bytes
    top: tuple[TokenLogprob, ...] = ()


def logprobs_account(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities in the shape of OpenAI's chat completions."""
    content = [{**_fields(token), "top_logprobs": list(map(_fields, token.top))} for token in tokens]
    return {"content": content, "refusal": None}


def _fields(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}


class TokenLog:
    """Collects the log-probabilities of one answer during generation.

    Args:
        pieces: The bytes of each token of the vocabulary.
        top: Alternatives to record for each token.

    Attributes:
        entries: The tokens so far, without the token that ends the answer.
    """

    def __init__(self, pieces: TokenBytes, top: int = 0) -> None:
        self.top = top
        self.entries: list[TokenLogprob] = []
        self._pieces = pieces
        self._first = True
        self._taken = 0

    def record(self, token: int, logprob: float, top: Sequence[tuple[int, float]] = ()) -> None:
        """Add the next token."""
        others = tuple(_entry(self._pieces(other, first=self._first), value) for other, value in top)
        piece = self._pieces(token, first=self._first)
        self.entries.append(_entry(piece, logprob, others))
        self._first = self._first and token in self._pieces.special

    def take_new(self) -> tuple[TokenLogprob, ...]:
        """The tokens since the last call."""
        new = tuple(self.entries[self._taken :])
        self._taken = len(self.entries)
        return new


@dataclass(frozen=True, slots=True)
class Measured:
    """The recorded part of the next-token distribution of a row."""

    logprob: float  # log-probability of the token that was chosen
    chosen: float  # the same among the tokens that were allowed, with what they gain
    top: tuple[tuple[int, float], ...]  # the most probable tokens with their log-probabilities


def measure(
    logits: Tensor, allowed: Tensor, logs: Sequence[TokenLog | None], tokens: Tensor
) -> Callable[[], dict[int, Measured]]:
    """Measure the distributions of the rows that are recorded, without waiting for the device.

    Args:
        logits: ``[rows, vocab]``.
        allowed: The same after restrictions.
        logs: Log of each row; None for a row that is not recorded.
        tokens: The chosen token of each row, ``[rows]``.

    Returns:
        Callable: Gives the distributions by row, once the device has been waited for.
    """
    tops = {row: log.top for row, log in enumerate(logs) if log is not None}
    if not tops:
        return dict
    from clara_core.model.devices import download, upload

    free = allowed is logits
    if len(tops) < len(logits):
        rows = upload(list(tops), logits.device)
        logits, tokens = logits.index_select(0, rows), tokens.index_select(0, rows)
        allowed = logits if free else allowed.index_select(0, rows)
    logprobs = logits.float().log_softmax(1)  # [recorded rows, vocab]
    restricted = logprobs if free else allowed.float().log_softmax(1)
    best = logprobs.topk(max(tops.values()), dim=1)
    own, chosen = (values.gather(1, tokens[:, None])[:, 0] for values in (logprobs, restricted))
    found = [*map(download, (own, chosen, best.indices, best.values))]

    def read() -> dict[int, Measured]:
        own, chosen, tokens, values = (part.tolist() for part in found)
        pairs = (tuple(zip(*row, strict=True)) for row in zip(tokens, values, strict=True))
        return {
            row: Measured(logprob, among, best[:top])
            for (row, top), logprob, among, best in zip(tops.items(), own, chosen, pairs, strict=True)
        }

    return read


def _entry(piece: bytes, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(piece.decode("utf-8", "replace"), logprob, piece, top)
