"""Measures a store of 7B-shaped memories: writing, search, disk space, and recall (``make bench-store``).

    python -m benchmarks.store                                # 20,000 memories (2.6 GB) and 1,000,000 keys
    python -m benchmarks.store --documents 5000 --keys 0      # smaller, without the second part
    python -m benchmarks.store --quick                        # a few hundred, for a minute

The memories are synthetic (`benchmarks.synthetic_memories`) and streamed, so they are never all in memory. Two-step
search is compared with the exact cosine over all memories, through the same public call. The second part searches a
million vectors of the length of a key, which measures the scan of the keys and the index over them.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from tqdm import tqdm

from benchmarks.curves import KeyCurve, plot_curves
from benchmarks.report import Row, hardware, show
from benchmarks.synthetic_memories import SyntheticMemories
from clara_core import Memory
from clara_core.store import MemoryStore
from clara_core.store.codec import MemoryCodec
from clara_core.store.keys import DEFAULT_LENGTH

FINGERPRINT = "synthetic"
BATCH = 512
K = 10
QUESTIONS = 100
KEY_LENGTHS = (256, 512, 1024, 2048, 4096)
WORDS = [f"{first}{second}" for first in ("ka", "lo", "mi", "nu", "re") for second in ("bar", "den", "fol", "gis")]


@dataclass
class Part:
    """One corpus in one store.

    Attributes:
        corpus: Corpus that is written.
        store: Store that it is written to.
        seconds: Time spent in `MemoryStore.add`.
        work: Processor time of `MemoryStore.add` in seconds.
        milliseconds: Time of each search with one question.
        question_work: Milliseconds of processor time of a question, on average.
        found: The neighbours of each question by two-step search.
        exact: The true neighbours of each question.
    """

    corpus: SyntheticMemories
    store: MemoryStore
    text_words: int
    seconds: float = 0.0
    work: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    question_work: float = 0.0
    found: list[list[str]] = field(default_factory=list)
    exact: list[list[str]] = field(default_factory=list)

    def fill(self, curve: KeyCurve | None = None) -> None:
        """Write the corpus in batches."""
        rng = random.Random(self.corpus.seed)
        with tqdm(total=self.corpus.count, desc="writing", unit="doc") as bar:
            for start, tokens in self._batches():
                ids = [str(start + index) for index in range(len(tokens))]
                texts = [" ".join([id_, *rng.choices(WORDS, k=self.text_words)]) for id_ in ids]
                memories = [self._memory(one, text) for one, text in zip(tokens, texts, strict=True)]
                before, work = time.perf_counter(), time.process_time()
                self.store.add(ids=ids, memories=memories)
                self.seconds += time.perf_counter() - before
                self.work += time.process_time() - work
                if curve is not None:
                    curve.add(tokens, ids)
                bar.update(len(tokens))

    def ask(self, questions: Tensor) -> None:
        """Search with one question at a time."""
        self.store.search(questions[:1].flatten(1)[0], K)  # reads what is cached afterwards
        self.found, self.milliseconds = [], []
        work = time.process_time()
        for question in questions.flatten(1):
            before = time.perf_counter()
            hits = self.store.search(question, K)
            self.milliseconds.append((time.perf_counter() - before) * 1e3)
            self.found.append([hit.id for hit in hits])
        self.question_work = (time.process_time() - work) * 1e3 / len(questions)

    def compare(self, questions: Tensor) -> None:
        """Find the true neighbours of all questions by exact search."""
        self.exact = [[hit.id for hit in hits] for hits in self.store.search(questions, K, exact=True)]

    @property
    def recall(self) -> float:
        """Recall of two-step search."""
        pairs = zip(self.found, self.exact, strict=True)
        return statistics.fmean(len(set(one) & set(other)) / K for one, other in pairs)

    def percentile(self, share: float) -> float:
        """Percentile of the milliseconds of a question."""
        return sorted(self.milliseconds)[int(share * (len(self.milliseconds) - 1))]

    @property
    def megabytes(self) -> float:
        """Bytes of the memories in bfloat16."""
        return self.corpus.count * self.corpus.dimension * 2 / 1e6

    def _batches(self) -> Iterator[tuple[int, Tensor]]:
        size = max(BATCH, BATCH * 65536 // self.corpus.dimension // 4)
        return zip(range(0, self.corpus.count, size), self.corpus.batches(size), strict=True)

    @staticmethod
    def _memory(tokens: Tensor, text: str) -> Memory:
        return Memory(tokens[None], text, ((0, len(text)),), len(text.split()), FINGERPRINT)


def memories_part(folder: Path, documents: int, picture: Path | None) -> tuple[list[Row], dict[str, object]]:
    """Measure whole memories: writing, search, recall, disk space, memory of the process, loss of int8."""
    corpus = SyntheticMemories(documents, topics=max(1, documents // 200))
    part = Part(corpus, MemoryStore.open(folder / "memories"), text_words=150)
    curve = KeyCurve(corpus.dimension, KEY_LENGTHS)
    part.fill(curve)
    part.store.compact()
    questions = corpus.questions(spread(documents, QUESTIONS))
    part.store.close()
    part.ask(questions)
    part.compare(questions)
    grown = asking_bytes(part.store.uri, questions) / 1e6
    curves = curve.recall(questions, part.exact)
    if picture is not None:
        plot_curves(curves, f"{documents:,} synthetic memories of 65,536 numbers", picture)
    stats = part.store.stats()
    codec = MemoryCodec("int8", corpus.n_mem, corpus.hidden)
    before = corpus.documents(0, min(documents, 64)).flatten(1).double()
    after = codec.decode(codec.encode(before.view(-1, corpus.n_mem, corpus.hidden))).flatten(1).double()
    error = float(((before - after).norm(dim=1) / before.norm(dim=1)).mean())
    cosine = float(torch.nn.functional.cosine_similarity(before, after, dim=1).min())
    speed = part.megabytes / part.seconds
    rows = [
        Row("ingest of ready memories", f"{speed:.0f} MB/s", f"{part.megabytes / part.work:.0f} MB/s", speed, 80),
        Row("a document on disk", f"{stats.bytes_per_document:.0f} B", f"{corpus.dimension * 2} B of memory"),
        Row(f"recall@{K} of two steps against exact", f"{part.recall:.4f}", "", part.recall, 0.99),
        Row("a question, median", f"{part.percentile(0.5):.1f} ms", f"{part.question_work:.1f} ms",
            part.percentile(0.5), 30, at_most=True),
        Row("a question, 95 of 100", f"{part.percentile(0.95):.1f} ms"),
        Row("memory a process takes to ask", f"{grown:.0f} MB", f"{part.megabytes:.0f} MB stored",
            grown / part.megabytes, 0.25, at_most=True),
        Row("a memory in int8", f"{codec.row_bytes} B", f"{corpus.dimension * 2} B", codec.row_bytes / 2 /
            corpus.dimension, 0.51, at_most=True),
        Row("relative error of int8", f"{error:.4f}", f"cosine {cosine:.5f}"),
    ]  # fmt: skip
    return rows, {"documents": documents, "recall by key length and oversampling": curves}


def keys_part(folder: Path, keys: int) -> list[Row]:
    """Measure many keys: the scan, and the index if the store creates one for this number."""
    corpus = SyntheticMemories(keys, n_mem=1, hidden=DEFAULT_LENGTH, topics=max(1, keys // 1000))
    part = Part(corpus, MemoryStore.open(folder / "keys", memory_type="int8", key=DEFAULT_LENGTH), text_words=0)
    part.fill()
    questions = corpus.questions(spread(keys, QUESTIONS))
    part.ask(questions)
    part.compare(questions)
    scan = part.percentile(0.5)
    rows = [
        Row(f"ingest of {keys:,} keys", f"{keys / part.seconds:.0f}/s", f"{keys / part.work:.0f}/s"),
        Row(f"scan of {keys:,} keys, median", f"{scan:.1f} ms", f"{part.question_work:.1f} ms"),
        Row(f"recall@{K} by the scan", f"{part.recall:.4f}"),
    ]
    before = time.perf_counter()
    part.store.optimize(show_progress=True)
    built = time.perf_counter() - before
    part.store.close()
    if part.store.stats().key_index_rows is not None:
        part.ask(questions)
        index = part.percentile(0.5)
        rows += [
            Row("making the indexes", f"{built:.0f} s"),
            Row(f"index over {keys:,} keys, median", f"{index:.1f} ms", f"{part.question_work:.1f} ms"),
            Row(f"recall@{K} by the index", f"{part.recall:.4f}"),
        ]
        scan = min(scan, index)
    rows.append(Row("scan or index, the quicker", f"{scan:.1f} ms", "", scan, 150, at_most=True))
    return rows


def spread(count: int, wanted: int) -> list[int]:
    """This number of documents, evenly distributed."""
    return sorted({index * count // wanted for index in range(min(count, wanted))})


def asking_bytes(uri: str, questions: Tensor) -> int:
    """Memory of a separate process that opens a store and searches it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_asked, uri, questions.float().numpy()).result()


def _asked(uri: str, questions: np.ndarray) -> int:
    before = private_bytes()
    store = MemoryStore.open(uri, read_only=True)
    for question in torch.from_numpy(questions).flatten(1):
        store.search(question, K)
    return private_bytes() - before


def private_bytes() -> int:
    """Anonymous memory of the process, which the system cannot reclaim. Without Linux, the peak so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024


def check_room(folder: Path, needed: int) -> None:
    """Raise an error before the disk is full."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, this needs {needed / 1e9:.1f} GB: give --folder")


def main(
    documents: Annotated[int, typer.Option(min=QUESTIONS, help="Memories of 65,536 numbers.")] = 20_000,
    keys: Annotated[int, typer.Option(min=0, help="Keys without memories; 0 skips that part.")] = 1_000_000,
    quick: Annotated[bool, typer.Option("--quick", help="400 memories and 4,000 keys.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Folder to write to; removed afterwards.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw recall over key length and oversampling here.")] = None,
) -> None:
    """Measure a store of synthetic memories."""
    if quick:
        documents, keys = 400, 4_000
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        # Compacting writes a second copy of all files before it deletes the first.
        check_room(Path(place), 2 * documents * 140_000 + 2 * keys * 4 * DEFAULT_LENGTH)
        rows, facts = memories_part(Path(place), documents, plot)
        rows += keys_part(Path(place), keys) if keys else []
    where = hardware("cpu")
    show(f"store, {where}", rows, {"benchmark": "store", "hardware": where, "keys": keys, **facts},
         other="processor time, or beside")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
