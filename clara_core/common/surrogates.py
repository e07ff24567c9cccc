"""Lone surrogates: halves of a character, which Python strings can hold and UTF-8 cannot."""

from __future__ import annotations

import re
from typing import Final

_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")


def replace_surrogates(text: str) -> str:
    """Lone surrogates have no UTF-8 form: show the model U+FFFD in their place (the caller's text is untouched)."""
    return _SURROGATE.sub("\ufffd", text)
