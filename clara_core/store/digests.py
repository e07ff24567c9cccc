"""Sets of very many strings as 16 bytes each: which came before, which are among others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

DIGEST: Final = np.dtype([("high", "<u8"), ("low", "<u8")])  # of an id or a text: 128 bits


def digests(strings: Iterable[str]) -> NDArray[np.void]:
    """``[n]`` of `DIGEST`."""
    hashes = (hashlib.blake2b(string.encode("utf-8", "surrogatepass"), digest_size=16).digest() for string in strings)
    return np.frombuffer(b"".join(hashes), DIGEST)


def first_of_each(found: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which digests ``[n]`` did not occur before."""
    order = np.lexsort((found["low"], found["high"]))  # stable: equal ones stay in the order of the rows
    ordered = found[order]
    new = np.ones(len(found), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = np.empty(len(found), bool)
    first[order] = new
    return first


def member_of(found: NDArray[np.void], known: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which digests ``[n]`` are among others, ``[m]``."""
    both = np.concatenate([known, found])
    return ~first_of_each(both)[len(known) :] if len(known) else np.zeros(len(found), bool)
