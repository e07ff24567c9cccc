"""16-byte digests of strings, for sets of very many strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

DIGEST: Final = np.dtype("S16")  # digest of an id or a text: 128 bits


def digests(strings: Iterable[str]) -> NDArray[np.bytes_]:
    """Digests ``[n]`` of type `DIGEST`."""
    hashes = (hashlib.blake2b(string.encode("utf-8", "surrogatepass"), digest_size=16).digest() for string in strings)
    return np.frombuffer(b"".join(hashes), DIGEST)


def first_of_each(found: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Which digests ``[n]`` did not occur before."""
    first = np.zeros(len(found), bool)
    first[np.unique(found, return_index=True)[1]] = True
    return first
