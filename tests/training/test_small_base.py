"""The recipe for a small base from the Hub: its four stages in order, with a tiny base of the same architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_core import ClaraEngine
from clara_core.data.examples import STAGES
from clara_core.model.checkpoint.config import Role
from clara_core.training import train
from clara_core.training.config import TrainingConfig
from tests.tiny import build
from tests.training.lessons import lines_of, write

FOLDER = Path(__file__).parents[2] / "configs" / "small-base"


def test_the_first_steps_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a base decoder to a checkpoint that answers; only length and data of the configs are changed."""
    tiny = build(tmp_path / "tiny", "llama")
    monkeypatch.chdir(tmp_path)
    for stage in ("stage1", "stage1_2", "stage2"):
        write(tmp_path / "data" / f"{stage}.jsonl", lines_of(stage))
    for stage in STAGES:
        short = {"steps": 2, "batch_size": 4, "device": "cpu", "tensorboard": False, "held_out": 0.25}
        base = {"base_model": str(tiny.base)}
        config = TrainingConfig.read(FOLDER / f"{stage}.toml", stage=stage, **short, **base)
        assert f"small-base/{stage}" in config.out.as_posix()
        result = train(config)
        assert result.checkpoint == config.out / "checkpoint"
    engine = ClaraEngine.from_pretrained(str(result.checkpoint), base_model=str(tiny.base), device="cpu")
    assert set(engine.roles) == set(Role)
    assert engine.window == 128
    assert engine.n_mem == 16
    assert engine.answer(
        "Where does the otter live?", engine.compress(["The otter lives near the mill."]), max_tokens=4
    )
