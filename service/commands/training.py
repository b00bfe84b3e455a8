"""``aft train`` at a terminal: what was chosen, a progress bar, where the checkpoint is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model import curve
from model.recipe import Recipe, make
from model.runs import calibrate, fit_minutes
from model.runs import train as run_recipe
from model.train import Trainer

KEPT = "recipe.json"


def own_recipe(name: str, source: Path, minutes: float, seed: int, runs: Path) -> Recipe:
    """The recipe for a text of one's own: the one that an interrupted run chose, or one that fits the minutes."""
    kept, asked = runs / name / KEPT, {"corpus": str(source), "minutes": minutes, "seed": seed}
    if kept.exists():
        try:
            content = json.loads(kept.read_bytes())
            before, known = content["asked"], content["recipe"]
            told = ", ".join(f"{key} {value}" for key, value in before.items())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{kept} is damaged ({error!r}); remove it to start again") from None
        if before == asked:
            return make(str(kept), known)
        raise ValueError(f"{kept.parent} holds a run with {told}; remove it or choose another name")
    recipe = fit_minutes(name, str(source), minutes, seed)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"asked": asked, "recipe": recipe.model_dump(mode="json")}, indent=2) + "\n")
    return recipe


def run(
    recipe: Recipe, folder: Path, target: Path, tensorboard: Path | None = None, *, calibrated: bool = False
) -> None:
    """Train with a progress bar, and perhaps calibrate; the bar and the curve belong to the first process.

    ValueError where ``target`` holds a model of another corpus: it would be lost.
    """
    _check_target(recipe, target)
    quiet = os.environ.get("RANK", "0") != "0"
    console = Console(quiet=quiet, stderr=True)
    chosen = ", ".join(f"{key} {value}" for key, value in recipe.model.items()) or "as the preset"
    unit = "characters" if recipe.kind == "text" else "sub-pixels"
    length = recipe.length if recipe.kind == "text" else recipe.size**2 * 3
    size = f"{recipe.steps} steps of {recipe.batch} x {length} {unit}"
    console.print(f"{recipe.name}: preset {recipe.preset} ({chosen}), {size}")
    write = _tensorboard(tensorboard) if tensorboard and not quiet else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=recipe.steps)

        def after_step(trainer: Trainer, loss: float) -> None:
            rate = recipe.batch * length * trainer.steps_done / trainer.seconds
            text = f"{loss:.3f} bits each, {rate:,.0f} {unit}/s"
            progress.update(task, completed=trainer.steps_done, description=text)

        def report(row: curve.Row) -> None:
            bits = f"training {row['train_bpc']:.3f}, validation {row['validation_bpc']:.3f} bits each"
            console.print(f"step {row['step']:.0f}: {bits}")
            if write is not None:
                write(row)

        run_recipe(recipe, folder, target, report, after_step)
    if calibrated and not quiet:
        try:
            found = calibrate(target, None)
            console.print(f"calibrated: validation {found.before:.3f} -> {found.bits:.3f} bits each")
        except ValueError as error:
            console.print(f"not calibrated: {error}")
    console.print(f"{target}: serve it with `aft serve`, or write with `aft generate --model {recipe.name}`")


def _check_target(recipe: Recipe, target: Path) -> None:
    try:
        known = json.loads((target / "config.json").read_bytes())["training"]["recipe"]["corpus"]
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError):
        known = "one that it does not name"
    if known != recipe.corpus:
        raise ValueError(
            f"{target} holds a model of another corpus, {known}: choose another name, or another --checkpoints"
        )


def _tensorboard(folder: Path) -> Callable[[curve.Row], None]:
    """Writes each row of the curve as scalars. ValueError where the extra is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the extra: pip install -e '.[tensorboard]'") from error
    writer = SummaryWriter(str(folder))

    def write(row: curve.Row) -> None:
        for name in ("train_bpc", "validation_bpc", "chars_per_second"):
            writer.add_scalar(name, row[name], int(row["step"]))
        writer.flush()

    return write
