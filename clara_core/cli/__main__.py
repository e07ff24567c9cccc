"""``python -m clara_core.cli``: the same as ``clara``."""

from __future__ import annotations

from clara_core.cli.main import app

if __name__ == "__main__":
    app()
