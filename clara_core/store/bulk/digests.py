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
    first: NDArray[np.bool_] = _first_place(found) == np.arange(len(found))
    return first


def member_of(found: NDArray[np.void], known: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which digests ``[n]`` are among others, ``[m]``."""
    member: NDArray[np.bool_] = _first_place(np.concatenate([known, found]))[len(known) :] < len(known)
    return member


def _first_place(found: NDArray[np.void]) -> NDArray[np.int64]:
    """Where each digest ``[n]`` occurs first."""
    order = np.lexsort((found["low"], found["high"]))  # stable: equal ones stay in the order of the rows
    ordered = found[order]
    new = np.ones(len(found), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    places = np.empty(len(found), np.int64)
    places[order] = order[new][np.cumsum(new) - 1]
    return places
