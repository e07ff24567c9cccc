"""The average of two checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clara_core import CheckpointError, ClaraEngine
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.training import average
from tests.tiny import build
from tools.pocket_factory.world import ENCYCLOPEDIA


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of the same architecture with different weights."""
    folder = tmp_path_factory.mktemp("two")
    return build(folder / "one", seed=1).folder, build(folder / "other", seed=2).folder


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_every_weight_lies_between(two: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    found = read_checkpoint(average(*two, share, tmp_path / "middle"))
    before, after = map(read_checkpoint, two)
    for role in after.roles:
        for key, tensor in found.adapters[role].items():
            expected = (1 - share) * before.adapters[role][key] + share * after.adapters[role][key]
            assert torch.allclose(tensor, expected, atol=1e-7), (role, key)
    for key, tensor in found.embeddings.items():
        assert torch.allclose(tensor, (1 - share) * before.embeddings[key] + share * after.embeddings[key], atol=1e-7)


def test_base_and_card_go_along_and_an_engine_opens_it(tmp_path: Path) -> None:
    given = Path(ENCYCLOPEDIA)
    middle = average(given, given, 0.25, tmp_path / "middle")
    card = (middle / "README.md").read_text(encoding="utf-8")
    assert card.startswith((given / "README.md").read_text(encoding="utf-8"))
    assert f"0.25 of these weights and 0.75 of those of `{given}`" in card
    texts = ["The bridge was opened in 1907."]
    engines = [ClaraEngine.from_pretrained(str(folder), device="cpu") for folder in (given, middle)]
    one, other = (engine.compress(texts)[0].tokens for engine in engines)
    assert torch.allclose(one, other, atol=1e-5)


def test_what_is_no_pair_is_refused_and_nothing_is_written(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "middle"
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        average(*two, 1.5, out)
    fewer = build(tmp_path / "fewer", roles=("encoder_adapter", "decoder_adapter")).folder
    with pytest.raises(CheckpointError, match="same roles"):
        average(fewer, two[1], 0.5, out)
    wider = build(tmp_path / "wider", lora_r=8).folder
    with pytest.raises(CheckpointError, match="different shapes"):
        average(wider, two[1], 0.5, out)
    assert not out.exists()
