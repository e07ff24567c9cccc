"""Measures the latency of single questions, and the distance between memory tokens and the text they represent."""

from __future__ import annotations

import math
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clara_core.data.examples import RetrievalLine
from clara_core.evaluation.runner import Plan, Runner
from clara_core.evaluation.text_reader import TextReader

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.engine.engine import ClaraEngine

COMPRESSED = 20  # most candidates of a question whose compression is timed, as in the paper
_BATCH = 8  # passages of a forward pass


def latency(
    engine: ClaraEngine,
    lines: Sequence[RetrievalLine],
    plan: Plan,
    text: TextReader | None = None,
    *,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Milliseconds of each step, for one question at a time and without cached memories.

    Returns:
        dict: ``questions``; ``passages`` (mean number compressed for a question); and for each of ``compress`` (these
        passages), ``rank`` (encode the question and compare it with all candidates), ``answer`` and ``text`` (the text
        LLM) the percentiles ``{"p50": ms, "p95": ms}``. Steps that were not run are missing.
    """
    from tqdm.auto import tqdm

    runner = Runner(engine, plan)
    seconds: dict[str, list[float]] = defaultdict(list)
    passages = 0

    def timed(name: str, start: float) -> None:
        seconds[name].append(time.perf_counter() - start)

    for line in tqdm(lines, desc="timing", unit="question", disable=not show_progress):
        start = time.perf_counter()
        engine.compress(line.docs[:COMPRESSED])
        timed("compress", start)
        passages += len(line.docs[:COMPRESSED])
        by_text = runner.memories(line.docs)
        memories = [by_text[text] for text in line.docs]
        start = time.perf_counter()
        if plan.ranker == "memory":
            order = [found.index for found in engine.rank(line.question, memories)]
            timed("rank", start)
        else:
            order = runner.rank([line], by_text)[0][plan.ranker]
        read = [memories[place] for place in order[: plan.top_k]]
        start = time.perf_counter()
        engine.answer(line.question, read, max_tokens=plan.max_tokens)
        timed("answer", start)
        if text is not None:
            start = time.perf_counter()
            text.read([(line, [memory.text for memory in read])])
            timed("text", start)
    steps = {name: {"p50": percentile(times, 50), "p95": percentile(times, 95)} for name, times in seconds.items()}
    return {"questions": len(lines), "passages": passages / len(lines), **steps}


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Percentile by nearest rank, in milliseconds: the smallest time that `percent` of all do not exceed."""
    ordered = sorted(seconds)
    return round(ordered[math.ceil(percent / 100 * len(ordered)) - 1] * 1e3, 2)


def hardware(engine: ClaraEngine) -> str:
    """Name of the engine's device, for the report."""
    import torch

    if engine.device.type == "cuda":
        return str(torch.cuda.get_device_name(engine.device))
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


@dataclass(frozen=True, slots=True)
class Alignment:
    """Memory tokens and text tokens of passages, projected to two dimensions.

    Attributes:
        memory: ``[n, 2]``: projected mean memory token of each passage.
        text: ``[n, 2]``: projected mean hidden state of its text in the same pass.
        explained: Share of the variance that each of the two dimensions explains.
        mse: Mean squared error between the two means before projection, as in the alignment loss of the training.
        cosine: Mean cosine of the two means before projection.
    """

    memory: list[list[float]]
    text: list[list[float]]
    explained: tuple[float, float]
    mse: float
    cosine: float


def align(engine: ClaraEngine, texts: Sequence[str]) -> Alignment:
    """Project memory tokens and text tokens on the first two principal components of both together.

    Only the first window of a longer text is used.

    Raises:
        ValueError: There are fewer than two texts, and so no variance.
    """
    import torch

    if len(texts) < 2:
        raise ValueError(f"the alignment plot needs at least two passages, got {len(texts)}")
    memory, text = mean_states(engine, texts)  # [n, hidden] each
    points = torch.cat([memory, text])
    points = points - points.mean(0)
    _, values, components = torch.linalg.svd(points, full_matrices=False)
    flat = points @ components[:2].T  # [2 n, 2]
    total = float(values.square().sum()) or 1.0
    shares = (values[:2].square() / total).tolist()
    return Alignment(
        memory=flat[: len(texts)].tolist(),
        text=flat[len(texts) :].tolist(),
        explained=(shares[0], shares[1]),
        mse=float((memory - text).square().mean()),
        cosine=float(torch.nn.functional.cosine_similarity(memory, text).mean()),
    )


def mean_states(engine: ClaraEngine, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean last hidden states over the memory positions and over all others, each ``[n, hidden]`` in float32."""
    import torch

    from clara_core.model.checkpoint.config import Role

    model, n_mem = engine.load().model, engine.n_mem
    memory, text = [], []
    sequences = engine.tokenizer.encode_passages(texts)
    with torch.inference_mode():
        for start in range(0, len(sequences), _BATCH):
            rows = sequences[start : start + _BATCH]
            states = model.hidden_states(rows, Role.COMPRESSOR).float().cpu()  # [rows, length, hidden]
            for row, ids in zip(states, rows, strict=True):
                memory.append(row[len(ids) - n_mem : len(ids)].mean(0))
                text.append(row[: len(ids) - n_mem].mean(0))
    return torch.stack(memory), torch.stack(text)
