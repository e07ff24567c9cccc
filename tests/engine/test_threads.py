"""Which threads of a process get helpers from OpenMP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from clara_core.common.threads import in_own_thread, one_thread, usual_threads

ASKED = """
import os, sys, torch
from clara_core import ClaraEngine
from clara_core.store import MemoryStore

engine = ClaraEngine.from_pretrained("pocket")
texts = [f"Room {number} has {number % 7 + 2} chairs." for number in range(200)]
for place in ("memory://", sys.argv[1]):
    store = MemoryStore.open(place, engine)
    store.add(texts, ids=[str(number) for number in range(200)])
    for mode in ("memory", "text", "hybrid"):
        [hit] = store.search("How many chairs has room 17?", 1, mode=mode, rerank=10, with_memories=True)
    store.search_mmr("How many chairs has room 17?")
    assert len(store.memories([str(number) for number in range(200)])) == 200
memories = engine.compress(texts)
engine.rank("How many chairs has room 17?", memories)
engine.answer("How many chairs has room 17?", [hit.memory])
"""
HELPERS = """
before = set(os.listdir("/proc/self/task"))
torch.ones(1 << 22).sum()
print("new helpers:", len(set(os.listdir("/proc/self/task")) - before))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux lists them")
def test_the_thread_of_a_caller_gets_no_helpers(tmp_path: Path) -> None:
    """Its first large operation outside of this library does get one, so it had none before."""
    command = [sys.executable, "-c", ASKED + HELPERS, str(tmp_path / "store")]
    ran = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"}, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "new helpers: 1"


def test_the_limit_is_of_one_thread_and_ends() -> None:
    before, seen = torch.get_num_threads(), []
    with one_thread():
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        with one_thread():
            assert torch.get_num_threads() == 1
            assert usual_threads() == before
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == usual_threads() == before
    assert seen == [before]


def test_the_limit_holds_in_a_thread_whose_first_operation_is_in_it() -> None:
    """The first operation of a thread takes over what `torch.set_num_threads` has set."""

    def limited() -> int:
        with one_thread():
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_own_thread(limited) == 1
    finally:
        torch.set_num_threads(before)


def test_a_function_in_its_own_thread_returns_and_raises() -> None:
    here = threading.get_ident()
    assert in_own_thread(threading.get_ident) != here
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 // 0)
