"""Draw what `aft bench decode --json` measured against what the machine allows: a point for each number of streams.

    python benchmarks/roofline.py benchmarks/results/decode_peers.json docs/pictures/roofline.png

The horizontal axis is arithmetic per byte read: weights are read once a step however many streams share them, states
once a stream. The roof is the machine's two limits: bandwidth times that intensity, and its rate of products.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(source: Path, picture: Path) -> None:
    """One picture."""
    facts = json.loads(source.read_text())
    machine = facts["machine"]
    flops_each = machine["flops_per_token"]
    rows = [f for f in facts["figures"] if f["who"] == machine["runtime"] and f["depth"] == 0 and f["limit"]]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for row in rows:
        streams = row["streams"]
        read = machine["weight_bytes"] + streams * machine["state_bytes"]
        intensity = streams * flops_each / read
        rate = row["per_second"] * flops_each / 1e9
        axes.plot([intensity], [row["limit"] * flops_each / 1e9], "_", color="tab:gray", markersize=28)
        axes.errorbar(
            [intensity], [rate], yerr=[[rate - row["low"] * flops_each / 1e9], [row["high"] * flops_each / 1e9 - rate]],
            fmt="o", color="tab:blue", capsize=3,
        )  # fmt: skip
        axes.annotate(f"{streams}", (intensity, rate), textcoords="offset points", xytext=(8, -4))
    axes.axhline(machine["peak_flops"] / 1e9, color="tab:gray", linewidth=1)
    axes.set(
        xscale="log", yscale="log",
        xlabel="operations per byte of weights and states", ylabel="10^9 operations a second",
        title=f"{facts['model']}: 1 ... {rows[-1]['streams']} streams (dots) and their limits (bars)",
    )  # fmt: skip
    figure.text(
        0.01, 0.01, f"{machine['cpu']}, {machine['isa']}, threads: {machine['threads']}, {machine['date']}", fontsize=7
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
