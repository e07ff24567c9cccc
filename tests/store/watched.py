"""The parent of processes that write to a store, and what the store must hold after them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

import torch

from tests.store.writers import memory_of

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 600.0  # seconds after which a test fails; every step takes less than one


class Writers:
    """The parent of the writing processes, and their messages."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.writers"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.hear("ready")

    def _listen(self):
        for line in self.process.stdout:
            self.said.put(json.loads(line))

    def hear(self, kind):
        """The next message, which must be of this kind."""
        pid, found, what = self.said.get(timeout=PATIENCE)
        assert found == kind, (pid, found, what)
        return what

    def start(self, **arguments):
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        heard = []
        while not heard or heard[-1][1] != "started":
            heard.append(self.said.get(timeout=PATIENCE))
        for early in heard[:-1]:  # a message of the child, which may arrive before that of its parent
            self.said.put(early)
        return heard[-1][2]

    def end(self, pid):
        """Wait until a process ends; returns all its messages."""
        print(json.dumps({"wait": pid}), file=self.process.stdin, flush=True)
        heard = []
        while not heard or heard[-1][1:] != ["ended", pid]:
            heard.append(self.said.get(timeout=PATIENCE))
        return heard[:-1]


def replay(said, versions):
    """The expected contents after these steps, and the step that was in progress, if any."""
    under_way = None
    for _, kind, what in said:
        if kind == "will":
            under_way = what
        elif kind == "done":
            under_way = None
            if "add" in what:
                versions = versions | what["add"]
            elif "delete" in what:
                versions = {name: version for name, version in versions.items() if name not in what["delete"]}
    return versions, under_way


def version_in(record):
    """The version of a document in a record; all parts must belong to it."""
    version = record.metadata["version"]
    memory = memory_of(record.id, version)
    assert record.metadata == {"version": version, "name": record.id}
    assert (record.text, record.spans, record.source_tokens) == (memory.text, memory.spans, memory.source_tokens)
    return version


def contents(store):
    """Version of every document; checks that each is complete, exists once, and is found."""
    found = {}
    for record in store:
        assert record.id not in found
        found[record.id] = version_in(record)
    names = list(found)
    assert store.count() == len(names)
    assert [record.id for record in store.get(names)] == names
    for name, memory in zip(names, store.memories(names), strict=True):
        expected = memory_of(name, found[name])
        assert torch.equal(memory.tokens.float(), expected.tokens)
        assert memory.text == expected.text
    if names:
        windows = [(name, window) for name in names for window in memory_of(name, found[name]).tokens]
        hits = store.search(torch.stack([window for _, window in windows]), k=1)
        assert [hit.id for [hit] in hits] == [name for name, _ in windows]
        assert all(hit.score > 0.999 for [hit] in hits)
    return found
