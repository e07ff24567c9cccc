"""Two replicas on Ray Serve, started from the file in deploy/: `make test-ray`, some minutes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from clara_core import ClaraEngine, MemoryStore, open_engine
from tests.serving.servers import PATIENCE
from tests.serving.test_process import free_port

# Ray's own use of pydantic gives warnings.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:Using extra keyword arguments:DeprecationWarning")]

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-more-than-sixteen"
REPLICA = "x-clara-replica"
PASSAGES = [
    "Galsena Instruments produces pumps, stoves and bells.",
    "Fesunrin Bridge is made of white marble and rests on 3 arches.",
]
CHAT = {"model": "clara", "messages": [{"role": "user", "content": "Tell me about the bridge"}], "max_tokens": 200}
SERVE = "from ray.serve.scripts import cli; cli()"  # the command `serve` of this Python


class Cluster:
    """A cluster that `serve run` has started."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, headers={"authorization": f"Bearer {KEY}"})

    def replicas(self) -> list[psutil.Process]:
        return [each for each in psutil.process_iter(["cmdline"]) if "ServeReplica:clara" in _command(each)]

    def wait_until(self, holds: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, "serve run has ended"
            assert time.monotonic() < end, "it never came to be"
            time.sleep(0.1)

    def up(self) -> bool:
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def by_replica(self, ask: Callable[[], httpx.Response], several: int = 2) -> dict[str, httpx.Response]:
        """One response of each replica."""
        found: dict[str, httpx.Response] = {}

        def asked() -> bool:
            response = ask()
            found[response.headers.get(REPLICA, "none")] = response
            return len(found) >= several

        self.wait_until(asked)
        return found


def _command(process: psutil.Process) -> str:
    return " ".join(process.info["cmdline"] or ())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, local: ClaraEngine) -> Iterator[Cluster]:
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    folder = tmp_path_factory.mktemp("ray")
    MemoryStore.open(str(folder / "store"), local).add(PASSAGES)
    (folder / "keys.txt").write_text(KEY)
    # The file of deploy/, with the resources of this machine.
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    port = free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    application["args"] |= {
        "options": {"model": "pocket", "device": "cpu"},
        "stores": {"handbook": str(folder / "store")},
        "writable": ["handbook"],
        "key_file": str(folder / "keys.txt"),
        "limits": {"requests": 4},
    }
    [deployment] = application["deployments"]
    del deployment["autoscaling_config"]
    deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    # Ray gives its workers only the processors that other programs leave, which on a busy machine are none.
    env = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SERVE, "run", "--blocking", str(folder / "serve.yaml")]
    with subprocess.Popen(command, env=env, cwd=folder) as process:
        started = Cluster(process, f"http://127.0.0.1:{port}")
        try:
            started.wait_until(started.up)
            yield started
        finally:
            started.http.close()
            process.terminate()
            process.wait(PATIENCE)


def test_what_is_told_is_checked_before_anything_starts(monkeypatch):
    from clara_core.serving.ray_app import Replica, application

    for values, message in (
        ({"host": "0.0.0.0"}, "host cannot be set here"),  # noqa: S104 - this is refused
        ({"keys": [KEY]}, "keys cannot be set here"),
        ({"writeable": []}, "writeable"),
        ({"writable": ["x"]}, "names the store 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            application(values)
    monkeypatch.delenv("CLARA_API_KEY", raising=False)
    with pytest.raises(ValueError, match="there is no key"):
        asyncio.run(Replica.__init__(Replica.__new__(Replica), {}))


def test_both_replicas_answer_as_one_engine_does(cluster: Cluster, local: ClaraEngine):
    engine = open_engine(cluster.url, token=KEY)
    expected = local.answer("What is Fesunrin Bridge made of?", local.remember(PASSAGES), max_tokens=16)
    for _ in range(8):
        memories = engine.remember(PASSAGES)
        assert engine.answer("What is Fesunrin Bridge made of?", memories, max_tokens=16).text == expected.text
    found = cluster.by_replica(lambda: cluster.http.get("/v1/models"))
    assert {response.json()["data"][0]["fingerprint"] for response in found.values()} == {local.fingerprint}
    assert "<title>" in cluster.http.get("/").text


def test_every_route_needs_the_key(cluster: Cluster):
    for path in ("/v1/models", "/metrics", "/"):
        assert httpx.get(cluster.url + path).status_code == 401
    assert httpx.get(cluster.url + "/health/live").status_code == 200


def test_what_one_replica_writes_the_other_finds(cluster: Cluster):
    body = json.dumps({"id": "new", "text": "Dorven Hall seats 900 people."})
    headers = {"content-type": "application/x-ndjson"}
    assert cluster.http.post("/v1/stores/handbook/documents", content=body, headers=headers).json() == {"ids": ["new"]}
    asked = {"query": "How many people does Dorven Hall seat?", "k": 1}
    found = cluster.by_replica(lambda: cluster.http.post("/v1/stores/handbook/search", json=asked))
    assert {response.json()["hits"][0]["id"] for response in found.values()} == {"new"}


def test_a_stream_comes_piece_by_piece_and_ends_with_its_client(cluster: Cluster):
    with cluster.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert len(lines) > 10
    assert lines[-1] == "data: [DONE]"

    def given_up() -> bool:
        """Whether a replica has noticed that a client disconnected while its answer was being streamed."""
        with cluster.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            next(response.iter_lines())
        shown = cluster.by_replica(lambda: cluster.http.get("/metrics")).values()
        return any('clara_cancelled_total{why="disconnect"} 0.0' not in each.text for each in shown)

    cluster.wait_until(given_up)
    cluster.wait_until(lambda: "clara_batch_rows 0.0" in cluster.http.get("/metrics").text)


def test_what_is_too_much_is_refused(cluster: Cluster):
    replies: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(timeout=PATIENCE) as http:
            headers = {"authorization": f"Bearer {KEY}"}
            replies.append(http.post(f"{cluster.url}/v1/chat/completions", json=CHAT, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(refused) <= 40 - 2 * 4
    assert {reply.status_code for reply in refused} == {503}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert any("overloaded" in reply.text and reply.headers[REPLICA] for reply in refused)


def test_a_replica_that_is_killed_is_replaced(cluster: Cluster):
    before = cluster.by_replica(lambda: cluster.http.get("/v1/models"))
    victim = cluster.replicas()[0]
    victim.kill()
    victim.wait(PATIENCE)
    statuses = []

    def replaced() -> bool:
        response = cluster.http.get("/v1/models")
        statuses.append(response.status_code)
        return response.status_code == 200 and response.headers[REPLICA] not in before

    cluster.wait_until(replaced)
    assert statuses.count(200) >= len(statuses) - 2, statuses
    assert len(cluster.replicas()) == 2
