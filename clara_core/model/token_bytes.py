"""The bytes of each token of a vocabulary; joined, they are the UTF-8 text that the tokens decode to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how a SentencePiece vocabulary writes a space


class TokenBytes:
    """Maps token ids to bytes.

    Args:
        tokenizer: The tokenizer, whose decoder tells how the vocabulary spells bytes.
        special: Ids of special tokens, which have no text.
    """

    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        layout = json.loads(tokenizer.to_str())
        kinds = set(_kinds(layout["decoder"]))
        self._bytes = _byte_letters() if "ByteLevel" in kinds else None
        self._tokenizer = tokenizer
        self.special = special
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int, *, first: bool = False) -> bytes:
        """Bytes of a token; the `first` token of a text lacks the leading space that the decoder drops there."""
        if token in self.special:
            return b""
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._bytes_of(token)
        if first and piece.startswith(b" ") and not str(self._tokenizer.decode([token])).startswith(" "):
            return piece[1:]
        return piece

    def join(self, tokens: list[int]) -> list[bytes]:
        """Bytes of each token of a whole text."""
        shown = next((at for at, token in enumerate(tokens) if token not in self.special), None)
        return [self(token, first=at == shown) for at, token in enumerate(tokens)]

    def _bytes_of(self, token: int) -> bytes:
        spelled = self._tokenizer.id_to_token(token)
        if spelled is None:  # padding rows of the embeddings have no token
            return b""
        if self._bytes is not None:
            if all(letter in self._bytes for letter in spelled):
                return bytes(self._bytes[letter] for letter in spelled)
            return str(spelled).encode()  # an added token is spelled as text
        if byte := _BYTE_TOKEN.fullmatch(spelled):
            return bytes([int(byte[1], 16)])
        return str(spelled).replace(_SPACE, " ").encode()


def _kinds(decoder: Any) -> Iterator[str]:
    """Names of a decoder and of its parts."""
    if decoder is None:
        return
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)


def _byte_letters() -> dict[str, int]:
    """The byte of each letter in byte-level vocabularies.

    A printable byte is the letter with its code point; the others are the letters from code point 256 on, in order.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in seen}
    hidden = [byte for byte in range(256) if byte not in letters.values()]
    return letters | {chr(256 + place): byte for place, byte in enumerate(hidden)}
