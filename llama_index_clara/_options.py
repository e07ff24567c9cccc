"""The options of a class that hands some of them to its parts: it is the one that refuses a wrong one."""

from __future__ import annotations

import inspect
from typing import Any

from llama_index_clara._engine import refuse_unknown


def check_options(called: type, given: dict[str, Any], *parts: type) -> None:
    """Refuse an option that neither the class that was called takes, nor any of its parts.

    Raises:
        TypeError: Names the class, the option, and the known one that is most like it.
    """
    refuse_unknown(called.__name__, given, set().union(*map(_names, (called, *parts))))


def _names(owner: type) -> set[str]:
    parameters = inspect.signature(owner).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
