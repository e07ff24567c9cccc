"""Runs one stage of training: from a config and data files to a checkpoint folder."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from clara_core.common.errors import TrainingError
from clara_core.data.examples import Line, RetrievalLine
from clara_core.data.jsonl import TrainingSet
from clara_core.engine.loader import DTYPES
from clara_core.engine.options import EngineArguments, option_values
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.devices import memory_said
from clara_core.training.card import DataFile, card, hardware, versions
from clara_core.training.config import FROZEN_STAGES, TrainingConfig, out_of_memory
from clara_core.training.distributed import Processes
from clara_core.training.fsdp import check_quantization
from clara_core.training.line_steps import LineReader, LineSteps
from clara_core.training.master_weights import TrainableSpec, pass_dtype
from clara_core.training.memory_cache import MemoryCache
from clara_core.training.metrics_log import METRICS_FILE, MetricsLog, read_lines
from clara_core.training.model_setup import Opened, checkpoint_gradients, open_base, open_checkpoint, write_model
from clara_core.training.objective import Terms
from clara_core.training.schedule import scheduled
from clara_core.training.trainer import Phase, Saving, Trainer, TrainerState

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
STAGE_NAMES = {"contrastive": "stage2_pretrain_retrieval"}
# Settings that do not influence the weights: a run may be resumed with other values.
_FREE = {
    "out",
    "save_every",
    "save_minutes",
    "tensorboard",
    "cache_dir",
    "local_files_only",
    "device",
    "kv_cache_bytes",
}
# The same, for a run that ran out of memory; these are listed on the card.
_FREE_FOR_MEMORY = {"micro_batch_size", "gradient_checkpointing", "memory_room_mb"}


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Result of `train`.

    Attributes:
        checkpoint: Folder of the checkpoint.
        metrics: File with the metrics of each step.
        steps: Optimizer steps of the run.
        seconds: Duration of this call.
    """

    checkpoint: Path
    metrics: Path
    steps: int
    seconds: float


def train(config: TrainingConfig, *, progress: bool = False) -> TrainingResult:
    """Train one stage; a stopped run is resumed from its last saved state.

    Args:
        config: Configuration of the run.
        progress: Show a progress bar.

    Raises:
        DataError: A line is invalid or does not fit the context of the model; the message names file and line.
        CheckpointError: The model to start from cannot be read.
        NotEnoughMemory: The passes or the optimizer do not fit the device; the message names the settings to change.
        TrainingError: A loss was not finite, a file could not be written, or `out` holds another run.
    """
    started = time.monotonic()
    with memory_said(partial(out_of_memory, config)):
        trainer = trainer_of(config, progress=progress)
        trainer.run()
    trainer.processes.wait()
    metrics = config.out / METRICS_FILE
    return TrainingResult(config.out / CHECKPOINT, metrics, len(read_lines(metrics)), time.monotonic() - started)


def trainer_of(config: TrainingConfig, *, progress: bool = False) -> Trainer:
    """The trainer of a config, with the saved state of its folder if there is one; raises the errors of `train`."""
    processes = Processes(_device_of(config.device))
    trained, held_out = _data(config)
    held_out_files = () if isinstance(config.held_out, float) else config.held_out
    files = [DataFile.of(path) for path in (*config.data, *held_out_files)]
    opened = _open(config, processes)
    reader = LineReader(
        opened.tokenizer,
        opened.model.context,
        opened.model.config.generation_top_k,
        config.overflow,
        answers=config.stage == "stage2",
        mixed=config.mixed,
    )
    _check_lines(reader, [trained, held_out])
    phase = _phase(config, opened, reader, trained, held_out, processes)
    config.out.mkdir(parents=True, exist_ok=True)
    return Trainer(
        opened,
        [phase],
        config.out,
        partial(_export, config, opened, files, (len(trained), len(held_out))),
        processes=processes,
        dtype=pass_dtype(config.dtype, processes.device),
        metrics_log=MetricsLog(config.out, active=processes.is_main, progress=progress, tensorboard=config.tensorboard),
        seed=config.seed,
        saving=Saving(config.save_every, config.save_minutes * 60, _run_facts(config, files, processes)),
    )


# --- data ------------------------------------------------------------------------------------------------


def _data(config: TrainingConfig) -> tuple[TrainingSet, TrainingSet]:
    """The lines to train on, and the held-out lines."""
    lines = TrainingSet(config.data, config.stage)
    if not isinstance(config.held_out, float):
        return lines, TrainingSet(config.held_out, config.stage)
    order = list(range(len(lines)))
    random.Random(f"{config.seed} held out").shuffle(order)
    n = round(len(lines) * config.held_out)
    if config.held_out and not 0 < n < len(lines):
        raise ValueError(
            f"held_out={config.held_out} of {len(lines)} lines leaves no line to train on or none to hold out; give a "
            "file of held-out lines"
        )
    return lines.part(sorted(order[n:])), lines.part(sorted(order[:n]))


def _check_lines(reader: LineReader, sets: Sequence[Sequence[Line]]) -> None:
    """Check that every line fits the context; warn about questions without a gold passage."""
    questions = missing = 0
    for line in chain(*sets):
        reader.check(line)
        if isinstance(line, RetrievalLine):
            questions += 1
            missing += not line.pos_index
    if missing:
        log.warning(
            "%d of %d questions (%.1f %%) name no gold passage among their candidates, which makes them noise for "
            "retrieval. Add the gold passage (`clara synthesize` does), or remove these lines",
            missing,
            questions,
            100 * missing / questions,
        )


def _run_facts(config: TrainingConfig, files: Sequence[DataFile], processes: Processes) -> dict[str, Any]:
    """The settings and data that a saved state belongs to."""
    free = _FREE | _FREE_FOR_MEMORY
    if config.in_batch_negatives:
        free -= {"micro_batch_size"}  # the questions of a pass are each other's negatives
    values = {name: value for name, value in config.model_dump(mode="json").items() if name not in free}
    return {**values, "data": [file.sha256 for file in files], "processes": processes.count}


# --- the model -------------------------------------------------------------------------------------------


def _device_of(device: str) -> torch.device | None:
    return None if device == "auto" else torch.device(EngineArguments(device=device).resolved().device)


def _open(config: TrainingConfig, processes: Processes) -> Opened:
    check_quantization(config.quantization, processes)
    # A base that is to be sharded may be too large for one device.
    place = torch.device("cpu") if processes.shards else None
    on_processor = processes.device.type == "cpu"
    dtype = pass_dtype(config.dtype, processes.device)
    attention = config.attn_implementation
    chosen = {
        "device": str(processes.device),
        "dtype": next(name for name, known in DTYPES.items() if known is dtype),
        "attn_implementation": "eager" if on_processor and attention == "auto" else attention,
    }
    arguments = EngineArguments(**option_values(config) | chosen).resolved()
    if config.model is not None:
        opened = open_checkpoint(arguments, place)
    else:
        opened = open_base(config.base_model or "", _new_config(config), arguments, config.seed, place)
    if config.top_k is not None:
        opened.model.config = opened.model.config.model_copy(update={"generation_top_k": config.top_k})
    if config.gradient_checkpointing:
        checkpoint_gradients(opened.model)
    return opened


def _new_config(config: TrainingConfig) -> ClaraConfig:
    return ClaraConfig(
        decoder_model_name=config.base_model or "",
        doc_max_length=config.shape.window,
        compr_rate=config.shape.rate,
        lora_r=config.shape.lora_r,
        generation_top_k=config.shape.top_k,
        training_stage=config.stage,
    )


# --- the phase ------------------------------------------------------------------------------------------


def _phase(
    config: TrainingConfig,
    opened: Opened,
    reader: LineReader,
    trained: Sequence[Line],
    held_out: Sequence[Line],
    processes: Processes,
) -> Phase:
    source = LineSteps(
        trained,
        reader,
        seed=config.seed,
        batch=config.batch_size,
        micro=config.micro_batch_size,
        process=processes.index,
        processes=processes.count,
    )
    steps = config.steps or config.epochs * source.per_epoch
    frozen = config.stage in FROZEN_STAGES
    terms = Terms(
        frozen=frozen,
        end_to_end=config.stage == "stage2",
        top_k=opened.model.config.generation_top_k,
        top_k_gradient=config.top_k_gradient,
        in_batch=config.in_batch_negatives,
        alignment=config.alignment,
        contrastive=config.contrastive or 0.0,
        tau=config.tau,
    )
    trainable = TrainableSpec(
        config.roles,
        memory_tokens=bool(config.memory_tokens),
        weight_decay=config.weight_decay,
        max_norm=config.max_grad_norm,
    )
    return Phase(
        name=config.stage,
        steps=steps,
        rate=partial(scheduled, config.schedule or "cosine", config.lr, steps, config.warmup),
        terms=terms,
        trainable=trainable,
        source=source,
        held_out=list(source.passes([*held_out][processes.index :: processes.count])),
        dropout=config.dropout,
        eval_every=(config.eval_every or min(steps, source.per_epoch)) if held_out else 0,
        patience=config.patience,
        memories=_memory_cache(config, opened, reader, [trained, held_out]) if frozen else None,
    )


def _memory_cache(
    config: TrainingConfig, opened: Opened, reader: LineReader, sets: Sequence[Sequence[Line]]
) -> Callable[[], MemoryCache] | None:
    if not config.memory_room_mb:
        return None

    def windows() -> Iterator[list[int]]:
        known: set[str] = set()  # texts are much smaller than their memories
        for line in chain(*sets):
            fresh = [text for text in line.docs if text not in known]
            known.update(fresh)
            yield from reader.windows(fresh)

    def make() -> MemoryCache:
        memories = MemoryCache(opened.model, config.memory_room_mb << 20, windows())
        log.info("cached the memories of %d windows", len(memories))
        return memories

    return make


# --- the result ------------------------------------------------------------------------------------------


def _export(
    config: TrainingConfig,
    opened: Opened,
    files: Sequence[DataFile],
    counts: tuple[int, int],
    phase: Phase,
    state: TrainerState,
) -> None:
    trained, held_out = counts
    stage = STAGE_NAMES.get(config.stage, config.stage)
    metrics = read_lines(config.out / METRICS_FILE)
    if not metrics:
        raise TrainingError(
            f"{config.out / METRICS_FILE} is empty, although this run wrote it: do not change its files"
        )
    kept = state.best_step if state.best is not None else len(metrics)
    facts = {
        "stage": stage,
        "trained from": f"`{opened.origin}`",
        "base decoder": f"`{opened.base}`",
        "trained weights": ", ".join(config.learn) + (", memory tokens" if config.memory_tokens else ""),
        "steps": f"{len(metrics):,} of {phase.steps:,} of {config.batch_size} lines each; the weights after {kept:,}",
        "lines": f"{trained:,} trained on" + (f", {held_out:,} held out" if held_out else ""),
        "held-out loss": None if state.best is None else f"{state.best:.4f}",
        "time": f"{state.seconds / 60:.1f} minutes on {hardware()}",
        "made with": versions(),
    }
    text = card(
        title=f"CLaRa, {stage}",
        facts=facts,
        files=files,
        metrics=metrics,
        settings=config.model_dump(mode="json", exclude=_FREE - {"save_every", "save_minutes"}),
    )
    write_model(config.out / CHECKPOINT, opened, stage, text, base_trained=False, mixed=config.mixed > 0)
