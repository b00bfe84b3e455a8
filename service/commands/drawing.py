"""``aft generate --image``: a PNG file, and a preview in the terminal while it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from model.generate import draw
from model.pixels import Pixels, to_png


def run(folder: Path, out: Path, label: str, style: str, name: str, **how: Any) -> None:
    """Draw, show, write. ``how`` and the errors are those of ``model.generate.draw``."""
    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        for image in draw(folder, label, style, name, **how):
            live.update(preview(image), refresh=True)
    out.write_bytes(to_png(image))


def preview(image: Pixels) -> Text:
    """Two rows of pixels a line: the upper half block in the upper pixel's colour on the lower one's."""
    text = Text()
    for top in range(0, image.shape[0], 2):
        upper, lower = image[top], image[min(top + 1, image.shape[0] - 1)]
        for above, below in zip(upper, lower, strict=True):
            colours = [f"rgb({r},{g},{b})" for r, g, b in (above, below)]
            text.append("\u2580", style=f"{colours[0]} on {colours[1]}")
        text.append("\n")
    return text
