"""CLaRa for LlamaIndex.

Its components are not here yet; the core in `clara_core` serves both frameworks.
"""

from __future__ import annotations

__all__: list[str] = []
