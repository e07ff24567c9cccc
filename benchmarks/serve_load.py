"""Measures a server above its limits: refusals and their latency, cancelled requests, and shutdown.

    python -m benchmarks.serve_load            # 1,000 clients that disconnect; some minutes
    python -m benchmarks.serve_load --quick    # small numbers

* Three times as many concurrent answers as the server accepts: the latency of refusals, and whether the others finish.
* Clients that disconnect while their answer waits, while its prompt is read, while it is written, or during a ranking.
  Afterwards no work may be left, and the process may not have grown.
* SIGTERM while answers are written: every accepted request is answered.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import psutil
import torch
import typer

from benchmarks.report import Row, hardware, show
from benchmarks.server_process import PATIENCE, Server, serving

REQUESTS = 64  # concurrent requests that the server accepts in this program
REFUSED_MS = 50.0
GROWTH_MIB = 16.0
CHAT = {
    "model": "clara",
    "messages": [{"role": "user", "content": "Tell me everything about Tolmet Bridge."}],
    "documents": ["Tolmet Bridge was opened in 1907 and crosses the river Aln."],
    "temperature": 1.5,
    "seed": 1,
}
_GAUGE = re.compile(r"^(clara_\S+) ([0-9.e+]+)$", re.MULTILINE)
_LEFT = 'clara_cancelled_total{why="disconnect"}'


@dataclass(frozen=True)
class Reply:
    """Status of a response and its latency; status 0 is a refused or broken connection."""

    status: int
    seconds: float
    retry_after: str | None = None


async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    """Request one answer."""
    start = time.perf_counter()
    try:
        reply = await http.post("/v1/chat/completions", json=body)
    except httpx.TransportError:
        return Reply(0, time.perf_counter() - start)
    return Reply(reply.status_code, time.perf_counter() - start, reply.headers.get("retry-after"))


async def overload(url: str, taken: int) -> Sequence[Reply]:
    """Request three times as many answers as the server accepts.

    The server accepts `taken` requests first. The others use connections that are already open, so that only the
    refusal is measured.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:
        first = [asyncio.create_task(ask(http, {**CHAT, "max_tokens": 256})) for _ in range(taken)]
        await asyncio.to_thread(begun, url, taken)
        rest = [await ask(http, {**CHAT, "max_tokens": 256}) for _ in range(2 * taken)]
        return [*rest, *(await asyncio.gather(*first))]


def gauge(reply: httpx.Response, name: str) -> float:
    """One value of the metrics page."""
    return float(dict(_GAUGE.findall(reply.text))[name])


def begun(url: str, count: int) -> None:
    """Wait until the server has accepted this many requests."""
    while gauge(httpx.get(f"{url}/metrics", timeout=PATIENCE), "clara_requests_in_flight") < count:
        time.sleep(0.01)


def leave(url: str, count: int) -> None:
    """Send requests from clients that close their connection at one of four moments."""
    host, port = url.removeprefix("http://").split(":")
    rng = random.Random(1)
    for number in range(count):
        chat = {**CHAT, "max_tokens": 1000, "stream": number % 4 == 2}
        path, body = "/v1/chat/completions", chat
        if number % 4 == 3:
            path, body = "/v1/rerank", {"query": "Who?", "documents": [f"Note {number} {n}." for n in range(50)]}
        content = httpx.Request("POST", url, json=body).content
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), PATIENCE) as raw:
            raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            if number % 4 == 2:
                raw.recv(65536)  # the stream has begun
            elif number % 4:
                time.sleep(rng.uniform(0, 0.02))


def settled(url: str) -> bool:
    """Whether the server becomes idle."""
    names = ("requests_in_flight", "worker_waiting_answers", "worker_waiting_questions", "worker_waiting_passages")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        page = httpx.get(f"{url}/metrics", timeout=PATIENCE)
        if not any(gauge(page, f"clara_{name}") for name in (*names, "batch_rows")):
            return True
        time.sleep(0.05)
    return False


async def ended(server: Server, count: int) -> tuple[Counter[int], int]:
    """Send SIGTERM while answers are written; returns the responses and the exit status."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
        asked = [asyncio.create_task(ask(http, {**CHAT, "max_tokens": 256})) for _ in range(count)]
        await asyncio.to_thread(begun, server.url, count)
        server.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*asked)
    return Counter(reply.status for reply in replies), await asyncio.to_thread(server.process.wait, PATIENCE)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Small numbers.")] = False,
) -> None:
    """Load a server of the bundled model."""
    leaving = 40 if quick else 1000
    taken = 16 if quick else REQUESTS
    with serving("--max-requests", str(taken), "--drain-seconds", "300") as server:
        replies = asyncio.run(overload(server.url, taken))
        refused = [reply for reply in replies if reply.status == 503]
        accepted = [reply for reply in replies if reply.status == 200]
        leave(server.url, leaving // 4)  # fills caches and pools before the process is measured
        idle = settled(server.url)
        watched = psutil.Process(server.process.pid)
        before = watched.memory_info().rss
        leave(server.url, leaving)
        idle &= settled(server.url)
        after = watched.memory_info().rss
        grown = (after - before) / (1 << 20)
        left = gauge(httpx.get(f"{server.url}/metrics", timeout=PATIENCE), _LEFT)
        statuses, code = asyncio.run(ended(server, min(taken, 32)))
    if len(refused) + len(accepted) != 3 * taken or not all(reply.retry_after for reply in refused):
        raise SystemExit(f"answers came back as {Counter(reply.status for reply in replies)}")
    if not idle or set(statuses) != {200} or code != 0:
        raise SystemExit(f"idle: {idle}; at the end {statuses}, exit status {code}")
    times = sorted(1000 * reply.seconds for reply in refused)
    worst = max(times)
    rows = [
        Row(f"of {3 * taken} answers at once taken, all finished", str(len(accepted))),
        Row("refused with Retry-After, median", f"{statistics.median(times):.1f} ms"),
        Row("the slowest refusal", f"{worst:.1f} ms", "", worst, REFUSED_MS, at_most=True),
        Row(f"of {leaving + leaving // 4} clients that left, work given up", f"{left:.0f}"),
        Row("growth of the process by them", f"{grown:.1f} of {after >> 20} MiB", "", grown, GROWTH_MIB, at_most=True),
        Row("answers under way at SIGTERM, all finished", str(statuses[200])),
    ]
    facts: dict[str, object] = {
        "benchmark": "serve_load",
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
    }
    show(f"A server under load, pocket, {hardware('cpu')}", rows, facts, other="")


if __name__ == "__main__":
    typer.run(main)
