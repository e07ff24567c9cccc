"""Runs `clara train` as a module, for ``accelerate launch -m clara_core.training STAGE CONFIG``."""

import sys

from clara_core.cli.main import app

if __name__ == "__main__":
    app(args=["train", *sys.argv[1:]])
