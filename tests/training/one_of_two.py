"""The two processes of `test_fsdp.py`: they train each config with a complete base and with a sharded one.

    python -m tests.training.one_of_two CONFIGS FOLDER

Each writes the memory use of each run, and the error for a config that cannot be sharded. They are forks of a process
that has imported what both need, which takes most of the time.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from clara_core.common.errors import TrainingError
from clara_core.training.config import TrainingConfig
from clara_core.training.run import trainer_of

# What a run imports when it needs it.
IMPORTED = ("accelerate", "torch.distributed.fsdp", "transformers.models.mistral.modeling_mistral")


def alive() -> int:
    """Bytes of all tensors of this process; a tensor whose memory was freed counts as zero."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def learn(values: dict[str, Any], out: Path) -> list[int]:
    """Train a config; returns the bytes of its model before the first step, after each step, and at the end."""
    before = alive()
    trainer = trainer_of(TrainingConfig(**values, out=out))
    held = [alive() - before]
    reduce = type(trainer.master_weights).reduce

    def counted(masters: Any, processes: Any) -> None:
        held.append(alive() - before)
        reduce(masters, processes)

    type(trainer.master_weights).reduce = counted  # called after the forward passes of a step
    try:
        trainer.run()
    finally:
        type(trainer.master_weights).reduce = reduce
    trainer.processes.wait()
    return [*held, alive() - before]


def refused(values: dict[str, Any], out: Path) -> str:
    """The error message for a quantized base."""
    try:
        trainer_of(TrainingConfig(**values, quantization="nf4", out=out))
    except TrainingError as error:
        return str(error)
    return ""


def one(rank: str, configs: Path, folder: Path) -> None:
    """Train each config with both kinds of base; everything that is printed goes to a file."""
    with (folder / f"log-{rank}").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    held, said = {}, ""
    for name, values in json.loads(configs.read_text(encoding="utf-8")).items():
        for way, asked in (("whole", "false"), ("sharded", "true")):
            os.environ["ACCELERATE_USE_FSDP"] = asked
            held[f"{name} {way}"] = learn(values, folder / name / way)
        said = refused(values, folder / name / "refused")
    found = {"held": held, "refused": said}
    (folder / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def main(configs: Path, folder: Path) -> None:
    """Run the two processes until both have succeeded or one has failed, which ends the other."""
    for module in IMPORTED:
        import_module(module)
    gc.collect()
    gc.freeze()  # `alive` looks through what is made from now on
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=one, args=(rank, configs, folder), daemon=True) for rank in ("0", "1")]
    for process in running:
        process.start()
    while running:
        wait([process.sentinel for process in running])
        ended = [process for process in running if not process.is_alive()]
        if any(process.exitcode for process in ended):
            sys.exit(1)
        running = [process for process in running if process not in ended]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
