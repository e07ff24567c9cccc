"""``python -m clara_core.store.bulk``."""

from __future__ import annotations

import typer

from clara_core.store.bulk.job import main

if __name__ == "__main__":
    typer.run(main)
