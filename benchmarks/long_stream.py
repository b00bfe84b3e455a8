"""One long stream over HTTP: time per character and the server's memory, by position.

    python benchmarks/long_stream.py --chars 100000 --json FILE --plot FILE

Starts `aft serve` of its own on a free port, asks for one stream, and reads /proc of the server as it goes.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PIECE = 1000  # characters between two readings


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc: this needs Linux")


def wait_ready(url: str) -> None:
    """Until /readyz is 200."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server does not become ready")


def stream(url: str, pid: int, chars: int) -> list[dict[str, float]]:
    """Read one stream; a row each 1,000 characters."""
    body = {"model": "shakespeare", "prompt": "", "max_tokens": chars, "temperature": 0.8, "seed": 1, "stream": True}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    rows, seen, due, began = [], 0, PIECE, time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            seen += len(json.loads(line[6:])["choices"][0]["text"])
            if seen >= due:
                now = time.perf_counter()
                rows.append({"position": seen, "seconds": now - began, "anonymous_bytes": anonymous_bytes(pid)})
                due = seen + PIECE
    return rows


def plot(rows: list[dict[str, float]], path: Path) -> None:
    """Milliseconds a character, and megabytes, by position."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    times, memory = figure.subplots(2, sharex=True)
    pairs = list(itertools.pairwise(rows))
    each = [1e3 * (b["seconds"] - a["seconds"]) / (b["position"] - a["position"]) for a, b in pairs]
    times.plot([b["position"] for _, b in pairs], each, linewidth=0.8)
    times.set(ylabel="ms a character", ylim=(0, 2 * statistics.median(each)))
    memory.plot([row["position"] for row in rows], [row["anonymous_bytes"] / 1e6 for row in rows])
    memory.set(ylabel="anonymous memory, MB", xlabel="position", ylim=(0, 1.3 * rows[-1]["anonymous_bytes"] / 1e6))
    for axes in (times, memory):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Serve, stream, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chars", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("aft")), "serve", "--port", str(port), "--model", "shakespeare"]
    server = subprocess.Popen(command, env=os.environ)
    try:
        wait_ready(f"http://127.0.0.1:{port}")
        rows = stream(f"http://127.0.0.1:{port}", server.pid, arguments.chars)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    tenth = max(1, len(rows) // 10)

    def rate(part: list[dict[str, float]]) -> float:
        return 1e3 * (part[-1]["seconds"] - part[0]["seconds"]) / (part[-1]["position"] - part[0]["position"])

    result = {
        "characters": rows[-1]["position"],
        "milliseconds_a_character": rate(rows),
        "first_tenth": rate(rows[: tenth + 1]),
        "last_tenth": rate(rows[-tenth - 1 :]),
        "anonymous_bytes_after_first_tenth": rows[tenth]["anonymous_bytes"],
        "anonymous_bytes_at_end": rows[-1]["anonymous_bytes"],
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
