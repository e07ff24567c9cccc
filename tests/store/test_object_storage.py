"""A store on object storage: an S3 server on this machine (moto), with writers in lockstep."""

from __future__ import annotations

import pickle
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from clara_core import MemoryStore
from tests.store.memories import made_memory

server = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[s3]' flask flask-cors")


@pytest.fixture
def options(monkeypatch):
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    address = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"))  # noqa: S310
    yield {
        "aws_access_key_id": "a",
        "aws_secret_access_key": "b",
        "aws_region": "us-east-1",
        "aws_endpoint": address,
        "allow_http": "true",
    }
    running.stop()


def test_a_bucket_is_a_place_like_any_other(options):
    uri = "s3://bucket/store"
    store = MemoryStore.open(uri, storage_options=options)
    assert (store.count(), store.fingerprint) == (0, None)
    ids = [str(number) for number in range(12)]
    store.add(
        memories=[made_memory(f"text {id_}", 2) for id_ in ids], ids=ids, metadatas=[{"n": int(id_)} for id_ in ids]
    )
    assert store.count({"n": {"$lt": 5}}) == 5
    assert store.search("7", k=1, mode="text")[0].id == "7"
    assert store.search(made_memory("text 8", 2).tokens[1].flatten(), k=1)[0].window == 1

    writers, barrier = [MemoryStore.open(uri, storage_options=options) for _ in range(3)], threading.Barrier(3)

    def write(number):
        for step in range(2):
            barrier.wait()
            names = [f"same {step}", "always", f"{number} {step}"]
            writers[number].add(ids=names, memories=[made_memory(f"{name} by {number}") for name in names])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    found = [record.id for record in store]
    assert len(found) == len(set(found)) == 12 + 2 + 1 + 6
    assert store.delete(["3"], {"n": 3}) == 1
    store.optimize()
    store.compact()
    assert (store.stats().fragments, store.check()) == (1, [])
    assert len(pickle.loads(pickle.dumps(store))) == 20  # noqa: S301
