"""Run `clara` with the arguments given: the processes that the tests of the trainer start and kill."""

from __future__ import annotations

from clara_core.cli import app

if __name__ == "__main__":
    app()
