"""The loss curve of a run: rows in memory and in the resumable state, a CSV and a PNG for people."""

from __future__ import annotations

import csv
from pathlib import Path

FIELDS = ("step", "chars", "seconds", "train_bpc", "validation_bpc", "chars_per_second", "num_scanned")
Row = dict[str, float]


def write_csv(rows: list[Row], path: Path) -> None:
    """All rows, oldest first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{row[name]:.6g}" for name in FIELDS})


def write_png(rows: list[Row], path: Path, title: str, unit: str) -> None:
    """Bits against what was seen; ``unit``: what a token is, a character or a sub-pixel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    millions = [row["chars"] / 1e6 for row in rows]
    for name, label in (("train_bpc", "training"), ("validation_bpc", "validation split")):
        axes.plot(millions, [row[name] for row in rows], marker=".", label=label)
    lowest = min(min(row["train_bpc"], row["validation_bpc"]) for row in rows)
    axes.set(
        xlabel=f"{unit}s seen, millions", ylabel=f"bits per {unit}", title=title, ylim=(lowest - 0.1, lowest + 1.4)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
