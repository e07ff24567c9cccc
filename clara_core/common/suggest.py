"""Suggestions of the closest known name, for messages about unknown names."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from clara_core.common.errors import UnknownOption

_FEW: Final = 10  # most names to list in a message


def nearest(name: object, known: Iterable[object]) -> str:
    """``; did you mean 'X'?`` if a known name is similar, else an empty text."""
    close = difflib.get_close_matches(str(name), [str(one) for one in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_or_all(name: object, known: Iterable[object]) -> str:
    """`nearest`, or a list of all known names if none is similar."""
    names = [str(one) for one in known]
    return nearest(name, names) or f"; known: {', '.join(names)}"


def parameters(function: Callable[..., object]) -> list[str]:
    """Names of the keyword parameters of a function or class."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in named]


def refuse_unknown(owner: str, given: Iterable[str] | Mapping[str, object], known: Iterable[str]) -> None:
    """Check that all given options are known.

    Args:
        owner: The class or function that was called.
        given: Names of the given options.
        known: Names of its options.

    Raises:
        UnknownOption: An option is unknown; the message names the owner, the option and the closest known one.
    """
    names = list(known)
    hint = nearest_or_all if len(names) <= _FEW else nearest
    for name in given:
        if name not in names:
            raise UnknownOption(f"{owner} has no option {name!r}{hint(name, names)}")
