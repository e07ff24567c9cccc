"""An object in a process of its own, so that what is compared with it shares neither threads nor memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

_there: dict[str, Any] = {}  # the object of this process


class Apart:
    """Calls the methods of an object that another process makes; tensors come back on the CPU.

    Args:
        make: Makes the object.
        arguments: Its arguments.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._process = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_begin, initargs=(make, arguments)
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._process.submit(_call, name, arguments).result()


def _begin(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _there["object"] = make(*arguments)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    result = getattr(_there["object"], name)(*arguments)
    return result.cpu() if isinstance(result, torch.Tensor) else result
