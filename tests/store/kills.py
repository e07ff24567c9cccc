"""Kills several concurrent writers sixty times: no acknowledged document may be lost or mixed. It takes minutes.

python -m tests.store.kills            # 20 rounds of three writers
python -m tests.store.kills 5
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from typing import Any

from clara_core import MemoryStore
from tests.store.watched import PATIENCE, Writers, contents, replay

NAMES = ("a", "b", "c")  # of writers, each with its own documents


def main(rounds: int = 20) -> None:
    """Kill all writers of a round at random moments, and check the store."""
    rng = random.Random(2026)
    acknowledged = interrupted = 0
    versions: dict[str, dict[str, int]] = {name: {} for name in NAMES}
    writers = Writers()
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/store"
        for attempt in range(rounds):
            pids = {
                writers.start(uri=uri, seed=3 * attempt + number, versions=versions[name], name=name): name
                for number, name in enumerate(NAMES)
            }
            said: list[Any] = []
            steps = rng.randint(1, 8)
            while sum(kind == "done" for _, kind, _ in said) < steps:
                said.append(writers.said.get(timeout=PATIENCE))
            time.sleep(rng.uniform(0, 0.05))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                said += writers.end(pid)
            assert not [line for line in said if line[1] == "failed"], said
            found = contents(MemoryStore.open(uri))
            for pid, name in pids.items():
                expected, under_way = replay([line for line in said if line[0] == pid], versions[name])
                own = {id_: version for id_, version in found.items() if id_.startswith(f"{name} ")}
                maybe = dict.fromkeys((under_way or {}).get("delete", ())) | (under_way or {}).get("add", {})
                assert own.keys() | maybe.keys() == expected.keys() | maybe.keys(), (own, expected, maybe)
                for id_ in expected.keys() | maybe.keys():
                    allowed = {expected.get(id_), maybe[id_]} if id_ in maybe else {expected[id_]}
                    assert own.get(id_) in allowed, (id_, own.get(id_), allowed)
                versions[name] = own
                interrupted += under_way is not None
            acknowledged += sum(kind == "done" for _, kind, _ in said)
            sys.stdout.write(
                f"{3 * (attempt + 1)} kills, {interrupted} of them in the middle of a step; {acknowledged} steps "
                f"acknowledged, none lost; {len(found)} documents, none torn\n"
            )
            sys.stdout.flush()
    writers.process.stdin.close()
    writers.process.wait(PATIENCE)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
