"""A frozen base that is sharded over processes: same results, and each process holds only its shard."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from clara_core.common.errors import TrainingError
from clara_core.engine.options import EngineArguments
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.training import fsdp
from clara_core.training.distributed import Processes, wants_sharding
from clara_core.training.fsdp import WholeBase, base_of, can_shard
from clara_core.training.master_weights import TrainableSpec
from clara_core.training.model_setup import open_checkpoint
from tests.tiny import Tiny, build
from tests.training.lessons import config_for, metrics

# In each, the two processes differ in another way: in lines, in passes, in windows.
RUNS: dict[str, dict[str, Any]] = {
    "stage1": {"batch_size": 5, "micro_batch_size": 2, "held_out": 0.25, "eval_every": 2},
    "stage1_2": {"batch_size": 3, "gradient_checkpointing": True, "micro_batch_size": 1},
    "contrastive": {"batch_size": 1, "memory_room_mb": 0},  # the second process gets no lines
    "stage2": {"batch_size": 5, "micro_batch_size": 1, "held_out": 0.25, "gradient_checkpointing": True},
}
LIGHT = "stage2"
STAGES = [stage if stage == LIGHT else pytest.param(stage, marks=pytest.mark.heavy) for stage in RUNS]

needs_sharding = pytest.mark.skipif(not can_shard(), reason="fully_shard of this torch cannot leave adapters whole")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the runs of a stage by two processes, with a complete base and with a sharded one."""
    pytest.importorskip("accelerate")
    made: dict[bool, Path] = {}

    def folder_of(stage: str) -> Path:
        light = stage == LIGHT  # the heavy stages share one pair of processes
        if light not in made:
            made[light] = tmp_path_factory.mktemp("runs")
            wanted = {stage: given for stage, given in RUNS.items() if (stage == LIGHT) == light}
            configs = {
                stage: config_for(tiny, made[light], stage, **given).model_dump(  # type: ignore[arg-type]
                    mode="json", exclude={"out", "shape"}, exclude_none=True
                )
                for stage, given in wanted.items()
            }
            (made[light] / "configs.json").write_text(json.dumps(configs), encoding="utf-8")
            run_two(made[light] / "configs.json", made[light])
        return made[light]

    return folder_of


def run_two(configs: Path, folder: Path) -> None:
    """Train in two processes, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "tests.training.one_of_two", str(configs), str(folder)]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, env=os.environ | shared, stdout=log, stderr=log, start_new_session=True)
    try:
        ended = child.wait(timeout=1500)
        assert ended == 0, "\n".join(path.read_text() for path in sorted(folder.glob("log*")))
    finally:
        with suppress(ProcessLookupError):  # none is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_learned_is_the_same(trained: Callable[[str], Path], stage: str) -> None:
    whole, sharded = (trained(stage) / stage / way for way in ("whole", "sharded"))
    pairs = list(zip(metrics(whole / "metrics.jsonl"), metrics(sharded / "metrics.jsonl"), strict=True))
    assert len(pairs) == 4
    for one, other in pairs:
        assert other == pytest.approx(one, abs=1e-4)
    first, second = (read_checkpoint(folder / "checkpoint") for folder in (whole, sharded))
    assert first.adapters.keys() == second.adapters.keys()
    for role, tensors in first.adapters.items():
        assert tensors.keys() == second.adapters[role].keys()
        for key, value in tensors.items():
            assert torch.allclose(second.adapters[role][key], value, atol=1e-5), key
    for key, value in first.embeddings.items():
        assert torch.allclose(second.embeddings[key], value, atol=1e-5), key


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_holds_half_of_the_layers_between_passes(
    tiny: Tiny, trained: Callable[[str], Path], stage: str, rank: int
) -> None:
    layers = sum(weight.nbytes for weight in tiny.model.model.layers.parameters())
    held = found(trained(stage), rank)["held"]
    saved = [whole - shard for whole, shard in zip(held[f"{stage} whole"], held[f"{stage} sharded"], strict=True)]
    assert len(saved) == 6
    # After a step its last pass is still in memory, with a copy of its input if the base is sharded.
    assert saved == pytest.approx([layers / 2] * len(saved), rel=0.1)


@needs_sharding
@pytest.mark.slow
def test_a_quantized_base_is_not_sharded(trained: Callable[[str], Path]) -> None:
    assert "weights packed by quantization='nf4' cannot be sharded" in found(trained(LIGHT), 0)["refused"]
    assert "leave quantization out" in found(trained(LIGHT), 1)["refused"]


def found(folder: Path, rank: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"found-{rank}.json").read_text(encoding="utf-8"))
    return values


def test_a_base_that_learns_is_not_sharded(tiny: Tiny) -> None:
    opened = open_checkpoint(
        EngineArguments(model=str(tiny.folder), base_model=str(tiny.base), device="cpu").resolved()
    )
    processes = Processes(torch.device("cpu"))
    trainable = [TrainableSpec((Role.GENERATOR,)), TrainableSpec((Role.GENERATOR,), base=True)]
    assert isinstance(base_of(opened.model, processes, trainable), WholeBase)
    processes.shards = True
    with pytest.raises(TrainingError, match=r"this run trains the base: start the processes without them"):
        base_of(opened.model, processes, trainable)


def test_a_torch_that_cannot_shard_is_said_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsdp, "can_shard", lambda: False)
    processes = Processes(torch.device("cpu"))
    processes.shards = True
    with pytest.raises(TrainingError, match=rf"torch {re.escape(torch.__version__)} .* install a newer torch"):
        base_of(None, processes, [TrainableSpec((Role.GENERATOR,))])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "environment, shards",
    [
        ({}, False),
        ({"ACCELERATE_USE_FSDP": "false"}, False),
        ({"ACCELERATE_USE_FSDP": "true"}, True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "FULL_SHARD"}, True),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, True),
    ],
)
def test_the_configuration_of_accelerate_decides(
    environment: dict[str, str], shards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(monkeypatch, environment)
    assert wants_sharding() is shards
    assert not Processes(torch.device("cpu")).shards  # a single process cannot share


def test_deepspeeds_own_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deepspeed.json"
    given = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    clean(monkeypatch, given)
    for stage in (1, 2, 3):
        file.write_text(json.dumps({"zero_optimization": {"stage": stage}}), encoding="utf-8")
        assert wants_sharding() is (stage == 3)
    file.write_text("stage 3", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"deepspeed.json' cannot be read .* to the path of a JSON file"):
        wants_sharding()


def clean(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    """An environment with only these variables of accelerate."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
