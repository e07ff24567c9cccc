"""Compares ClaraVectorStore with LlamaIndex's SimpleVectorStore at the length of a 7B model's memories.

    python benchmarks/llama_index_store.py            1,000 nodes of 65,536 numbers
    python benchmarks/llama_index_store.py --nodes 200

Memories are random numbers in the shape of real ones. The model is a tiny one with 1,024 memory tokens of 64 numbers,
because a store needs only the length of a memory from its model. Each measurement runs in a process of its own, so that
its peak memory is measured alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]
LENGTH = 65_536
MEASURES = ("memories", "vectors", "simple")
TOP_K = 5
QUERIES = 5


def main() -> None:
    """Run each measurement in a process, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--simple-nodes", type=int, default=100, help="nodes for LlamaIndex's store, which is slow")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="append the line to a file")
    options = parser.parse_args()
    if options.measure:
        print(
            json.dumps(MEASURE[options.measure](options.simple_nodes if options.measure == "simple" else options.nodes))
        )
        return
    results = {}
    for measure in MEASURES:
        numbers = [f"--nodes={options.nodes}", f"--simple-nodes={options.simple_nodes}"]
        command = [sys.executable, __file__, "--measure", measure, *numbers]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        results[measure] = json.loads(done.stdout.splitlines()[-1])
    show(results)
    line = json.dumps({"benchmark": "llama_index_store", "cpus": len(os.sched_getaffinity(0)), **results})
    print(line)
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def show(results: dict[str, dict[str, float]]) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    names = {
        "memories": "ClaraVectorStore, add(memories=)",
        "vectors": "ClaraVectorStore, vectors as lists, 64 at a time",
        "simple": "SimpleVectorStore",
    }
    table = Table("store", "nodes", "insert s", "insert peak / size", "query ms", title=f"{LENGTH} numbers a node")
    for measure, row in results.items():
        numbers = f"{row['insert_s']:.1f}", f"{row['peak_ratio']:.2f}", f"{row['query_ms']:.0f}"
        table.add_row(names[measure], f"{row['nodes']:.0f}", *numbers)
    Console().print(table)


# -- one measurement, in its own process -----------------------------------------------------------


def measure_memories(n: int) -> dict[str, float]:
    """Add memories one after the other, as from `compress_stream`."""
    from llama_index.core.schema import TextNode

    engine = wide_engine()
    store = new_store(engine)
    texts = [f"text {number}" for number in range(n)]
    nodes = (TextNode(id_=text, text=text) for text in texts)
    return measured(store, n, lambda: store.add(nodes, memories=synthetic_memories(engine, texts)))


def measure_vectors(n: int) -> dict[str, float]:
    """Add vectors as lists, as LlamaIndex passes them, in batches of an index with ``insert_batch_size=64``."""
    store = new_store(wide_engine())

    def insert() -> None:
        for start in range(0, n, 64):
            store.add(synthetic_nodes(range(start, min(start + 64, n))))

    return measured(store, n, insert)


def measure_simple(n: int) -> dict[str, float]:
    """LlamaIndex's own store, which keeps lists."""
    from llama_index.core.vector_stores import SimpleVectorStore

    store = SimpleVectorStore()

    def insert() -> None:
        for start in range(0, n, 64):
            store.add(synthetic_nodes(range(start, min(start + 64, n))))

    return measured(store, n, insert)


MEASURE = {"memories": measure_memories, "vectors": measure_vectors, "simple": measure_simple}


def measured(store: object, n: int, insert: Callable[[], object]) -> dict[str, float]:
    """Seconds and peak memory of an insertion, and milliseconds of a query (the shortest of several)."""
    import numpy as np
    from llama_index.core.vector_stores.types import VectorStoreQuery

    question = np.random.default_rng(1).standard_normal(LENGTH).tolist()
    with Peak() as peak:
        start = time.perf_counter()
        insert()
        insert_s = time.perf_counter() - start
    query_ms, query_cpu_ms = [], []
    for _ in range(QUERIES):
        start, spent = time.perf_counter(), time.process_time()
        found = store.query(VectorStoreQuery(query_embedding=question, similarity_top_k=TOP_K))  # type: ignore[attr-defined]
        query_ms.append(1_000 * (time.perf_counter() - start))
        query_cpu_ms.append(1_000 * (time.process_time() - spent))
        if len(found.ids) != min(TOP_K, n):
            raise RuntimeError(f"found {len(found.ids)} nodes")
    size = n * LENGTH * 4
    times = {"insert_s": insert_s, "query_ms": min(query_ms), "query_cpu_ms": min(query_cpu_ms)}
    return {"nodes": n, "peak_ratio": peak.bytes / size, **times}


class Peak:
    """Measures the peak memory of the process above its memory at the start."""

    bytes = 0

    def __enter__(self) -> Self:
        self._begin = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, resident() - self._begin)
        self.bytes = max(self.bytes, resident() - self._begin)


def resident() -> int:
    """Resident bytes of this process now."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def wide_engine() -> object:
    """An engine whose memories have `LENGTH` numbers."""
    sys.path.insert(0, str(ROOT))
    from clara_core import ClaraEngine
    from tests.tiny import build

    engine = ClaraEngine.from_pretrained(str(build(Path(tempfile.mkdtemp()), window=1024, rate=1).folder))
    engine.load()
    return engine


def new_store(engine: object) -> object:
    """An empty store."""
    from llama_index_clara import ClaraVectorStore

    return ClaraVectorStore(engine=engine)


def synthetic_memories(engine: object, texts: list[str]) -> Iterator[object]:
    """Random numbers in the shape of memories."""
    import numpy as np
    import torch

    from clara_core import Memory

    rng = np.random.default_rng(0)
    n_mem, hidden, fingerprint = engine.n_mem, engine.hidden, engine.fingerprint  # type: ignore[attr-defined]
    for text in texts:
        tokens = torch.from_numpy(rng.standard_normal((1, n_mem, hidden), np.float32))
        yield Memory(tokens, text, ((0, len(text)),), 1, fingerprint)


def synthetic_nodes(numbers: range) -> list[object]:
    """Nodes with random vectors as lists of Python numbers."""
    import numpy as np
    from llama_index.core.schema import TextNode

    return [
        TextNode(
            id_=str(number),
            text=f"text {number}",
            embedding=np.random.default_rng(number).standard_normal(LENGTH).tolist(),
        )
        for number in numbers
    ]


if __name__ == "__main__":
    main()
