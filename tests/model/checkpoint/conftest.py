"""Fixtures: a copy of a checkpoint of the parity fixtures, and a function that edits its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from clara_core.model.checkpoint.io import read_checkpoint

A0 = "model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = "model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def folder(parity_folder, tmp_path) -> Path:
    """A copy of the e2e checkpoint that a test may damage."""
    return Path(shutil.copytree(parity_folder / "e2e" / "checkpoint", tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def e2e(parity_folder):
    return read_checkpoint(parity_folder / "e2e" / "checkpoint")


def edit(folder, change, file="adapters.pth"):
    """Load a .pth file, let `change` modify its content, and write it again."""
    content = torch.load(folder / file, weights_only=True)
    changed = change(content)
    torch.save(changed if isinstance(changed, dict) else content, folder / file)
