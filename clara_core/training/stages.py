"""The lessons of the bundled model: how long each is, on what, and which weights learn."""

from __future__ import annotations

from dataclasses import dataclass

from clara_core.config import ClaraConfig, Role

CONFIG = ClaraConfig(
    decoder_model_name="base",
    doc_max_length=64,
    compr_rate=4,
    lora_r=16,
    sep=True,
    different_mem_tokens=True,
    generation_top_k=5,
    training_stage="stage2",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One lesson: how long, on what, and which weights learn.

    Attributes:
        name: Name, as in the module's docstring.
        steps: Optimizer steps.
        lr: Learning rate at the start (after a short warm-up) and at the end.
        hold: Share of the steps at the first rate, before it falls in a straight line to the second.
        passages: Passages of each step's corpus.
        words: Shortest and longest passage.
        asked: Questions that the query reasoner reads.
        documents: Fewest and most documents of a generator row.
        rows: Generator rows of a step.
        questions: Most questions of a row.
        two_passage: Questions over two passages for each passage, on average.
        pairs: Share of the rows of several documents that ask over two at once.
        shuffled: Share of the rows whose documents stand in any order; in the others the best stand first.
        paraphrases: Rows that say a passage again.
        verbatim: Share of them that say it word for word.
        contrastive: Weight of the contrastive loss.
        tau: Its temperature.
        learning: "all", or the roles whose adapters learn.
    """

    name: str
    steps: int
    lr: tuple[float, float]
    hold: float = 0.0
    passages: int = 64
    words: tuple[int, int] = (20, 60)
    asked: int = 32
    documents: tuple[int, int] = (1, 1)
    rows: int = 96
    questions: int = 3
    two_passage: float = 0.0
    pairs: float = 0.5
    shuffled: float = 1.0
    paraphrases: int = 0
    verbatim: float = 0.0
    contrastive: float = 0.3
    tau: float = 0.05
    learning: tuple[Role, ...] | None = None


STAGES = (
    Stage("base", 750, (2e-3, 2e-3), words=(1, 26), rows=48, questions=3, paraphrases=16),
    Stage(
        "stage1", 1000, (2e-3, 3e-4), hold=0.78, words=(1, 30), asked=24, rows=56, questions=3, paraphrases=24,
        verbatim=0.7,
    ),
    Stage(
        "stage1_2", 430, (8e-4, 6.8e-4), hold=0.73, passages=56, words=(20, 200), asked=24, documents=(1, 5), rows=16,
        questions=8, two_passage=0.7, pairs=0.6, paraphrases=8, verbatim=0.5, tau=0.03,
    ),
    Stage(
        "stage1_2_ranked", 900, (5e-4, 3e-5), hold=0.15, passages=40, words=(20, 200), asked=24, documents=(1, 5),
        rows=24, questions=5, two_passage=0.5, pairs=0.3, shuffled=0.15, paraphrases=12, verbatim=0.8, tau=0.03,
    ),
    Stage(
        "stage2_pretrain_retrieval", 30, (3e-4, 3e-5), passages=192, words=(20, 200), asked=192, rows=0,
        contrastive=1.0, tau=0.02, learning=(Role.REASONER,),
    ),
    Stage(
        "stage2", 30, (1e-4, 1e-5), words=(20, 200), rows=32, questions=1, two_passage=0.5, contrastive=0.0,
        learning=(Role.REASONER, Role.GENERATOR),
    ),
)  # fmt: skip


def learning_rate(stage: Stage, number: int) -> float:
    """The learning rate of a step: a short warm-up, then held, then falling."""
    start, end = stage.lr
    warm = min(1.0, (number + 1) / 50)
    held = stage.hold * stage.steps
    fallen = max(0.0, number - held) / max(stage.steps - 1 - held, 1)
    return warm * (start + (end - start) * fallen)
