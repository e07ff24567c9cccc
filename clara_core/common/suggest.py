"""The end of a message about a wrong name: the known one that is most like it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from clara_core.common.errors import UnknownOption

_FEW: Final = 10  # names that are worth reading as a list


def nearest(name: object, known: Iterable[object]) -> str:
    """``; did you mean 'X'?`` where a known name is like this one, else nothing."""
    close = difflib.get_close_matches(str(name), [str(one) for one in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_or_all(name: object, known: Iterable[object]) -> str:
    """`nearest`, and where nothing is like it, all there are."""
    names = [str(one) for one in known]
    return nearest(name, names) or f"; known: {', '.join(names)}"


def parameters(function: Callable[..., object]) -> list[str]:
    """Names of the parameters of a function or class that can be given by name."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in named]


def refuse_unknown(owner: str, given: Iterable[str] | Mapping[str, object], known: Iterable[str]) -> None:
    """Refuse options that nobody reads.

    Args:
        owner: The class or function that was called.
        given: Names of the options.
        known: Names that it has.

    Raises:
        UnknownOption: Names the owner, the first unknown option and the known one that is most like it.
    """
    names = list(known)
    hint = nearest_or_all if len(names) <= _FEW else nearest
    for name in given:
        if name not in names:
            raise UnknownOption(f"{owner} has no option {name!r}{hint(name, names)}")
