"""Trains a checkpoint with the architecture of the bundled model on plain English (see README.md).

python -m tools.pocket_factory.train WORK RUN --checkpoint pocket --hours 4

A run saves its whole state every few minutes, and continues from it when it is started again. It reads
``RUN/mix.json`` and ``RUN/plan.json`` again at every save; a file ``RUN/save`` makes it save at once. Several processes
(`torchrun --nproc-per-node 2 -m tools.pocket_factory.train …`) compute a step each, from different passages, and apply
the mean of their gradients.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

import clara_core.training.objective as objectives
from clara_core.model.checkpoint.config import Role
from clara_core.training.batch import RowBatch, Step, _part
from clara_core.training.distributed import Processes
from clara_core.training.master_weights import MasterWeights, TrainableSpec, pass_dtype
from clara_core.training.model_setup import Opened, write_model
from clara_core.training.muon import Muon
from clara_core.training.objective import Objective, Outcome, Terms
from tools.pocket_factory.base import CONFIG
from tools.pocket_factory.lesson import QUESTION, Lesson, Mix, Taught
from tools.pocket_factory.look import look
from tools.pocket_factory.quoting import allowed_tokens
from tools.pocket_factory.remember import Earlier, Remembering
from tools.pocket_factory.vocabulary import open_old, transplant
from tools.pocket_factory.world.stages import Stage
from tools.pocket_factory.world.steps import WorldSteps

CHUNK = 14  # rows of one pass, sorted by length; with 32 rows, a quarter of all positions was padding
REPORT = 40  # steps between two lines of the log
REHEARSAL = Stage(
    name="rehearsal",
    steps=1,
    lr=(0, 0),
    passages=16,
    kinds=3,
    words=(15, 100),
    asked=12,
    documents=(1, 4),
    rows=12,
    questions=4,
    two_passage=0.5,
    pairs=0.3,
    shuffled=0.5,
    paraphrases=4,
    verbatim=0.5,
)


@dataclass(frozen=True)
class Plan:
    """Learning rate and losses of a run, read from ``plan.json``.

    Attributes:
        rate: Highest learning rate.
        fall: Share of the run after which the rate falls; it ends at a fiftieth.
        warm_up: Steps of the warm-up.
        pieces: Learning rate of the embeddings and the head, as a multiple of `rate`.
        layers: Learning rate of layers and adapters, as a multiple of `rate`; 0 freezes them, which saves a third of
            the time.
        again: Weight of the loss of repetitions.
        pointing: Weight of the loss on attention to the wrong documents.
        contrastive: Weight of the contrastive loss.
        tau: Temperature of the contrastive loss.
        quoting: Weight of the choice among the tokens that a verbatim answer may have, in the loss of such answers; the
            rest is the choice among all tokens.
        earlier: Windows of earlier steps among which questions are also ranked.
        rehearse: One step in this many is about the synthetic encyclopedia; 0: none.
        save_minutes: Minutes between two saved states.
        look_minutes: Minutes between two tests on hand-written sentences.
    """

    rate: float = 1.2e-3
    fall: float = 0.6
    warm_up: int = 30
    pieces: float = 2.0
    layers: float = 0.8
    again: float = 1.2
    pointing: float = 0.2
    contrastive: float = 0.2
    tau: float = 0.05
    quoting: float = 0.0
    earlier: int = 240
    rehearse: int = 14
    save_minutes: float = 5.0
    look_minutes: float = 15.0

    def at(self, step: int, done: float) -> float:
        """Learning rate of a step; `done` is the finished share of the run."""
        share = 1.0 if done < self.fall else max(0.02, (1 - done) / (1 - self.fall))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * share

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan of a run's folder."""
        return cls(**(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}))


@dataclass
class Progress:
    """Progress of a run, in ``state.json``: steps, passages, and seconds of work."""

    step: int = 0
    passages: int = 0
    seconds: float = 0.0


def _few(batch: RowBatch) -> list[RowBatch]:
    return [_part(batch, slice(at, at + CHUNK)) for at in range(0, len(batch.ids), CHUNK)]


class Means:
    """Means of losses and metrics between two lines of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, values: dict[str, float], prefix: str) -> None:
        """Add the values of one step."""
        for name, value in values.items():
            total, count = self.sums.get(prefix + name, (0.0, 0))
            self.sums[prefix + name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means, and start over."""
        means = {name: round(total / count, 4) for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class Run:
    """A run in its folder, in one process or several; the first process writes files and decides when to save."""

    def __init__(self, work: Path, folder: Path, start: str, *, new_vocabulary: bool, seed: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.processes = Processes(torch.device("cpu"))
        self.dtype = pass_dtype("auto", torch.device("cpu"))
        seed = seed * 1000 + self.processes.index if self.processes.count > 1 else seed
        self.lesson = Lesson(work, seed)
        self.opened: Opened = transplant(folder / "base", self.lesson, start) if new_vocabulary else open_old(start)
        self.master_weights = MasterWeights(self.opened.model, TrainableSpec(tuple(Role), base=True))
        self.master_weights._optimizers = optimizers(self.master_weights)
        self.world = WorldSteps(self.opened.tokenizer, seed, REHEARSAL)
        self.earlier = Earlier(0)
        self.progress = Progress()
        if (folder / "state.safetensors").exists():
            self.master_weights.load(load_file(folder / "state.safetensors"))
            self.progress = Progress(**json.loads((folder / "state.json").read_text(encoding="utf-8")))

    def read(self) -> None:
        """Read plan and mix from the folder."""
        self.plan, self.mix = Plan.read(self.folder / "plan.json"), Mix.read(self.folder / "mix.json")
        if self.earlier.kept.maxlen != self.plan.earlier:
            self.earlier = Earlier(self.plan.earlier)

    def save(self) -> None:
        """Save the state and a checkpoint."""
        save_file(self.master_weights.state(), self.folder / "state.new")
        (self.folder / "state.new").rename(self.folder / "state.safetensors")
        (self.folder / "state.json").write_text(json.dumps(vars(self.progress)), encoding="utf-8")
        write_model(
            self.folder / "checkpoint", self.opened, CONFIG.training_stage, "# in training\n", base_trained=True
        )

    def step(self, step: Step, done: float) -> tuple[Outcome, float]:
        """Train on one step; returns its outcome and the norm of the gradients."""
        plan = self.plan
        for name, parameter in self.opened.model.named_parameters():
            parameter.requires_grad_(plan.layers > 0 or "embed_tokens" in name or "lm_head" in name)
        terms = Terms(
            contrastive=plan.contrastive, pointing=plan.pointing, tau=plan.tau, paraphrase=plan.again, alignment=0.0
        )
        self.opened.model.train()
        model = self.opened.model
        objective = Objective(model, terms)
        if isinstance(step, Taught):
            objective = Remembering(model, terms, self.earlier)
            if plan.quoting and step.rows is not None:
                objective.quote(allowed_tokens(self.opened.tokenizer, step.rows, step.texts, QUESTION), plan.quoting)
        outcome = objective(step)
        total = torch.stack(list(outcome.losses.values())).sum()
        if not torch.isfinite(total):
            raise SystemExit(f"step {self.progress.step}: the loss is no number")
        total.backward()  # type: ignore[no-untyped-call]
        self.master_weights.collect()
        self.master_weights.reduce(self.processes)
        for master in self.master_weights.weights.values():
            if master.grad is not None:
                master.grad /= self.processes.count
        norm = self.master_weights.clip()
        rate = plan.at(self.progress.step, done)
        for optimizer in self.master_weights._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * (plan.pieces if group.get("pieces") else plan.layers)
            optimizer.step()
        self.master_weights.drop()
        self.master_weights.refresh()
        return outcome, norm

    def learn(self, hours: float) -> None:
        """Train until the run has worked for this many hours, without its pauses."""
        self.read()
        progress, means, lap = self.progress, Means(), 0.0
        saved = looked = time.monotonic()
        while progress.seconds < hours * 3600:
            began = time.monotonic()
            old = bool(self.plan.rehearse) and progress.step % self.plan.rehearse == self.plan.rehearse - 1
            tokenizer = self.opened.tokenizer
            step = self.world(progress.step)[0] if old else self.lesson.step(tokenizer, progress.step, self.mix)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not torch.float32):
                outcome, norm = self.step(step, progress.seconds / (hours * 3600))
            losses = {name: float(loss.detach()) for name, loss in outcome.losses.items()}
            means.add({**losses, **outcome.metrics, "norm": norm}, "old " if old else "")
            now = time.monotonic()
            looks = now - looked > self.plan.look_minutes * 60
            saves = looks or now - saved > self.plan.save_minutes * 60 or (self.folder / "save").exists()
            counts = torch.tensor([len(step.windows), 0, 0, 0], dtype=torch.float64)
            if self.processes.is_main:
                counts[1:] = torch.tensor([now - began, saves, looks])
            passages, seconds, saves, looks = self.processes.sum(counts).tolist()
            progress.step, progress.passages = progress.step + 1, progress.passages + int(passages)
            progress.seconds, lap = progress.seconds + seconds, lap + seconds
            if progress.step % REPORT == 0 and self.processes.is_main:
                self.report(lap / REPORT, means.take())
                lap = 0.0
            if saves or progress.seconds >= hours * 3600:
                if self.processes.is_main:
                    (self.folder / "save").unlink(missing_ok=True)
                    self.save()
                self.processes.wait()
                self.read()
                saved = time.monotonic()
            if looks and self.processes.is_main:
                title = f"step {progress.step}, {progress.passages} passages"
                look(self.folder / "checkpoint", self.folder / "look.log", title)
            if looks:
                looked = time.monotonic()

    def report(self, seconds: float, means: dict[str, float]) -> None:
        """Write and print a line of the log."""
        entry: dict[str, Any] = {"time": time.strftime("%H:%M"), **vars(self.progress), "seconds a step": seconds}
        line = json.dumps({**entry, **means})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
        print(line, flush=True)


def optimizers(masters: MasterWeights) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder, AdamW for the adapters and the vocabulary."""
    named = masters.weights.items()
    matrices = [w for name, w in named if name.endswith(".base.weight")]
    pieces = [w for name, w in named if "embed_tokens" in name or "lm_head" in name]
    known = {id(w) for w in (*matrices, *pieces)}
    rest = [w for _, w in named if id(w) not in known]
    groups = [{"params": rest, "pieces": False}, {"params": pieces, "pieces": True}]
    return [Muon(matrices), torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def main(
    work: Annotated[Path, typer.Argument(help="Folder of sources.py.")],
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    start: Annotated[str, typer.Option("--checkpoint", help="Bundled name or folder to start from.")] = "pocket",
    new_vocabulary: Annotated[bool, typer.Option("--new-vocabulary", help="Train a new vocabulary first.")] = False,
    hours: Annotated[float, typer.Option(help="Hours of work of the run, without its pauses.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Seed of the steps; give each run another one.")] = 1,
    threads: Annotated[int, typer.Option(help="Processor threads.")] = 1,
) -> None:
    """Train a checkpoint on plain English."""
    torch.set_num_threads(threads)
    objectives.CHUNK, objectives.split_rows = CHUNK, _few  # smaller passes than in other trainings, with less padding
    Run(work, run, start, new_vocabulary=new_vocabulary, seed=seed).learn(hours)


if __name__ == "__main__":
    typer.run(main)
