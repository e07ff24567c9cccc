"""Trains a model that retrieves and answers, from random weights, on the synthetic encyclopedia.

    python -m tools.pocket_factory.world.train configs/pocket.toml [--set KEY=VALUE] [--threads N]

The stages follow each other as in the paper; every step generates a new corpus. A run saves its whole state every few
minutes, and continues from it when it is started again with the same folder. A finished checkpoint can be trained
further: ``--set start=tests/data/encyclopedia --set first=stage1_2_namesakes``.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from clara_core.engine.options import EngineArguments
from clara_core.model.checkpoint.config import Role
from clara_core.training.card import card, hardware, versions
from clara_core.training.distributed import Processes
from clara_core.training.master_weights import TrainableSpec, pass_dtype
from clara_core.training.metrics_log import METRICS_FILE, MetricsLog, read_lines
from clara_core.training.model_setup import Opened, open_checkpoint, write_model
from clara_core.training.objective import Terms
from clara_core.training.schedule import held_then_falling
from clara_core.training.trainer import Phase, Saving, Trainer, TrainerState
from tools.pocket_factory.base import CONFIG, open_random, random_base, train_tokenizer, write_base
from tools.pocket_factory.world.stages import Stage, WorldConfig
from tools.pocket_factory.world.steps import WorldSteps, sample_texts

VOCABULARY = 2048
CONFIG_FILE = Path(__file__).parents[3] / "configs" / "pocket.toml"


def world_trainer(config: WorldConfig, *, progress: bool = False) -> Trainer:
    """The trainer of a config; it continues from the state in its folder."""
    processes = Processes()
    config.out.mkdir(parents=True, exist_ok=True)
    opened = _open(config, processes)
    lessons = [_lesson(stage, opened, config, processes) for stage in config.stages]
    settings = config.model_dump(mode="json", exclude={"out", "save_every", "save_minutes", "tensorboard"})
    return Trainer(
        opened,
        lessons,
        config.out,
        partial(_export, config, opened),
        processes=processes,
        dtype=pass_dtype(config.dtype, processes.device),
        metrics_log=MetricsLog(config.out, active=processes.is_main, progress=progress, tensorboard=config.tensorboard),
        seed=config.seed,
        saving=Saving(config.save_every, config.save_minutes * 60, settings | {"processes": processes.count}),
    )


def train_world(config: WorldConfig, *, progress: bool = False) -> Path:
    """Run the stages of a config; returns the folder of the last checkpoint.

    Raises:
        TrainingError: A loss is not a number, a file cannot be written, or `out` contains another run.
    """
    world_trainer(config, progress=progress).run()
    return config.out / "checkpoints" / config.stages[-1].name


def _open(config: WorldConfig, processes: Processes) -> Opened:
    """Open the checkpoint to start from, or create random weights."""
    if config.start is not None:
        arguments = EngineArguments(
            model=config.start, device=str(processes.device), dtype="float32", attn_implementation="eager"
        )
        return open_checkpoint(arguments.resolved())
    base = config.out / "base"
    if processes.is_main and not (base / "config.json").exists():
        tokenizer = train_tokenizer(sample_texts(config.seed), VOCABULARY)
        write_base(base, random_base(len(tokenizer), config.seed), tokenizer)
    processes.wait()
    opened = open_random(base, config.seed)
    opened.model.to(processes.device)
    return opened


def _lesson(stage: Stage, opened: Opened, config: WorldConfig, processes: Processes) -> Phase:
    frozen = stage.learning is not None
    terms = Terms(
        text=stage.name == "base",
        frozen=frozen,
        end_to_end=stage.name == "stage2",
        top_k=opened.model.config.generation_top_k,
        contrastive=stage.contrastive,
        pointing=stage.pointing,
        tau=stage.tau,
    )
    return Phase(
        name=stage.name,
        steps=stage.steps,
        rate=partial(held_then_falling, stage.lr, stage.hold, stage.steps),
        terms=terms,
        trainable=TrainableSpec(stage.learning or tuple(Role), base=not frozen, optimizer="muon"),
        source=WorldSteps(opened.tokenizer, config.seed, stage, processes.index),
    )


def _export(config: WorldConfig, opened: Opened, lesson: Phase, state: TrainerState) -> None:
    if lesson.name == "base":  # no adapter was trained before
        return
    facts = {
        "trained from": f"`{opened.origin}`, on generated text alone",
        "lessons": ", ".join(stage.name for stage in config.stages),
        "this is the model after": lesson.name,
        "time of this lesson": f"{state.seconds / 60:.1f} minutes on {hardware()}",
        "made with": versions(),
    }
    text = card(
        title="pocket, as it was trained",
        facts=facts,
        files=[],
        metrics=read_lines(config.out / METRICS_FILE),
        settings=config.model_dump(mode="json", exclude={"out", "tensorboard"}),
    )
    stage = CONFIG.training_stage  # every stage trains all roles
    done = config.stages[: [one.name for one in config.stages].index(lesson.name) + 1]
    mixed = any(one.mixed for one in done)
    write_model(config.out / "checkpoints" / lesson.name, opened, stage, text, base_trained=True, mixed=mixed)


def main(
    config: Annotated[Path, typer.Argument(help="Lessons: .toml or .yaml.")] = CONFIG_FILE,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value in place of what the file says; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the processor.")] = None,
) -> None:
    """Run the stages of a config, or continue a run that was stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads:
        torch.set_num_threads(threads)
    typer.echo(train_world(WorldConfig.read(config, changes or ()), progress=True))


if __name__ == "__main__":
    typer.run(main)
