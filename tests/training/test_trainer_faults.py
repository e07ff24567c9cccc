"""Faults of a training run: kills, full disks, losses that are not numbers, wrong lines, wrong configs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clara_core.cli.main import app
from clara_core.common.errors import DataError, NotEnoughMemory, TrainingError, UnknownOption
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.training import train
from clara_core.training.batch import Step
from clara_core.training.config import TrainingConfig
from clara_core.training.objective import Objective, Outcome
from clara_core.training.state import load_state, new_folder, save_state
from clara_core.training.trainer import STATE_FILE
from tests.tiny import Tiny, build
from tests.training.lessons import config_for, lines_of, metrics, write

COMMAND = ["-m", "clara_core.training"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("tiny"))


def as_file(config: TrainingConfig, path: Path, **given: Any) -> Path:
    """Write a config as JSON, which is valid YAML."""
    values = config.model_dump(mode="json", exclude={"shape"}, exclude_none=True) | given
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(5,), pytest.param((5, 21), marks=pytest.mark.heavy)], ids=len)
def test_a_killed_run_goes_on_with_the_same_curve(tiny: Tiny, tmp_path: Path, kills: tuple[int, ...]) -> None:
    """The signal arrives at any moment of the child's work."""
    given = {"steps": 60, "save_every": 1, "held_out": 0.25, "eval_every": 7}
    whole = train(config_for(tiny, tmp_path, "stage2", out=tmp_path / "whole", **given))
    config = config_for(tiny, tmp_path, "stage2", **given)
    path = as_file(config, tmp_path / "config.yaml")
    metrics_log = config.out / "metrics.jsonl"
    reached = 0
    for wanted in kills:
        with (tmp_path / "child.log").open("wb") as log:
            command = [sys.executable, *COMMAND, "stage2", str(path), "--no-progress"]
            child = subprocess.Popen(command, env=environment(), stdout=log, stderr=log)
            while child.poll() is None and (not metrics_log.exists() or len(metrics_of(metrics_log)) < wanted):
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, (tmp_path / "child.log").read_text()
        saved = load_state(config.out / STATE_FILE)
        assert saved is not None
        assert reached < saved[1]["state"]["step"] < 60
        reached = saved[1]["state"]["step"]
    result = train(config)
    assert metrics(result.metrics) == metrics(whole.metrics)
    assert read_checkpoint(result.checkpoint).identity == read_checkpoint(whole.checkpoint).identity


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_memory_that_runs_out_says_what_to_lower(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Memory runs out in the second step, in a pass of several lines; with passes of one line the run continues."""
    given = {"steps": 3, "save_every": 1, "dropout": 0.0}
    whole = train(config_for(tiny, tmp_path, "stage2", out=tmp_path / "whole", micro_batch_size=1, **given))
    config = config_for(tiny, tmp_path, "stage2", micro_batch_size=2, **given)
    call, passes = Objective.__call__, []

    def of_little_memory(self: Objective, step: Step) -> Outcome:
        passes.append(len(step.places))
        if len(passes) > 3 and len(step.places) > 1:
            raise error
        return call(self, step)

    monkeypatch.setattr(Objective, "__call__", of_little_memory)
    with pytest.raises(NotEnoughMemory, match=r"training ran out of memory.*lower micro_batch_size=2 \(b") as caught:
        train(config)
    assert "set gradient_checkpointing=true" in str(caught.value)
    assert f"lower memory_room_mb={config.memory_room_mb}" in str(caught.value)
    state = load_state(config.out / STATE_FILE)
    assert state is not None
    assert 0 < state[1]["state"]["step"] < 3
    result = train(config.model_copy(update={"micro_batch_size": 1, "gradient_checkpointing": True}))
    for ours, theirs in zip(metrics(result.metrics), metrics(whole.metrics), strict=True):
        assert ours.pop("stage") == theirs.pop("stage") == "stage2"
        assert ours == pytest.approx(theirs, rel=2e-3)


def metrics_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    given = {"batch_size": 5, "dropout": 0.0, "held_out": 0.25}
    one = train(config_for(tiny, tmp_path, "stage1", out=tmp_path / "one", **given))
    config = config_for(tiny, tmp_path, "stage1", **given)
    path = as_file(config, tmp_path / "config.yaml")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    launch += ["--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *COMMAND, "stage1", str(path), "--no-progress"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for alone, together in zip(metrics(one.metrics), metrics(config.out / "metrics.jsonl"), strict=True):
        assert together == pytest.approx(alone, abs=2e-3)
    first, second = (read_checkpoint(folder / "checkpoint") for folder in (tmp_path / "one", config.out))
    for role, tensors in first.adapters.items():
        for key, value in tensors.items():
            assert torch.allclose(second.adapters[role][key], value, atol=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_weights(tiny: Tiny, tmp_path: Path) -> None:
    config = config_for(tiny, tmp_path, "stage1_2", lr=1e30, schedule="constant", batch_size=3)
    with pytest.raises(TrainingError, match=r"stage1_2, step 1: a loss or gradient is not finite.*stage1_2.jsonl:\d+"):
        train(config)
    assert [line["step"] for line in metrics(config.out / "metrics.jsonl")] == [0]
    saved = load_state(config.out / STATE_FILE)
    assert saved is not None
    assert saved[1]["state"]["step"] == 1
    good = read_checkpoint(config.out / "checkpoint")  # the weights trained so far
    for role, tensors in good.adapters.items():
        name, weight = next(iter(tensors.items()))
        assert torch.isfinite(weight).all(), (role, name)
    with pytest.raises(TrainingError, match="step 1"):  # it continues where it stopped, with the same results
        train(config)


def test_a_full_disk_leaves_the_state_that_was_saved_before(tiny: Tiny, tmp_path: Path) -> None:
    config = config_for(tiny, tmp_path, "stage1", save_every=1, steps=1)
    train(config)
    path = tmp_path / "state.safetensors"
    save_state(path, {"weights": torch.ones(10)}, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(TrainingError, match=r"state.safetensors cannot be written.*free disk space"):
            save_state(path, {"weights": torch.ones(10_000)}, {"step": 2})
        with pytest.raises(TrainingError, match="cannot be written"):
            train(config_for(tiny, tmp_path, "stage1", save_every=1, out=tmp_path / "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saved = load_state(path)
    assert saved is not None
    assert saved[1] == {"step": 1}
    assert float(saved[0]["weights"].sum()) == 10
    assert sorted(file.name for file in tmp_path.glob("*state*")) == ["state.safetensors"]
    # With free space again, the same command finishes the run.
    again = train(config_for(tiny, tmp_path, "stage1", save_every=1, out=tmp_path / "full"))
    assert len(metrics(again.metrics)) == 4


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with new_folder(target) as new:
        (new / "old").write_text("old")
    with pytest.raises(TrainingError), new_folder(target) as new:  # noqa: PT012
        (new / "half").write_text("half")
        new.write_text("a folder is no file")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "old"]
    with new_folder(target) as new:
        (new / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "new"]


def test_a_state_that_is_damaged_is_named(tiny: Tiny, tmp_path: Path) -> None:
    config = config_for(tiny, tmp_path, "stage1", steps=1)
    config.out.mkdir()
    (config.out / STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(TrainingError, match="delete it to start anew"):
        train(config)


@pytest.mark.parametrize("stage", ["stage1", "stage1_2", "stage2"])
def test_an_answer_longer_than_the_context_is_named_before_anything_is_learned(
    tiny: Tiny, tmp_path: Path, stage: Any
) -> None:
    lines = lines_of(stage)
    long = "so it went on " * 2000
    lines[6] |= {"answers": [long]} if stage == "stage1" else {"answer": long}
    config = config_for(tiny, tmp_path, stage, data=write(tmp_path / "long.jsonl", lines))
    with pytest.raises(
        DataError, match=r"long.jsonl:7: the prompt takes \d+ positions .* context of the model is 4096"
    ):
        train(config)
    assert not config.out.exists()


def test_a_finished_run_returns_what_it_made(tiny: Tiny, tmp_path: Path) -> None:
    config = config_for(tiny, tmp_path, "contrastive", steps=2)
    first = train(config)
    stamp = (first.checkpoint / "config.json").stat().st_mtime_ns
    assert train(config).checkpoint == first.checkpoint
    assert (first.checkpoint / "config.json").stat().st_mtime_ns == stamp
    with pytest.raises(TrainingError, match=r"holds a run with other settings: lr was 0.001, is 0.5"):
        train(config.model_copy(update={"lr": 0.5}))


@pytest.mark.parametrize(
    "changes, message",
    [
        (["larning_rate=1"], r"no option 'larning_rate'"),
        (["shpae.rate=4"], r"no option 'shpae'; did you mean 'shape'"),
        (["model=''", "shape.rat=4"], r"no option 'shape.rat'; did you mean 'rate'"),
        (["lr=fast"], r"lr: Input should be a valid number.*got 'fast'"),
        (["learn=['compressor']"], r"frozen compressor"),
        (["patience=2"], r"patience needs held_out"),
        (["stage=stage4"], r"stage: Input should be 'stage1'"),
        (["nothing"], r"an override must be key=value, got 'nothing'"),
        (["data.first=1"], r"data is a value, not a table"),
    ],
)
def test_configs_say_what_is_wrong(tmp_path: Path, changes: list[str], message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text('stage = "stage2"\nmodel = "pocket"\ndata = "x.jsonl"\nout = "run"\n', encoding="utf-8")
    kind = UnknownOption if "no option" in message else ValueError
    with pytest.raises(kind, match=message):
        TrainingConfig.read(path, changes)


def test_configs_are_read_with_changes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: pocket\ndata: [a.jsonl, b.jsonl]\nout: run\nlr: 1e-3\n", encoding="utf-8")
    config = TrainingConfig.read(path, ["epochs=3", "out=runs/other", 'learn=["reasoner"]'], stage="stage2")
    assert (config.lr, config.epochs, str(config.out), config.learn) == (1e-3, 3, "runs/other", ("reasoner",))
    assert [str(file) for file in config.data] == ["a.jsonl", "b.jsonl"]
    for name, text in (("broken.toml", "a = ="), ("list.yaml", "- a"), ("config.json", "{}")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=name):
            TrainingConfig.read(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be read"):
        TrainingConfig.read(tmp_path / "missing.toml")


def test_the_command_trains_and_says_errors_in_one_line(tiny: Tiny, tmp_path: Path) -> None:
    path = as_file(config_for(tiny, tmp_path, "stage1"), tmp_path / "config.yaml")
    runner = CliRunner()
    done = runner.invoke(app, ["train", "stage1", str(path), "--set", "steps=1", "--no-progress"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "checkpoint" / "config.json").exists()
    wrong = runner.invoke(app, ["train", "stage1", str(path), "--set", "step=1"])
    assert wrong.exit_code == 2
    assert "there is no option 'step'; did you mean 'steps'?" in wrong.output
    assert "\n" not in wrong.output.strip()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_on_training_names_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    options = page.split("## Options")[1].split("## What a run leaves")[0]
    assert [name for name in TrainingConfig.model_fields if f"`{name}`" not in options and name != "stage"] == []


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[2].glob("configs/mistral-7b/*.toml")), ids=lambda p: p.stem
)
def test_the_configs_of_the_paper_hold(path: Path) -> None:
    config = TrainingConfig.read(path, stage=path.stem)
    assert config.gradient_checkpointing
    assert path.stem in str(config.out)
