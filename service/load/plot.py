"""The picture of `aft bench serve`: what more throughput costs in latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.load.record import LoadError
from service.load.statistics import Figures


def library() -> Any:
    """matplotlib, drawing into files. LoadError where it is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise LoadError("--plot needs matplotlib: pip install matplotlib") from None
    mpl.use("agg")
    from matplotlib import pyplot

    return pyplot


def draw(model: str, measured: Sequence[Figures], path: Path) -> None:
    """Throughput against latency: a line a length of the prompt and kind of load."""
    figure, panels = library().subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    groups: dict[tuple[str, int], list[Figures]] = {}
    for point in measured:
        kind = "at once" if point.rate is None else "a second"
        groups.setdefault((kind, point.prompt_chars), []).append(point)
    for panel, title, name in ((panels[0], "first token", "first_token"), (panels[1], "a token", "per_token")):
        for (kind, length), points in groups.items():
            _line(panel, points, name, f"requests {kind}, prompts of {length:,}")
        panel.set(xlabel="tokens a second", ylabel="milliseconds", yscale="log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.set_title(title)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"{model} over HTTP: median, and dashed the 99th percentile")
    figure.savefig(path)
    library().close(figure)


def _line(panel: Any, points: Sequence[Figures], name: str, label: str) -> None:
    known = [point for point in points if getattr(point, name).p50 is not None]
    rates = [point.tokens_per_second for point in known]
    median = [1000 * getattr(point, name).p50 for point in known]
    drawn = panel.plot(rates, median, "o-", label=label)[0]
    panel.plot(rates, [1000 * getattr(point, name).p99 for point in known], "x--", color=drawn.get_color())
    for point, x, y in zip(known, rates, median, strict=True):
        panel.annotate(f"{point.concurrency or point.rate:g}", (x, y), textcoords="offset points", xytext=(4, 4))
