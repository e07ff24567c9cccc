"""``python -m clara_core.bulk``."""

from __future__ import annotations

import typer

from clara_core.bulk.job import main

if __name__ == "__main__":
    typer.run(main)
