"""Compares the stores of two commits: small adds, bulk writes, search, filters, and a store in memory.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.store_against /tmp/before . --documents 20000

Each part runs in a process of its own, in one tree after the other, so that both have the same conditions. The parts
use `MemoryStore` and LangChain's `ClaraVectorStore`, which both trees have. The program prints a line for each figure
and a JSON line. Milliseconds are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

N_MEM, HIDDEN = 16, 4096  # of a window of a 7B model
K = 10
FIELDS = ("town", "year", "kind", "note")
TOWNS = ("Aln", "Wye", "Dorn", "Esk", "Tarn", "Orwell", "Lune", "Nidd")


def main() -> None:
    """Measure all parts in both trees, or one part where `part` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", help="Folders of the two commits; with --part that of this process.")
    parser.add_argument("--documents", type=int, default=20_000, help="Memories of 65,536 numbers.")
    parser.add_argument("--rows", type=int, default=200_000, help="Documents to filter.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Parts to measure.")
    parser.add_argument("--folder", default=None, help="Folder to write to; removed afterwards.")
    parser.add_argument("--part", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part is not None:
        print(json.dumps(PARTS[given.part](Path(given.folder), given)))
        return
    found: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for part in given.parts.split(","):
            if part == "large":
                write_memories(Path(folder), given.documents)
            for number, tree in enumerate(given.trees):
                place = Path(folder) / f"{part}-{number}"
                place.mkdir()
                for name, value in measured(part, tree, place, given).items():
                    found.setdefault(f"{part}: {name}", []).append(value)
                shutil.rmtree(place)
            for name, values in found.items():
                if name.startswith(f"{part}:"):
                    print(f"{name:60}" + "".join(f"{value:>14,.4g}" for value in values), flush=True)
    print(json.dumps(found))


def measured(part: str, tree: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Run a part in a process that imports the tree."""
    command = [sys.executable, __file__, tree, "--part", part, "--folder", str(folder)]
    command += ["--documents", str(given.documents), "--rows", str(given.rows)]
    environment = os.environ | {"PYTHONPATH": str(Path(tree).resolve())}
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_memories(folder: Path, documents: int) -> None:
    """Write memories in bfloat16 to a file for both trees."""
    from benchmarks.synthetic_memories import SyntheticMemories

    corpus = SyntheticMemories(documents, topics=max(1, documents // 200))
    with (folder / "memories").open("wb") as file:
        for tokens in corpus.batches(512):
            file.write(tokens.view(torch.int16).numpy().tobytes())
    asked = corpus.questions([number * documents // 100 for number in range(100)])
    (folder / "questions").write_bytes(asked.view(torch.int16).numpy().tobytes())


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Median of several calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def memory_of(tokens: torch.Tensor, text: str) -> Any:
    """A memory of one window."""
    from clara_core import Memory

    return Memory(tokens[None], text, ((0, len(text)),), len(text.split()), "synthetic")


def single_adds(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Add a thousand documents of 8 KB one by one."""
    from clara_core.store import MemoryStore

    store = MemoryStore.open(folder / "store")
    drawn = torch.randn(1000, 4, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    figures, taken = {}, []
    for number, tokens in enumerate(drawn, 1):
        memory = memory_of(tokens, f"document number {number}")
        start = time.perf_counter()
        store.add(ids=[str(number)], memories=[memory])
        taken.append((time.perf_counter() - start) * 1e3)
        if number in (300, 1000):
            figures[f"first 50 of {number}, ms"] = statistics.median(taken[:50])
            figures[f"last 50 of {number}, ms"] = statistics.median(taken[-50:])
            figures[f"files after {number}"] = sum(path.is_file() for path in folder.rglob("*"))
    return figures | {"all 1000, s": sum(taken) / 1e3}


def large(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Write memories of a 7B model in batches, and search one question at a time."""
    from clara_core.store import MemoryStore

    numbers = np.memmap(folder.parent / "memories", np.int16, "r").reshape(-1, N_MEM, HIDDEN)
    store = MemoryStore.open(folder / "store")
    wall = work = 0.0
    for start in range(0, len(numbers), 512):
        tokens = torch.from_numpy(numbers[start : start + 512].copy()).view(torch.bfloat16)
        memories = [memory_of(one, f"number {start + index}") for index, one in enumerate(tokens)]
        ids = [str(start + index) for index in range(len(tokens))]
        before, spent = time.perf_counter(), time.process_time()
        store.add(ids=ids, memories=memories)
        wall += time.perf_counter() - before
        work += time.process_time() - spent
    megabytes = numbers.nbytes / 1e6
    store.compact()
    store.close()
    rest = private_bytes()
    flat = np.fromfile(folder.parent / "questions", np.int16).reshape(-1, N_MEM, HIDDEN)
    questions = torch.from_numpy(flat).view(torch.bfloat16)
    exact = [{hit.id for hit in hits} for hits in store.search(questions, K, exact=True)]
    found = [{hit.id for hit in store.search(question, K)} for question in questions.flatten(1)]
    taken = [milliseconds(lambda own=question: store.search(own, K), 1) for question in questions.flatten(1)]  # type: ignore[misc]
    spent = time.process_time()
    for question in questions.flatten(1):
        store.search(question, K)
    spent = (time.process_time() - spent) * 1e3 / len(questions)
    return {
        "write, MB/s": megabytes / wall, "write, MB/s of processor time": megabytes / work,
        "search, ms": statistics.median(taken), "search, ms of processor time": spent,
        "recall@10": statistics.fmean(len(one & other) / K for one, other in zip(found, exact, strict=True)),
        "memory of the search, MB": (private_bytes() - rest) / 1e6,
    }  # fmt: skip


def filters(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Count documents that pass filters, without and with indexes."""
    from clara_core.store import MemoryStore

    store = MemoryStore.open(folder / "store")
    tokens = torch.ones(1, 8).bfloat16()
    for start in range(0, given.rows, 8192):
        numbers = range(start, min(start + 8192, given.rows))
        metadatas = [
            dict(zip(FIELDS, (TOWNS[n % 8], 1700 + n % 300, n % 5, f"note {n % 1000} of it"), strict=True))
            for n in numbers
        ]
        store.add(
            ids=[str(n) for n in numbers], metadatas=metadatas, memories=[memory_of(tokens, f"t {n}") for n in numbers]
        )
    store.compact()
    conditions: dict[str, Any] = {
        "equality": {"town": "Aln"}, "rare equality": {"note": "note 77 of it"}, "range": {"year": {"$gte": 1900}},
        "part of a string": {"note": {"$contains": "77 of"}}, "icontains": {"note": {"$icontains": "77 OF"}},
    }  # fmt: skip
    figures = {name: milliseconds(lambda own=rule: store.count(own), 5) for name, rule in conditions.items()}  # type: ignore[misc]
    store.optimize()
    figures |= {
        f"{name} with an index": milliseconds(lambda own=conditions[name]: store.count(own), 5)  # type: ignore[misc]
        for name in ("equality", "rare equality")
    }
    return {f"{name}, ms": value for name, value in figures.items()}


def in_memory(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """LangChain's store without a folder, with vectors of another embedding."""
    return of_length(4096, (1000, 10_000)) | of_length(65_536, (1000,))


def of_length(length: int, sizes: Sequence[int]) -> dict[str, float]:
    """The store in memory with vectors of one length, once it has so many."""
    from langchain_core.embeddings import Embeddings

    from langchain_clara import ClaraVectorStore

    class Drawn(Embeddings):
        """Vectors that follow from the text; those in `ready` are taken first."""

        ready: dict[str, list[float]] = {}  # noqa: RUF012

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [self.ready.pop(text, None) or self.embed_query(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            stream = np.random.Generator(np.random.SFC64([length, *text.encode()]))
            return stream.standard_normal(length).tolist()  # type: ignore[no-any-return]

    embedding = Drawn()
    question = embedding.embed_query("asked")
    rest = private_bytes()
    store = ClaraVectorStore(embedding)
    figures = {}
    for size in sizes:
        for start in range(len(store), size, 250):
            store.add_texts([f"text {number}" for number in range(start, min(start + 250, size))])
        more = iter([f"more {size} {number}" for number in range(30)])
        Drawn.ready = {text: embedding.embed_query(text) for text in (f"more {size} {number}" for number in range(30))}
        name = f"{size:,} x {length:,}"
        figures[f"single add at {name}, ms"] = milliseconds(lambda own=more: store.add_texts([next(own)]), 30)  # type: ignore[misc]
        figures[f"search at {name}, ms"] = milliseconds(lambda: store.similarity_search_by_vector(question, k=K), 30)
        figures[f"memory at {name}, MB"] = (private_bytes() - rest) / 1e6
    return figures


def private_bytes() -> int:
    """Anonymous memory of the process, in bytes; without Linux, the peak of all its memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) * 1024


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "adds": single_adds, "large": large, "filters": filters, "memory": in_memory,
}  # fmt: skip

if __name__ == "__main__":
    main()
