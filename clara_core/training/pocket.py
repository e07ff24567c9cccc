"""Train the bundled model from random weights: ``python -m clara_core.training.pocket --out runs/pocket``.

The lessons follow each other as in the paper, over a world that is made up anew at every step:

    base                        the bare decoder reads passages as text and answers questions over them
    stage1                      compress one passage; answer and paraphrase from its memory tokens
    stage1_2                    questions over several compressed passages, in any order
    stage1_2_ranked             the same with the passages that answer first, as after a ranking
    stage2_pretrain_retrieval   contrastive: the query reasoner alone
    stage2                      end to end: the answer's loss teaches the query reasoner through the top-k

Unlike a 7B base, this one starts from nothing, so its own weights learn along until the end of ``stage1_2``. A run
saves its whole state every few minutes and goes on from there when it is started again with the same folder. A finished
checkpoint can be taught further: ``--start clara_core/pocket --first stage1_2_ranked``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import MistralForCausalLM

from clara_core.checkpoint import read_checkpoint, write_checkpoint
from clara_core.config import Role
from clara_core.lora import init_adapter
from clara_core.model import ClaraModel
from clara_core.tokens import ClaraTokenizer, load_tokenizer
from clara_core.training.losses import (
    IGNORE,
    alignment_loss,
    answer_loss,
    contrastive_loss,
    cosine_scores,
    straight_through_top_k,
)
from clara_core.training.pocket_base import random_base, train_tokenizer, write_base
from clara_core.training.rows import RowBatch, split_rows
from clara_core.training.stages import CONFIG, STAGES, Stage, learning_rate
from clara_core.training.steps import Step, StepMaker, sample_texts

log = logging.getLogger(__name__)

VOCABULARY = 2048
CHUNK = 32  # windows that are compressed in one pass, sorted by length
SAVE_SECONDS = 180.0


class Trainer:
    """The model, its optimizers and where the run stands.

    Args:
        out: Folder of the run; if it holds a state, the run goes on from there.
        stages: The lessons.
        seed: Of weights and data.
        start: A checkpoint of an earlier run to learn on from, instead of random weights.
        first: The stage to begin with, instead of the first one.
    """

    def __init__(
        self,
        out: Path,
        stages: tuple[Stage, ...],
        seed: int,
        start: Path | None = None,
        first: str | None = None,
    ) -> None:
        self.out = out
        self.stages = stages
        self.seed = seed
        out.mkdir(parents=True, exist_ok=True)
        base = out / "base"
        if start is not None and not base.exists():
            shutil.copytree(start / "base", base)
        if not (base / "config.json").exists():
            tokenizer = train_tokenizer(sample_texts(seed), VOCABULARY)
            write_base(base, random_base(len(tokenizer), seed), tokenizer)
        self.tokenizer: ClaraTokenizer = load_tokenizer(str(base), CONFIG)
        self.steps = StepMaker(self.tokenizer, seed)
        self.model = _fresh_model(len(self.tokenizer), seed) if start is None else _model_of(start, self.tokenizer)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Passes run in bfloat16; the optimizers keep every weight in float32 beside it.
        self.model.to(self.device, torch.float32)
        self.masters = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.optimizers = _optimizers(self.masters)
        self.model.to(torch.bfloat16)
        self.stage, self.step = [stage.name for stage in stages].index(first or stages[0].name), 0
        self.metrics = (out / "metrics.jsonl").open("a", encoding="utf-8")
        self._resume()

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from where the run stands to the end, saving on the way; writes a checkpoint after each stage."""
        saved = time.monotonic()
        while self.stage < len(self.stages):
            stage = self.stages[self.stage]
            self._begin(stage)
            for number, step in self.steps.ahead(stage, self.step):
                self.metrics.write(json.dumps(self._learn(stage, number, step)) + "\n")
                self.metrics.flush()
                self.step = number + 1
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
            self.stage, self.step = self.stage + 1, 0
            self._save()
            if stage.name != "base":  # no adapter has learned anything before
                self.export(self.out / "checkpoints" / stage.name)

    def _begin(self, stage: Stage) -> None:
        learning = stage.learning
        for name, parameter in self.model.named_parameters():
            # One stacked tensor holds the adapters of all roles: those that rest get no gradient through routing.
            parameter.requires_grad_(learning is None or "lora_" in name)
        if self.step == 0 and stage.name != self.stages[0].name:
            for optimizer in self.optimizers:
                if learning is not None:
                    optimizer.state.clear()
        log.info("%s: %d steps", stage.name, stage.steps)

    def _learn(self, stage: Stage, number: int, step: Step) -> dict[str, float | str]:
        started = time.monotonic()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, number)
        losses, metrics = self._losses(stage, step)
        torch.stack(list(losses.values())).sum().backward()
        for name, weight in self.model.named_parameters():
            self.masters[name].grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        if not torch.isfinite(norm):
            msg = f"{stage.name} step {number}: gradient norm is {norm}; the last saved state is in {self.out}"
            raise FloatingPointError(msg)
        for optimizer in self.optimizers:
            optimizer.step()
        self._refresh()
        line: dict[str, float | str] = {
            "stage": stage.name,
            "step": number,
            "lr": learning_rate(stage, number),
        }
        line |= {name: round(float(loss.detach()), 4) for name, loss in losses.items()}
        line |= {name: round(value, 4) for name, value in metrics.items()}
        line |= {
            "norm": round(float(norm.detach()), 3),
            "seconds": round(time.monotonic() - started, 2),
        }
        if number % 10 == 0:
            log.info(" ".join(f"{key}={value}" for key, value in line.items()))
        return line

    @torch.no_grad()
    def _refresh(self) -> None:
        """Bring the weights of the passes up to their float32 masters."""
        for name, weight in self.model.named_parameters():
            weight.copy_(self.masters[name])

    def _losses(self, stage: Stage, step: Step) -> tuple[dict[str, Tensor], dict[str, float]]:
        if stage.name == "base":
            loss, accuracy = self._generate(step.rows, None)
            return {"answer": loss, "text": self._generate(step.retold, None)[0]}, {"accuracy": accuracy}
        frozen = stage.learning is not None
        memories, alignment = self._compress(step.sequences, frozen=frozen)  # [windows, n_mem, hidden]
        reasoned = self.model.encode(step.questions, Role.REASONER)  # [questions, n_mem, hidden]
        by_window = cosine_scores(reasoned.flatten(1), memories.flatten(1))  # [questions, windows]
        # A document's score is that of its best window.
        scores = torch.stack([by_window[:, own.start : own.stop].amax(1) for own in step.windows], dim=1)
        positives = torch.zeros_like(scores, dtype=torch.bool)  # [questions, passages]
        for index, gold in enumerate(step.gold):
            positives[index, list(gold)] = True
        best = scores.argmax(-1, keepdim=True)
        metrics = {"recall@1": float(positives.gather(1, best).float().mean())}
        losses: dict[str, Tensor] = {}
        if stage.contrastive:
            losses["contrastive"] = stage.contrastive * contrastive_loss(scores, positives, stage.tau)
        if stage.name == "stage2":
            losses["answer"], metrics["accuracy"] = self._end_to_end(step, by_window, memories)
        elif step.rows is not None:
            losses["answer"], metrics["accuracy"] = self._generate(step.rows, memories)
            losses["alignment"] = 0.1 * alignment
        if step.retold is not None:
            retold, metrics["again"] = self._generate(step.retold, memories)
            losses["paraphrase"] = 0.5 * retold
        return losses, metrics

    def _compress(self, passages: list[list[int]], *, frozen: bool) -> tuple[Tensor, Tensor]:
        """Memories ``[passages, n_mem, hidden]`` and the alignment loss, in passes over passages of like length."""
        order = sorted(range(len(passages)), key=lambda index: len(passages[index]))
        parts, alignments = [], []
        n_mem = CONFIG.n_mem
        with torch.set_grad_enabled(not frozen):
            for start in range(0, len(order), CHUNK):
                chunk = [passages[index] for index in order[start : start + CHUNK]]
                states = self.model.hidden_states(chunk, Role.COMPRESSOR)  # [rows, length, hidden]
                ends = torch.tensor([len(ids) for ids in chunk], device=self.device)[:, None]
                columns = torch.arange(states.shape[1], device=self.device)[None]
                is_memory = (columns < ends) & (columns >= ends - n_mem)
                parts.append(states[is_memory].view(len(chunk), n_mem, -1))
                alignments.append(alignment_loss(states.float(), is_memory, columns < ends - n_mem))
        restore = torch.tensor(order, device=self.device).argsort()
        return torch.cat(parts)[restore], torch.stack(alignments).mean()

    def _generate(self, rows: RowBatch | None, memories: Tensor | None) -> tuple[Tensor, float]:
        """Answer loss and token accuracy of rows over memories (or over text, in the bare base)."""
        if rows is None:
            msg = "this stage has no generator rows"
            raise ValueError(msg)
        role = None if memories is None else Role.GENERATOR
        losses, hits, total = [], 0.0, 0
        for part in split_rows(rows):
            read = [window for row in part.windows for window in row]
            filled = None if memories is None else memories[read].flatten(0, 1)  # [slots, hidden]
            states = self.model.hidden_states(part.ids, role, memories=filled, slots=part.slots.to(self.device))
            loss, accuracy = self._answer_loss(states, part.labels.to(self.device))
            labelled = int((part.labels != IGNORE).sum())
            losses.append(loss * labelled)
            hits, total = hits + accuracy * labelled, total + labelled
        return torch.stack(losses).sum() / total, hits / total

    def _end_to_end(self, step: Step, scores: Tensor, memories: Tensor) -> tuple[Tensor, float]:
        """The answer's loss over the five windows that the query reasoner picks of twenty: ``scores [B, windows]``."""
        rows = step.rows
        if rows is None:
            msg = "stage2 has no generator rows"
            raise ValueError(msg)
        own = [[window for passage in gold for window in step.windows[passage]] for gold in step.gold]
        candidates = _hardest(scores.detach(), own, 20)  # [B, 20]
        weights, _ = straight_through_top_k(scores.gather(1, candidates), CONFIG.generation_top_k)
        picked = torch.einsum("bkn,bnmh->bkmh", weights.to(memories.dtype), memories[candidates])
        states = self.model.hidden_states(
            rows.ids, Role.GENERATOR, memories=picked.flatten(0, 2), slots=rows.slots.to(self.device)
        )
        return self._answer_loss(states, rows.labels.to(self.device))

    def _answer_loss(self, states: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        # The head reads only the positions that carry a loss.
        kept = labels[:, 1:] != IGNORE
        logits = self.model.head(states[:, :-1][kept])[None]  # [1, kept, vocab]
        targets = labels[:, 1:][kept][None]
        padded = torch.nn.functional.pad(targets, (1, 0), value=IGNORE)
        loss = answer_loss(torch.nn.functional.pad(logits, (0, 0, 0, 1)), padded)
        return loss, float((logits.argmax(-1) == targets).float().mean())

    # --- files -------------------------------------------------------------------------------------------

    def export(self, folder: Path) -> None:
        """Write the checkpoint as it stands: base, adapters, embeddings."""
        decoder = self.model.decoder
        plain = random_base(len(self.tokenizer), self.seed)
        state = {}
        for key, tensor in decoder.state_dict().items():
            if ".lora_" not in key:
                state[key.replace(".base.weight", ".weight")] = tensor.detach().cpu()
        plain.load_state_dict(state)
        plain.resize_token_embeddings(VOCABULARY)
        adapters = {role: self.model.export_adapter(role) for role in Role}
        half = {
            role: {key: tensor.detach().cpu().bfloat16() for key, tensor in tensors.items()}
            for role, tensors in adapters.items()
        }
        embeddings = {key: tensor.cpu().bfloat16() for key, tensor in self.model.export_embeddings().items()}
        write_checkpoint(folder, CONFIG, half, embeddings)
        plain.to(torch.bfloat16).save_pretrained(folder / "base")
        for file in sorted((self.out / "base").glob("*token*")) + sorted((self.out / "base").glob("*.jinja")):
            shutil.copy(file, folder / "base")
        log.info("wrote %s", folder)

    def _save(self) -> None:
        state = {
            "model": self.masters,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stage": self.stage,
            "step": self.step,
        }
        path = self.out / "state.pt"
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(state["model"][name])
        self._refresh()
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stage, self.step = state["stage"], state["step"]
        log.info("going on from stage %d, step %d", self.stage, self.step)


def _fresh_model(vocabulary: int, seed: int) -> ClaraModel:
    """Random weights, and adapters that add nothing yet."""
    model = ClaraModel(random_base(vocabulary, seed), CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.routed.values():
        for role in Role:
            init_adapter(layer, role, generator)
    return model


def _model_of(folder: Path, tokenizer: ClaraTokenizer) -> ClaraModel:
    """The weights of a checkpoint that `Trainer.export` wrote."""
    decoder = MistralForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="eager")
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = ClaraModel(decoder, CONFIG)
    model.load_adapters(read_checkpoint(folder))
    return model


def _optimizers(masters: dict[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the base's matrices, AdamW for everything else (embeddings, norms, adapters)."""
    matrices = [weight for name, weight in masters.items() if name.endswith(".base.weight")]
    rest = [weight for name, weight in masters.items() if not name.endswith(".base.weight")]
    return [
        torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _hardest(scores: Tensor, gold: list[list[int]], n: int) -> Tensor:
    """For each question its gold windows and those that score best beside them: ``[questions, n]``."""
    raised = scores.clone()
    for index, windows in enumerate(gold):
        raised[index, windows] = float("inf")
    return raised.topk(n, dim=-1).indices


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"), help="folder of the run (resumed if there)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage (for trials)")
    parser.add_argument("--start", type=Path, default=None, help="checkpoint of an earlier run to learn on from")
    parser.add_argument("--first", default=None, choices=[stage.name for stage in STAGES], help="stage to begin with")
    parser.add_argument("--threads", type=int, default=None, help="processor threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * arguments.scale))) for stage in STAGES)
    (arguments.out).mkdir(parents=True, exist_ok=True)
    plan = json.dumps([asdict(stage) for stage in stages], default=str, indent=1)
    (arguments.out / "stages.json").write_text(plan, encoding="utf-8")
    Trainer(arguments.out, stages, arguments.seed, arguments.start, arguments.first).run()


if __name__ == "__main__":
    main()
