"""The bulk job with Ray workers, one of which is killed: `make test-ray`, a minute or more."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clara_core import MemoryStore
from clara_core.engine.options import EngineArguments
from clara_core.store.bulk import Columns, compress_dataset
from tools.pocket_factory.world import ENCYCLOPEDIA, make_corpus

pytestmark = pytest.mark.ray

PASSAGES = 240
ROWS = 20  # of a shard


@pytest.fixture(scope="module")
def cluster():
    """Ray with two processors, on this machine only."""
    # Ray gives its workers only the processors that other programs leave, which on a busy machine are none.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    made = make_corpus(random.Random(3), PASSAGES, split="test", words=(20, 60), questions_per_passage=0, two_passage=0)
    table = pa.table(
        {
            "id": [f"passage {number}" for number in range(PASSAGES)],
            "text": [passage.text for passage in made.passages],
            "number": list(range(PASSAGES)),
        }
    )
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    pq.write_table(table, path, row_group_size=ROWS)
    return str(path)


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    """The store that one process writes, and the seconds that this takes."""
    uri = str(tmp_path_factory.mktemp("alone") / "store")
    assert compress_dataset(source, uri, arguments(), Columns(id="id"), rows_per_shard=ROWS) == PASSAGES
    return uri


def arguments():
    return EngineArguments(model=ENCYCLOPEDIA)


def workers():
    """The compressing processes of Ray."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("MapWorker" in part for part in child.cmdline())]


def assert_equal(uri, other):
    """Assert exact equality, because the same shards were compressed in the same batches."""
    one, two = MemoryStore.open(uri), MemoryStore.open(other)
    ids = sorted(record.id for record in one)
    assert ids == sorted(record.id for record in two)
    assert len(ids) == PASSAGES
    assert one.get(ids) == two.get(ids)
    for memory, same in zip(one.memories(ids), two.memories(ids), strict=True):
        assert torch.equal(memory.tokens, same.tokens)


@pytest.mark.timeout(900)
def test_two_workers_of_which_one_is_killed_make_what_one_process_makes(cluster, source, alone, tmp_path):
    uri = str(tmp_path / "store")
    notes = Path(uri) / "bulk"
    killed = []

    def kill():
        deadline = time.monotonic() + 600
        while len(list(notes.glob("[!.]*.arrow"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        victim = workers()[0]
        os.kill(victim.pid, signal.SIGKILL)
        killed.append((victim.pid, len(list(notes.glob("[!.]*.arrow")))))

    thread = threading.Thread(target=kill)
    thread.start()
    written = compress_dataset(source, uri, arguments(), Columns(id="id"), workers=2, rows_per_shard=ROWS)
    thread.join()
    assert written == PASSAGES
    [(_, finished)] = killed
    assert 3 <= finished < PASSAGES // ROWS  # in the middle
    assert_equal(uri, alone)
    assert not notes.exists()
    assert compress_dataset(source, uri, arguments(), Columns(id="id"), workers=2, rows_per_shard=ROWS) == 0


@pytest.mark.timeout(900)
def test_what_is_wrong_with_a_dataset_stops_the_job_with_its_own_error(cluster, source, tmp_path):
    """The error is found before workers are started, and nothing is written."""
    from clara_core import DataError

    twice = tmp_path / "twice.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(source)] * 2), twice)
    with pytest.raises(DataError, match="the id 'passage 0' occurs again"):
        compress_dataset(str(twice), str(tmp_path / "store"), arguments(), Columns(id="id"), workers=2)
    assert MemoryStore.open(tmp_path / "store").count() == 0
