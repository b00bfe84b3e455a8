"""A real Prometheus scrapes a real server, and what it says of latencies is what the clients saw."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from bisect import bisect_left
from pathlib import Path

import httpx
import live
import pytest

from service.load.statistics import FIRST_TOKEN, PER_TOKEN
from service.metrics import LATENCY_BUCKETS

PROMETHEUS = Path(__file__).parents[1] / "docker" / "prometheus.yml"
REQUESTS, TOKENS = 32, 3_000
SLOTS = 2  # of 8 at once: first tokens wait for others, so that they take longer than a busy machine's hiccups

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


def bucket(seconds: float) -> int:
    """The number of the histogram's bucket that a latency falls into."""
    return bisect_left(LATENCY_BUCKETS, seconds)


def test_quantiles_of_a_scrape_are_those_of_the_clients(tmp_path: Path) -> None:
    """First tokens and time a token: p50, p90 and p99 within a bucket; requests and tokens to the last one."""
    checkpoints = live.make_checkpoints(tmp_path / "checkpoints")
    figures = tmp_path / "figures.json"
    with live.serve(checkpoints, slots=SLOTS) as service:
        prometheus = Server(f"127.0.0.1:{service.port}", tmp_path)
        try:
            live.wait_until(prometheus.ready, 60)
            command = [
                live.AFT, "bench", "serve", service.url, "--model", "tiny", "--concurrency", "8", "--warm-up", "0",
                "--requests", str(REQUESTS), "--max-tokens", str(TOKENS), "--json", figures,
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            total = 'sum(aft_requests_total{model="tiny",outcome="length"})'
            live.wait_until(lambda: prometheus.query(total) == [REQUESTS], 30)
            assert prometheus.query('aft_generation_tokens_total{model="tiny"}') == [REQUESTS * TOKENS]
            assert prometheus.query("up") == [1.0]
            (point,) = json.loads(figures.read_text())["points"]
            assert (point["num_ok"], point["failures"]) == (REQUESTS, {})
            for metric, client in ((FIRST_TOKEN, point["first_token"]), (PER_TOKEN, point["per_token"])):
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                    query = f'histogram_quantile({share}, sum by (le) ({metric}_bucket{{model="tiny"}}))'
                    (scraped,) = prometheus.query(query)
                    where = f"{metric} {name}: Prometheus {scraped}, clients {client[name]}"
                    assert abs(bucket(scraped) - bucket(client[name])) <= 1, where
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
