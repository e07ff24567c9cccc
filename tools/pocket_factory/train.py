"""Teach the bundled model real English: ``python tools/pocket_factory/train.py WORK RUN`` (see README.md).

A run saves its whole state every few minutes and goes on from it when it is started again. ``RUN/mix.json`` may change
while it runs: it is read again at every save. ``RUN/plan.json`` holds when the rate begins to fall and ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import clara_core.training.objective as losses_
from clara_core.config import Role
from clara_core.training.batch import RowBatch, _part
from clara_core.training.masters import Learning, Masters
from clara_core.training.objective import Objective, Terms
from clara_core.training.opening import write_model
from clara_core.training.stages import CONFIG, Stage
from clara_core.training.steps import WorldSteps
from tools.pocket_factory.lesson import Lesson, Mix
from tools.pocket_factory.look import look
from tools.pocket_factory.muon import Muon
from tools.pocket_factory.vocabulary import transplant

CHUNK = 10  # rows of one pass, sorted by length: padding was a quarter of all positions


def parts(batch: RowBatch) -> list[RowBatch]:
    """A batch, which is sorted by length, in passes of few rows."""
    return [_part(batch, slice(at, at + CHUNK)) for at in range(0, len(batch.ids), CHUNK)]


losses_.CHUNK, losses_.split_rows = CHUNK, parts  # less padding than the two halves of other trainings

REHEARSAL = Stage(
    name="rehearsal", steps=1, lr=(0, 0), passages=16, kinds=3, words=(15, 100), asked=12, documents=(1, 4), rows=12,
    questions=4, two_passage=0.5, pairs=0.3, shuffled=0.5, paraphrases=4, verbatim=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Rate and losses of a run, in ``plan.json``.

    Attributes:
        rate: The highest.
        begin: Unix time when the run began.
        fall: Unix time from which the rate falls.
        end: Unix time when it reaches a fiftieth, and the run stops.
        warm_up: Steps.
        pointing: Weight of the loss of attention.
        contrastive: Weight of the contrastive loss.
        tau: Its temperature.
        rehearse: One step in so many is of the old world.
        save_minutes: Between two saved states.
        look_minutes: Between two looks at typed sentences.
        again: Weight of the loss of repetitions.
        pieces: Rate of the embeddings and the head, as a multiple of `rate`.
        layers: The same of layers and adapters; 0 freezes them, which saves a third of the time.
    """

    rate: float = 1.5e-3
    begin: float = 0.0
    fall: float = 0.0
    end: float = 0.0
    warm_up: int = 40
    pointing: float = 0.2
    contrastive: float = 0.2
    tau: float = 0.05
    rehearse: int = 14
    save_minutes: float = 5.0
    look_minutes: float = 12.0
    again: float = 1.0
    pieces: float = 2.0
    layers: float = 1.0

    def at(self, step: int) -> float:
        """The rate of a step that begins now."""
        now = time.time()
        share = 1.0 if now < self.fall else max(0.02, (self.end - now) / max(1.0, self.end - self.fall))
        return self.rate * min(1.0, (step + 1) / self.warm_up) * share


def read(path: Path) -> Plan:
    """The plan of a run."""
    return Plan(**json.loads(path.read_text()))


def step_at(masters: Masters, rate: float, plan: Plan) -> None:
    """A step of all optimizers, embeddings and head at a rate of their own."""
    for optimizer in masters._optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * (plan.pieces if group.get("pieces") else plan.layers)
        optimizer.step()
    masters.drop()
    masters.refresh()


def optimizers(masters: Masters) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder, AdamW for the adapters and the vocabulary."""
    named = masters.weights.items()
    matrices = [w for name, w in named if name.endswith(".base.weight")]
    pieces = [w for name, w in named if "embed_tokens" in name or "lm_head" in name]
    known = {id(w) for w in (*matrices, *pieces)}
    rest = [w for _, w in named if id(w) not in known]
    groups = [{"params": rest, "pieces": False}, {"params": pieces, "pieces": True}]
    return [Muon(matrices), torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def main() -> None:
    """Command line."""
    work, run = Path(sys.argv[1]), Path(sys.argv[2])
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    lesson = Lesson(work, 1)
    opened = transplant(run / "base", lesson)
    model, tokenizer = opened.model, opened.tokenizer
    plan, mix = read(run / "plan.json"), Mix.read(run / "mix.json")
    masters = Masters(model, Learning(tuple(Role), base=True))
    masters._optimizers = optimizers(masters)
    number = passages = 0
    if (run / "state.safetensors").exists():
        masters.load(load_file(run / "state.safetensors"))
        done = json.loads((run / "state.json").read_text())
        number, passages = done["step"], done["passages"]
        print(f"goes on from step {number}", flush=True)
    world = WorldSteps(tokenizer, 1, REHEARSAL)
    saved = looked = time.time()
    log = (run / "log.jsonl").open("a")
    sums: dict[str, float] = {}
    count, since, made = 0, time.time(), 0.0
    while time.time() < plan.end:
        started = time.time()
        rehearsal = plan.rehearse and number % plan.rehearse == plan.rehearse - 1
        step = world(number)[0] if rehearsal else lesson.step(tokenizer, number, mix)
        made += time.time() - started
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(plan.layers > 0 or "embed_tokens" in name or "lm_head" in name)
        objective = Objective(
            model,
            Terms(
                contrastive=plan.contrastive, pointing=plan.pointing, tau=plan.tau, paraphrase=plan.again, alignment=0.0
            ),
        )
        model.train()
        outcome = objective(step)
        total = torch.stack(list(outcome.losses.values())).sum()
        if not torch.isfinite(total):
            raise SystemExit(f"step {number}: the loss is no number")
        total.backward()
        masters.collect()
        norm = masters.clip()
        rate = plan.at(number)
        step_at(masters, rate, plan)
        number, passages, count = number + 1, passages + len(step.windows), count + 1
        for name, value in {
            **{k: float(v) for k, v in outcome.losses.items()},
            **outcome.metrics,
            "norm": norm,
        }.items():
            key = f"old {name}" if rehearsal else name
            sums.setdefault(key, 0.0)
            sums[key] += value
            sums[f"n {key}"] = sums.get(f"n {key}", 0) + 1
        if number % 40 == 0:
            means = {k: round(v / sums[f"n {k}"], 4) for k, v in sums.items() if not k.startswith("n ")}
            seconds = time.time() - since
            entry = {
                "time": time.strftime("%H:%M"),
                "step": number,
                "passages": passages,
                "s/step": round(seconds / count, 2),
                "data s": round(made / count, 3),
                "rate": rate,
                **means,
            }
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(json.dumps(entry), flush=True)
            sums, count, since, made = {}, 0, time.time(), 0.0
        now = time.time()
        if now - saved > plan.save_minutes * 60 or now >= plan.end or (run / "save").exists():
            (run / "save").unlink(missing_ok=True)
            save_file(masters.state(), run / "state.new")
            (run / "state.new").rename(run / "state.safetensors")
            (run / "state.json").write_text(json.dumps({"step": number, "passages": passages}))
            write_model(run / "checkpoint", opened, CONFIG.training_stage, "# in training\n", base_learned=True)
            saved = time.time()
            plan, mix = read(run / "plan.json"), Mix.read(run / "mix.json")
            if now - looked > plan.look_minutes * 60:
                look(model, tokenizer, run / "look.log", f"step {number}, {passages} passages")
                looked = time.time()
            since += time.time() - now


if __name__ == "__main__":
    main()
