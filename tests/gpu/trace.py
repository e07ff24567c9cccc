"""What the steps of a decoder have in common: every launch with the shapes, strides and addresses of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tests.gpu.device import STATS, Launch

Fact = tuple[Any, ...]


def facts(launches: Sequence[Launch]) -> list[Fact]:
    """Each launch as a tuple that two steps share if the second may repeat the first at the same addresses.

    A tensor that was there before the step has its address among the facts; one that the step makes has its number.
    """
    made: dict[int, int] = {}
    lasting: set[int] = set()

    def place(tensor: torch.Tensor) -> Fact:
        storage = tensor.untyped_storage().data_ptr()
        at = ("made", made[storage]) if storage in made else ("lasting", storage)
        return *at, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype

    found = []
    for launch in launches:
        before = {one.untyped_storage().data_ptr() for one in launch.reads}
        lasting |= before - made.keys()
        for one in launch.gives:
            storage = one.untyped_storage().data_ptr()
            if storage not in lasting and storage not in made:
                made[storage] = len(made)
        found.append((launch.name, *map(place, launch.reads), "->", *map(place, launch.gives)))
    return found


def addresses(found: Sequence[Fact]) -> set[int]:
    """Addresses of the tensors that were there before a step."""
    return {part[1] for fact in found for part in fact if isinstance(part, tuple) and part[0] == "lasting"}


@contextmanager
def recorded(steps: list[list[Launch]]) -> Iterator[None]:
    """Append the launches inside the ``with`` block to `steps`, which holds their tensors."""
    STATS.recorded = []
    try:
        yield
    finally:
        steps.append(STATS.recorded)
        STATS.recorded = None


def recording(original: Callable[..., Any], steps: list[list[Launch]]) -> Callable[..., Any]:
    """A function that records the launches of each call of another one."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with recorded(steps):
            return original(*args, **kwargs)

    return call
