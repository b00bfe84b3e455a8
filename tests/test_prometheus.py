"""A real Prometheus scrapes a real server, and what it says of latencies is what the clients saw."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from bisect import bisect_left
from pathlib import Path
from typing import Any

import checkpoints_for_tests
import httpx
import live
import pytest

from service.load.statistics import FIRST_TOKEN, PER_TOKEN
from service.metrics import LATENCY_BUCKETS

PROMETHEUS = Path(__file__).parents[1] / "docker" / "prometheus.yml"
SLOTS = 2
# 8 at once for 2 slots: first tokens wait for others, so that they take longer than a busy machine's hiccups
QUEUED = {"model": "tiny", "concurrency": 8, "requests": 32, "max_tokens": 3_000}
# Nobody waits, so that a burst has many tokens, and whether a client reads it a little late does not matter; a token
# takes longer than the first bucket.
ALONE = {"model": "larger", "concurrency": SLOTS, "requests": 8, "max_tokens": 2_000}

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: make system-packages"
)


def configured(target: str, folder: Path) -> Path:
    """docker/prometheus.yml with another target, and a scrape a second."""
    text = PROMETHEUS.read_text()
    assert '"aft:8000"' in text
    text = text.replace("aft:8000", target)
    text = re.sub(r"(scrape_interval|scrape_timeout): \d+s", r"\1: 1s", text)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


class Server:
    """A Prometheus of its own, until ``end``."""

    def __init__(self, target: str, folder: Path) -> None:
        port = live.free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={configured(target, folder)}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"],
        )  # fmt: skip

    def ready(self) -> bool:
        """Whether it answers."""
        assert self.process.poll() is None
        try:
            return self.http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[float]:
        """The values of an instant query."""
        answer = self.http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        return [float(sample["value"][1]) for sample in answer.json()["data"]["result"]]

    def end(self) -> None:
        """End it."""
        self.http.close()
        self.process.terminate()
        self.process.wait(timeout=30)


def bench(url: str, load: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the clients of ``aft bench serve`` saw."""
    options = [word for name, value in load.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [live.AFT, "bench", "serve", url, "--warm-up", "0", *options, "--json", path]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (point,) = json.loads(path.read_text())["points"]
    return dict(point)


def bucket(seconds: float) -> int:
    """The number of the histogram's bucket that a latency falls into."""
    return bisect_left(LATENCY_BUCKETS, seconds)


def test_quantiles_of_a_scrape_are_those_of_the_clients(tmp_path: Path) -> None:
    """First tokens and time a token: p50, p90 and p99 within a bucket; requests and tokens to the last one."""
    checkpoints = live.make_checkpoints(tmp_path / "checkpoints")
    checkpoints_for_tests.characters(checkpoints / "larger", dim=256, num_layers=8)
    with live.serve(checkpoints, slots=SLOTS) as service:
        prometheus = Server(f"127.0.0.1:{service.port}", tmp_path)
        try:
            live.wait_until(prometheus.ready, 60)
            for load, metric, kind in ((QUEUED, FIRST_TOKEN, "first_token"), (ALONE, PER_TOKEN, "per_token")):
                model, requests = load["model"], load["requests"]
                point = bench(service.url, load, tmp_path / "figures.json")
                assert (point["num_ok"], point["failures"]) == (requests, {})
                # asked until a scrape has them: one that is too slow leaves no values
                total = f'sum(aft_requests_total{{model="{model}",outcome="length"}})'
                live.wait_until(lambda total=total, wanted=requests: prometheus.query(total) == [wanted])
                tokens = f'aft_generation_tokens_total{{model="{model}"}}'
                live.wait_until(lambda tokens=tokens: prometheus.query(tokens))
                assert prometheus.query(tokens) == [requests * load["max_tokens"]]
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                    query = f'histogram_quantile({share}, sum by (le) ({metric}_bucket{{model="{model}"}}))'
                    (scraped,) = prometheus.query(query)
                    where = f"{metric} {name}: Prometheus {scraped}, clients {point[kind][name]}"
                    assert abs(bucket(scraped) - bucket(point[kind][name])) <= 1, where
            live.wait_until(lambda: prometheus.query("up") == [1.0])
        finally:
            prometheus.end()


def test_a_service_that_is_gone_is_seen(tmp_path: Path) -> None:
    """``up`` falls to 0 where nothing answers, so that the test above does not read an old scrape."""
    prometheus = Server(f"127.0.0.1:{live.free_port()}", tmp_path)
    try:
        live.wait_until(prometheus.ready, 60)
        live.wait_until(lambda: prometheus.query("up") == [0.0], 30)
    finally:
        prometheus.end()
