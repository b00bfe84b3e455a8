"""What it costs to draw many samples of one prompt, beside as many prompts of the same text: over HTTP, by turns.

    python benchmarks/samples.py http://127.0.0.1:8000 --json benchmarks/results/samples.json

The service, on the native runtime, must have as many slots and places as there are samples.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from model.machine import facts

WORDS = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate. "


def ask(url: str, **body: Any) -> tuple[float, list[str]]:
    """Seconds of a completion, and the texts of its choices."""
    raw = json.dumps({"max_tokens": 1, "seed": 1, **body}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", raw, {"content-type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as answer:
        choices = json.load(answer)["choices"]
    return time.perf_counter() - began, [choice["text"] for choice in choices]


def main() -> int:
    """A row a round; status 1 where the first sample is not the one that a prompt alone gets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", default="shakespeare")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--chars", type=int, default=4096, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    prompt = (WORDS * (arguments.chars // len(WORDS) + 1))[: arguments.chars]
    rows, same = [], True
    for _ in range(arguments.rounds):
        together, samples = ask(arguments.url, model=arguments.model, prompt=prompt, n=arguments.count)
        apart, alone = ask(arguments.url, model=arguments.model, prompt=[prompt] * arguments.count)
        same &= samples[0] == alone[0]
        rows.append({"samples_seconds": together, "prompts_seconds": apart})
        print(f"{arguments.count} samples {together:.3f} s, {arguments.count} prompts {apart:.3f} s", flush=True)
    if arguments.json:
        plan = {"count": arguments.count, "chars": arguments.chars, "model": arguments.model}
        arguments.json.write_text(json.dumps({**facts(), **plan, "rounds": rows}, indent=1) + "\n")
    return int(not same)


if __name__ == "__main__":
    raise SystemExit(main())
