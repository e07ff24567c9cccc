"""Processes that write to a store until they are killed, for `watched.py`.

    python -m tests.store.writers

It reads JSON objects, one on each line, with the arguments of `write`. For each it forks a child that writes, and that
reports each step on standard output before it begins ("will") and after it ends ("done" or "failed"). Imports happen
once in the parent, so that a child starts in milliseconds. The parent opens nothing that a child could share.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
import warnings
from itertools import count, pairwise
from typing import Any

import torch

from clara_core import Memory, MemoryStore

N_MEM, HIDDEN = 2, 16
FINGERPRINT = "f" * 64
IDS = 60


def text_of(name: str, version: int) -> str:
    """Text of a version of a document; it names the version."""
    return f"{name} in its version {version}: " + "words of it " * (version % 7)


def memory_of(name: str, version: int) -> Memory:
    """A memory of one to three windows, different for each version of each document."""
    text = text_of(name, version)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    generator = torch.Generator().manual_seed(seed)
    windows = 1 + version % 3
    tokens = torch.randn(windows, N_MEM, HIDDEN, generator=generator).bfloat16().float()
    cuts = [len(text) * part // windows for part in range(windows + 1)]
    return Memory(tokens, text, tuple(pairwise(cuts)), 5 * windows, FINGERPRINT)


def add(store: MemoryStore, versions: dict[str, int]) -> None:
    """Write documents, each with its version."""
    memories = [memory_of(name, version) for name, version in versions.items()]
    store.add(
        [memory.text for memory in memories],
        ids=list(versions),
        metadatas=[{"version": version, "name": name} for name, version in versions.items()],
        memories=memories,
    )


def step(rng: random.Random, versions: dict[str, int], name: str) -> dict[str, Any]:
    """The next step: usually new or changed documents, sometimes a deletion or maintenance."""
    chance = rng.random()
    if chance < 0.15 and versions:
        return {"delete": rng.sample(sorted(versions), min(len(versions), 3))}
    if chance < 0.22:
        return {"tidy": "compact"}
    if chance < 0.28:
        return {"tidy": "optimize"}
    names = rng.sample([f"{name} {number}" for number in range(IDS)], rng.randint(1, 6))
    return {"add": {each: versions.get(each, -1) + 1 for each in names}}


def say(kind: str, what: Any) -> None:
    """Write one line with the id of the process; it is atomic, because it is shorter than the buffer of a pipe."""
    os.write(1, (json.dumps([os.getpid(), kind, what]) + "\n").encode())


def write(
    uri: str,
    seed: int,
    versions: dict[str, int],
    name: str = "document",
    steps: int | None = None,
    largest_file: int | None = None,
) -> None:
    """Change the store again and again.

    Args:
        uri: Address of the store.
        seed: Seed of the steps.
        versions: Version of each document in the store.
        name: Prefix of the names of the documents.
        steps: Number of steps; None: no end.
        largest_file: Maximum bytes of a file; None: no limit.
    """
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the call raises an error and the process does not end
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    rng = random.Random(seed)
    store = MemoryStore.open(uri)
    for _ in count() if steps is None else range(steps):
        todo = step(rng, versions, name)
        say("will", todo)
        try:
            take(store, todo, versions)
        except Exception as exc:  # noqa: BLE001 - any error is reported to the test
            say("failed", [type(exc).__name__, str(exc)])
            return
        say("done", todo)


def take(store: MemoryStore, todo: dict[str, Any], versions: dict[str, int]) -> None:
    """Apply a step, and record it in `versions`."""
    if "add" in todo:
        add(store, todo["add"])
        versions |= todo["add"]
    elif "delete" in todo:
        store.delete(ids=todo["delete"])
        for name in todo["delete"]:
            del versions[name]
    else:
        getattr(store, todo["tidy"])()


def main() -> None:
    """Fork a writer for each line, or wait for the end of one that was forked."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # forking is safe before anything is opened
    say("ready", None)
    for line in sys.stdin:
        arguments = json.loads(line)
        if "wait" in arguments:
            os.waitpid(arguments["wait"], 0)
            say("ended", arguments["wait"])
            continue
        pid = os.fork()
        if pid == 0:
            write(**arguments)
            os._exit(0)
        say("started", pid)


if __name__ == "__main__":
    main()
