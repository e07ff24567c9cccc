"""The training loop over phases, which saves its state so that a killed run is resumed with the same result.

The data order, dropout and learning rate of a step depend only on the seed and the number of the step. The gradient of
a step does not depend on how its batch is split into passes and processes: each loss is averaged over the tokens,
windows or questions of the whole batch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from clara_core.common.errors import TrainingError
from clara_core.training.batch import METRICS, BatchMeans, Step
from clara_core.training.distributed import Processes
from clara_core.training.fsdp import base_of
from clara_core.training.master_weights import MasterWeights, Part, TrainableSpec, parts_of, read_parts, write_parts
from clara_core.training.memory_cache import MemoryCache
from clara_core.training.metrics_log import Line, MetricsLog
from clara_core.training.model_setup import Opened, set_dropout
from clara_core.training.objective import Objective, Terms
from clara_core.training.state import load_state, save_state

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"
BEST_FILE = "best.safetensors"

Source = Callable[[int], list[Step]]
"""Gives this process's passes of the step with a number; every call with a number returns the same."""


@dataclass(frozen=True)
class Phase:
    """One stage of a run.

    Attributes:
        name: Name in metrics and messages.
        steps: Optimizer steps.
        rate: Maps the number of a step to its learning rate.
        terms: The losses.
        trainable: The trainable weights.
        source: The data.
        held_out: This process's share of the held-out passes.
        dropout: Dropout on the input of the adapters.
        eval_every: Steps between evaluations on the held-out passes; 0 for never.
        patience: Evaluations without a lower held-out loss after which the phase ends. None: never.
        memories: Makes the cache of memories for a frozen compressor; None for no cache.
    """

    name: str
    steps: int
    rate: Callable[[int], float]
    terms: Terms
    trainable: TrainableSpec
    source: Source
    held_out: Sequence[Step] = ()
    dropout: float = 0.0
    eval_every: int = 0
    patience: int | None = None
    memories: Callable[[], MemoryCache] | None = None


@dataclass(slots=True)
class TrainerState:
    """The progress of a run, saved with the weights.

    Attributes:
        phase: Number of the phase.
        step: Completed steps of the phase.
        best: Lowest held-out loss so far.
        best_step: Completed steps at the lowest held-out loss.
        worse: Evaluations since the lowest held-out loss.
        seconds: Duration of the completed steps.
    """

    phase: int = 0
    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Saving:
    """How often the state is saved, and the run that it belongs to.

    Attributes:
        steps: Steps between saved states; None for by time alone.
        seconds: Seconds between saved states.
        run: Config and data of the run; resuming from the state of another run is an error.
    """

    steps: int | None = None
    seconds: float = 600.0
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Trainer:
    """Trains a model in phases.

    Attributes:
        opened: The model.
        phases: The phases, in order.
        out: Folder of the run; if it holds a state, the run is resumed from it.
        export: Writes the checkpoint; called when a phase has ended or failed.
        processes: The processes of the run.
        dtype: Type of the passes.
        metrics_log: Writer of the metrics.
        seed: Seed of dropout.
        saving: When to save the state.

    Raises:
        TrainingError: The state in `out` is damaged or belongs to another run, or a trainable base is to be sharded.
    """

    opened: Opened
    phases: Sequence[Phase]
    out: Path
    export: Callable[[Phase, TrainerState], None]
    _: KW_ONLY
    processes: Processes
    dtype: torch.dtype
    metrics_log: MetricsLog
    seed: int
    saving: Saving

    def __post_init__(self) -> None:
        phases, opened = self.phases, self.opened
        self.model = opened.model
        self.state = TrainerState()
        saved = load_state(self.out / STATE_FILE)
        if saved is not None:
            self._check_run(saved[1]["run"])
            self.state = TrainerState(**saved[1]["state"])
        self.base = base_of(self.model, self.processes, [each.trainable for each in phases])
        phase = phases[min(self.state.phase, len(phases) - 1)]
        opened.begin(phase.trainable)
        self._trained: dict[str, Part] = {}  # weights that earlier phases trained
        if saved is not None:
            for earlier in phases[: self.state.phase]:
                self._trained |= parts_of(self.model, earlier.trainable)
            write_parts(self._trained, saved[0])
        self.master_weights = MasterWeights(self.model, phase.trainable)
        self._weights_phase = min(self.state.phase, len(phases) - 1)
        if self.model.dtype is not self.dtype:
            self.model.to(self.dtype)
        if saved is not None and self.state.phase < len(phases):
            if phases[saved[1]["weights_phase"]].trainable == phase.trainable:
                self.master_weights.load(saved[0])
            log.info("resuming %s at step %d", phase.name, self.state.step)

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the remaining steps, saving the state regularly and exporting after each phase.

        Raises:
            TrainingError: A loss is not finite, or the disk is full; the last good state is saved.
            DataError: A line does not fit the context of the model.
        """
        with self.metrics_log:
            while self.state.phase < len(self.phases):
                phase = self.phases[self.state.phase]
                self._run_phase(phase)
                if self.processes.is_main:
                    self.export(phase, self.state)
                self.processes.wait()
                self._trained |= parts_of(self.model, phase.trainable)
                self.state = TrainerState(phase=self.state.phase + 1)
                self.save()
                if self.processes.is_main:
                    (self.out / BEST_FILE).unlink(missing_ok=True)

    def _run_phase(self, phase: Phase) -> None:
        self.opened.begin(phase.trainable)
        if self.master_weights.trainable != phase.trainable:
            self.master_weights = MasterWeights(self.model, phase.trainable)
        self._weights_phase = self.state.phase
        set_dropout(self.model, phase.dropout)
        objective = Objective(self.model, phase.terms, None if phase.memories is None else phase.memories())
        self.base.finish()
        state = self.state
        self.metrics_log.begin(phase.name, phase.steps, state.step)
        saved = time.monotonic()
        for number, passes in _ahead(phase.source, state.step, phase.steps):
            started = time.monotonic()
            line = self._step(phase, objective, number, passes)
            state.step = number + 1
            if self._evaluation_due(phase):
                line |= self._evaluate(phase, objective)
            state.seconds += time.monotonic() - started
            line["seconds"] = round(time.monotonic() - started, 2)
            self.metrics_log.write(line)
            if phase.patience is not None and state.worse >= phase.patience:
                log.info("%s: stopped after %d evaluations without a lower held-out loss", phase.name, phase.patience)
                break
            every = self.saving.steps
            if (every and state.step % every == 0) or time.monotonic() - saved > self.saving.seconds:
                self.save()
                saved = time.monotonic()
        if state.best is not None:
            self._restore_best()
        self.metrics_log.end()

    def _step(self, phase: Phase, objective: Objective, number: int, passes: Sequence[Step]) -> Line:
        """Take one optimizer step over this process's passes."""
        self.model.train()
        batch = BatchMeans(passes, self.processes)
        bad: list[str] = []
        for index, step in enumerate(passes):
            torch.manual_seed(_seed_of(self.seed, phase.name, number, self.processes.index, index))
            outcome = objective(step)
            self.base.backward(batch.add(step, outcome))
            self.master_weights.collect()
            if not all(math.isfinite(float(value.detach())) for value in outcome.losses.values()):
                bad += step.places
        self.base.finish()
        self.master_weights.reduce(self.processes)
        means = batch.result()
        norm = self.master_weights.clip()
        if not math.isfinite(norm) or not all(map(math.isfinite, means.values())):
            self._stop(phase, number, passes, bad, norm)
        rate = phase.rate(number)
        self.master_weights.step(rate)
        line: Line = {"stage": phase.name, "step": number, "lr": rate}
        line |= {name: round(value, 4) for name, value in means.items()}
        line["norm"] = round(norm, 3)
        return line

    def _stop(self, phase: Phase, number: int, passes: Sequence[Step], bad: list[str], norm: float) -> None:
        """Save the weights from before a step whose gradient is not finite, and raise an error that names its lines."""
        self.master_weights.drop()
        places = self.processes.gather(bad)
        places = places or self.processes.gather([place for step in passes for place in step.places])
        self.save()
        if self.processes.is_main and number:
            self.export(phase, self.state)
        raise TrainingError(
            f"{phase.name}, step {number}: a loss or gradient is not finite (gradient norm {norm}) in the batch of "
            f"{', '.join(places)}. The weights from before this step are saved in {self.out / STATE_FILE} and as a "
            "checkpoint. Check these lines, and start the same command again to resume, or a new run with a lower lr"
        )

    # --- held-out passes ---------------------------------------------------------------------------------

    def _evaluation_due(self, phase: Phase) -> bool:
        if not phase.eval_every:
            return False
        return self.state.step % phase.eval_every == 0 or self.state.step == phase.steps

    def _evaluate(self, phase: Phase, objective: Objective) -> Line:
        """Compute the losses of the held-out passes, and save the weights if they are the best so far."""
        state = self.state
        self.model.eval()
        batch = BatchMeans(phase.held_out, self.processes)
        with torch.no_grad():
            for step in phase.held_out:
                batch.add(step, objective(step))
            self.base.finish()
        means = batch.result()
        loss = sum(value for name, value in means.items() if name not in METRICS)
        if state.best is None or loss < state.best:
            state.best, state.best_step, state.worse = loss, state.step, 0
            if self.processes.is_main:
                weights = {
                    name: value for name, value in self.master_weights.state().items() if name.startswith("weights/")
                }
                save_state(self.out / BEST_FILE, weights, {"step": state.step})
        else:
            state.worse += 1
        line: Line = {"held_out": round(loss, 4)}
        return line | {f"held_out_{name}": round(value, 4) for name, value in means.items()}

    def _restore_best(self) -> None:
        """Load the weights with the lowest held-out loss."""
        self.processes.wait()
        best = load_state(self.out / BEST_FILE)
        if best is not None and self.state.best_step != self.state.step:
            log.info("restored the weights after step %d, which have the lowest held-out loss", self.state.best_step)
            self.master_weights.load(best[0])

    # --- states ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save the state of the run.

        Raises:
            TrainingError: The disk is full; the state that was saved before is unchanged.
        """
        if not self.processes.is_main:
            return
        facts = {"state": asdict(self.state), "weights_phase": self._weights_phase, "run": self.saving.run}
        finished = self.state.phase == len(self.phases)
        tensors = {} if finished else read_parts(self._trained) | self.master_weights.state()
        save_state(self.out / STATE_FILE, tensors, facts)

    def _check_run(self, run: dict[str, Any]) -> None:
        here = self.saving.run
        other = [name for name in sorted({*run, *here}) if run.get(name) != here.get(name)]
        if other:
            shown = "; ".join(f"{name} was {run.get(name)!r}, is {here.get(name)!r}" for name in other)
            raise TrainingError(
                f"{self.out} holds a run with other settings: {shown}. Give another folder as out, or delete this one"
            )


def _ahead(source: Source, first: int, steps: int) -> Iterator[tuple[int, list[Step]]]:
    """Steps with their numbers; the next one is prepared in a thread meanwhile."""
    if first >= steps:
        return
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(source, first)
        for number in range(first, steps):
            passes = pending.result()
            if number + 1 < steps:
                pending = pool.submit(source, number + 1)
            yield number, passes


def _seed_of(seed: int, phase: str, number: int, process: int, index: int) -> int:
    digest = hashlib.blake2b(f"{seed} {phase} {number} {process} {index}".encode(), digest_size=7).digest()
    return int.from_bytes(digest)
